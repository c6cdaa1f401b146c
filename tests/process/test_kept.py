"""A reload touches only what has changed: a server that is the same keeps its workers and its connections."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time

import pytest

from tests.process.conftest import Managed

PLUGIN = """
import os
from srvkit import Lines, MessageHandler, hookimpl
{imports}
class {name}(MessageHandler):
    framing = Lines()

    def handle_message(self, message):
        return b"{word} %s %d" % (message, os.getpid())

@hookimpl
def srvkit_handlers():
    return {{"{name}": {name}}}
"""


def table(name, more="", model="event"):
    return f"""
[server.{name}]
listen = "tcp://127.0.0.1:0"
handler = "{name}"
concurrency = "{model}"
{more}
"""


class Three:
    """Three servers, each with a plugin of its own."""

    def __init__(self, managed):
        self.managed = managed
        self.tables = {name: table(name) for name in "abc"}
        self.general = ""
        for name in "abc":
            self.plugin(name, "one")
        self.write()

    def plugin(self, name, word, imports=""):
        text = PLUGIN.format(name=name, word=word, imports=imports)
        (self.managed.folder / f"{name}.py").write_text(text)

    def write(self):
        head = f'[srvkit]\nplugins = ["a.py", "b.py", "c.py"]\n{self.general}\n'
        (self.managed.folder / "srvkit.toml").write_text(head + "".join(self.tables.values()))

    def pids(self):
        servers = self.managed.ask(do="status")["servers"]
        return {
            one["name"]: [worker["pid"] for worker in one["workers"] if worker["state"] == "ready"]
            for one in servers
        }

    def reload(self, **more):
        answer = self.managed.ask(do="reload", **more)
        assert answer["ok"], answer
        return {
            name: [change["change"], *change.get("keys", ())] for name, change in answer["servers"].items()
        }


@pytest.fixture
def three(managed: Managed) -> Three:
    three = Three(managed)
    managed.begin()
    return three


def test_one_that_changes_leaves_the_others_and_their_connections_alone(three, managed):
    before = three.pids()
    address = managed.address("a")
    with managed.connect(address) as sock, sock.makefile("rb") as file:
        sock.sendall(b"first\n")
        first = file.readline()
        three.plugin("b", "two")
        assert three.reload() == {"a": ["kept"], "b": ["replaced", "b.py"], "c": ["kept"]}
        sock.sendall(b"first\n")
        assert file.readline() == first
    after = three.pids()
    assert (after["a"], after["c"]) == (before["a"], before["c"])
    assert after["b"] != before["b"]
    with managed.talk(b"hello", managed.address("b")) as answers:
        assert answers.readline().startswith(b"two hello ")
    managed.program.wait_for(r"kept: a, c$")
    managed.program.wait_for(r"replaced: b \(b\.py\)$")
    assert managed.program.end() == 0


def test_what_has_changed_is_named(three, managed):
    three.tables["a"] = table("a", 'limits = { idle_timeout = "5m", max_connections = 7 }')
    del three.tables["b"]
    three.tables["c"] = table("c", model="threading")
    three.tables["d"] = table("d").replace('handler = "d"', 'handler = "a"')
    three.write()
    assert three.reload() == {
        "a": ["replaced", "limits.idle_timeout", "limits.max_connections"],
        "c": ["replaced", "concurrency"],
        "d": ["added"],
        "b": ["removed"],
    }
    done = managed.command("reload")
    assert re.sub(r", in .*", "", done.stdout) == "reloaded, generation 3\n  kept: a, c, d\n"
    assert managed.program.end() == 0


@pytest.mark.parametrize(
    ("general", "key"),
    [
        ('heartbeat_timeout = "20s"', "srvkit.heartbeat_timeout"),
        ('[logging]\nlevel = "debug"', "logging.level"),
    ],
)
def test_what_holds_for_all_replaces_all(general, key, three):
    three.general = general
    three.write()
    assert three.reload() == {name: ["replaced", key] for name in "abc"}


def test_what_the_supervisor_has_alone_replaces_nobody(three, managed, eventually):
    """A log file and times of the supervisor's; and workers hear of the new log."""
    before = three.pids()
    three.general = (
        'drain_timeout = "1s"\nretire_timeout = "1s"\npid_file = "pid"\n[logging]\nfile = "new.log"'
    )
    three.write()
    assert three.reload() == {name: ["kept"] for name in "abc"}
    assert three.pids() == before
    assert (managed.folder / "pid").read_text() == f"{managed.program.pid}\n"
    assert "generation 2" in (managed.folder / "new.log").read_text()


