"""A new installation takes the place of the supervisor, and neither clients nor workers notice."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import srvkit

TAKEN_OVER = r"the new installation takes over$"


def server(model="threading", name="a", listen='"tcp://127.0.0.1:0"', more=""):
    return f'[server.{name}]\nlisten = {listen}\nhandler = "talk"\nconcurrency = "{model}"\n{more}\n'


@pytest.mark.parametrize("model", ["serial", "threading", "forking", "event", "asyncio"])
def test_no_request_is_lost_when_it_takes_over(model, managed, load, eventually):
    managed.write(server(model))
    managed.begin()
    address, (worker,) = managed.address(), managed.workers()
    with load(lambda: managed.connect(address)) as it:
        for generation in (2, 3):
            managed.signal(signal.SIGUSR2)
            managed.program.wait_for(f"reloaded: this is generation {generation}$")
    it.verify()
    assert managed.address() == address
    eventually(lambda: len(managed.server()["workers"]) == 1)
    assert managed.workers() != [worker]
    assert managed.server()["counters"]["accepted"] == len(it.answers)
    assert managed.program.end() == 0
    assert "Traceback" not in managed.program.log


def test_process_lock_and_control_socket_stay(managed):
    managed.write(server(), general='pid_file = "srvkit.pid"')
    managed.begin()
    since = managed.ask(do="status")["since"]
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("reloaded: this is generation 2$")
    status = managed.ask(do="status")
    assert (status["pid"], status["since"]) == (managed.program.pid, since)
    assert (managed.folder / "srvkit.pid").read_text() == f"{managed.program.pid}\n"
    assert "running already" in managed.command("run").stderr
    managed.reload()
    assert managed.answer().startswith(b"hello one ")
    assert managed.program.end() == 0
    assert not list((managed.folder / "run").iterdir())
    assert not (managed.folder / "srvkit.pid").exists()


def test_unix_sockets_keep_their_files(managed):
    managed.write(server(listen='["unix:a.sock", "unix:b.sock"]'))
    managed.begin()
    path = managed.folder / "a.sock"
    inode = path.stat().st_ino
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("reloaded: this is generation 2$")
    assert path.stat().st_ino == inode
    assert managed.answer(address="unix:a.sock").startswith(b"hello one ")
    assert managed.program.end() == 0
    assert not path.exists()


def test_a_request_at_hand_is_finished_by_its_worker(managed):
    managed.write(server())
    managed.begin()
    (worker,) = managed.workers()
    gate = managed.gate("release")
    with managed.talk(b"hold") as held:
        assert held.readline() == b"holding\n"
        gate.reached()
        managed.signal(signal.SIGUSR2)
        managed.program.wait_for("reloaded: this is generation 2$")
        assert managed.answer().split()[2] != b"%d" % worker
        gate.open()
        assert held.readline() == b"hold one %d\n" % worker
    assert managed.program.end() == 0


def test_what_the_new_one_refuses_changes_nothing(managed):
    """Its check reads the configuration as it is now."""
    managed.write(server())
    managed.begin()
    workers = managed.workers()
    managed.write(server(more="wrong = 1"))
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("so nothing is replaced$")
    assert "server.a.wrong: unknown key" in managed.program.log
    assert managed.workers() == workers
    managed.write(server())
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for(TAKEN_OVER)
    managed.program.wait_for("reloaded: this is generation 2$")


def test_who_asks_once_more_gets_another_check_and_no_child_is_left_unknown(managed, talking, eventually):
    """What is installed by then may be another version: the word of the first check does not hold for it."""

    def check(name):
        gate = managed.gate(name)
        managed.write(server(), f"{talking}\nwait_at({name!r})\n")
        managed.signal(signal.SIGUSR2)
        gate.reached()
        return gate

    managed.write(server())
    managed.begin()
    children = Path(f"/proc/{managed.program.pid}/task/{managed.program.pid}/children")
    change = managed.gate()
    managed.hup()
    change.reached()
    check("first").open()
    eventually(lambda: len(children.read_text().split()) == 2)  # the old worker and the new one
    second = check("second")
    change.open()
    managed.program.wait_for("reloaded: this is generation 2$")
    assert "takes over" not in managed.program.log
    second.open()
    managed.program.wait_for("reloaded: this is generation 3$")
    eventually(lambda: children.read_text().split() == [str(pid) for pid in managed.workers()])
    assert managed.program.end() == 0


LATER = (
    "import os, sys, runpy\n"
    "os.environ['PYTHONPATH'] = sys.argv.pop(1)\n"  # of what is executed later, not of this one
    "runpy.run_module('srvkit', run_name='__main__', alter_sys=True)\n"
)


def test_an_installation_that_does_not_even_start_changes_nothing(managed):
    managed.write(server())
    broken = managed.folder / "broken"
    (broken / "srvkit").mkdir(parents=True)
    (broken / "srvkit" / "__init__.py").write_text("raise RuntimeError('half installed')")
    managed.program = managed.start("-c", LATER, str(broken), "run")
    managed.program.wait_for("listening on ")
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("so nothing is replaced$")
    assert "half installed" in managed.program.log
    assert managed.answer().startswith(b"hello one ")


@pytest.mark.parametrize("module", ["supervisor.py", "takeover.py"])
def test_what_only_a_takeover_needs_is_looked_at_before(module, managed):
    managed.write(server())
    new = managed.folder / "new"
    ignored = shutil.ignore_patterns("__pycache__")
    package = Path(shutil.copytree(Path(srvkit.__file__).parent, new / "srvkit", ignore=ignored))
    with (package / "process" / "supervisor" / module).open("a") as file:
        file.write("\nraise RuntimeError('half installed')\n")
    managed.program = managed.start("-c", LATER, str(new), "run")
    managed.program.wait_for("listening on ")
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("so nothing is replaced$")
    assert "half installed" in managed.program.log
    assert managed.answer().startswith(b"hello one ")


def test_an_interpreter_that_is_gone_is_one_line(managed):
    """As after the removal of a virtual environment."""
    managed.write(server())
    gone = "import sys; sys.executable += '-gone'; from srvkit.cli.main import main; sys.exit(main())"
    managed.program = managed.start("-c", gone, "run")
    managed.program.wait_for("listening on ")
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("so nothing is replaced$")
    managed.program.wait_for("-gone: No such file or directory$")
    assert managed.answer().startswith(b"hello one ")
    assert managed.program.end() == 0
    assert "Traceback" not in managed.program.log


def test_workers_killed_afterwards_are_replaced_and_nobody_outlives_the_supervisor(managed, eventually):
    managed.write(server(more="workers = 2"))
    managed.begin()
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("reloaded: this is generation 2$")
    eventually(lambda: len(managed.server()["workers"]) == 2)
    killed = managed.workers()[0]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: len(set(managed.workers()) - {killed}) == 2)
    managed.signal(signal.SIGKILL)
    eventually(lambda: not managed.processes())


def test_the_interpreter_gets_the_same_words(managed):
    """Options of Python, too."""
    managed.write(server(), general='drain_timeout = "3s"')
    program = managed.start("-X", "dev", "-m", "srvkit", "run", "--set", "srvkit.drain_timeout=2s")
    managed.program = program
    program.wait_for("listening on ")
    before = Path(f"/proc/{program.pid}/cmdline").read_bytes()
    managed.signal(signal.SIGUSR2)
    program.wait_for("reloaded: this is generation 2$")
    after = Path(f"/proc/{program.pid}/cmdline").read_bytes()
    assert before.split(b"\0")[1:] == after.split(b"\0")[1:]
    assert after.split(b"\0")[0] == os.fsencode(sys.executable)


REFUSES = """
import os, runpy
from srvkit.process.supervisor import reload

def refuse(*_):
    if not os.path.exists("enough"):
        raise OSError(28, "No space left on device")

if "SRVKIT_REPLACES" in os.environ:  # this is the new installation, once it has taken over
    reload.descriptors.make_room = refuse
runpy.run_module("srvkit", run_name="__main__", alter_sys=True)
"""


def test_workers_are_replaced_also_where_the_new_one_comes_to_none_of_its_own(managed, eventually):
    managed.write(server(more="workers = 2"))
    managed.program = managed.start("-c", REFUSES, "run")
    managed.program.wait_for("listening on ")
    before = managed.workers()
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("reload failed; still serving the previous configuration$")
    assert "No space left on device" in managed.program.log
    assert sorted(managed.workers()) == sorted(before)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(managed.workers()) == 2 and before[0] not in managed.workers())
    assert managed.answer().startswith(b"hello one ")
    (managed.folder / "enough").touch()
    managed.reload()
    eventually(lambda: len(managed.server()["workers"]) == 2)
    assert managed.program.end() == 0
