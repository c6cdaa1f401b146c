"""What a request goes through with srvkit and with the standard library: each function tells of one server.

tests/test_drop_in.py runs each in a process of its own, and compares what the two have printed:
`python drop_in_steps.py FUNCTION REPLACEMENT [ARGUMENT...]`.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.drop_in_serving import LOOPBACK, PATIENCE, main, served, talk


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


if __name__ == "__main__":
    main()
