"""Programs written for `socketserver`: each function is one, and serves a real request or more.

tests/test_drop_in.py runs each in a process of its own, in which `import socketserver` gives srvkit:
`python drop_in_programs.py FUNCTION REPLACEMENT [ARGUMENT...]`. Nothing that imports socketserver is
imported at the top of this file.
"""

from __future__ import annotations

import builtins
import contextlib
import faulthandler
import http.client
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
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


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def http_server() -> None:
    import http.server
    import socketserver

    import srvkit

    assert socketserver is srvkit
    Path("greeting").write_text("hello")
    for server_class in (http.server.HTTPServer, http.server.ThreadingHTTPServer):
        assert issubclass(server_class, srvkit.TCPServer)

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

        with served(server_class(LOOPBACK, Quiet)) as (_, port):
            assert fetch(port, "/greeting") == b"hello"


def tls_on_the_listening_socket() -> None:
    import http.server
    import ssl

    import trustme

    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *arguments: object) -> None:
            pass

    for server_class in (http.server.HTTPServer, http.server.ThreadingHTTPServer):
        httpd = server_class(LOOPBACK, Hello)
        httpd.socket = server_side.wrap_socket(httpd.socket, server_side=True)
        with served(httpd) as (_, port):
            assert fetch(port, tls=client_side) == b"hello"
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.sendall(b"this is no TLS\n")
                plain.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionError):
                    while plain.recv(4096):
                        pass
            assert fetch(port, tls=client_side) == b"hello"


def a_silent_client_of_a_tls_server(name: str) -> None:
    """The listening socket wraps its connections in TLS: by the program's doing, or http.server's own."""
    import http.server
    import ssl

    import trustme

    import srvkit

    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path("cert.pem")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain("cert.pem")
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    errors = []

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.connection.version().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    class Errors:
        def handle_error(self, *arguments: object) -> None:
            errors.append(sys.exception())

    def wrapped() -> Any:
        server = type("Server", (Errors, getattr(srvkit, name), http.server.HTTPServer), {})(LOOPBACK, Hello)
        server.socket = server_side.wrap_socket(server.socket, server_side=True)
        return server

    servers = [wrapped()]
    if hasattr(http.server, "HTTPSServer"):  # Python 3.14
        bases = (Errors, getattr(srvkit, name), http.server.HTTPSServer)
        servers.append(type("Server", bases, {})(LOOPBACK, Hello, certfile="cert.pem"))
    for server in servers:
        with served(server) as (_, port), contextlib.ExitStack() as silent:
            for first in (b"", b"\x16\x03\x01"):  # nothing at all; half a handshake
                sock = silent.enter_context(socket.create_connection(("127.0.0.1", port)))
                silent.callback(sock.shutdown, socket.SHUT_RDWR)  # a forked child has a copy
                sock.sendall(first)
            assert fetch(port, tls=client_side).startswith(b"TLS")
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.sendall(b"this is no TLS\n")
                plain.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionError):
                    while plain.recv(4096):
                        pass
        assert not errors, errors


def xmlrpc() -> None:
    import xmlrpc.client
    import xmlrpc.server

    server = xmlrpc.server.SimpleXMLRPCServer(LOOPBACK, logRequests=False)
    server.register_function(lambda a, b: a + b, "add")
    with served(server) as (host, port), xmlrpc.client.ServerProxy(f"http://{host}:{port}") as proxy:
        assert proxy.add(2, 3) == 5


def wsgiref() -> None:
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with served(make_server("127.0.0.1", 0, hello, handler_class=Quiet)) as (_, port):
        assert fetch(port) == b"hello"


def logging_config_listen() -> None:
    import logging.config

    listener = logging.config.listen(0)
    listener.start()
    listener.ready.wait()
    listener.ready.clear()  # set again when a configuration has been applied
    config = b'{"version": 1, "loggers": {"told": {"level": "ERROR"}}}'
    with socket.create_connection(("127.0.0.1", listener.port)) as client:
        client.sendall(len(config).to_bytes(4, "big") + config)
    assert listener.ready.wait(PATIENCE)
    assert logging.getLogger("told").level == logging.ERROR
    logging.config.stopListening()
    listener.join(PATIENCE)
    assert not listener.is_alive()


def werkzeug() -> None:
    import logging
    import tempfile

    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for options in ({}, {"threaded": True}, {"processes": 2}):
        server = make_server("127.0.0.1", 0, hello, **options)
        with served(server):
            assert fetch(server.port) == b"hello"
            assert fetch(server.port) == b"hello"

    with socket.create_server(LOOPBACK) as listener:
        # It closes the socket that it was constructed with, takes this one, and serves.
        server = make_server("127.0.0.1", 0, hello, threaded=True, fd=listener.fileno())
        with served(server):
            assert fetch(listener.getsockname()[1]) == b"hello"

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        with served(make_server(f"unix://{path}", 0, hello, threaded=True)):
            assert talk(path, b"GET / HTTP/1.0\r\n\r\n", socket.AF_UNIX).endswith(b"200 OK\r\n")


