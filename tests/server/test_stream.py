"""Stream servers: addresses and sockets of every kind, and peers that vanish at any moment."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

import srvkit

ANY = ("127.0.0.1", 0)
PATIENCE = 30


class Who(srvkit.StreamRequestHandler):
    """Answer each line with the client's address."""

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(repr(self.client_address).encode() + b"\n")


def ask(sock: socket.socket, line: bytes = b"hello\n") -> bytes:
    sock.sendall(line)
    with sock.makefile("rb") as answers:
        return answers.readline().strip()


def reset(sock: socket.socket) -> None:
    """Close without a goodbye: the peer gets an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# Addresses


def test_the_family_follows_from_the_address(serving: Any, client: Any) -> None:
    server = serving(srvkit.TCPServer(("::1", 0), Who))
    assert server.address_family == socket.AF_INET6
    with client(server.server_address[:2]) as sock:
        assert ask(sock) == repr(sock.getsockname()).encode()


def test_an_address_family_that_a_class_sets_is_kept(serving: Any, client: Any) -> None:
    class Six(srvkit.TCPServer):
        address_family = socket.AF_INET6

    server = serving(Six(("", 0), Who))
    with client(("::1", server.server_address[1])) as sock:
        assert ask(sock)


@pytest.mark.parametrize("listen", ["tcp://[::]:0", "tcp://:0"])
def test_a_dual_stack_server_knows_its_ipv4_clients_by_their_ipv4_address(listen: str, client: Any) -> None:
    with srvkit.serve(Who, listen) as server:
        port = server.address[1]
        for host in ("127.0.0.1", "::1"):
            with client((host, port)) as sock:
                assert ask(sock) == repr(sock.getsockname()).encode()


def test_several_addresses_are_one_server(client: Any, tmp_path: Path) -> None:
    """One loop, one count of connections."""
    path = f"unix:{tmp_path / 's'}"
    with srvkit.serve(Who, "tcp://127.0.0.1:0", "tcp://[::1]:0", path) as server:
        one, two, three = (client(address) for address in server.addresses)
        for sock in (three, one, two):
            assert ask(sock)
        assert "3 of 1024 seats taken" in repr(server.server)
        for sock in (one, two, three):
            sock.close()


# Sockets that are open already


def test_a_socket_that_is_bound_is_served(serving: Any, client: Any) -> None:
    """It need not listen yet, and belongs to the server."""
    bound = socket.create_server(ANY)
    server = serving(srvkit.ThreadingTCPServer.from_socket(bound, Who))
    assert server.server_address == bound.getsockname()
    with client(server.server_address) as sock:
        assert ask(sock)
    server.shutdown()
    server.server_close()
    assert bound.fileno() == -1

    fresh = socket.socket()
    fresh.bind(ANY)
    server = serving(srvkit.TCPServer.from_socket(fresh, Who))
    with client(server.server_address) as sock:
        assert ask(sock)


def test_a_descriptor_is_served_as_what_it_is(serving: Any, client: Any, tmp_path: Path) -> None:
    """Its family is read off it; no other socket is made."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        fd = os.dup(listening.fileno())
        before = len(os.listdir("/proc/self/fd"))
        server = srvkit.TCPServer.from_fd(fd, Who)
        assert len(os.listdir("/proc/self/fd")) == before
        assert server.fileno() == fd
        assert server.address_family == socket.AF_UNIX
        assert server.server_address == path
        serving(server)
        with client(path) as sock:
            assert ask(sock)


def test_a_datagram_socket_is_served_too(serving: Any, client: Any) -> None:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(ANY)

    class Echo(srvkit.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.packet)

    server = serving(srvkit.UDPServer.from_socket(bound, Echo))
    with client(f"udp://127.0.0.1:{server.server_address[1]}") as sock:
        sock.send(b"hello")
        assert sock.recv(100) == b"hello"


def test_a_socket_is_blocking_again_when_the_loop_has_ended(serving: Any, client: Any) -> None:
    """Whoever made it finds it as it was."""
    bound = socket.create_server(ANY)
    server = serving(srvkit.TCPServer.from_socket(bound, Who))
    with client(server.server_address) as sock:
        ask(sock)
        assert not os.get_blocking(bound.fileno())
        assert bound.gettimeout() is None
    server.shutdown()
    assert os.get_blocking(bound.fileno())


def test_a_server_that_cannot_listen_leaves_nothing_open() -> None:
    with socket.create_server(ANY) as other:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="in use"):
            srvkit.TCPServer(other.getsockname(), Who)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_bare_unix_server_leaves_its_file_as_the_standard_librarys_does(tmp_path: Path) -> None:
    path = tmp_path / "s"
    srvkit.UnixStreamServer(str(path), Who).server_close()
    assert path.is_socket()
    with pytest.raises(OSError, match="in use"):
        srvkit.UnixStreamServer(str(path), Who)


