"""Programs, and still more their tests, replace what the standard library's servers are made of.

They patch `socket.socket`, `threading.Thread` or `os.fork`, and private names of the module of servers.
Whatever takes effect there takes effect with srvkit in its place.
"""

from __future__ import annotations

import io
import os
import selectors
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

import srvkit
from tests.conftest import Connect, Eventually, Serving

ANY = ("127.0.0.1", 0)
PATIENCE = 30
CLIENT = ("127.0.0.1", 9)
BARE = [
    srvkit.TCPServer,
    srvkit.ThreadingTCPServer,
    srvkit.ForkingTCPServer,
    srvkit.UDPServer,
    srvkit.ThreadingUDPServer,
    srvkit.UnixStreamServer,
]


class Echo(srvkit.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())


def ask(sock: socket.socket, line: bytes = b"hello\n") -> bytes:
    sock.sendall(line)
    return sock.makefile("rb").readline()


@pytest.mark.parametrize("name", [name for name in vars(socketserver) if not name.startswith("__")])
def test_every_name_of_the_standard_module_is_there(name: str) -> None:
    """Private ones and imported modules too: `socketserver.threading`, `socketserver._SocketWriter`."""
    original, ours = getattr(socketserver, name), getattr(srvkit, name)
    assert callable(ours) == callable(original)
    if getattr(original, "__module__", "socketserver") != "socketserver":
        assert ours is original


# socket.socket


@pytest.mark.parametrize("kind", BARE)
@pytest.mark.parametrize("where", ["socket.socket", "srvkit.socket.socket", "srvkit.socket"])
def test_a_server_is_made_of_a_mocked_socket(where: str, kind: Any) -> None:
    """As tests do that want no real one."""
    address = "a path" if kind is srvkit.UnixStreamServer else ("127.0.0.1", 7)
    with mock.patch(where) as mocked:
        made = mocked.socket if where == "srvkit.socket" else mocked
        made.return_value.getsockname.return_value = address
        server = kind(address, Echo)
        assert server.socket is made.return_value
        assert server.server_address == address
        server.socket.bind.assert_called_once_with(address)
        server.server_close()
        server.socket.close.assert_called_once_with()


def test_a_mocked_connection_is_accepted_handled_and_closed() -> None:
    connection = mock.MagicMock()
    connection.makefile.return_value = io.BytesIO(b"hello\n")
    with mock.patch("socket.socket") as mocked:
        mocked.return_value.accept.return_value = connection, CLIENT
        server = srvkit.TCPServer(("127.0.0.1", 7), Echo)
        server._handle_request_noblock()
    connection.sendall.assert_called_once_with(b"hello\n")
    connection.shutdown.assert_called_once_with(socket.SHUT_WR)
    connection.close.assert_called_once_with()


@pytest.mark.parametrize(
    ("kind", "handler"),
    [
        (srvkit.ThreadingTCPServer, Echo),
        (srvkit.ThreadingTCPServer, "message"),
        (srvkit.ThreadPoolTCPServer, Echo),
    ],
)
def test_a_running_server_serves_on_while_the_class_is_replaced(
    kind: Any, handler: Any, serving: Serving, client: Connect
) -> None:
    """Its clients are of the program's other half, which is not mocked."""

    class Message(srvkit.MessageHandler):
        framing = srvkit.Lines()
        limits = {"idle_timeout": 20}

        def handle_message(self, message: bytes) -> bytes:
            return message

    class Guarded(socket.socket):
        """What pytest-socket and the like put there."""

    server = serving(kind(ANY, Message if handler == "message" else handler))
    for replacement in (Guarded, socket.socket):
        with client(server.server_address) as sock, mock.patch("socket.socket", replacement):
            assert ask(sock) == b"hello\n"