def werkzeug_errors_that_leave() -> None:
    import logging

    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)

    def broken(environ: object, start_response: object) -> list[bytes]:
        raise ZeroDivisionError

    server = make_server("127.0.0.1", 0, broken, passthrough_errors=True)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            server.handle_request()
        except ZeroDivisionError:
            pass
        else:
            raise AssertionError("the error should have left handle_request()")
    server.server_close()


def configure_django() -> None:
    import types

    import django
    from django.conf import settings
    from django.http import HttpResponse
    from django.urls import path

    urls = types.ModuleType("drop_in_urls")
    urls.urlpatterns = [path("", lambda request: HttpResponse("hello"))]  # type: ignore[attr-defined]
    sys.modules[urls.__name__] = urls
    settings.configure(
        ROOT_URLCONF=urls.__name__,
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="x",
        LOGGING_CONFIG=None,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )
    django.setup()


def django_runserver() -> None:
    configure_django()
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.servers import basehttp

    for threaded in (False, True):
        servers: list[Any] = []
        ready = threading.Event()

        class CredentialStore(basehttp.WSGIServer):
            def set_app(self, app: Any) -> None:
                super().set_app(app)
                servers.append(self)  # noqa: B023
                ready.set()  # noqa: B023

        loop = threading.Thread(
            target=basehttp.run,
            args=("127.0.0.1", 0, WSGIHandler()),
            kwargs={"threading": threaded, "server_cls": CredentialStore},
        )
        loop.start()
        assert ready.wait(PATIENCE)
        assert fetch(servers[0].server_port) == b"hello"
        servers[0].shutdown()
        loop.join(PATIENCE)
        assert not loop.is_alive()
        servers[0].server_close()


def django_live_server() -> None:
    configure_django()
    from django.core.servers.basehttp import ThreadedWSGIServer
    from django.test.testcases import LiveServerThread

    steps = []

    class Watched(ThreadedWSGIServer):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            steps.append(("process_request_thread", threading.get_ident()))
            super().process_request_thread(request, client_address)

        def _close_connections(self) -> None:
            steps.append(("_close_connections", threading.get_ident()))
            super()._close_connections()
            closed.set()

    closed = threading.Event()
    live = LiveServerThread("127.0.0.1", lambda app: app, {})
    live.server_class = Watched
    live.daemon = True
    live.start()
    assert live.is_ready.wait(PATIENCE)
    assert live.error is None
    assert fetch(live.port) == b"hello"
    assert closed.wait(PATIENCE)  # its threads are daemons: terminate() does not wait for them
    live.terminate()
    assert not live.is_alive()
    (first, serving), (last, closing) = steps
    assert (first, last) == ("process_request_thread", "_close_connections")
    assert serving == closing != live.ident


def dnslib() -> None:
    from dnslib import DNSRecord
    from dnslib.server import BaseResolver, DNSLogger, DNSServer

    for tcp in (False, True):
        quiet = DNSLogger(logf=lambda line: None)
        server = DNSServer(BaseResolver(), address="127.0.0.1", port=0, tcp=tcp, logger=quiet)
        server.start_thread()
        port = server.server.server_address[1]
        for _ in range(3):
            reply = DNSRecord.question("example.org").send("127.0.0.1", port, tcp=tcp, timeout=PATIENCE)
            assert DNSRecord.parse(reply).header.rcode == 3  # NXDOMAIN
        server.stop()
        server.thread.join(PATIENCE)
        assert not server.isAlive()
        server.server.server_close()


def prometheus_client() -> None:
    from prometheus_client import Counter, start_http_server

    Counter("drops", "what dropped in").inc(3)
    server, loop = start_http_server(0, addr="127.0.0.1")
    assert b"drops_total 3.0" in fetch(server.server_port, "/metrics")
    server.shutdown()
    loop.join(PATIENCE)
    assert not loop.is_alive()
    server.server_close()


def fakeredis() -> None:
    import redis
    from fakeredis import TcpFakeServer

    server = TcpFakeServer(LOOPBACK)
    with served(server) as (host, port), redis.Redis(host, port, socket_timeout=PATIENCE) as client:
        client.set("key", "x" * 100_000)
        assert client.get("key") == b"x" * 100_000
        with client.pipeline() as pipeline:
            for _ in range(10):
                pipeline.incr("count")
            assert pipeline.execute() == list(range(1, 11))