def test_unix_servers_may_ask_for_reuse_port(tmp_path: Path) -> None:
    """The kernel refuses the option there; it is left out."""

    class Reuse(srvkit.UnixStreamServer):
        allow_reuse_port = True

    Reuse(str(tmp_path / "s"), Who).server_close()


# Peers that vanish

BEGUN = threading.Semaphore(0)
GO_ON = threading.Semaphore(0)


class Blocking(srvkit.StreamRequestHandler):
    """Answer lines; on the word, wait with the answer, or answer without end."""

    def handle(self) -> None:
        for line in self.rfile:
            if line == b"wait\n":
                BEGUN.release()
                assert GO_ON.acquire(timeout=PATIENCE)
                self.wfile.write(b"first ")  # the kernel may take this one
            if line == b"flood\n":
                while True:
                    self.wfile.write(bytes(100_000))
            self.wfile.write(line)


class Base(srvkit.BaseRequestHandler):
    def handle(self) -> None:
        Blocking(self.request, self.client_address, self.server)


class Message(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> Any:
        if message == b"wait":
            BEGUN.release()
            assert GO_ON.acquire(timeout=PATIENCE)
            self.send(b"first")
        if message == b"flood":
            return iter(lambda: bytes(100_000), None)
        return message


@pytest.fixture(params=[Blocking, Base, Message], ids=["blocking", "base", "message"])
def handler(request: Any) -> Any:
    return request.param


@pytest.fixture
def one_line(caplog: Any, eventually: Any) -> Any:
    """Check that what happened to this client is one line of the log, and no traceback."""
    caplog.set_level("INFO")

    def check(client_address: tuple[str, int]) -> None:
        eventually(lambda: caplog.records)
        (record,) = caplog.records
        assert (record.name, record.levelname, record.exc_info) == ("srvkit.server", "INFO", None)
        assert f"{client_address[0]}:{client_address[1]} ended: reset" in record.getMessage()
        caplog.clear()

    return check


@pytest.mark.parametrize("model", ["serial", "threading", "pool"])
def test_a_client_that_resets_in_the_middle_of_a_message(
    model: str, handler: Any, client: Any, one_line: Any
) -> None:
    with srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model) as server:
        sock = client(server.address)
        assert ask(sock) == b"hello"
        sock.sendall(b"half a mess")
        address = sock.getsockname()
        reset(sock)
        one_line(address)
        with client(server.address) as sock:
            assert ask(sock) == b"hello"


def test_a_client_that_resets_before_it_is_accepted(handler: Any, client: Any, one_line: Any) -> None:
    with srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency="serial") as server:
        with client(server.address) as first:
            assert ask(first) == b"hello"
            second = client(server.address)
            second.sendall(b"hello\n")
            address = second.getsockname()
            reset(second)
            third = client(server.address)
        one_line(address)
        with third:
            assert ask(third) == b"hello"


@pytest.mark.parametrize("model", ["serial", "threading", "pool"])
def test_a_client_that_resets_before_the_reply(model: str, handler: Any, client: Any, one_line: Any) -> None:
    with srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model) as server:
        sock = client(server.address)
        sock.sendall(b"wait\n")
        assert BEGUN.acquire(timeout=PATIENCE)
        address = sock.getsockname()
        reset(sock)
        GO_ON.release()
        one_line(address)


@pytest.mark.parametrize("model", ["serial", "threading", "pool"])
def test_a_client_that_resets_while_the_reply_is_written(
    model: str, handler: Any, client: Any, one_line: Any
) -> None:
    with srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model) as server:
        sock = client(server.address)
        sock.sendall(b"flood\n")
        assert sock.recv(1000)
        address = sock.getsockname()
        reset(sock)
        one_line(address)


@pytest.mark.parametrize("moment", [b"half a mess", b"flood\n"])
def test_under_forking_it_is_one_line_too(moment: bytes, run_srvkit: Any, client: Any) -> None:
    plugin = (
        "import srvkit\n"
        "class Message(srvkit.MessageHandler):\n"
        "    framing = srvkit.Lines()\n"
        "    def handle_message(self, message):\n"
        "        return iter(lambda: bytes(100_000), None) if message == b'flood' else message\n"
        "@srvkit.hookimpl\n"
        "def srvkit_handlers():\n"
        "    return {'message': Message}\n"
    )
    program = run_srvkit(
        '[server.test]\nlisten = "tcp://127.0.0.1:0"\nhandler = "message"\nconcurrency = "forking"\n', plugin
    )
    (address,) = program.addresses("test")
    sock = client(address)
    assert ask(sock) == b"hello"
    sock.sendall(moment)
    if moment == b"flood\n":
        assert sock.recv(1000)
    host, port = sock.getsockname()
    reset(sock)
    program.wait_for(rf"INFO test\[\d+\]: test: {host}:{port} ended: reset$")
    assert program.end() == 0
    assert len([line for line in program.log.splitlines() if f"{host}:{port}" in line]) == 1
    assert "Traceback" not in program.log
