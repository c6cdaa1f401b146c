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
import threading
from pathlib import Path
from typing import Any

import pytest

import srvkit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REQUIRED = os.environ.get("SRVKIT_REQUIRE_TOOLS") == "1"
LOOPBACK = ("127.0.0.1", 0)
PATIENCE = 60  # seconds before something counts as hung


def run_program(
    program: str, replacement: str, *arguments: str, folder: Path, file: str = "drop_in_programs.py"
) -> str:
    """Run a function of a file in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, HERE / file, program, replacement, *arguments],
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


@pytest.mark.parametrize("mixin", ["ThreadingMixIn", "ThreadPoolMixIn", "ForkingMixIn"])
@pytest.mark.parametrize("replacement", ["srvkit", ""], ids=["in place", "in front"])
def test_a_silent_client_of_a_tls_server_holds_up_nobody(
    mixin: str, replacement: str, tmp_path: Path
) -> None:
    """The handshake is taken by the connection's thread or process, not in accept."""
    run_program("a_silent_client_of_a_tls_server", replacement, mixin, folder=tmp_path)


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
        told = run_program("steps", "", library, server, case, folder=folder, file="drop_in_steps.py")
        traces.append(json.loads(told))
    original, ours = traces
    assert original["main"]
    assert ours == original


@pytest.mark.parametrize("server", ["ForkingTCPServer", "ForkingUDPServer"])
def test_a_forked_child_ends_as_the_standard_librarys(server: str, tmp_path: Path) -> None:
    """With the same exit status, however its handler ended: programs count failures by it."""
    original, ours = (
        json.loads(
            run_program("exit_statuses", "", library, server, folder=tmp_path, file="drop_in_steps.py")
        )
        for library in ("socketserver", "srvkit")
    )
    assert len(set(original.values())) == 4
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


@pytest.mark.parametrize("server_class", [srvkit.TCPServer, srvkit.UDPServer])
def test_get_request_called_by_a_program_of_its_own_waits(server_class: Any) -> None:
    """Without `serve_forever`, the step waits for a request as long as the socket's timeout says."""
    taken: list[Any] = []
    done = threading.Event()

    def take() -> None:
        try:
            taken.append(server.get_request())
        except OSError as error:
            taken.append(error)
        done.set()

    with server_class(LOOPBACK, srvkit.BaseRequestHandler) as server:
        taker = threading.Thread(target=take)
        taker.start()
        assert not done.wait(0.1), taken
        with socket.socket(socket.AF_INET, server.socket_type) as client:
            client.connect(server.server_address)
            client.send(b"hello")
            taker.join(PATIENCE)
        (request, client_address), *_ = taken
        server.close_request(request)
        assert client_address[0] == "127.0.0.1"


def test_a_request_is_under_way_while_the_next_one_is_being_verified() -> None:
    """A `verify_request` that takes its time holds up nobody who has passed it already."""
    queued, over, handled, last = (threading.Event() for _ in range(4))
    verified: list[bool] = []

    class Server(srvkit.ThreadingTCPServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            verified.append((queued, over, handled)[len(verified)].wait(PATIENCE / 10))
            return True

    class Handler(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            if len(verified) == 1:
                over.set()
                handled.wait(PATIENCE)  # this thread stays busy: the next request needs one of its own
            else:
                handled.set()
            if len(verified) == 3:
                last.set()

    server = Server(LOOPBACK, Handler)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    clients = [socket.create_connection(server.server_address) for _ in range(3)]
    queued.set()
    assert last.wait(PATIENCE)
    server.shutdown()
    loop.join(PATIENCE)
    server.server_close()
    for client in clients:
        client.close()
    assert verified == [True, True, True]


# Servers of one with handlers of the other


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


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("of_server", "of_handler"),
    [("srvkit", "socketserver"), ("socketserver", "srvkit"), ("srvkit", "srvkit")],
    ids=["our servers, their handlers", "their servers, our handlers", "ours"],
)
def test_servers_and_handlers_of_both_libraries_fit_each_other(
    server: str, of_server: str, of_handler: str, tmp_path: Path
) -> None:
    """Every server class serves the handlers of either library."""
    run_program("echo", "", of_server, of_handler, server, folder=tmp_path, file="drop_in_steps.py")


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
