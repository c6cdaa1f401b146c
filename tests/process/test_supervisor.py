"""Whatever becomes of single processes, srvkit goes on serving, or ends and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Eventually, Tool
from tests.process.conftest import Load, Managed
from tests.process.talking_servers import server

MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]


def children(pid: int) -> set[int]:
    return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


# ---- the supervisor dies


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_left_a_second_after_the_supervisor_was_killed(model, managed, available, eventually):
    available(model)
    managed.write(server(model) + server(name="b", listen="unix:b.sock"))
    managed.begin()
    addresses = managed.address(), managed.address("b")
    with contextlib.ExitStack() as stack:
        gate = managed.gate("release")
        idle = stack.enter_context(managed.connect("unix:b.sock"))
        idle.sendall(b"hello\n")
        assert idle.recv(100).startswith(b"hello ")
        clients = [stack.enter_context(managed.talk(b"hold")) for _ in range(1 if model == "serial" else 3)]
        assert clients[0].readline() == b"holding\n"
        assert len(managed.processes()) >= 3
        managed.signal(signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: not managed.processes())
        assert time.monotonic() - killed < 1
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                assert client.readline() in (b"", b"holding\n")
    gate.abandon()
    managed.program.ended()
    managed.write(server(model, listen=addresses[0]) + server(name="b", listen="unix:b.sock"))
    managed.begin()
    assert managed.answer(b"again", addresses[0]).startswith(b"again one ")
    assert managed.answer(b"again", "unix:b.sock").startswith(b"again one ")
    assert managed.program.end() == 0


@pytest.mark.parametrize(
    ("model", "line"),
    [(model, line) for model in ("event", "threading", "forking") for line in (b"spin", b"sleep")]
    + [("forking", b"gil")],
)
def test_a_handler_that_hangs_does_not_outlive_the_supervisor(model, line, managed, eventually):
    managed.write(server(model))
    managed.begin()
    with managed.talk(line):
        eventually(lambda: managed.server()["counters"]["accepted"] == 1)
        managed.signal(signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: not managed.processes())
        assert time.monotonic() - killed < 1


def test_a_worker_that_is_not_ready_yet_does_not_outlive_the_supervisor(
    managed: Managed, eventually: Eventually
) -> None:
    managed.write(server())
    managed.begin()
    gate = managed.gate()
    managed.hup()
    gate.reached()
    managed.signal(signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: not managed.processes())
    assert time.monotonic() - killed < 1
    gate.open()


# ---- signals


def test_workers_come_and_go_by_ttin_and_ttou(managed: Managed, eventually: Eventually) -> None:
    managed.write(server("serial"))
    managed.begin()
    managed.signal(signal.SIGTTIN)
    managed.program.wait_for("a: now 2 workers$")
    managed.signal(signal.SIGTTIN)
    eventually(lambda: len(managed.workers()) == 3)
    managed.signal(signal.SIGTTOU)
    managed.program.wait_for("a: now 2 workers$", times=2)
    managed.signal(signal.SIGTTOU)
    managed.program.wait_for("a: now 1 worker$")
    managed.signal(signal.SIGTTOU)
    managed.program.wait_for("a: now 1 worker$", times=2)
    eventually(lambda: len(managed.server()["workers"]) == 1)
    assert managed.answer().startswith(b"hello ")
    assert managed.server()["counters"]["lost"] == 0


def test_ttin_adds_no_worker_where_the_handler_asks_for_one_process(
    managed: Managed, talking: str, eventually: Eventually
) -> None:
    """One line says so, also of a supervisor that has just taken another's place."""
    plugin = talking.replace("    framing = Lines()", "    framing = Lines()\n    one_process = True", 1)
    assert plugin != talking
    managed.write(server("serial"), plugin=plugin)
    managed.begin()
    refused = r"a: no worker is added: its handler's one_process asks for one$"
    managed.signal(signal.SIGTTIN)
    managed.program.wait_for(refused)
    managed.signal(signal.SIGTTOU)
    managed.program.wait_for("a: now 1 worker$")
    gate = managed.gate()
    managed.signal(signal.SIGUSR2)
    gate.reached()  # by the new worker: those there are were begun by the supervisor before
    managed.signal(signal.SIGTTIN)
    managed.program.wait_for(refused, times=2)
    gate.open()
    managed.program.wait_for("reloaded: this is generation 2$")
    managed.signal(signal.SIGTTIN)
    managed.program.wait_for(refused, times=3)
    eventually(lambda: len(managed.server()["workers"]) == 1)


