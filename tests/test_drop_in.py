"""Programs written for `socketserver` work unchanged with srvkit, whole or in parts."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import select
import socket
import socketserver
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drop_in_programs import LOOPBACK, PATIENCE, served, talk

import srvkit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REQUIRED = os.environ.get("SRVKIT_REQUIRE_TOOLS") == "1"


def run_program(program: str, replacement: str, *arguments: str, folder: Path) -> str:
    """Run a function of drop_in_programs.py in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, HERE / "drop_in_programs.py", program, replacement, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Whole programs

PROGRAMS = {  # and the package that each needs
    "http_server": "",
    "tls_on_the_listening_socket": "trustme",
    "xmlrpc": "",
    "wsgiref": "",
    "logging_config_listen": "",
    "werkzeug": "werkzeug",
    "werkzeug_errors_that_leave": "werkzeug",
    "django_runserver": "django",
    "django_live_server": "django",
    "dnslib": "dnslib",
    "prometheus_client": "prometheus_client",
    "fakeredis": "fakeredis",
    "pymodbustcp": "pyModbusTCP",
    "sshtunnel": "sshtunnel",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_written_for_socketserver_runs_unchanged(program: str, tmp_path: Path) -> None:
    """With srvkit in socketserver's place, it answers real requests and stops cleanly."""
    package = PROGRAMS[program]
    if package and importlib.util.find_spec(package) is None:
        reason = f"{package} is not installed"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    run_program(program, "srvkit", folder=tmp_path)


@pytest.mark.parametrize("mixin", ["ThreadingMixIn", "ForkingMixIn"])
def test_a_mixin_works_in_front_of_the_standard_librarys_own_server(mixin: str, tmp_path: Path) -> None:
    """`class S(srvkit.ThreadingMixIn, http.server.HTTPServer)`, with nothing replaced."""
    run_program("mixins_before_the_real_http_server", "", mixin, folder=tmp_path)


# The steps: each is called where and when the standard library calls it

STREAM_CASES = ["served", "refused", "setup fails", "handle fails", "exits", "nobody"]
STEP_CASES = [
    (server, case)
    for server in (
        "TCPServer",
        "ThreadingTCPServer",
        "ForkingTCPServer",
        "UDPServer",
        "ThreadingUDPServer",
        "ForkingUDPServer",
        "UnixStreamServer",
        "ThreadingUnixDatagramServer",
    )
    for case in STREAM_CASES
]


@pytest.mark.parametrize(("server", "case"), STEP_CASES)
def test_the_steps_are_those_of_the_standard_library(server: str, case: str, tmp_path: Path) -> None:
    """The same methods are called in the same order in the same kind of thread or process."""
    traces = []
    for library in ("socketserver", "srvkit"):
        folder = tmp_path / library
        folder.mkdir()
        traces.append(json.loads(run_program("steps", "", library, server, case, folder=folder)))
    original, ours = traces
    assert original["main"]
    assert ours == original


def test_a_timeout_of_zero_takes_the_request_that_waits_and_else_returns_at_once() -> None:
    """`server.timeout = 0; server.handle_request()`, called by a loop of the program's own."""
    handled, waited_in_vain = [], []

    class Server(srvkit.UDPServer):
        timeout = 0

        def handle_timeout(self) -> None:
            waited_in_vain.append(True)

    with Server(LOOPBACK, lambda request, *others: handled.append(request[0])) as server:
        server.handle_request()
        assert (handled, waited_in_vain) == ([], [True])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", server.server_address)
            select.select([server], [], [], PATIENCE)
        server.handle_request()
        assert (handled, waited_in_vain) == ([b"hello"], [True])


# Servers of one with handlers of the other


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
    class Echo(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def handle_message(self, message: bytes) -> bytes:
            return message

    return Echo


def ask_datagram(address: Any, folder: Path, family: int) -> bytes:
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        if family != socket.AF_INET:
            client.bind(str(folder / "client"))
        client.connect(address)
        client.send(b"hello\n")
        return client.recv(1024)


SERVERS = [
    "TCPServer",
    "ThreadingTCPServer",
    "UnixStreamServer",
    "ThreadingUnixStreamServer",
    "UDPServer",
    "ThreadingUDPServer",
    "UnixDatagramServer",
    "ThreadingUnixDatagramServer",
]


@pytest.mark.parametrize("server_name", SERVERS)
@pytest.mark.parametrize(
    ("of_server", "of_handler"),
    [(srvkit, socketserver), (socketserver, srvkit), (srvkit, srvkit)],
    ids=["our servers, their handlers", "their servers, our handlers", "ours"],
)
def test_servers_and_handlers_of_both_libraries_fit_each_other(
    server_name: str, of_server: Any, of_handler: Any, tmp_path: Path
) -> None:
    """Every server class serves the handlers of either library."""
    server_class = getattr(of_server, server_name)
    address: Any = str(tmp_path / "s") if "Unix" in server_name else LOOPBACK
    datagrams = server_class.socket_type == socket.SOCK_DGRAM
    makers: list[Callable[[Any], Any]] = [datagram_echo] if datagrams else [stream_echo, base_echo]
    if of_handler is srvkit:
        makers.append(message_echo)
    for maker in makers:
        with served(server_class(address, maker(of_handler))) as bound:
            for _ in range(3):
                if datagrams:
                    answer = ask_datagram(bound, tmp_path, server_class.address_family)
                    (tmp_path / "client").unlink(missing_ok=True)
                else:
                    answer = talk(bound, family=server_class.address_family)
                assert answer == b"hello\n"
        (tmp_path / "s").unlink(missing_ok=True)


# Names, signatures, defaults


def public_names(module: Any) -> list[str]:
    """What the module offers on some platform and Python version, as far as this one has it."""
    forking_unix = {"ForkingUnixStreamServer", "ForkingUnixDatagramServer"}  # there since 3.12
    return sorted(set(module.__all__) | (forking_unix & set(dir(module))))


@pytest.mark.parametrize("name", public_names(socketserver))
def test_every_public_name_is_there_with_the_same_attributes(name: str) -> None:
    """Same base classes, methods with the same parameters, attributes with the same defaults."""
    original, ours = getattr(socketserver, name), getattr(srvkit, name)
    assert name in srvkit.__all__
    assert ours.__name__ == name
    lineage = [base.__name__ for base in ours.__mro__]
    assert [base for base in lineage if hasattr(socketserver, base)] == [
        base.__name__ for base in original.__mro__ if base is not object
    ]
    for attribute in dir(original):
        if attribute.startswith("_") and attribute not in {"__init__", "__enter__", "__exit__", "_threads"}:
            continue
        expected, found = getattr(original, attribute), getattr(ours, attribute)
        if attribute == "_threads":
            assert callable(found.append)
            assert callable(found.join)
        elif callable(expected):
            assert parameters(found) == parameters(expected), attribute
        else:
            assert (type(found), found) == (type(expected), expected), attribute


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", ["ForkingUnixStreamServer", "ForkingUnixDatagramServer"])
def test_pairs_of_later_versions_are_there_on_every_version(name: str) -> None:
    assert issubclass(getattr(srvkit, name), srvkit.ForkingMixIn)
    assert name in srvkit.__all__


def test_a_fresh_server_has_the_instance_attributes_of_the_standard_library() -> None:
    """What can be read of an instance right after construction."""
    with srvkit.TCPServer(LOOPBACK, srvkit.BaseRequestHandler) as server:
        assert server.server_address == server.socket.getsockname()
        assert server.RequestHandlerClass is srvkit.BaseRequestHandler
        assert server.fileno() == server.socket.fileno()
        assert server.socket.gettimeout() is None
    assert server.socket.fileno() == -1


# Independence


def test_importing_srvkit_does_not_load_socketserver() -> None:
    code = "import sys, srvkit; sys.exit('socketserver' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_no_module_of_srvkit_imports_socketserver() -> None:
    """Not at the top and not inside a function."""
    sources = sorted((ROOT / "srvkit").rglob("*.py"))
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules.append(node.module or "")
            assert "socketserver" not in modules, f"{source}:{getattr(node, 'lineno', 0)}"
