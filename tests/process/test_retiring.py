"""A worker that was replaced accepts nothing more, and serves the connections it has."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

import pytest

MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]


def server(model="threading", name="a", more=""):
    return (
        f'[server.{name}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "talk"\nconcurrency = "{model}"\n{more}\n'
    )


def states(managed, name="a"):
    return sorted(worker["state"] for worker in managed.server(name)["workers"])


@contextlib.contextmanager
def talking_to(managed, name="a"):
    """A connection that says a line and hears the answer, with a function that does so."""
    with managed.connect(managed.address(name)) as sock, sock.makefile("rb") as file:

        def say(line=b"hello"):
            sock.sendall(line + b"\n")
            return file.readline()

        assert say(b"first").startswith(b"first ")
        yield say


@pytest.mark.parametrize("model", MODELS)
def test_its_time_is_bounded_and_then_idle_connections_end(model, managed, available, eventually):
    available(model)
    managed.write(server(model), general='retire_timeout = "500ms"')
    managed.begin()
    with talking_to(managed) as say:
        managed.reload()
        assert say().startswith(b"hello one ")
        assert states(managed) == ["ready", "retiring"]
        eventually(lambda: states(managed) == ["ready"])
        with contextlib.suppress(ConnectionError):
            assert say() == b""
    assert managed.server()["counters"]["lost"] == 0
    assert managed.program.end() == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_stop_ends_its_connections_as_those_of_others(model, managed, available, eventually):
    """Whatever the time it had."""
    available(model)
    managed.write(server(model))
    managed.begin()
    with talking_to(managed) as say:
        managed.reload()
        assert states(managed) == ["ready", "retiring"]
        managed.signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):
            eventually(lambda: say() == b"")
        assert managed.program.process.wait(20) == 0
    assert "cut" not in managed.program.log


def test_of_many_generations_the_oldest_finish_what_they_have(managed, eventually):
    managed.write(server("event"), general="generations = 2")
    managed.begin()
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(4):
            clients.append(stack.enter_context(talking_to(managed)))
            managed.reload()
        eventually(lambda: states(managed) == ["ready", "retiring", "retiring"])
        for say in clients[:2]:
            with contextlib.suppress(ConnectionError):
                assert say() == b""
        for say in clients[2:]:
            assert say().startswith(b"hello one ")
    eventually(lambda: states(managed) == ["ready"])
    assert managed.program.end() == 0


def test_a_removed_server_is_shown_until_its_connections_have_ended(managed, eventually):
    managed.write(server() + server(name="b"))
    managed.begin()
    with talking_to(managed, "b") as say:
        managed.write(server())
        managed.reload()
        assert say().startswith(b"hello one ")
        removed = managed.server("b")
        assert (removed["removed"], removed["wanted"]) == (True, 0)
        assert [worker["state"] for worker in removed["workers"]] == ["retiring"]
        command = [sys.executable, "-m", "srvkit", "status"]
        shown = subprocess.run(command, cwd=managed.folder, capture_output=True, text=True, timeout=30)
        assert "removed; what is open is served to its end" in shown.stdout
        ((one,),) = [managed.ask(do="connections")["connections"]]
        assert one["server"] == "b"
    eventually(lambda: [one["name"] for one in managed.ask(do="status")["servers"]] == ["a"])
    assert managed.program.end() == 0


def test_one_that_has_had_its_requests_serves_the_last_to_its_end(managed, eventually):
    managed.write(server("event", more="limits = { max_requests = 2 }"))
    managed.begin()
    with talking_to(managed) as first, talking_to(managed) as second:
        eventually(lambda: states(managed) == ["ready", "retiring"])
        with talking_to(managed) as third:
            answers = [say().split() for say in (first, second, third)]
        assert answers[0] == answers[1] != answers[2]
    eventually(lambda: states(managed) == ["ready"])
    assert managed.program.end() == 0


def test_one_that_is_too_many_does_so_too(managed, eventually):
    """TTOU takes away one of two; whose connection goes on."""
    managed.write(server("event", more="workers = 2"))
    managed.begin()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(talking_to(managed)) for _ in range(16)]
        managed.signal(signal.SIGTTOU)
        eventually(lambda: states(managed) == ["ready", "retiring"] or states(managed) == ["ready"])
        for say in clients:
            assert say().startswith(b"hello one ")
    eventually(lambda: states(managed) == ["ready"])
    assert managed.program.end() == 0


def test_one_that_somebody_ends_by_a_signal_finishes_what_it_has(managed, eventually):
    managed.write(server("event"))
    managed.begin()
    (pid,) = managed.workers()
    with talking_to(managed) as say:
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: managed.workers() not in ([pid], []))
        with contextlib.suppress(ConnectionError):
            eventually(lambda: say() == b"")
    assert managed.program.end() == 0


def test_a_single_process_does_not_become_two_for_long(managed, talking, eventually):
    managed.write(server("event"), talking.replace("framing =", "one_process = True\n    framing ="))
    managed.begin()
    with talking_to(managed) as say:
        managed.reload()
        with contextlib.suppress(ConnectionError):
            eventually(lambda: say() == b"")
    eventually(lambda: states(managed) == ["ready"])
    assert managed.program.end() == 0


def test_it_is_watched_over_like_any_other(managed, eventually):
    """One whose loop has hung is killed, with its stacks in the log."""
    managed.write(server("event"), general='heartbeat_timeout = "500ms"')
    managed.begin()
    (pid,) = managed.workers()
    pidfd = os.pidfd_open(pid)
    with managed.connect() as sock:
        sock.sendall(b"first\n")
        assert sock.recv(100)
        managed.reload()
        sock.sendall(b"spin\n")
        assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)
    managed.program.wait_for(f"a: worker {pid} killed: no heartbeat")
    eventually(lambda: states(managed) == ["ready"])


def test_those_that_retire_one_by_one_are_bounded_too(managed, eventually):
    """Else a client that stays connected again and again would make a worker each time."""
    managed.write(server("event", more="limits = { max_requests = 1 }"), general="generations = 2")
    managed.begin()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            before = managed.workers()

            def is_replaced(before=before):
                # One that retires may still take what it was woken for: then somebody else is to come.
                stack.enter_context(talking_to(managed))
                return managed.workers() not in (before, [])

            eventually(is_replaced)
        eventually(lambda: states(managed) == ["ready", "retiring", "retiring"])
    assert managed.program.end() == 0
