"""Programs written for `socketserver`: each function is one, and serves a real request or more.

tests/test_drop_in.py runs each in a process of its own, in which `import socketserver` gives srvkit:
`python drop_in_programs.py FUNCTION REPLACEMENT [ARGUMENT...]`. Nothing that imports socketserver is
imported at the top of this file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.drop_in_serving import LOOPBACK, PATIENCE, fetch, main, served, talk


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


if __name__ == "__main__":
    main()
