"""The bare classes of both libraries: `python drop_in.py LIBRARY NAME` serves until it is killed.

A program is written once, with the library as an argument, so that the very same is measured with
`import socketserver` and with `import srvkit as socketserver`. A server is a function that returns its
bound address and the callable that serves; its first line on standard output is the address.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

Server = tuple[tuple[str, int], Callable[[], object]]

BACKLOG = 512  # the clients arrive all at once; a full queue would measure the kernel's retransmissions


def bound(library: Any, name: str, handler: Any) -> Server:
    server_class = type(name, (getattr(library, name),), {"request_queue_size": BACKLOG})
    server = server_class(("127.0.0.1", 0), handler)
    return server.server_address, server.serve_forever


def threading_stream(library: Any) -> Server:
    class Echo(library.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    return bound(library, "ThreadingTCPServer", Echo)


def threading_base(library: Any) -> Server:
    class Echo(library.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(4096))

    return bound(library, "ThreadingTCPServer", Echo)


def threading_conversation(library: Any) -> Server:
    class Echo(library.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                self.request.sendall(data)

    return bound(library, "ThreadingTCPServer", Echo)


def threading_message(library: Any) -> Server:
    class Echo(library.MessageHandler):
        framing = library.Lines()

        def handle_message(self, message: bytes) -> bytes:
            return message

    return bound(library, "ThreadingTCPServer", Echo)


def threading_udp_base(library: Any) -> Server:
    class Echo(library.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data, self.client_address)

    return bound(library, "ThreadingUDPServer", Echo)


def threading_udp_datagram(library: Any) -> Server:
    class Echo(library.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read())

    return bound(library, "ThreadingUDPServer", Echo)


SERVERS: dict[str, Callable[[Any], Server]] = {
    "StreamRequestHandler": threading_stream,
    "BaseRequestHandler": threading_base,
    "BaseRequestHandler-until-eof": threading_conversation,
    "MessageHandler": threading_message,
    "UDP-BaseRequestHandler": threading_udp_base,
    "UDP-DatagramRequestHandler": threading_udp_datagram,
}


def main() -> None:
    (host, port), serve = SERVERS[sys.argv[2]](importlib.import_module(sys.argv[1]))
    print(host, port, flush=True)
    serve()


if __name__ == "__main__":
    main()
