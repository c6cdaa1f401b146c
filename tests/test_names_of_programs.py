"""Names that srvkit's classes have and the standard library's do not: a program may use them for its own."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import srvkit
from tests.conftest import Connect

ANY = ("127.0.0.1", 0)
PATIENCE = 30


OF_A_PROGRAM = [
    "accept_queue", "access", "admission", "admit", "close_connections", "connection_class", "draining",
    "limits", "listeners", "name", "patience", "proxy", "request_ended", "retire", "secure", "shared",
    "start", "stop_serving", "threads", "tls", "trusted", "waiting", "_burst", "_failures", "_lingering",
    "_listeners", "_loop", "_loop_thread", "_more", "_pauses", "_seats", "_serve", "_stop",
]  # fmt: skip


@pytest.mark.parametrize("name", OF_A_PROGRAM)
@pytest.mark.parametrize("kind", [srvkit.TCPServer, srvkit.ThreadingTCPServer, srvkit.ThreadingUDPServer])
def test_a_program_may_use_the_name_for_something_of_its_own(kind: Any, name: str, client: Connect) -> None:
    """As an attribute or a method of its server; a refused client and one that is served notice nothing."""
    of_the_program = object()

    class WithAttribute(kind):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            setattr(self, name, of_the_program)
            super().__init__(*arguments)
            setattr(self, name, of_the_program)

    with_method = type("WithMethod", (kind,), {name: lambda self: self.shutdown()})
    for server_class in (WithAttribute, with_method):
        refused: list[Any] = []

        class Server(server_class):  # type: ignore[misc, valid-type]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                refused.append(client_address)  # noqa: B023
                return len(refused) > 1  # noqa: B023

        class Answer(srvkit.BaseRequestHandler):
            def handle(self) -> None:
                data, sock = self.request if isinstance(self.request, tuple) else (b"", self.request)
                sock.sendto(data, self.client_address) if data else sock.sendall(b"hello")

        with Server(ANY, Answer) as server:
            loop = threading.Thread(target=server.serve_forever, daemon=True)
            loop.start()
            scheme = "udp" if "UDP" in kind.__name__ else "tcp"
            address = f"{scheme}://127.0.0.1:{server.server_address[1]}"
            with client(address) as sock:
                sock.send(b"hello") if scheme == "udp" else None
                if scheme == "tcp":
                    assert sock.recv(100) == b""
            with client(address) as sock:
                sock.send(b"hello") if scheme == "udp" else None
                assert sock.recv(100) == b"hello"
            if server_class is WithAttribute:
                assert getattr(server, name) is of_the_program
            server.shutdown()
            loop.join(PATIENCE)
            assert not loop.is_alive()