def test_a_reload_may_not_ask_for_more_processes_than_the_handler(managed: Managed, talking: str) -> None:
    plugin = talking.replace("    framing = Lines()", "    framing = Lines()\n    one_process = True", 1)
    managed.write(server("serial"), plugin=plugin)
    managed.begin()
    managed.write(server("serial", more="workers = 2"), plugin=plugin)
    done = managed.command("reload")
    assert done.returncode == 1
    assert "a.workers: 2 workers cannot run Talk, whose one_process asks for a single process" in done.stderr
    managed.write(server("forking"), plugin=plugin)
    assert "'forking' cannot run Talk, whose one_process asks" in managed.command("reload").stderr
    assert managed.answer().startswith(b"hello ")


def test_three_workers_are_three_processes_that_all_serve(managed: Managed) -> None:
    managed.write(server("serial", more="workers = 3"))
    managed.begin()
    workers = managed.workers()
    assert len(set(workers)) == 3
    assert children(managed.program.pid) == set(workers)
    gate = managed.gate("release")
    files = [managed.talk(b"hold") for _ in workers]
    for file in files:
        assert file.readline() == b"holding\n"
    gate.open()
    assert {int(file.readline().split()[-1]) for file in files} == set(workers)
    for file in files:
        file.close()


def test_a_storm_of_signals_changes_nothing(
    managed: Managed, load: type[Load], eventually: Eventually
) -> None:
    managed.write(server("event", more="workers = 2"))
    managed.begin()
    names = ["HUP", "USR1", "WINCH", "TTIN", "TTOU", "CHLD", "PIPE", "ALRM", "URG", "CONT", "PROF", "IO"]
    address = managed.address()
    with load(lambda: managed.connect(address)) as it:
        for number in range(200):
            managed.signal(getattr(signal, "SIG" + names[number % len(names)]))
            time.sleep(0.005)
        managed.reload()
    it.verify()
    assert managed.program.process.poll() is None
    assert managed.ask(do="status")["state"] == "running"
    managed.reload()
    eventually(lambda: len(managed.server()["workers"]) == 2)
    assert managed.program.end() == 0


def test_an_interrupt_for_the_whole_group_is_one_orderly_stop(managed: Managed) -> None:
    managed.write(server("threading"))
    managed.begin(start_new_session=True)
    gate = managed.gate("release")
    (pid,) = managed.workers()
    with managed.talk(b"hold") as client:
        assert client.readline() == b"holding\n"
        os.kill(pid, signal.SIGINT)  # as if a terminal had sent it to all
        os.killpg(managed.program.pid, signal.SIGINT)
        managed.program.wait_for("SIGINT: stopping$")
        gate.open()
        assert client.readline() == b"hold one %d\n" % pid
    assert managed.program.ended() == 0


def test_workers_ignore_what_is_meant_for_the_supervisor(managed: Managed) -> None:
    managed.write(server("event") + server("forking", "b"))
    managed.begin()
    before = managed.workers(), managed.workers("b")
    for pid in (*before[0], *before[1]):
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGALRM):
            os.kill(pid, number)
    assert managed.answer(b"hello", managed.address()).startswith(b"hello ")
    assert managed.answer(b"hello", managed.address("b")).startswith(b"hello ")
    assert (managed.workers(), managed.workers("b")) == before


