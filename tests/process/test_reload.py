"""A reload changes everything or nothing, and no client notices."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]


def server(
    model: str = "threading", name: str = "a", listen: str = "tcp://127.0.0.1:0", more: str = ""
) -> str:
    return f'[server.{name}]\nlisten = "{listen}"\nhandler = "talk"\nconcurrency = "{model}"\n{more}\n'


def in_thread(call, *arguments, **more):
    """Make a call in a thread; return a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call(*arguments, **more)))
    thread.start()

    def result():
        thread.join()
        return results[0]

    return result


# ---- under load


class Talkers:
    """Clients that stay connected, and say a numbered line each, again and again, until the end of `with`."""

    def __init__(self, connect, count):
        self._sockets = [connect() for _ in range(count)]
        self._files = [sock.makefile("rb") for sock in self._sockets]
        self._stop = threading.Event()
        self._result = in_thread(self._talk)
        self.rounds = 0
        self.lost = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._result()
        for thing in (*self._files, *self._sockets):
            thing.close()

    def _talk(self):
        while not self._stop.wait(0.01) and not self.lost:
            for sock in self._sockets:
                with contextlib.suppress(OSError):  # which its missing reply tells
                    sock.sendall(b"%d\n" % self.rounds)
            for file in self._files:
                try:
                    answer = file.readline()
                except OSError as error:
                    answer = repr(error).encode()
                if answer.split()[:1] != [b"%d" % self.rounds]:
                    self.lost.append((self.rounds, answer))
            self.rounds += 1


@pytest.mark.parametrize("model", MODELS)
def test_who_stays_connected_loses_nothing_while_srvkit_reloads(
    model, managed, talking, available, eventually
):
    """A worker that was replaced serves its connections to their end; who is new meets the new code."""
    available(model)
    managed.write(server(model))
    managed.begin()
    address = managed.address()
    with Talkers(lambda: managed.connect(address), 1 if model == "serial" else 10) as it:
        for turn in range(4):
            eventually(lambda rounds=it.rounds: it.rounds > rounds + 2 or it.lost)
            word = b"gen%d" % turn
            managed.write(server(model), talking.replace('b"one"', f"{word!r}"))
            managed.reload()
            with managed.talk(b"hello", address) as answers:
                assert answers.readline().split()[1] == word
        eventually(lambda rounds=it.rounds: it.rounds > rounds + 2 or it.lost)
        assert it.lost == []
        states = [worker["state"] for worker in managed.server()["workers"]]
        assert sorted(states) == ["ready", "retiring"]
    eventually(lambda: len(managed.server()["workers"]) == 1)
    assert managed.program.end() == 0


@pytest.mark.parametrize("model", ["threading", "event"])
def test_who_connects_once_a_reload_is_answered_meets_the_new_configuration(model, managed, talking):
    """WorkerPool that retire have left the queue by then."""
    table = server(model, more="workers = 2")
    managed.write(table)
    managed.begin()
    address = managed.address()
    for turn in range(8):
        word = b"one" if turn % 2 else b"two"
        managed.write(table, talking.replace('b"one"', f"{word!r}"))
        managed.reload()
        words = set()
        for _ in range(10):
            with managed.talk(b"hello", address) as answers:
                words.add(answers.readline().split()[1])
        assert words == {word}


