"""A reload of what is broken changes nothing, and says so to whoever asked."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import Eventually
from tests.process.conftest import Managed
from tests.process.talking_servers import server

GOOD = server("threading")
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
    "address": (lambda s, p: (s + server("threading", name="b", listen=TAKEN), p), "in use"),
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


def test_every_error_of_a_file_is_in_the_answer(managed: Managed) -> None:
    managed.write(server("threading"))
    managed.begin()
    managed.write(server("threading", more='workerz = 1\nhandlr = "x"') + '[logging]\nlevel = "loud"\n')
    errors = managed.ask(do="reload")["errors"]
    assert len(errors) == 3
    assert all(re.search(r"srvkit\.toml:\d+: ", line) for line in errors)


def test_a_file_that_is_gone_changes_nothing(managed: Managed) -> None:
    managed.write(server("threading"))
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
    managed.write(server("threading"), general='pid_file = "old.pid"')
    managed.begin()
    managed.write(server("threading"), general=place)
    answer = managed.ask(do="reload")
    assert not answer["ok"]
    assert len(answer["errors"]) == 1 and re.search("cannot be (made|written)", answer["errors"][0])
    assert (managed.folder / "old.pid").read_text() == f"{managed.program.pid}\n"
    assert managed.ask(do="status")["generation"] == 1
    assert managed.program.end() == 0
    assert "Traceback" not in managed.program.log


def test_places_that_a_failed_reload_had_taken_are_given_back(
    managed: Managed, talking: str, eventually: Eventually
) -> None:
    managed.write(server("threading"))
    managed.begin()
    before = managed.ask(do="status")["pid"]
    fds = Path(f"/proc/{before}/fd")
    count = len(list(fds.iterdir()))
    places = 'pid_file = "new.pid"\ncontrol = "new.sock"'
    managed.write(
        server("threading"), talking.replace('wait_at("gate")', "raise OSError('no database')"), places
    )
    assert "no database" in managed.ask(do="reload")["errors"][0]
    assert not list(managed.folder.glob("new.*"))
    eventually(lambda: len(list(fds.iterdir())) <= count)
    managed.write(server("threading"), talking, places)
    assert managed.ask(do="reload")["ok"]
    assert (managed.folder / "new.pid").read_text() == f"{before}\n"
    assert managed.command("status").returncode == 0
    assert (managed.folder / "new.sock").is_socket()
    assert managed.program.end() == 0
    assert not list(managed.folder.glob("new.*"))


def test_what_a_failed_reload_had_bound_is_free_again(managed: Managed, talking: str) -> None:
    managed.write(server("threading"))
    managed.begin()
    managed.write(
        server("threading") + server("threading", name="b", listen="unix:b.sock"),
        talking.replace('wait_at("gate")', "assert server.name != 'b'"),
    )
    assert not managed.ask(do="reload")["ok"]
    assert not (managed.folder / "b.sock").exists()
    assert [one["name"] for one in managed.ask(do="status")["servers"]] == ["a"]


@pytest.mark.parametrize("ending", ["", "time.sleep(1000)"], ids=["tried out", "given up"])
def test_what_a_plugin_starts_while_it_is_tried_out_ends_with_that(ending, managed, talking, eventually):
    managed.write(server("threading"))
    managed.begin()
    starting = "subprocess.Popen(['sleep', '1000'])"
    general = "ready_timeout = 1" if ending else ""
    managed.write(server("threading"), f"{talking}\n{starting}\n{ending}\n", general)
    assert managed.ask(do="reload")["ok"] is not bool(ending)

    def beside():
        return set(managed.processes()) - {managed.program.pid, *managed.workers()}

    eventually(lambda: len(beside()) == (0 if ending else 1))  # one that was killed is there for a moment
    for pid in beside():
        assert [os.getsid(pid)] == managed.workers()
        os.kill(pid, signal.SIGKILL)
    assert managed.program.end() == 0