def pymodbustcp() -> None:
    from pyModbusTCP.client import ModbusClient
    from pyModbusTCP.server import ModbusServer

    server = ModbusServer("127.0.0.1", 0, no_block=True)
    server.start()
    server.data_bank.set_holding_registers(0, [17, 4])
    client = ModbusClient("127.0.0.1", server._service.server_address[1], timeout=PATIENCE)
    assert client.read_holding_registers(0, 2) == [17, 4]
    client.close()
    server.stop()


def sshtunnel() -> None:
    import logging
    import socketserver
    import tempfile

    import sshtunnel

    class Shout(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline().upper())

    class Channel:  # what the forwarding needs of an SSH channel, over a plain connection
        active = True

        def __init__(self, address: Any) -> None:
            self.socket = socket.create_connection(address)
            self.fileno = self.socket.fileno
            self.sendall = self.socket.sendall
            self.close = self.socket.close

        def recv_ready(self) -> bool:
            return True

        def recv(self, size: int) -> bytes:
            data = self.socket.recv(size)
            self.active = bool(data)
            return data

    class Transport:
        def open_channel(self, dest_addr: Any, **others: object) -> Channel:
            return Channel(dest_addr)

    quiet = logging.getLogger("quiet")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    remote = socketserver.ThreadingTCPServer(LOOPBACK, Shout)
    with tempfile.TemporaryDirectory() as folder, served(remote) as remote_address:

        class Forward(sshtunnel._ForwardHandler):
            ssh_transport = Transport()
            logger = quiet

        Forward.remote_address = remote_address
        for server_class in (sshtunnel._ForwardServer, sshtunnel._ThreadingForwardServer):
            server = server_class(LOOPBACK, Forward, logger=quiet)
            assert server.remote_port == remote_address[1]
            with served(server) as address:
                assert talk(address) == b"HELLO\n"
        path = f"{folder}/s"
        with served(sshtunnel._ThreadingStreamForwardServer(path, Forward, logger=quiet)):
            assert talk(path, family=socket.AF_UNIX) == b"HELLO\n"


def stream_echo(library: Any) -> Any:
    class Echo(library.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line)

    return Echo


