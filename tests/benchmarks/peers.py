"""Echo servers of other libraries, as their documentation has one write them.

`python peers.py NAME` serves on a free port, which it prints, until it is killed. Those over TCP echo
lines until the client closes. All get what srvkit's servers have by default: a queue of 2048 clients and
TCP_NODELAY, which connections inherit from their listening socket. Where a package is
missing the program says so and ends.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"
BACKLOG = 2048
LONGEST = 1 << 20  # bytes of a line


def announce(sock: socket.socket) -> None:
    """Print where this socket listens; set up what is the same for all."""
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(*sock.getsockname(), flush=True)


def socketserver_lines(kind: str) -> None:
    import socketserver

    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line)

    bases = (getattr(socketserver, kind),)
    attributes = {"request_queue_size": BACKLOG, "daemon_threads": True, "max_children": 1024}
    with type("Server", bases, attributes)((HOST, 0), Echo) as server:
        announce(server.socket)
        server.serve_forever()


def socketserver_datagrams(kind: str) -> None:
    import socketserver

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data, self.client_address)

    with getattr(socketserver, kind)((HOST, 0), Echo) as server:
        announce(server.socket)
        server.serve_forever()


def gevent_lines() -> None:
    from gevent.server import StreamServer

    def echo(sock: Any, address: Any) -> None:
        with sock.makefile("rb") as lines:
            for line in lines:
                sock.sendall(line)

    server = StreamServer((HOST, 0), echo, backlog=BACKLOG)
    server.start()
    announce(server.socket)
    server.serve_forever()


def gevent_datagrams() -> None:
    from gevent.server import DatagramServer

    class Echo(DatagramServer):
        def handle(self, data: bytes, address: Any) -> None:
            self.socket.sendto(data, address)

    server = Echo((HOST, 0))
    server.start()
    announce(server.socket)
    server.serve_forever()


def run(main: Callable[[], Any], loop: str) -> None:
    if loop == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())


def streams(loop: str) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def serve() -> None:
        server = await asyncio.start_server(echo, HOST, 0, backlog=BACKLOG, limit=LONGEST)
        announce(server.sockets[0])
        await server.serve_forever()

    run(serve, loop)


class Lines(asyncio.Protocol):
    transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.held = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.held = (self.held + data).split(b"\n")
        if lines:
            self.transport.write(b"".join([line + b"\n" for line in lines]))


class Unframed(asyncio.Protocol):
    transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def protocol(factory: Any, loop: str) -> None:
    """Serve a Protocol; also of other modules here."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(factory, HOST, 0, backlog=BACKLOG)
        announce(server.sockets[0])
        await server.serve_forever()

    run(serve, loop)


class Datagrams(asyncio.DatagramProtocol):
    transport: Any

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


def datagrams(loop: str) -> None:
    async def serve() -> None:
        running = asyncio.get_running_loop()
        transport, _ = await running.create_datagram_endpoint(Datagrams, local_addr=(HOST, 0))
        print(*transport.get_extra_info("sockname"), flush=True)
        await asyncio.Event().wait()

    run(serve, loop)


def twisted_lines() -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import protocol, reactor
    from twisted.protocols.basic import LineReceiver

    class Echo(LineReceiver):
        delimiter = b"\n"
        MAX_LENGTH = LONGEST

        def lineReceived(self, line: bytes) -> None:
            self.sendLine(line)

    port = reactor.listenTCP(0, protocol.Factory.forProtocol(Echo), backlog=BACKLOG, interface=HOST)
    announce(port.socket)
    reactor.run()


def twisted_datagrams() -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import protocol, reactor

    class Echo(protocol.DatagramProtocol):
        def datagramReceived(self, datagram: bytes, address: Any) -> None:
            self.transport.write(datagram, address)

    announce(reactor.listenUDP(0, Echo(), interface=HOST).socket)
    reactor.run()


def commands(module: str, loop: str) -> None:
    """The protocol of resp.py or web.py, by the very same functions, without srvkit's server."""
    from importlib import import_module

    logic = import_module(module)

    class Conversation(asyncio.Protocol):
        transport: Any

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.framing = logic.framing()

        def data_received(self, data: bytes) -> None:
            self.transport.write(b"".join([logic.answer(message) for message in self.framing.feed(data)]))

    protocol(Conversation, loop)


PEERS: dict[str, Callable[[], None]] = {
    "socketserver-threading": lambda: socketserver_lines("ThreadingTCPServer"),
    "socketserver-forking": lambda: socketserver_lines("ForkingTCPServer"),
    "socketserver-udp": lambda: socketserver_datagrams("UDPServer"),
    "socketserver-threading-udp": lambda: socketserver_datagrams("ThreadingUDPServer"),
    "gevent": gevent_lines,
    "gevent-udp": gevent_datagrams,
    "twisted": twisted_lines,
    "twisted-udp": twisted_datagrams,
}
for _loop in ("asyncio", "uvloop"):
    PEERS |= {
        f"{_loop}-streams": lambda loop=_loop: streams(loop),
        f"{_loop}-protocol": lambda loop=_loop: protocol(Lines, loop),
        f"{_loop}-unframed": lambda loop=_loop: protocol(Unframed, loop),
        f"{_loop}-udp": lambda loop=_loop: datagrams(loop),
        f"{_loop}-resp": lambda loop=_loop: commands("resp", loop),
        f"{_loop}-web": lambda loop=_loop: commands("web", loop),
    }


def main() -> None:
    try:
        PEERS[sys.argv[1]]()
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed")


if __name__ == "__main__":
    main()
