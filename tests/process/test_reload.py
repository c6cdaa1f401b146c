"""A reload changes everything or nothing, and no client notices."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import pytest

from tests.conftest import Eventually
from tests.process.conftest import Load, Managed
from tests.process.talking_servers import server

MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]


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


def test_ten_reloads_at_three_a_second_lose_nothing(
    managed: Managed, load: type[Load], eventually: Eventually
) -> None:
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


def test_the_listening_socket_stays_the_same(managed: Managed) -> None:
    managed.write(server("threading", listen="unix:a.sock") + server("threading", name="b"))
    managed.begin()
    before = (managed.folder / "a.sock").stat().st_ino, managed.address("b")
    managed.reload()
    assert ((managed.folder / "a.sock").stat().st_ino, managed.address("b")) == before


# ---- what is new


def test_changed_code_is_served_also_when_neither_size_nor_time_show_it(
    managed: Managed, talking: str
) -> None:
    helper = managed.folder / "helper.py"
    plugin = talking.replace('b"one"', 'b"one" + __import__("helper").NAME')
    helper.write_text('NAME = b"alpha"\n')
    os.utime(helper, (1_000_000_000, 1_000_000_000))
    managed.write(server("threading"), plugin)
    os.utime(managed.folder / "plugin.py", (1_000_000_000, 1_000_000_000))
    managed.begin()
    assert managed.answer().startswith(b"hello onealpha ")
    helper.write_text('NAME = b"gamma"\n')
    os.utime(helper, (1_000_000_000, 1_000_000_000))
    managed.write(server("threading"), plugin.replace('b"one"', 'b"two"'))
    os.utime(managed.folder / "plugin.py", (1_000_000_000, 1_000_000_000))
    managed.reload()
    assert managed.answer().startswith(b"hello twogamma ")


def test_an_added_server_is_bound_before_a_removed_one_goes(managed: Managed, eventually: Eventually) -> None:
    managed.write(server("threading", listen="unix:a.sock"))
    managed.begin()
    gate = managed.gate()
    managed.write(server("threading", name="b", listen="unix:b.sock"))
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
    managed.write(server(model, listen="unix:a.sock", more=more) + server("threading", name="b"))
    managed.begin()
    gate = managed.gate("release")
    with managed.talk(b"hold", "unix:a.sock") as held:
        assert held.readline() == b"holding\n"
        queued = [managed.talk(b"%d" % number, "unix:a.sock") for number in range(3)]
        managed.write(server("threading", name="b"))
        managed.reload()
        eventually(lambda: not (managed.folder / "a.sock").exists())
        gate.open()
        assert held.readline().startswith(b"hold ")
    for number, file in enumerate(queued):
        assert file.readline().startswith(b"%d one " % number)
        file.close()
    assert managed.program.end() == 0


def test_a_server_that_moves_is_reached_at_its_new_address(managed: Managed) -> None:
    managed.write(server("threading"))
    managed.begin()
    before = managed.address()
    managed.write(server("threading", listen="tcp://127.0.0.2:0"))
    managed.reload()
    assert managed.address().startswith("tcp://127.0.0.2:")
    assert managed.answer().startswith(b"hello ")
    with pytest.raises(ConnectionRefusedError):
        for _ in range(1000):  # until the last worker that listened there has heard of it
            managed.connect(before).close()


def test_another_model_and_more_workers(managed: Managed, eventually: Eventually) -> None:
    managed.write(server("threading"))
    managed.begin()
    managed.write(server("event", more="workers = 3"))
    managed.reload()
    assert managed.server()["model"] == "event"
    assert len(managed.workers()) == 3
    eventually(lambda: len(managed.server()["workers"]) == 3)
    assert managed.answer().startswith(b"hello ")


def test_limits_and_the_log_take_their_new_settings(managed: Managed) -> None:
    managed.write(server("threading"))
    managed.begin()
    assert managed.answer(b"x" * 50).startswith(b"xxx")
    managed.write(
        server("threading", more="limits.max_message = 20") + '[logging]\nlevel = "debug"\nformat = "json"\n'
    )
    managed.reload()
    assert managed.answer(b"x" * 50) == b""
    managed.program.wait_for(r'^\{.*"level": ?"debug"')
    assert managed.program.end() == 0
    assert managed.program.log.splitlines()[-1].startswith("{")


# ---- several at once


def test_reloads_coalesce_and_all_who_asked_are_answered(managed: Managed) -> None:
    managed.write(server("threading"))
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


def test_a_storm_of_hups_makes_few_generations(managed: Managed) -> None:
    managed.write(server("threading"))
    managed.begin()
    for _ in range(50):
        managed.hup()
    managed.reload()
    assert managed.ask(do="status")["generation"] <= 5
    assert managed.program.log.count("reloaded: ") <= 4


def test_a_reload_while_the_last_ones_still_drain(managed: Managed, eventually: Eventually) -> None:
    managed.write(server("threading"))
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


def test_a_stop_wins_over_a_reload(managed: Managed) -> None:
    managed.write(server("threading"))
    managed.begin()
    gate = managed.gate()
    answer = in_thread(managed.ask, do="reload", all=True)
    gate.reached()
    assert managed.program.end() == 0
    assert answer()["errors"]
    assert "listening" not in managed.program.log.partition("reloading")[2]
    gate.open()


def test_no_descriptor_is_left_by_reloads(managed: Managed, eventually: Eventually) -> None:
    managed.write(server("threading"))
    managed.begin()

    def descriptors():
        eventually(lambda: len(managed.server()["workers"]) == 1)
        return len(os.listdir(f"/proc/{managed.program.pid}/fd"))

    managed.reload()
    before = descriptors()
    for _ in range(3):
        managed.reload()
    eventually(lambda: descriptors() <= before)