def test_a_term_to_a_worker_replaces_it_without_loss(managed: Managed) -> None:
    managed.write(server("threading"))
    managed.begin()
    gate = managed.gate("release")
    (pid,) = managed.workers()
    with managed.talk(b"hold") as client:
        assert client.readline() == b"holding\n"
        os.kill(pid, signal.SIGTERM)
        managed.program.wait_for(f"a: worker {pid} will be replaced: TERM$")
        gate.open()
        assert client.readline() == b"hold one %d\n" % pid
        assert client.readline() == b""
    assert int(managed.answer().split()[-1]) != pid
    assert managed.server()["counters"]["lost"] == 0


def test_what_was_inherited_of_signals_does_not_matter(managed: Managed, eventually: Eventually) -> None:
    def spoil():
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])

    managed.write(server("forking"))
    managed.begin(preexec_fn=spoil)
    (pid,) = managed.workers()
    os.kill(pid, signal.SIGKILL)
    managed.program.wait_for(f"a: worker {pid} was killed by SIGKILL$")
    assert managed.answer().startswith(b"hello ")
    managed.hup()
    managed.program.wait_for("reloaded: this is generation 2$")
    eventually(lambda: children(managed.program.pid) == set(managed.workers()))
    assert managed.program.end(signal.SIGTERM) == 0


# ---- places


