"""Threads that lose the interpreter between any two instructions: nothing is entered twice, nobody hangs."""

from __future__ import annotations

import contextvars
import itertools
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

import srvkit

PATIENCE = 30
SECONDS = 0.8  # of each test, and no more rounds than these
ROUNDS = 2000
CLIENTS = 6
WHO = contextvars.ContextVar("who", default=b"")


class Talk(srvkit.MessageHandler):
    """Answer, some of it from other threads, and keep something in the connection's context."""

    framing = srvkit.Lines()

    def connected(self) -> None:
        assert WHO.get() == b""

    def handle_message(self, message: bytes) -> Any:
        who, _, word = message.partition(b" ")
        assert WHO.get() in (b"", who)
        WHO.set(who)
        if word == b"thread":
            threading.Thread(target=self.send, args=(message,)).start()
            return None
        if word == b"close":
            threading.Thread(target=self.close).start()
            return None
        if word == b"secure":
            self.start_tls()
        return message


@pytest.fixture(autouse=True)
def _switching_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
    return folder


def everybody(task: Any) -> None:
    """Do it with several clients at a time, again and again; what fails is raised here."""
    failures = []
    deadline = time.monotonic() + SECONDS

    def work(number: int) -> None:
        try:
            task(b"%d" % number, lambda rounds: rounds < ROUNDS and time.monotonic() < deadline)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("model", ["pool", "threading", "event", "asyncio"])
def test_every_message_is_answered(model: str, client: Any, caplog: Any) -> None:
    """Replies of the handler, of threads, and in the connection's own context."""
    with srvkit.serve(Talk, "tcp://127.0.0.1:0", concurrency=model) as server:

        def talk(who: bytes, goes_on: Any) -> None:
            rounds = 0
            while goes_on(rounds):
                with client(server.address) as sock, sock.makefile("rb") as answers:
                    for word, _ in zip(itertools.cycle((b" a", b" b", b" thread")), range(20), strict=False):
                        sock.sendall(who + word + b"\n")
                        assert answers.readline() == who + word + b"\n"
                        rounds += 1

        everybody(talk)
    assert caplog.records == []


@pytest.mark.parametrize("model", ["pool", "threading", "event", "asyncio"])
def test_a_connection_that_a_thread_closes_ends(model: str, client: Any, caplog: Any) -> None:
    with srvkit.serve(Talk, "tcp://127.0.0.1:0", concurrency=model) as server:

        def talk(who: bytes, goes_on: Any) -> None:
            rounds = 0
            while goes_on(rounds):
                with client(server.address) as sock:
                    sock.sendall(who + b" a\n" + who + b" close\n")
                    assert sock.recv(100) == who + b" a\n"
                    assert sock.recv(100) == b""
                rounds += 1

        everybody(talk)
    assert caplog.records == []


@pytest.mark.parametrize("begin", ["connect", "handler"])
@pytest.mark.parametrize("model", ["pool", "threading", "asyncio"])
def test_handshakes_too(model: str, begin: str, certificates: Any, client: Any, caplog: Any) -> None:
    tls = {"cert": str(certificates / "cert.pem"), "key": str(certificates / "cert.pem"), "begin": begin}
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    with srvkit.serve(Talk, "tcp://127.0.0.1:0", concurrency=model, tls=tls) as server:

        def talk(who: bytes, goes_on: Any) -> None:
            rounds = 0
            while goes_on(rounds):
                sock: socket.socket = client(server.address)
                if begin == "handler":
                    sock.sendall(who + b" secure\n")
                    assert sock.recv(100) == who + b" secure\n"
                with context.wrap_socket(sock, server_hostname="localhost") as secure:
                    for _ in range(3):
                        secure.sendall(who + b" a\n")
                        assert secure.recv(100) == who + b" a\n"
                rounds += 1

        everybody(talk)
    assert caplog.records == []


@pytest.mark.parametrize("model", ["pool", "threading"])
def test_a_stop_in_the_middle_ends_idle_connections(model: str, client: Any, caplog: Any) -> None:
    for _ in range(5):
        with srvkit.serve(Talk, "tcp://127.0.0.1:0", concurrency=model) as server:
            clients = [client(server.address) for _ in range(CLIENTS)]
            for number, sock in enumerate(clients):
                sock.sendall(b"%d a\n" % number)
            for sock in clients:
                sock.recv(100)
            assert server.stop(PATIENCE)
        assert [sock.recv(100) for sock in clients] == [b""] * CLIENTS
    assert caplog.records == []
