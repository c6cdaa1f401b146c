"""The loop: when it waits, how it stops, and what it does when requests cannot be had."""

from __future__ import annotations

import builtins
import errno
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import srvkit

ANY = ("127.0.0.1", 0)
PATIENCE = 30


BARE = """
import srvkit
class Echo(srvkit.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
class Server(srvkit.ThreadingTCPServer):
    name = "echo"
with Server(("127.0.0.1", 0), Echo) as server:
    print(f" echo: listening on tcp://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()
"""
COMPOSED = '[server.echo]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo"\nconcurrency = "threading"\n'


class Echo(srvkit.StreamRequestHandler):
    """Answer lines until the client has no more."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def ask(sock: socket.socket, line: bytes = b"hello\n") -> bytes:
    sock.sendall(line)
    answer = b""
    while not answer.endswith(b"\n"):
        data = sock.recv(1000)
        if not data:
            break
        answer += data
    return answer


def in_thread(function: Callable[..., Any], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


# Stopping


@pytest.mark.parametrize("kind", [srvkit.TCPServer, srvkit.ThreadingTCPServer, srvkit.UDPServer])
def test_shutdown_does_not_wait_for_a_poll(kind: Any) -> None:
    """The loop is woken, whatever the interval at which it might have looked by itself."""
    with kind(ANY, Echo) as server:
        loop = in_thread(server.serve_forever, 1e6)
        server.shutdown()
        loop.join(PATIENCE)
        assert not loop.is_alive()


def test_shutdown_while_the_loop_sleeps() -> None:
    with srvkit.TCPServer(ANY, Echo) as server:
        loop = in_thread(server.serve_forever, 1e6)
        with socket.create_connection(server.server_address, PATIENCE) as sock:
            ask(sock)
        server.shutdown()
        loop.join(PATIENCE)
        assert not loop.is_alive()


def test_shutdown_before_serve_forever_makes_it_return_at_once() -> None:
    with srvkit.TCPServer(ANY, Echo) as server:
        stop = in_thread(server.shutdown)
        stop.join(PATIENCE)
        assert not stop.is_alive()
        server.serve_forever()  # would never return


def test_a_server_serves_again_after_a_shutdown(serving: Any) -> None:
    server = serving(srvkit.TCPServer(ANY, Echo))
    server.shutdown()
    serving(server)
    with socket.create_connection(server.server_address, PATIENCE) as sock:
        assert ask(sock) == b"hello\n"


def test_a_handler_may_shut_its_server_down() -> None:
    """It runs in the loop's own thread, and shutdown() does not wait for itself."""

    class Stop(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            self.server.shutdown()
            self.request.sendall(b"done\n")

    with srvkit.TCPServer(ANY, Stop) as server:
        loop = in_thread(server.serve_forever)
        with socket.create_connection(server.server_address, PATIENCE) as sock:
            assert ask(sock) == b"done\n"
        loop.join(PATIENCE)
        assert not loop.is_alive()


def test_a_signal_handler_may_shut_the_server_down(run_code: Any, client: Any) -> None:
    """It runs in the middle of the loop, in whose thread waiting for the end would be for ever."""
    program = run_code(
        "import signal\n"
        + BARE.replace("server.serve_forever()", "serve(server)").replace(
            "with Server",
            "def serve(server):\n"
            "    signal.signal(signal.SIGUSR1, lambda *_: server.shutdown())\n"
            "    server.serve_forever()\n"
            "    print('out of the loop')\n"
            "with Server",
        )
    )
    with client(program.addresses("echo")[0]) as sock:
        assert ask(sock) == b"hello\n"
    assert program.end(signal.SIGUSR1) == 0
    program.wait_for("out of the loop")


def test_closing_a_server_ends_its_loop() -> None:
    server = srvkit.TCPServer(ANY, Echo)
    loop = in_thread(server.serve_forever, 1e6)
    with socket.create_connection(server.server_address, PATIENCE) as sock:
        ask(sock)
    server.server_close()
    loop.join(PATIENCE)
    assert not loop.is_alive()


def test_overridden_service_actions_are_called_on_their_clock(serving: Any) -> None:
    calls = threading.Semaphore(0)

    class Busy(srvkit.TCPServer):
        def service_actions(self) -> None:
            calls.release()

        def serve_forever(self, poll_interval: float = 0.01) -> None:
            super().serve_forever(poll_interval)

    serving(Busy(ANY, Echo))
    for _ in range(5):
        assert calls.acquire(timeout=PATIENCE)


# Waiting

IDLE = """
[srvkit]
heartbeat_timeout = "1h"

[server.threading]
listen = ["tcp://127.0.0.1:0", "unix:idle.sock"]
handler = "echo"

[server.pool]
listen = "tcp://127.0.0.1:0"
handler = "echo"
concurrency = "pool"

[server.datagrams]
listen = "udp://127.0.0.1:0"
handler = "echo"
concurrency = "serial"

[server.forking]
listen = "tcp://127.0.0.1:0"
handler = "echo"
concurrency = "forking"
"""


def processes(pid: int) -> list[int]:
    """A process and its children."""
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [pid, *map(int, children.read().split())]


def test_an_idle_server_makes_no_system_calls(run_srvkit: Any, client: Any, tool: Any) -> None:
    """Between its heartbeats: kept threads, reaped children and the supervisor do not poll either."""
    tool("strace")
    program = run_srvkit(IDLE)
    for name in ("threading", "pool", "forking"):
        with client(program.addresses(name)[0]) as sock:
            assert ask(sock) == b"hello\n"
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    traced = processes(program.pid)
    assert len(traced) == 5
    for _ in range(3):  # what polls shows up each time; the last of what came before, once at most
        wait_until_asleep(traced)
        lines = traced_calls(traced)
        calls = [line for line in lines if re.search(r"\) += ", line)]
        if not calls:
            break
    assert calls == []
    assert any("epoll" in line for line in lines)


def traced_calls(pids: list[int]) -> list[str]:
    """Watch the system calls of these processes for a while."""
    arguments = [argument for pid in pids for argument in ("-p", str(pid))]
    trace = subprocess.Popen(["strace", "-f", *arguments], stderr=subprocess.PIPE, text=True)
    assert trace.stderr is not None
    line = trace.stderr.readline()
    if "attach" in line and "attached" not in line:
        trace.wait()
        pytest.skip(f"strace may not attach: {line}")
    time.sleep(1.2)  # waiting too short can hide a fault, never make one
    trace.terminate()
    with trace.stderr:
        lines = [line, *trace.stderr]
    trace.wait()
    return lines


def wait_until_asleep(pids: list[int]) -> None:
    """Wait until every thread sleeps and has stayed asleep between two looks."""

    def switches() -> list[str]:
        found = []
        for pid in pids:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/status") as status:
                    found += [line for line in status if "ctxt_switches" in line or line.startswith("State")]
        return found

    deadline = time.monotonic() + PATIENCE
    before: list[str] = []
    while time.monotonic() < deadline:
        now = switches()
        if now == before and all("S (sleeping)" in line for line in now if line.startswith("State")):
            return
        before = now
        time.sleep(0.05)
    raise AssertionError(f"never asleep: {before}")


# When no request can be had


@pytest.mark.parametrize("policy", ["bare", "composed"])
def test_a_server_out_of_descriptors_waits_and_recovers(
    policy: str, run_srvkit: Any, run_code: Any, client: Any
) -> None:
    """It tries again ever more rarely, says so once a second at most, and then serves who waited."""
    program = run_code(BARE) if policy == "bare" else run_srvkit(COMPOSED)
    (address,) = program.addresses("echo")
    pid = processes(program.pid)[-1]  # of the supervisor's only worker, or the program itself
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with client(address) as open_before:
        assert ask(open_before) == b"hello\n"
        taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        free = next(number for number in range(len(taken) + 1) if number not in taken)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
        with client(address) as waiting:
            waiting.sendall(b"hello\n")
            program.wait_for("cannot accept: .*Too many open files")
            assert ask(open_before) == b"hello\n"
            # Ten milliseconds, doubling: at most seven tries fit into the second before the next line.
            held_back = program.wait_for(r"cannot accept: .*\((\d+) like it held back\)")[1]
            assert int(held_back) <= 7
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            assert waiting.recv(100) == b"hello\n"
        with client(address) as afterwards:
            assert ask(afterwards) == b"hello\n"
    assert program.process.poll() is None
    assert "Traceback" not in program.log


def failing(errors: list[int]) -> type[srvkit.TCPServer]:
    """A server whose first get_request() calls fail with these errors."""

    class Failing(srvkit.TCPServer):
        def get_request(self) -> Any:
            if errors:
                number = errors.pop()
                raise OSError(number, os.strerror(number))
            return super().get_request()

    return Failing


def test_a_client_gone_before_it_was_accepted_is_nothing_to_speak_of(serving: Any, caplog: Any) -> None:
    server = serving(failing([errno.ECONNABORTED, errno.EPERM, errno.EINTR, errno.EAGAIN])(ANY, Echo))
    with socket.create_connection(server.server_address, PATIENCE) as sock:
        assert ask(sock) == b"hello\n"
    assert caplog.records == []


def test_an_error_that_should_pass_and_does_not_is_no_reason_to_spin(
    serving: Any, client: Any, caplog: Any, eventually: Any
) -> None:
    """After many in a row the server pauses, and says so."""
    left = [errno.ECONNABORTED] * 10_000
    server = serving(failing(left)(ANY, Echo))
    with client(server.server_address):
        eventually(lambda: caplog.records)
        assert 10_000 - len(left) <= 102
    assert "next try in 1000 ms" in caplog.text


def test_a_broken_listening_socket_ends_the_loop_with_its_error() -> None:
    raised: list[BaseException] = []

    def serve() -> None:
        try:
            server.serve_forever()
        except OSError as error:
            raised.append(error)

    with srvkit.TCPServer(ANY, Echo) as server:
        loop = in_thread(serve)
        with socket.create_connection(server.server_address, PATIENCE) as sock:
            ask(sock)
        server.socket.shutdown(socket.SHUT_RDWR)  # it does not listen any more
        loop.join(PATIENCE)
        assert not loop.is_alive()
    assert [error.errno for error in raised] == [errno.EINVAL]


# What a handler may raise


class Exits(srvkit.MessageHandler):
    """Raise what the client names."""

    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        if message == b"SystemExit":
            raise SystemExit(7)
        if message == b"KeyboardInterrupt":
            raise KeyboardInterrupt
        if message == b"ValueError":
            raise ValueError("a mistake")
        return message


NAMES = ["SystemExit", "KeyboardInterrupt", "ValueError"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["serial", "threading", "pool"])
def test_whatever_a_handler_raises_ends_its_connection_alone(
    name: str, model: str, client: Any, caplog: Any
) -> None:
    """Under srvkit it is an error of that connection, with its traceback in the log."""
    with srvkit.serve(Exits, "tcp://127.0.0.1:0", concurrency=model) as server:
        with client(server.address) as sock:
            sock.sendall(name.encode() + b"\n")
            assert sock.recv(1) == b""
        with client(server.address) as sock:
            assert ask(sock) == b"hello\n"
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info[0].__name__ for record in errors if record.exc_info] == [name]


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "ValueError"])
@pytest.mark.parametrize("model", ["serial", "threading", "pool", "event", "asyncio"])
def test_so_does_what_its_constructor_raises(name: str, model: str, client: Any, caplog: Any) -> None:
    class Begins(srvkit.MessageHandler):
        framing = srvkit.Lines()
        to_raise: list[type[BaseException]] = [getattr(builtins, name)]

        def __init__(self, *arguments: Any) -> None:
            if self.to_raise:
                raise self.to_raise.pop()
            super().__init__(*arguments)

        def handle_message(self, message: bytes) -> bytes:
            return message

    with srvkit.serve(Begins, "tcp://127.0.0.1:0", concurrency=model) as server:
        with client(server.address) as sock:
            assert sock.recv(1) == b""
        with client(server.address) as sock:
            assert ask(sock) == b"hello\n"
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info[0].__name__ for record in errors if record.exc_info] == [name]


def test_a_bare_server_lets_exit_and_interrupt_out_of_its_loop(client: Any) -> None:
    """As in the standard library: they mean the program, not the connection."""

    class Interrupt(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            raise KeyboardInterrupt

    raised: list[str] = []

    def serve() -> None:
        try:
            server.serve_forever()
        except KeyboardInterrupt as error:
            raised.append(type(error).__name__)

    with srvkit.TCPServer(ANY, Interrupt) as server:
        loop = in_thread(serve)
        with client(server.server_address) as sock:
            assert sock.recv(1) == b""  # the connection is closed all the same
        loop.join(PATIENCE)
    assert raised == ["KeyboardInterrupt"]


def test_a_bare_server_reports_errors_on_standard_error(serving: Any, client: Any, capfd: Any) -> None:
    class Mistaken(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            raise ValueError("a mistake")

    server = serving(srvkit.TCPServer(ANY, Mistaken))
    with client(server.server_address) as sock:
        assert sock.recv(1) == b""
    report = capfd.readouterr().err
    assert report.splitlines()[0] == report.splitlines()[-1] == "-" * 40
    assert "Traceback" in report and "ValueError: a mistake" in report
