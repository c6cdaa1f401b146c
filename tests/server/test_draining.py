"""A stop loses nothing: what was begun finishes, what waits is answered, and a deadline bounds it all."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Any

import pytest

import srvkit

PLUGIN = """
import time
import srvkit

class Talk(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message):
        if message == b"until the stop":
            self.send(b"begun")
            while not self.server.draining:
                time.sleep(0.005)
        elif message == b"for ever":
            self.send(b"begun")
            while True:
                time.sleep(60)
        return message.upper()

    def disconnected(self, reason):
        print("disconnected:", reason)

class Blocking(srvkit.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())

class Patient(srvkit.DatagramRequestHandler):
    def handle(self):
        self.socket.sendto(b"begun", self.client_address)
        while not self.server.draining:
            time.sleep(0.005)
        self.wfile.write(self.packet.upper())

@srvkit.hookimpl
def srvkit_handlers():
    return {"talk": Talk, "blocking": Blocking, "patient": Patient}
"""
CONFIG = """
[server.test]
listen = "tcp://127.0.0.1:0"
handler = "talk"
concurrency = "threading"
"""
ONE_AT_ONCE = {
    "serial": '"serial"',
    "threading": '"threading"\nlimits = { max_connections = 1 }',
    "pool": '{ name = "pool", threads = 1 }',
    "pool with a limit": '"pool"\nlimits = { max_connections = 1 }',
    "forking": '{ name = "forking", max_children = 1 }',
    "forking with a limit": '"forking"\nlimits = { max_connections = 1 }',
}
MODELS = ["serial", "threading", "pool", "forking"]


def ask(sock: socket.socket, line: bytes) -> bytes:
    """Send a line; return what comes up to the end of a line."""
    sock.sendall(line + b"\n")
    return line_of(sock)


def line_of(sock: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"\n"):
        data = sock.recv(1)
        if not data:
            break
        answer += data
    return answer


@pytest.mark.parametrize("model", MODELS)
def test_the_message_at_hand_finishes(model: str, run_srvkit: Any, client: Any) -> None:
    """Its reply arrives, then the connection ends, then the program, with a clean status."""
    program = run_srvkit(CONFIG.replace("threading", model), PLUGIN)
    with client(program.addresses("test")[0]) as sock:
        assert ask(sock, b"until the stop") == b"begun\n"
        assert program.end() == 0
        assert line_of(sock) == b"UNTIL THE STOP\n"
        assert sock.recv(1) == b""
    program.wait_for("disconnected: stopped")


@pytest.mark.parametrize("model", MODELS)
def test_an_idle_connection_ends_at_once(model: str, run_srvkit: Any, client: Any) -> None:
    """Nothing of the drain_timeout is spent on it."""
    program = run_srvkit(CONFIG.replace("threading", model), PLUGIN, "--set", "srvkit.drain_timeout=1h")
    with client(program.addresses("test")[0]) as sock:
        assert ask(sock, b"hello") == b"HELLO\n"
        assert program.end() == 0
        assert sock.recv(1) == b""
    program.wait_for("disconnected: stopped")


@pytest.mark.parametrize("model", ONE_AT_ONCE)
def test_connections_in_the_queue_are_served(model: str, run_srvkit: Any, client: Any) -> None:
    """They connected before the stop; each gets the answer to what it has sent."""
    program = run_srvkit(CONFIG.replace('"threading"', ONE_AT_ONCE[model]), PLUGIN)
    (address,) = program.addresses("test")
    with client(address) as first:
        assert ask(first, b"hello") == b"HELLO\n"
        waiting = [client(address) for _ in range(5)]
        for sock in waiting:
            sock.sendall(b"me too\n")
        status = program.end()
        answers = [line_of(sock) for sock in waiting]
        for sock in waiting:
            sock.close()
    assert answers == [b"ME TOO\n"] * 5
    assert status == 0


def test_a_long_queue_is_served_to_its_end(run_srvkit: Any, client: Any) -> None:
    program = run_srvkit(CONFIG.replace("threading", "serial"), PLUGIN)
    (address,) = program.addresses("test")
    with client(address) as first:
        assert ask(first, b"hello") == b"HELLO\n"
        waiting = [client(address) for _ in range(200)]
        for sock in waiting:
            sock.sendall(b"me too\n")
        status = program.end()
        answers = [line_of(sock) for sock in waiting]
        for sock in waiting:
            sock.close()
    assert answers == [b"ME TOO\n"] * 200
    assert status == 0


@pytest.mark.parametrize("model", MODELS)
def test_datagrams_at_hand_are_answered(model: str, run_srvkit: Any, client: Any) -> None:
    config = CONFIG.replace("threading", model).replace("tcp:", "udp:").replace("talk", "patient")
    program = run_srvkit(config, PLUGIN)
    with client(program.addresses("test")[0]) as sock:
        sock.send(b"hello")
        assert sock.recv(100) == b"begun"
        assert program.end() == 0 or model == "forking"
        assert sock.recv(100) == b"HELLO"


@pytest.mark.parametrize("model", MODELS)
def test_what_lasts_longer_than_the_deadline_is_cut(model: str, run_srvkit: Any, client: Any) -> None:
    """A handler that waits for its client, and would for ever: the status tells."""
    config = CONFIG.replace("threading", model).replace("talk", "blocking")
    program = run_srvkit(config, PLUGIN, "--set", "srvkit.drain_timeout=100ms")
    with client(program.addresses("test")[0]) as sock:
        assert ask(sock, b"hello") == b"HELLO\n"
        assert program.end() == 1
        assert sock.recv(1) == b""
    program.wait_for("test: cut 1 connection that had not finished")
    assert "Traceback" not in program.log


@pytest.mark.parametrize("model", MODELS)
def test_a_handler_that_never_returns_does_not_keep_the_program(
    model: str, run_srvkit: Any, client: Any
) -> None:
    program = run_srvkit(CONFIG.replace("threading", model), PLUGIN, "--set", "srvkit.drain_timeout=100ms")
    with client(program.addresses("test")[0]) as sock:
        assert ask(sock, b"for ever") == b"begun\n"
        assert program.end() == 1
        assert sock.recv(1) == b""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_does_not_wait(
    number: signal.Signals, model: str, run_srvkit: Any, client: Any
) -> None:
    """QUIT is enough by itself."""
    config = CONFIG.replace("threading", model).replace("talk", "blocking")
    program = run_srvkit(config, PLUGIN, "--set", "srvkit.drain_timeout=1h")
    with client(program.addresses("test")[0]) as sock:
        assert ask(sock, b"hello") == b"HELLO\n"
        if number != signal.SIGQUIT:
            program.process.send_signal(signal.SIGTERM)
            program.wait_for("SIGTERM: stopping")
        assert program.end(number) == 1
        assert sock.recv(1) == b""


@pytest.mark.parametrize("model", MODELS)
def test_after_the_cut_the_queue_is_not_served_any_more(model: str, run_srvkit: Any, client: Any) -> None:
    """However many wait: who stops at once does not take up the next one."""
    config = CONFIG.replace('"threading"', ONE_AT_ONCE[model]).replace("talk", "blocking")
    program = run_srvkit(config, PLUGIN)
    (address,) = program.addresses("test")
    with client(address) as first:
        assert ask(first, b"hello") == b"HELLO\n"
        with client(address) as second:
            assert program.end(signal.SIGQUIT) == 1
            with contextlib.suppress(ConnectionResetError):
                assert second.recv(1) == b""
    assert "did not stop in time" not in program.log


class Shout(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        return message.upper()


@pytest.mark.parametrize("model", ["serial", "threading", "pool"])
def test_an_embedded_server_says_whether_all_had_finished(model: str, client: Any) -> None:
    with srvkit.serve(Shout, "tcp://127.0.0.1:0", concurrency=model) as server:
        with client(server.address) as sock:
            assert ask(sock, b"hello") == b"HELLO\n"
            assert server.stop(3600)
            assert sock.recv(1) == b""
        assert server.stop()  # again

    class Deaf(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"begun\n")
            self.request.recv(1)

    with (
        srvkit.serve(Deaf, "tcp://127.0.0.1:0", concurrency=model) as server,
        client(server.address) as sock,
    ):
        assert line_of(sock) == b"begun\n"
        assert not server.stop(0)
        assert sock.recv(1) == b""


def test_a_stopping_server_takes_no_new_connections(client: Any) -> None:
    with srvkit.serve(Shout, "tcp://127.0.0.1:0") as server:
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            client(server.address)
