"""Workers that die, and those that do not get ready: others take their places, or srvkit ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time

import pytest

from tests.conftest import Eventually
from tests.process.conftest import Load, Managed
from tests.process.talking_servers import server

MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]


# ---- workers that die


@pytest.mark.parametrize("model", MODELS)
def test_a_killed_worker_is_replaced_within_a_second(model, managed, available):
    available(model)
    managed.write(server(model) + server(name="b"))
    managed.begin()
    (pid,), other = managed.workers(), managed.workers("b")
    address = managed.address()
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    answer = managed.answer(b"hello", address)  # it waits in the queue meanwhile
    assert time.monotonic() - killed < 1
    assert int(answer.split()[-1]) != pid
    managed.program.wait_for(f"a: worker {pid} was killed by SIGKILL$")
    assert managed.workers("b") == other
    assert managed.server()["counters"]["restarts"] == 1
    assert managed.program.end() == 0


def test_only_requests_inside_a_killed_worker_are_lost(managed: Managed) -> None:
    managed.write(server("serial", more="workers = 2"))
    managed.begin()
    gate = managed.gate("release")
    address = managed.address()
    with managed.talk(b"hold", address) as lost, managed.talk(b"hold", address) as kept:
        assert lost.readline() == kept.readline() == b"holding\n"
        queued = [managed.talk(b"%d" % number, address) for number in range(5)]
        status = managed.ask(do="connections")["connections"]
        peers = {one["peer"]: one["worker"] for one in status}
        assert len(peers) == 2
        victim = min(peers.values())
        os.kill(victim, signal.SIGKILL)
        for number, file in enumerate(queued):
            assert file.readline().startswith(b"%d one " % number)
            file.close()
        gate.open()
        answers = [lost.readline(), kept.readline()]
        assert sorted(answers, key=len)[0] == b""
        assert sorted(answers, key=len)[1] == b"hold one %d\n" % max(peers.values())
    counters = managed.server()["counters"]
    assert (counters["lost"], counters["restarts"], counters["accepted"]) == (1, 1, 7)


def test_a_stampede_costs_only_what_is_inside(
    managed: Managed, load: type[Load], eventually: Eventually
) -> None:
    managed.write(server("event", more="workers = 2"))
    managed.begin()
    address = managed.address()
    kills, threads = 15, 4
    killed = set()
    with load(lambda: managed.connect(address), threads=threads) as it:
        began = time.monotonic()
        for number in range(kills):
            time.sleep(max(0.0, began + number * 0.1 - time.monotonic()))
            pid, *_ = eventually(managed.workers)
            killed.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert managed.answer(b"hello", address).startswith(b"hello ")
    lost = [number for number, answer in it.answers.items() if not answer]
    assert len(lost) + len(it.failures) <= kills * threads
    assert not [line for line in it.failures if "Refused" in line or "imeout" in line]
    assert len(it.answers) > 10 * len(lost)
    # One that was killed is listed until it has ended; if it ended during the stop, that would be the status.
    eventually(lambda: len(managed.workers()) == 2 and killed.isdisjoint(managed.workers()))
    assert 1 <= managed.server()["counters"]["restarts"] <= kills
    assert managed.program.end() == 0


@pytest.mark.parametrize("model", ["event", "threading"])
def test_a_crash_is_named_and_shown(model, managed):
    managed.write(server(model) + server(name="b"))
    managed.begin()
    (pid,), other = managed.workers(), managed.workers("b")
    with managed.talk(b"segv") as client, contextlib.suppress(ConnectionResetError):
        assert client.read() == b""
    managed.program.wait_for(f"a: worker {pid} was killed by SIGSEGV$")
    stacks = managed.program.log.partition(f"a: worker {pid}: its stacks when it ended")[2]
    assert re.search(r'plugin\.py", line \d+ in obey$', stacks, re.MULTILINE), managed.program.log
    (pid,) = {int(managed.answer().split()[-1])}
    with managed.talk(b"exit") as client, contextlib.suppress(ConnectionResetError):
        assert client.read() == b""
    managed.program.wait_for(f"a: worker {pid} ended with status 7$")
    assert managed.answer().startswith(b"hello ")
    assert managed.workers("b") == other


def test_a_crash_of_a_forked_child_is_its_own(managed: Managed, eventually: Eventually) -> None:
    managed.write(server("forking"))
    managed.begin()
    before = managed.workers()
    for line in (b"segv", b"exit"):
        with managed.talk(line) as client, contextlib.suppress(ConnectionResetError):
            assert client.read() == b""
    assert managed.answer().startswith(b"hello ")
    assert managed.workers() == before
    eventually(lambda: managed.server()["counters"]["errors"] == 2)


# ---- workers that do not get ready


@pytest.mark.parametrize(
    ("breaking", "status", "said"),
    [
        ('raise OSError("no database")', 3, "no database"),
        ("os._exit(9)", 3, "status 9"),
        ("ctypes.string_at(0)", 3, "SIGSEGV"),
    ],
)
def test_a_first_start_that_fails_ends(breaking, status, said, managed, talking):
    managed.write(server(), talking.replace('wait_at("gate")', breaking))
    done = managed.command("run")
    assert done.returncode == status
    (line,) = re.findall("^srvkit: .*$", done.stderr, re.MULTILINE)
    assert said in line
    assert "a: " in line
    assert not managed.processes()
    assert not list((managed.folder / "run").iterdir())


def test_a_first_start_with_a_broken_plugin_ends_with_one_line(managed: Managed, talking: str) -> None:
    managed.write(server(), "import no_such_module\n")
    done = managed.command("run")
    assert done.returncode == 3
    assert re.fullmatch("srvkit: .*plugin.py.*no_such_module.*\n", done.stderr)


def test_one_that_breaks_later_is_tried_again_ever_more_slowly(managed: Managed, talking: str) -> None:
    plugin = talking.replace(
        'wait_at("gate")', 'assert not os.path.exists("broken-" + server.name), "no database"'
    )
    managed.write(server() + server(name="b"), plugin)
    managed.begin()
    other, address = managed.workers("b"), managed.address()
    (managed.folder / "broken-a").touch()
    os.kill(*managed.workers(), signal.SIGKILL)
    failed = r"a: worker \d+ ended with status 3$"
    managed.program.wait_for("a: could not start: AssertionError: no database$")
    managed.program.wait_for(failed)
    first = time.monotonic()
    managed.program.wait_for(failed, times=2)
    assert time.monotonic() - first > 0.8
    (managed.folder / "broken-a").unlink()
    assert managed.answer(b"hello", address).startswith(b"hello ")  # it has waited in the queue
    assert managed.workers("b") == other
    assert managed.program.end() == 0


def test_workers_that_crash_at_each_request_are_not_started_without_end(managed: Managed) -> None:
    managed.write(server())
    managed.begin()
    address = managed.address()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        with managed.talk(b"exit", address) as client, contextlib.suppress(ConnectionResetError):
            client.read()
    assert 5 <= managed.server()["counters"]["restarts"] <= 30
    assert managed.answer(b"hello", address).startswith(b"hello ")