def test_all_can_be_replaced_on_request(three, managed):
    before = three.pids()
    assert three.reload(all=True) == {name: ["replaced"] for name in "abc"}
    after = three.pids()
    assert all(after[name] != before[name] for name in "abc")
    assert managed.command("reload", "--all").stdout.endswith("  replaced: a\n  replaced: b\n  replaced: c\n")


def test_a_module_that_two_share_replaces_both(three, managed):
    shared = managed.folder / "shared.py"
    shared.write_text("WORD = 1\n")
    three.plugin("a", "one", "import shared")
    three.plugin("c", "one", "from shared import WORD")
    three.reload()
    shared.write_text("WORD = 2\n")
    assert three.reload() == {"a": ["replaced", "shared.py"], "b": ["kept"], "c": ["replaced", "shared.py"]}


def test_a_plugin_with_hooks_is_part_of_every_server(three, managed):
    three.plugin("b", "one", "@hookimpl\ndef srvkit_connection_open(client_address): pass\n")
    assert set(map(tuple, three.reload().values())) == {("replaced", "b.py")}


def test_a_kept_server_is_looked_after_as_before(three, managed, eventually):
    """One that dies is replaced, by its old code or new; a failed reload leaves it alone; a stop ends it."""
    three.reload()
    (pid,) = three.pids()["a"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: three.pids()["a"] not in ([pid], []))
    before = three.pids()
    three.plugin("c", "two", "raise ValueError('broken on purpose')")
    assert not managed.ask(do="reload")["ok"]
    assert three.pids() == before
    three.plugin("c", "one")
    assert three.reload() == {name: ["kept"] for name in "abc"}
    began = time.monotonic()
    assert managed.program.end() == 0
    assert time.monotonic() - began < 20


def test_a_broken_new_server_changes_nothing_for_those_that_are_kept(three, managed):
    before = three.pids()
    three.tables["b"] = table("b") + '\n[server.e]\nlisten = "tcp://192.0.2.1:1"\nhandler = "a"\n'
    three.write()
    assert not managed.ask(do="reload")["ok"]
    assert three.pids() == before


def test_after_a_new_installation_has_taken_over_all_are_replaced_once(three, managed):
    before = three.pids()
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for(r"reloaded: this is generation 2$")
    assert all(pids and pids != before[name] for name, pids in three.pids().items())
    assert three.reload() == {name: ["kept"] for name in "abc"}


def test_one_that_was_kept_for_long_is_not_the_oldest_when_it_is_replaced(three, managed):
    """Of more generations than may serve, the oldest drains: that by which it has served last counts."""
    three.general = "generations = 1"
    three.write()
    three.reload()
    with managed.connect(managed.address("b")) as other, other.makefile("rb") as file:
        other.sendall(b"hello\n")
        file.readline()
        three.plugin("b", "two")
        three.reload()  # one of b retires from now on
    with managed.connect(managed.address("a")) as sock, sock.makefile("rb") as file:
        sock.sendall(b"hello\n")
        file.readline()
        three.plugin("a", "two")
        assert three.reload()["a"] == ["replaced", "a.py"]
        for _ in range(3):
            sock.sendall(b"hello\n")
            assert file.readline().startswith(b"one hello ")


def test_a_worker_that_runs_other_code_than_the_file_is_not_kept(three, managed, eventually):
    """It was started, in place of one that had died, while the file was another one."""
    three.plugin("a", "bad")
    (pid,) = three.pids()["a"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: three.pids()["a"] not in ([pid], []))
    three.plugin("a", "one")
    assert three.reload()["a"] == ["replaced"]
    with managed.talk(b"hello", managed.address("a")) as answers:
        assert answers.readline().startswith(b"one hello ")
    assert three.reload()["a"] == ["kept"]


def test_generations_are_bounded_over_a_new_installation(three, managed, eventually):
    three.general = 'generations = 1\ndrain_timeout = "1s"'
    three.write()
    three.reload()
    with contextlib.ExitStack() as stack:
        for generation in (3, 4, 5):
            sock = stack.enter_context(managed.connect(managed.address("a")))
            sock.sendall(b"hello\n")
            assert sock.recv(100)
            managed.signal(signal.SIGUSR2)
            managed.program.wait_for(rf"reloaded: this is generation {generation}$")
        eventually(lambda: len(managed.server("a")["workers"]) == 2)


def test_whatever_stands_among_the_modules(three, managed):
    """A lazy or a mocked one has any attribute that it is asked for."""
    odd = "import sys\nclass Odd:\n    def __getattr__(self, name):\n        return print\n"
    three.plugin("b", "two", odd + "sys.modules['odd'] = Odd()\n")
    assert three.reload() == {"a": ["kept"], "b": ["replaced", "b.py"], "c": ["kept"]}