def test_sockets_of_other_libraries_are_served_as_they_are() -> None:
    """They need not be of the class `socket.socket`, which may not even be one at the moment."""

    class Foreign:
        def __init__(self) -> None:
            self.real = socket.create_server(ANY)
            self.family = socket.AF_INET

        def getsockname(self) -> Any:
            return self.real.getsockname()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    foreign = Foreign()
    with mock.patch("socket.socket", len):
        server = srvkit.TCPServer(foreign, Echo)
    assert server.socket is foreign
    assert server.server_address == foreign.getsockname()
    server.server_close()


# _SocketWriter


def test_the_writer_of_a_handler_is_the_one_that_stands_in_the_module() -> None:
    request, server = mock.MagicMock(), mock.MagicMock()
    request.makefile.return_value = io.BytesIO(b"hello\n")
    with mock.patch("srvkit._SocketWriter") as writer:
        Echo(request, CLIENT, server)
    writer.assert_called_once_with(request)
    writer.return_value.write.assert_called_once_with(b"hello\n")
    request.sendall.assert_not_called()


def test_a_writer_may_be_subclassed() -> None:
    class Loud(srvkit._SocketWriter):
        def write(self, data: Any) -> int:
            return super().write(data.upper())

    one, other = socket.socketpair()
    with one, other:
        assert Loud(one).write(b"hello") == 5
        assert other.recv(100) == b"HELLO"


# _ServerSelector


def recording(times: list[Any]) -> Any:
    class Recording(srvkit._ServerSelector):
        def select(self, timeout: Any = None) -> Any:
            times.append(timeout)
            return super().select(timeout)

    return Recording