def test_it_is_safe_as_the_first_process(
    managed: Managed, talking: str, tool: Tool, eventually: Eventually
) -> None:
    tool("unshare")
    if subprocess.run(["unshare", "-pf", "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("no namespace of processes can be had")
    plugin = talking.replace(
        "obey(message)\n",
        "obey(message)\n"
        '        if message == b"orphan":\n'
        '            subprocess.run(["sh", "-c", "(echo > orphan; exit 3) & (exit 4) & exit 0"])\n'
        '            return b"%d" % subprocess.run(["sh", "-c", "exit 5"]).returncode\n',
    )
    managed.write(server("threading"), plugin)
    run = ["unshare", "-pf", "--mount-proc", sys.executable, "-m", "srvkit", "run"]
    managed.program = managed.start("-c", f"import os; os.execvp('unshare', {run})")
    managed.program.wait_for(r"srvkit\[1\].*listening on ")
    (supervisor,) = children(managed.program.pid)
    try:
        (worker,) = children(supervisor)
        for _ in range(3):
            assert managed.answer(b"orphan") == b"5\n"
        eventually((managed.folder / "orphan").exists)
        eventually(lambda: children(supervisor) == {worker})
        os.kill(worker, signal.SIGKILL)
        managed.program.wait_for(r"worker \d+ was killed by SIGKILL$")
        assert managed.answer().startswith(b"hello ")
        assert " ended with status 3" not in managed.program.log
        os.kill(supervisor, signal.SIGTERM)
        assert managed.program.ended() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGKILL)  # and with it all of the namespace


@pytest.mark.parametrize("model", ["threading", "forking", "event"])
def test_programs_that_a_handler_starts_inherit_nothing(model, managed, talking):
    plugin = talking.replace(
        "obey(message)\n",
        'return subprocess.check_output(["ls", "/proc/self/fd"], close_fds=False).replace(b"\\n", b" ")\n',
    )
    managed.write(server(model) + server(name="b"), plugin)
    managed.begin()
    assert managed.answer() == b"0 1 2 3 \n"  # 3 is the folder that is being read


def test_a_second_start_is_refused_and_does_no_harm(managed: Managed) -> None:
    managed.write(server(listen="unix:a.sock"))
    managed.begin()
    before = managed.workers()
    done = managed.command("run")
    assert done.returncode == 3
    assert done.stderr == f"srvkit: this configuration is running already (pid {managed.program.pid})\n"
    assert managed.workers() == before
    assert managed.answer(b"hello", "unix:a.sock").startswith(b"hello ")
    assert managed.program.end() == 0
    assert not list((managed.folder / "run").iterdir())
    managed.begin()


# ---- workers that retire


def test_workers_that_retire_after_so_many_requests_lose_none(
    managed: Managed, load: type[Load], eventually: Eventually
) -> None:
    managed.write(server("threading", more="workers = 2\nlimits.max_requests = 30"))
    managed.begin()
    address, before = managed.address(), managed.workers()
    with load(lambda: managed.connect(address)) as it:
        managed.program.wait_for("will be replaced: max_requests$", times=5)
    it.verify()
    eventually(lambda: len(managed.server()["workers"]) == 2)
    assert not set(managed.workers()) & set(before)
    counters = managed.server()["counters"]
    assert (counters["accepted"], counters["lost"], counters["restarts"]) == (len(it.answers), 0, 0)


def test_a_worker_that_has_grown_too_large_is_replaced(managed: Managed, eventually: Eventually) -> None:
    managed.write(server("threading", more='limits.max_rss = "150MiB"'), general='heartbeat_timeout = "3s"')
    managed.begin()
    (pid,) = managed.workers()
    assert managed.answer(b"big") == b"big one %d\n" % pid
    managed.program.wait_for(f"a: worker {pid} will be replaced: max_rss$")
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    (new,) = eventually(managed.workers)
    assert new != pid
    assert managed.answer() == b"hello one %d\n" % new


# ---- commands


@pytest.mark.parametrize("model", ["threading", "forking", "serial", "event"])
def test_the_commands_see_what_there_is_and_do_as_they_are_told(model, managed, eventually):
    managed.write(server(model))
    managed.begin()
    (pid,) = managed.workers()
    with managed.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(b"hello\n")
        file.readline()
        status = json.loads(managed.command("status", "--json").stdout)
        (one,) = status["servers"]
        assert status["pid"] == managed.program.pid
        assert (status["state"], status["generation"]) == ("running", 1)
        assert (one["name"], one["model"], one["addresses"]) == ("a", model, [managed.address()])
        assert [(worker["pid"], worker["state"]) for worker in one["workers"]] == [(pid, "ready")]
        assert one["counters"]["accepted"] == one["counters"]["open"] == 1
        assert str(pid) in managed.command("status").stdout
        (connection,) = json.loads(managed.command("connections", "--json").stdout)["connections"]
        assert connection["peer"] == "{}:{}".format(*sock.getsockname())
        assert (connection["server"], connection["worker"]) == ("a", pid)
        assert connection["id"] in managed.command("connections").stdout
        killed = managed.command("kill", connection["id"])
        assert (killed.returncode, killed.stderr) == (0, "")
        assert file.readline() == b""
    eventually(lambda: managed.server()["counters"]["open"] == 0)
    again = managed.command("kill", connection["id"])
    assert again.returncode == 1
    assert connection["id"] in again.stderr
    assert managed.answer().startswith(b"hello ")
    assert managed.command("stop").returncode == 0
    assert managed.program.ended() == 0
    assert managed.command("status").returncode == 3


@pytest.mark.parametrize("model", ["threading", "forking", "event"])
def test_connections_in_the_midst_of_a_request_are_seen_and_killed(model, managed):
    managed.write(server(model))
    managed.begin()
    gate = managed.gate("release")
    with managed.talk(b"hold") as client:
        assert client.readline() == b"holding\n"
        (one,) = managed.ask(do="connections")["connections"] or [None]
        assert one["seconds"] >= 0
        answer = managed.ask(do="kill", id=one["id"])
        assert answer.get("killed"), answer
        with contextlib.suppress(ConnectionResetError):
            assert client.readline() == b""
    if model == "forking":  # it was the child that waited
        gate.abandon()
    else:
        gate.open()
    assert managed.answer().startswith(b"hello ")


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss is not installed")
def test_all_workers_listen_on_one_socket(managed: Managed) -> None:
    managed.write(server("event", more="workers = 3"))
    managed.begin()
    port = managed.address().rpartition(":")[2]
    found = subprocess.check_output(["ss", "-Hltn", f"sport = :{port}"], text=True)
    assert len(found.splitlines()) == 1
