"""What programs that run in place of tests share: a server in a thread, clients, and the way to a function.

Nothing that imports socketserver is imported at the top of this file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import http.client
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

LOOPBACK = ("127.0.0.1", 0)
PATIENCE = 60  # seconds before something counts as hung


@contextlib.contextmanager
def served(server: Any) -> Iterator[Any]:
    """The server's address while its loop runs in a thread; then shut down and closed."""
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        loop.join(PATIENCE)
        server.server_close()
    assert not loop.is_alive()


def fetch(port: int, path: str = "/", tls: Any = None) -> bytes:
    """GET over a connection of its own; return the body."""
    connection: http.client.HTTPConnection
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    else:
        connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE, context=tls)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200, response.status
        return response.read()


def talk(address: Any, line: bytes = b"hello\n", family: int = socket.AF_INET) -> bytes:
    """Send a line over a new connection; return one line of answer."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(line)
        with client.makefile("rb") as reader:
            return reader.readline()


def main() -> None:
    """Call a function of the program, with srvkit in socketserver's place if the command says so."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    name, replacement, *arguments = sys.argv[1:]
    if replacement:
        sys.modules["socketserver"] = __import__(replacement)
    getattr(sys.modules["__main__"], name)(*arguments)
    faulthandler.cancel_dump_traceback_later()