@pytest.mark.parametrize(
    "kind",
    [srvkit.TCPServer, srvkit.ThreadingTCPServer, srvkit.ForkingTCPServer, srvkit.ThreadPoolTCPServer],
)
def test_a_server_waits_by_the_selector_that_stands_in_the_module(
    kind: Any, client: Connect, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `poll_interval`, as the standard library's. Who keeps connections in the loop waits there."""
    times: list[Any] = []
    monkeypatch.setattr(srvkit, "_ServerSelector", recording(times))
    server = kind(ANY, Echo)
    loop = threading.Thread(target=server.serve_forever, args=(0.01,))
    loop.start()
    for _ in range(3):
        with client(server.server_address) as sock:
            assert ask(sock) == b"hello\n"
    if kind is srvkit.ForkingTCPServer:
        eventually(lambda: not server.active_children)
    server.shutdown()
    loop.join(PATIENCE)
    server.server_close()
    assert set(times) == (set() if kind is srvkit.ThreadPoolTCPServer else {0.01})


def test_handle_request_waits_by_that_selector_too(client: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[Any] = []
    monkeypatch.setattr(srvkit, "_ServerSelector", recording(times))
    server = srvkit.TCPServer(ANY, Echo)
    server.timeout = 0.01
    with mock.patch.object(server, "handle_timeout") as waited_in_vain:
        server.handle_request()
    waited_in_vain.assert_called_once_with()
    assert times[0] == 0.01
    server.timeout = PATIENCE
    with client(server.server_address) as sock:
        sock.sendall(b"hello\n")
        server.handle_request()
        assert sock.recv(100) == b"hello\n"
    server.server_close()


def test_methods_of_the_selector_that_are_replaced_take_effect(
    client: Connect, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, times = srvkit._ServerSelector.select, []

    def select(selector: Any, timeout: Any = None) -> Any:
        times.append(timeout)
        return original(selector, timeout)

    monkeypatch.setattr(srvkit._ServerSelector, "select", select)
    server = serving(srvkit.TCPServer(ANY, Echo))
    with client(server.server_address) as sock:
        assert ask(sock) == b"hello\n"
    assert times[0] == 0.5


def test_a_selector_may_be_a_double_that_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given what the standard library gives it: the server, and once per turn the interval."""
    server = srvkit.TCPServer(ANY, Echo)
    actions: list[Any] = []
    server.service_actions = lambda: actions.append(None)  # type: ignore[method-assign]
    selector = mock.MagicMock()
    selector.__enter__.return_value = selector

    def select(timeout: float) -> list[Any]:
        server._BaseServer__shutdown_request = selector.select.call_count == 3
        return []

    selector.select.side_effect = select
    monkeypatch.setattr(srvkit, "_ServerSelector", lambda: selector)
    server.serve_forever(7)
    selector.register.assert_called_once_with(server, selectors.EVENT_READ)
    assert selector.select.call_args_list == [mock.call(7)] * 3
    assert len(actions) == 2
    server.server_close()


# _BaseServer__shutdown_request, _BaseServer__is_shut_down, _handle_request_noblock


def test_the_flag_ends_the_loop_at_once(client: Connect) -> None:
    """A handler sets it where `shutdown()` would have to wait for the handler itself."""

    class Last(srvkit.StreamRequestHandler):
        def handle(self) -> None:
            self.server._BaseServer__shutdown_request = True
            self.wfile.write(b"bye\n")

    for kind in (srvkit.TCPServer, srvkit.ThreadingTCPServer):
        with kind(ANY, Last) as server:
            loop = threading.Thread(target=server.serve_forever, daemon=True)
            loop.start()
            with client(server.server_address) as sock:
                assert ask(sock) == b"bye\n"
            loop.join(PATIENCE)
            assert not loop.is_alive()
            assert vars(server)["_BaseServer__shutdown_request"] is False
            assert server._BaseServer__is_shut_down.is_set()


def test_a_loop_of_a_programs_own_is_shut_down(client: Connect) -> None:
    """One that was copied from the standard library's, which `shutdown()` has to wait for."""
    ended = threading.Event()

    class Server(srvkit.TCPServer):
        def serve_forever(self, poll_interval: float = 0.01) -> None:
            self._BaseServer__is_shut_down.clear()
            try:
                with srvkit._ServerSelector() as selector:
                    selector.register(self, selectors.EVENT_READ)
                    while not self._BaseServer__shutdown_request:
                        if selector.select(poll_interval):
                            self._handle_request_noblock()
                        self.service_actions()
            finally:
                self._BaseServer__shutdown_request = False
                ended.set()
                self._BaseServer__is_shut_down.set()

    with Server(ANY, Echo) as server:
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        with client(server.server_address) as sock:
            assert ask(sock) == b"hello\n"
        server.shutdown()
        assert ended.is_set()
        loop.join(PATIENCE)


@pytest.mark.parametrize("kind", [srvkit.TCPServer, srvkit.UDPServer])
def test_the_step_that_takes_a_request_may_be_overridden_although_it_is_private(
    kind: Any, serving: Serving, client: Connect, eventually: Eventually
) -> None:
    taken = []

    class Server(kind):  # type: ignore[misc]
        def _handle_request_noblock(self) -> None:
            taken.append(threading.current_thread())
            super()._handle_request_noblock()

    server = serving(Server(ANY, srvkit.BaseRequestHandler))
    scheme = "udp" if kind is srvkit.UDPServer else "tcp"
    for count in (1, 2):
        with client(f"{scheme}://127.0.0.1:{server.server_address[1]}") as sock:
            sock.send(b"hello")
            eventually(lambda: len(taken) == count)  # noqa: B023


def test_steps_work_on_a_server_whose_constructor_was_replaced() -> None:
    with mock.patch("srvkit.TCPServer.__init__", return_value=None):
        server = srvkit.TCPServer()  # type: ignore[call-arg]
    server.RequestHandlerClass = handler = mock.Mock()
    server.socket = mock.Mock()
    server.get_request = lambda: (mock.sentinel.request, CLIENT)  # type: ignore[method-assign]
    server.close_request = server.shutdown_request = mock.Mock()  # type: ignore[method-assign]
    server._handle_request_noblock()
    handler.assert_called_once_with(mock.sentinel.request, CLIENT, server)
    assert "TCPServer" in repr(server)
    server.server_close()


# threading.Thread


class AtOnce:
    """A thread that is none, as tests put it there."""

    def __init__(self, target: Callable[..., Any], args: Any) -> None:
        self.target, self.args = target, args
        self.ident = 1
        self.name = "at once"

    def start(self) -> None:
        self.target(*self.args)

    def is_alive(self) -> bool:
        return False

    def join(self) -> None:
        """Nothing to wait for."""


@pytest.mark.parametrize("where", ["threading.Thread", "srvkit.threading.Thread"])
@pytest.mark.parametrize("kind", [srvkit.ThreadingTCPServer, srvkit.ThreadPoolTCPServer])
def test_requests_are_handled_in_the_thread_that_a_program_has_put_there(
    kind: Any, where: str, client: Connect
) -> None:
    handlers = []

    class Note(srvkit.BaseRequestHandler):
        def handle(self) -> None:
            handlers.append(threading.current_thread())

    with kind(ANY, Note) as server, client(server.server_address), mock.patch(where, AtOnce):
        server.handle_request()
        assert handlers == [threading.current_thread()]


def test_a_mocked_thread_is_made_as_the_standard_library_makes_it() -> None:
    request = mock.Mock()
    with mock.patch("threading.Thread") as thread:
        server = srvkit.ThreadingTCPServer(ANY, Echo)
        server.daemon_threads = True
        server.process_request(request, CLIENT)
        thread.assert_called_once_with(target=server.process_request_thread, args=(request, CLIENT))
        assert thread.return_value.daemon is True
        thread.return_value.start.assert_called_once_with()
        server.server_close()


def test_after_a_start_that_was_mocked_the_next_request_has_a_thread(
    serving: Serving, client: Connect
) -> None:
    server = srvkit.ThreadingTCPServer(ANY, Echo)
    with mock.patch("threading.Thread.start") as start:
        server.process_request(mock.MagicMock(), CLIENT)
        start.assert_called_once_with()
    serving(server)
    for _ in range(2):
        with client(server.server_address) as sock:
            assert ask(sock) == b"hello\n"


def test_a_program_may_start_threads_of_its_own_and_have_them_waited_for(
    serving: Serving, client: Connect
) -> None:
    """By the standard library's list, in a `process_request` copied from there; ended ones are forgotten."""

    class Server(srvkit.ThreadingTCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            vars(self).setdefault("_threads", srvkit._Threads())
            thread = threading.Thread(target=self.process_request_thread, args=(request, client_address))
            thread.daemon = self.daemon_threads
            self._threads.append(thread)
            thread.start()

    server = serving(Server(ANY, Echo))
    for _ in range(5):
        with client(server.server_address) as sock:
            assert ask(sock) == b"hello\n"
            server._threads[-1].join(PATIENCE)
        assert len(server._threads) == 1
    assert [type(thread) for thread in server._threads.pop_all()] == [threading.Thread]
    assert not list(server._threads)


# os.fork


def test_a_fork_that_is_mocked_counts_its_child() -> None:
    request = mock.Mock()
    with srvkit.ForkingTCPServer(ANY, Echo) as server:
        with mock.patch("os.fork", return_value=4321):
            server.process_request(request, CLIENT)
        assert server.active_children == {4321}
        request.close.assert_called_once_with()
        with mock.patch("os.waitpid", return_value=(4321, 0)) as waitpid:
            server.service_actions()
            server.collect_children()
        waitpid.assert_called_once_with(4321, os.WNOHANG)
        assert server.active_children == set()


@pytest.mark.parametrize(("mistake", "status"), [(None, 0), (ZeroDivisionError, 1), (SystemExit, 1)])
def test_the_childs_side_of_a_mocked_fork_ends_by_exit(
    mistake: Any, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    request = mock.Mock()
    server = srvkit.ForkingTCPServer(ANY, mock.Mock(side_effect=mistake))
    listening = server.socket
    with mock.patch("os.fork", return_value=0), mock.patch("os._exit") as leave:
        try:
            server.process_request(request, CLIENT)
        except SystemExit:
            assert mistake is SystemExit
    leave.assert_called_once_with(status)
    request.close.assert_called_once_with()
    assert not server.active_children
    listening.close()
    assert ("Traceback" in capfd.readouterr().err) == (mistake is ZeroDivisionError)