@pytest.mark.parametrize("model", ["serial", "threading", "event"])
def test_no_client_is_lost_while_an_address_grows_and_shrinks(model, managed, load):
    """Neither is one by another spelling of the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "[::]",
        "127.1",
        "[::0]",
        "127.0.0.1",
        "0.0.0.0",
        "127.0.0.1",
    ]
    if not socket.has_dualstack_ipv6():
        hosts = [host for host in hosts if ":" not in host]
    managed.write(server(model, listen=f"tcp://{hosts[0]}:{port}"))
    managed.begin()
    with load(lambda: socket.create_connection(("127.0.0.1", port), 30)) as it:
        for host in hosts[1:]:
            managed.write(server(model, listen=f"tcp://{host}:{port}"))
            managed.reload()
    it.verify()
    assert managed.address() == f"tcp://127.0.0.1:{port}"
    assert managed.program.end() == 0


def reload_under_load(managed, load, times, name="a"):
    """Reload one after the other while clients come; return the load, all of whose requests were answered."""
    address = managed.address(name)
    with load(lambda: managed.connect(address)) as it:
        for generation in range(2, times + 2):
            managed.hup()
            managed.program.wait_for(f"reloaded: this is generation {generation}$")
    it.verify()
    return it


@pytest.mark.parametrize("model", MODELS)
def test_every_request_is_answered_once_while_srvkit_reloads(model, managed, load, available, eventually):
    available(model)
    managed.write(server(model))
    managed.begin()
    gate = managed.gate("release")
    with managed.talk(b"hold") as held:
        assert held.readline() == b"holding\n"
        gate.reached()
        if model in ("serial", "event", "asyncio", "gevent"):  # the only one that could serve is at it
            gate.open()
            it = reload_under_load(managed, load, 3)
        else:
            it = reload_under_load(managed, load, 3)
            gate.open()
        assert held.readline().startswith(b"hold one ")
    eventually(lambda: len(managed.server()["workers"]) == 1)
    assert managed.server()["counters"]["accepted"] == len(it.answers) + 1
    assert managed.server()["counters"]["lost"] == 0
    assert "Traceback" not in managed.program.log


def test_ten_reloads_at_three_a_second_lose_nothing(managed, load, eventually):
    managed.write(server("event", more="workers = 2"))
    managed.begin()
    address = managed.address()
    with load(lambda: managed.connect(address), rate=250) as it:
        began = time.monotonic()
        for number in range(10):
            time.sleep(max(0.0, began + number * 0.3 - time.monotonic()))
            managed.hup()
        managed.reload()
    it.verify()
    eventually(lambda: len(managed.server()["workers"]) == 2)
    assert managed.server()["counters"]["accepted"] == len(it.answers)


@pytest.mark.parametrize("model", MODELS)
def test_who_has_just_connected_is_served_to_the_end(model, managed, available, eventually):
    available(model)
    managed.write(server(model))
    managed.begin()
    with managed.connect() as sock, contextlib.ExitStack() as stack:
        silent = None if model == "serial" else stack.enter_context(managed.connect())
        eventually(lambda: managed.server()["counters"]["open"] == (2 if silent else 1))
        managed.reload()
        sock.sendall(b"hello\n")
        with sock.makefile("rb") as file:
            assert file.readline().startswith(b"hello one ")
            sock.sendall(b"again\n")
            assert file.readline().startswith(b"again one ")
        if silent:
            silent.sendall(b"hello\n")
            assert silent.recv(100).startswith(b"hello one ")
    assert managed.program.end() == 0


@pytest.mark.parametrize("listen", ["unix:a.sock", "unix:@{name}", "udp://127.0.0.1:0", "unixgram:a.sock"])
def test_every_request_is_answered_on_other_transports(listen, managed, load):
    managed.write(server("event", listen=listen.format(name=f"srvkit-test-{os.getpid()}")))
    managed.begin()
    if "@" in listen:
        name = "\0" + f"srvkit-test-{os.getpid()}"

        def connect():
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(30)
            sock.connect(name)
            return sock

        with load(connect) as it:
            managed.reload()
            managed.reload()
        it.verify()
    else:
        reload_under_load(managed, load, 2)


def test_the_listening_socket_stays_the_same(managed):
    managed.write(server(listen="unix:a.sock") + server(name="b"))
    managed.begin()
    before = (managed.folder / "a.sock").stat().st_ino, managed.address("b")
    managed.reload()
    assert ((managed.folder / "a.sock").stat().st_ino, managed.address("b")) == before


# ---- what is new


def test_changed_code_is_served_also_when_neither_size_nor_time_show_it(managed, talking):
    helper = managed.folder / "helper.py"
    plugin = talking.replace('b"one"', 'b"one" + __import__("helper").NAME')
    helper.write_text('NAME = b"alpha"\n')
    os.utime(helper, (1_000_000_000, 1_000_000_000))
    managed.write(server(), plugin)
    os.utime(managed.folder / "plugin.py", (1_000_000_000, 1_000_000_000))
    managed.begin()
    assert managed.answer().startswith(b"hello onealpha ")
    helper.write_text('NAME = b"gamma"\n')
    os.utime(helper, (1_000_000_000, 1_000_000_000))
    managed.write(server(), plugin.replace('b"one"', 'b"two"'))
    os.utime(managed.folder / "plugin.py", (1_000_000_000, 1_000_000_000))
    managed.reload()
    assert managed.answer().startswith(b"hello twogamma ")


def test_an_added_server_is_bound_before_a_removed_one_goes(managed, eventually):
    managed.write(server(listen="unix:a.sock"))
    managed.begin()
    gate = managed.gate()
    managed.write(server(name="b", listen="unix:b.sock"))
    reloaded = in_thread(managed.ask, do="reload", all=True)
    gate.reached()
    assert (managed.folder / "b.sock").exists()
    assert managed.answer(b"still", "unix:a.sock").startswith(b"still one ")
    gate.open()
    assert reloaded()["ok"]
    assert managed.answer(b"now", "unix:b.sock").startswith(b"now one ")
    assert not (managed.folder / "a.sock").exists()
    eventually(lambda: [one["name"] for one in managed.ask(do="status")["servers"]] == ["b"])


@pytest.mark.parametrize("model", ["serial", "forking"])
def test_the_queue_of_a_removed_server_is_served(model, managed, eventually):
    more = "" if model == "serial" else "limits = { max_connections = 1 }"
    managed.write(server(model, listen="unix:a.sock", more=more) + server(name="b"))
    managed.begin()
    gate = managed.gate("release")
    with managed.talk(b"hold", "unix:a.sock") as held:
        assert held.readline() == b"holding\n"
        queued = [managed.talk(b"%d" % number, "unix:a.sock") for number in range(3)]
        managed.write(server(name="b"))
        managed.reload()
        eventually(lambda: not (managed.folder / "a.sock").exists())
        gate.open()
        assert held.readline().startswith(b"hold ")
    for number, file in enumerate(queued):
        assert file.readline().startswith(b"%d one " % number)
        file.close()
    assert managed.program.end() == 0


def test_a_server_that_moves_is_reached_at_its_new_address(managed):
    managed.write(server())
    managed.begin()
    before = managed.address()
    managed.write(server(listen="tcp://127.0.0.2:0"))
    managed.reload()
    assert managed.address().startswith("tcp://127.0.0.2:")
    assert managed.answer().startswith(b"hello ")
    with pytest.raises(ConnectionRefusedError):
        for _ in range(1000):  # until the last worker that listened there has heard of it
            managed.connect(before).close()


def test_another_model_and_more_workers(managed, eventually):
    managed.write(server("threading"))
    managed.begin()
    managed.write(server("event", more="workers = 3"))
    managed.reload()
    assert managed.server()["model"] == "event"
    assert len(managed.workers()) == 3
    eventually(lambda: len(managed.server()["workers"]) == 3)
    assert managed.answer().startswith(b"hello ")


def test_limits_and_the_log_take_their_new_settings(managed):
    managed.write(server())
    managed.begin()
    assert managed.answer(b"x" * 50).startswith(b"xxx")
    managed.write(server(more="limits.max_message = 20") + '[logging]\nlevel = "debug"\nformat = "json"\n')
    managed.reload()
    assert managed.answer(b"x" * 50) == b""
    managed.program.wait_for(r'^\{.*"level": ?"debug"')
    assert managed.program.end() == 0
    assert managed.program.log.splitlines()[-1].startswith("{")


# ---- what is broken

GOOD = server()
TAKEN = "the address that is taken"
BROKEN = {
    "syntax": (lambda s, p: ("[server.a", p), r"srvkit\.toml:\d+"),
    "key": (
        lambda s, p: (s + 'workerz = "auto"\n', p),
        "server.a.workerz: unknown key, did you mean 'workers'",
    ),
    "type": (lambda s, p: (s + "workers = true\n", p), "server.a.workers"),
    "handler": (lambda s, p: (s.replace('"talk"', '"tlak"'), p), "tlak"),
    "model": (lambda s, p: (s.replace('"talk"', '"block"').replace("threading", "event"), p), "event"),
    "address": (lambda s, p: (s + server(name="b", listen=TAKEN), p), "in use"),
    "name": (lambda s, p: (s, p), r"plugin.py: offers handler '\w+', and so does plugin second.py"),
    "missing": (lambda s, p: (s, "import no_such_module\n" + p), "plugin.py.*no_such_module"),
    "code": (lambda s, p: (s, p + "\ndef broken(:\n"), "plugin.py.*SyntaxError"),
    "exit": (lambda s, p: (s, "import sys\nsys.exit(0)\n"), "plugin.py.*SystemExit"),
    "abrupt": (lambda s, p: (s, "import os\nos._exit(0)\n"), "ended with status 0"),
    "crash": (lambda s, p: (s, "import ctypes\nctypes.string_at(0)\n"), "was killed by SIGSEGV"),
    "hanging": (lambda s, p: (s, "import time\ntime.sleep(1000)\n"), "within ready_timeout"),
    "startup": (
        lambda s, p: (s, p.replace('wait_at("gate")', 'raise OSError("no database")')),
        "no database",
    ),
    "never": (lambda s, p: (s, p.replace('wait_at("gate")', "time.sleep(1000)")), "a: not ready within"),
    "death": (lambda s, p: (s, p.replace('wait_at("gate")', "os._exit(9)")), "a: .*status 9"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_changes_nothing_and_is_said_to_whoever_asked(kind, managed, talking):
    breaking, said = BROKEN[kind]
    managed.write(GOOD)
    managed.begin()
    before, address = managed.workers(), managed.address()
    servers, plugin = breaking(GOOD, talking)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        servers = servers.replace(TAKEN, f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        general = 'ready_timeout = "700ms"' if kind in ("hanging", "never") else ""
        managed.write(servers, plugin, general)
        if kind == "name":
            (managed.folder / "second.py").write_text(talking)
            config = managed.folder / "srvkit.toml"
            config.write_text(config.read_text().replace('["plugin.py"]', '["second.py", "plugin.py"]'))
        done = managed.command("reload")
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert re.search(said, done.stderr), done.stderr
    assert all(line.startswith("srvkit: ") for line in done.stderr.splitlines())
    for line in done.stderr.splitlines():
        managed.program.wait_for(re.escape(line.removeprefix("srvkit: ")))
    status = managed.ask(do="status")
    assert status["generation"] == 1
    assert status["last_reload"]["ok"] is False
    assert managed.workers() == before
    assert managed.address() == address
    assert managed.answer().startswith(b"hello ")
    managed.write(GOOD)
    managed.reload()
    assert managed.answer().startswith(b"hello ")
    assert managed.program.end() == 0


def test_every_error_of_a_file_is_in_the_answer(managed):
    managed.write(server())
    managed.begin()
    managed.write(server(more='workerz = 1\nhandlr = "x"') + '[logging]\nlevel = "loud"\n')
    errors = managed.ask(do="reload")["errors"]
    assert len(errors) == 3
    assert all(re.search(r"srvkit\.toml:\d+: ", line) for line in errors)


def test_a_file_that_is_gone_changes_nothing(managed):
    managed.write(server())
    managed.begin()
    before = managed.workers()
    (managed.folder / "srvkit.toml").unlink()
    managed.hup()
    managed.program.wait_for("reload failed; still serving the previous configuration$")
    assert managed.workers() == before


@pytest.mark.parametrize(
    "place",
    [
        'pid_file = "no/folder/a.pid"',
        'pid_file = "plugin.py"',
        'control = "no/folder/a.sock"',
        'control = "plugin.py"',
    ],
)
def test_a_place_that_cannot_be_had_fails_the_reload(place, managed):
    managed.write(server(), general='pid_file = "old.pid"')
    managed.begin()
    managed.write(server(), general=place)
    answer = managed.ask(do="reload")
    assert not answer["ok"]
    assert len(answer["errors"]) == 1 and re.search("cannot be (made|written)", answer["errors"][0])
    assert (managed.folder / "old.pid").read_text() == f"{managed.program.pid}\n"
    assert managed.ask(do="status")["generation"] == 1
    assert managed.program.end() == 0
    assert "Traceback" not in managed.program.log


def test_places_that_a_failed_reload_had_taken_are_given_back(managed, talking, eventually):
    managed.write(server())
    managed.begin()
    before = managed.ask(do="status")["pid"]
    fds = Path(f"/proc/{before}/fd")
    count = len(list(fds.iterdir()))
    places = 'pid_file = "new.pid"\ncontrol = "new.sock"'
    managed.write(server(), talking.replace('wait_at("gate")', "raise OSError('no database')"), places)
    assert "no database" in managed.ask(do="reload")["errors"][0]
    assert not list(managed.folder.glob("new.*"))
    eventually(lambda: len(list(fds.iterdir())) <= count)
    managed.write(server(), talking, places)
    assert managed.ask(do="reload")["ok"]
    assert (managed.folder / "new.pid").read_text() == f"{before}\n"
    assert managed.command("status").returncode == 0
    assert (managed.folder / "new.sock").is_socket()
    assert managed.program.end() == 0
    assert not list(managed.folder.glob("new.*"))


def test_what_a_failed_reload_had_bound_is_free_again(managed, talking):
    managed.write(server())
    managed.begin()
    managed.write(
        server() + server(name="b", listen="unix:b.sock"),
        talking.replace('wait_at("gate")', "assert server.name != 'b'"),
    )
    assert not managed.ask(do="reload")["ok"]
    assert not (managed.folder / "b.sock").exists()
    assert [one["name"] for one in managed.ask(do="status")["servers"]] == ["a"]


@pytest.mark.parametrize("ending", ["", "time.sleep(1000)"], ids=["tried out", "given up"])
def test_what_a_plugin_starts_while_it_is_tried_out_ends_with_that(ending, managed, talking, eventually):
    managed.write(server())
    managed.begin()
    starting = "subprocess.Popen(['sleep', '1000'])"
    general = "ready_timeout = 1" if ending else ""
    managed.write(server(), f"{talking}\n{starting}\n{ending}\n", general)
    assert managed.ask(do="reload")["ok"] is not bool(ending)

    def beside():
        return set(managed.processes()) - {managed.program.pid, *managed.workers()}

    eventually(lambda: len(beside()) == (0 if ending else 1))  # one that was killed is there for a moment
    for pid in beside():
        assert [os.getsid(pid)] == managed.workers()
        os.kill(pid, signal.SIGKILL)
    assert managed.program.end() == 0


# ---- several at once


def test_reloads_coalesce_and_all_who_asked_are_answered(managed):
    managed.write(server())
    managed.begin()
    gate = managed.gate()
    first = in_thread(managed.ask, do="reload", all=True)
    gate.reached()
    for _ in range(50):
        managed.hup()
    later = [in_thread(managed.ask, do="reload", all=True) for _ in range(3)]
    assert managed.ask(do="status")["state"] == "reloading"
    gate.open()
    answer = first()
    assert (answer["ok"], answer["generation"]) == (True, 2)
    assert {answer()["generation"] for answer in later} <= {3, 4}
    assert managed.ask(do="status")["generation"] <= 4


def test_a_storm_of_hups_makes_few_generations(managed):
    managed.write(server())
    managed.begin()
    for _ in range(50):
        managed.hup()
    managed.reload()
    assert managed.ask(do="status")["generation"] <= 5
    assert managed.program.log.count("reloaded: ") <= 4


def test_a_reload_while_the_last_ones_still_drain(managed, eventually):
    managed.write(server())
    managed.begin()
    gate = managed.gate("release")
    with managed.talk(b"hold") as held:
        assert held.readline() == b"holding\n"
        managed.reload()
        managed.reload()
        managed.reload()
        assert sorted(one["state"] for one in managed.server()["workers"]).count("retiring") >= 1
        gate.open()
        assert held.readline().startswith(b"hold one ")
    eventually(lambda: len(managed.server()["workers"]) == 1)


def test_a_stop_wins_over_a_reload(managed):
    managed.write(server())
    managed.begin()
    gate = managed.gate()
    answer = in_thread(managed.ask, do="reload", all=True)
    gate.reached()
    assert managed.program.end() == 0
    assert answer()["errors"]
    assert "listening" not in managed.program.log.partition("reloading")[2]
    gate.open()


def test_no_descriptor_is_left_by_reloads(managed, eventually):
    managed.write(server())
    managed.begin()

    def descriptors():
        eventually(lambda: len(managed.server()["workers"]) == 1)
        return len(os.listdir(f"/proc/{managed.program.pid}/fd"))

    managed.reload()
    before = descriptors()
    for _ in range(3):
        managed.reload()
    eventually(lambda: descriptors() <= before)