def base_echo(library: Any) -> Any:
    class Echo(library.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            while data := self.request.recv(1024):
                self.request.sendall(data)

    return Echo


def datagram_echo(library: Any) -> Any:
    class Echo(library.DatagramRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.wfile.write(self.rfile.read())

    return Echo


def message_echo(library: Any) -> Any:
    class Echo(library.MessageHandler):  # type: ignore[misc]
        framing = library.Lines()

        def handle_message(self, message: bytes) -> bytes:
            return message

    return Echo


def talk_by_datagram(address: Any, family: int) -> bytes:
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        if family == socket.AF_UNIX:
            Path("client").unlink(missing_ok=True)
            client.bind("client")
        client.connect(address)
        client.send(b"hello\n")
        return client.recv(1024)


def echo(of_server: str, of_handler: str, server_name: str) -> None:
    server_class = getattr(__import__(of_server), server_name)
    library = __import__(of_handler)
    datagrams = server_class.socket_type == socket.SOCK_DGRAM
    makers = [datagram_echo] if datagrams else [stream_echo, base_echo]
    if hasattr(library, "MessageHandler"):
        makers.append(message_echo)
    family = server_class.address_family
    where = "server" if family == socket.AF_UNIX else LOOPBACK
    for maker in makers:
        with served(server_class(where, maker(library))) as address:
            for _ in range(3):
                answer = talk_by_datagram(address, family) if datagrams else talk(address, family=family)
                assert answer == b"hello\n", (maker, answer)
        Path("server").unlink(missing_ok=True)


def mixins_before_the_real_http_server(name: str) -> None:
    import http.server
    import socketserver

    import srvkit

    assert socketserver is not srvkit

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"{os.getpid()} {threading.get_ident()}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(getattr(srvkit, name), http.server.HTTPServer):  # type: ignore[misc]
        pass

    server = Server(LOOPBACK, Hello)
    with served(server) as (_, port):
        with socket.create_connection(("127.0.0.1", port)) as silent:  # holds up nobody
            for _ in range(3):
                pid, thread = map(int, fetch(port).split())
                assert (pid == os.getpid()) is (name == "ThreadingMixIn")
                assert name == "ForkingMixIn" or thread != threading.main_thread().ident
            silent.shutdown(socket.SHUT_RDWR)  # not only close(): a forked child has a copy
        fetch(port)
    assert not server.active_children if name == "ForkingMixIn" else not list(server._threads)
    assert server.socket.fileno() == -1


STEPS = [
    "server_bind",
    "server_activate",
    "get_request",
    "verify_request",
    "process_request",
    "process_request_thread",
    "finish_request",
    "handle_error",
    "shutdown_request",
    "close_request",
    "handle_timeout",
    "collect_children",
    "server_close",
]


def steps(library: str, server_name: str, case: str) -> None:
    """Print, for each thread or process in turn, the steps that one request goes through."""
    module = __import__(library)
    family = socket.AF_UNIX if "Unix" in server_name else socket.AF_INET
    datagrams = "UDP" in server_name or "Datagram" in server_name
    kind = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
    read_end, write_end = os.pipe()
    closed = threading.Event()
    main = (os.getpid(), threading.get_ident())

    def record(step: str) -> None:
        here = "main" if (os.getpid(), threading.get_ident()) == main else "elsewhere"
        os.write(write_end, f"{here} {step}\n".encode())
        if step == "close_request":
            closed.set()

    def recorded(step: str) -> Callable[..., Any]:
        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            record(step)
            if step == "verify_request" and case == "refused":
                return False
            if step == "handle_error":
                return None
            return getattr(super(server_class, self), step)(*arguments, **options)

        return method

    base = getattr(module, server_name)
    steps = {step: recorded(step) for step in STEPS if hasattr(base, step)}
    server_class = type("Recorded", (base,), steps | {"timeout": 0 if case == "nobody" else PATIENCE})

    class Handler(module.DatagramRequestHandler if datagrams else module.StreamRequestHandler):  # type: ignore[misc]
        def setup(self) -> None:
            record("setup")
            if case == "setup fails":
                raise ZeroDivisionError
            super().setup()

        def handle(self) -> None:
            record("handle")
            if case == "handle fails":
                raise ZeroDivisionError
            if case == "exits":
                raise SystemExit
            self.wfile.write(self.rfile.readline())

        def finish(self) -> None:
            record("finish")
            super().finish()

    threading.excepthook = lambda arguments: record(f"excepthook {arguments.exc_type.__name__}")
    server = server_class("server" if family == socket.AF_UNIX else LOOPBACK, Handler)
    with socket.socket(family, kind) as client:
        client.settimeout(PATIENCE)
        if case != "nobody":
            if family == socket.AF_UNIX:
                client.bind("client")
            client.connect(server.server_address)
            client.sendall(b"hello\n")
        try:
            server.handle_request()
        except SystemExit:
            record("SystemExit")
        if case == "served":
            assert client.recv(100) == b"hello\n"
        if case != "nobody":
            assert closed.wait(PATIENCE)
    server.server_close()
    os.close(write_end)
    with open(read_end, "rb") as trace:
        lines = trace.read().decode().splitlines()
    by_place = {place: [line for line in lines if line.startswith(place)] for place in ("main", "elsewhere")}
    print(json.dumps(by_place))


ENDINGS = [
    "return",
    "ZeroDivisionError",
    "SystemExit",
    "KeyboardInterrupt",
    "ConnectionResetError",
    "asks for the listening socket's name",
    "closes the server",
    "closes the request",
    "detaches the request",
    "closes standard output",
    "breaks standard output",
    "breaks shutdown_request",
    "breaks handle_error",
    "_exit",
    "kill",
]


def exit_statuses(library: str, server_name: str) -> None:
    """Print, for each way in which a handler ends, what the parent is told of its child's end."""
    module = __import__(library)
    datagrams = "UDP" in server_name
    ended: list[int] = []
    waitpid = os.waitpid

    def noted(pid: int, options: int) -> tuple[int, int]:
        found, status = waitpid(pid, options)
        if found:
            ended.append(status)
        return found, status

    os.waitpid = noted

    class Broken:
        def flush(self) -> None:
            raise LookupError

    class Handler(module.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            ending = (self.request[0] if datagrams else self.request.recv(100)).decode()
            if ending.endswith(("Error", "Exit", "Interrupt")):
                raise getattr(builtins, ending)
            if ending == "asks for the listening socket's name":
                assert self.server.socket.getsockname() == self.server.server_address
            elif ending == "closes the server":
                self.server.server_close()
            elif ending.endswith("the request") and not datagrams:
                self.request.close() if ending.startswith("closes") else self.request.detach()
            elif ending == "closes standard output":
                sys.stdout.close()
            elif ending == "breaks standard output":
                sys.stdout = Broken()  # type: ignore[assignment]
            elif ending == "_exit":
                os._exit(7)
            elif ending == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif ending == "breaks shutdown_request":
                self.server.shutdown_request = None
            elif ending == "breaks handle_error":
                self.server.handle_error = None
                raise ValueError

    server = getattr(module, server_name)(LOOPBACK, Handler)
    server.handle_error = lambda *request: None
    found = {}
    for ending in ENDINGS:
        with socket.socket(server.address_family, server.socket_type) as client:
            client.connect(server.server_address)
            client.sendall(ending.encode())
            server.handle_request()
            server.collect_children(blocking=True)
        (found[ending],) = ended
        ended.clear()
    server.server_close()
    print(json.dumps(found))


def main() -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    name, replacement, *arguments = sys.argv[1:]
    if replacement:
        sys.modules["socketserver"] = __import__(replacement)
    globals()[name](*arguments)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
