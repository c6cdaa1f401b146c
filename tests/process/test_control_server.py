"""The control socket, from both of its ends, with clients of every kind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srvkit.net.event_loop import EventLoop
from srvkit.process.control_client import ControlError, ask
from srvkit.process.runtime_paths import PlaceError
from srvkit.process.supervisor import control_server as control
from srvkit.process.supervisor.control_server import MOST_CLIENTS, MOST_REQUEST, ControlSocket
from srvkit.process.supervisor.fault_barrier import GuardedLoop

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Supervisor:
    """A loop in a thread with a control socket; `requests` are those that came, with their replies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = GuardedLoop()
        self.requests: list[tuple[dict[str, Any], Any]] = []
        self.came = threading.Semaphore(0)
        self._over = False
        self.control = ControlSocket(path, self.loop, self.answer)
        self.loop.recover = self.control.close_broken
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def answer(self, request: dict[str, Any], reply: Any) -> None:
        match request["do"]:
            case "echo":
                reply(request)
            case "large":
                reply({"text": "x" * request["size"]})
            case "twice":
                reply({"first": True})
                reply({"second": True})
            case "keep":
                reply({"ok": True}, keep=True)
            case "raise":
                raise ZeroDivisionError("our own fault")
            case "object":
                reply({"not JSON": object()})
            case _:
                self.requests.append((request, reply))
                self.came.release()

    def wait_for_request(self) -> Any:
        """Wait for a request that nobody answers by itself; return its reply, to be called in the loop."""
        assert self.came.acquire(timeout=PATIENCE)
        return self.requests[-1][1]

    def do(self, call: Callable[[], Any]) -> Any:
        """Make a call in the loop's thread."""
        done, results = threading.Event(), []
        self.loop.call_soon(lambda: (results.append(call()), done.set()))
        assert done.wait(PATIENCE)
        return results[0]

    def end(self) -> None:
        if self._thread.is_alive():
            self.do(self.control.close)
            self._over = True
            self.loop.wake()
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive()
            self.loop.close()

    def _run(self) -> None:
        while not self._over:
            self.loop.wait()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    it = Supervisor(tmp_path / "run" / "c.sock")
    yield it
    it.end()


@pytest.fixture
def connect(supervisor: Supervisor) -> Iterator[Callable[[], socket.socket]]:
    with contextlib.ExitStack() as stack:

        def connected() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(PATIENCE)
            sock.connect(str(supervisor.path))
            return sock

        yield connected


def read_all(sock: socket.socket) -> Any:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(2**20):
            data += piece
    assert data.count(b"\n") == 1 and data.endswith(b"\n"), data
    return json.loads(data)


def test_a_line_in_and_a_line_out(supervisor, connect):
    assert ask(supervisor.path, {"do": "echo", "ä": [1, None]}) == {"do": "echo", "ä": [1, None]}
    sock = connect()
    sock.sendall(b'{"do": "echo"}\n')
    assert read_all(sock) == {"do": "echo"}


def test_the_socket_is_for_us_alone_and_goes_with_us(supervisor):
    path = supervisor.path
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["c.sock"]
    supervisor.end()
    assert not list(path.parent.iterdir())


def test_the_umask_has_no_say(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        it = Supervisor(tmp_path / "run" / "c.sock")
    finally:
        os.umask(before)
    assert (it.path.stat().st_mode & 0o777, it.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    it.end()


def test_a_reply_may_come_later_and_others_are_answered_meanwhile(supervisor, connect):
    slow = connect()
    slow.sendall(b'{"do": "reload"}\n')
    reply = supervisor.wait_for_request()
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}
    supervisor.do(lambda: reply({"ok": True}))
    assert read_all(slow) == {"ok": True}


def test_only_the_first_reply_counts(supervisor):
    assert ask(supervisor.path, {"do": "twice"}) == {"first": True}


def test_a_client_that_has_gone_frees_its_place_and_its_reply_does_nothing(supervisor, connect, eventually):
    sock = connect()
    sock.sendall(b'{"do": "reload"}\n')
    reply = supervisor.wait_for_request()
    sock.close()
    eventually(lambda: "0 clients" in repr(supervisor.control))
    supervisor.do(lambda: reply({"ok": True}))
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}


@pytest.mark.parametrize("after", [b"", b"\n", b"\nmore of it\n"])
def test_a_client_that_has_said_all_still_gets_its_reply(after, supervisor, connect):
    sock = connect()
    sock.sendall(b'{"do": "reload"}' + after)
    sock.shutdown(socket.SHUT_WR)
    reply = supervisor.wait_for_request()
    supervisor.do(lambda: reply({"ok": True}))
    assert read_all(sock) == {"ok": True}


def test_a_client_that_talks_on_does_not_keep_the_loop_busy(supervisor, connect, eventually):
    sock = connect()
    sock.sendall(b'{"do": "reload"}\n')
    reply = supervisor.wait_for_request()
    sock.sendall(b"and more")

    def watched() -> int:
        return sum(callback is not None for callback in supervisor.loop._callbacks)

    eventually(lambda: supervisor.do(watched) == 2)  # the loop's own descriptor and the one that listens
    supervisor.do(lambda: reply({"ok": True}))
    assert read_all(sock) == {"ok": True}


GARBAGE = {
    "nothing": b"\n",
    "words": b"status\n",
    "bytes": bytes(range(128, 256)) + b"\n",
    "a list": b'["do"]\n',
    "no do": b'{"done": 1}\n',
    "do is a number": b'{"do": 1}\n',
    "depth": b"[" * 60000 + b"\n",
    "digits": b"1" * 60000 + b"\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_answered_with_what_is_expected(what, supervisor, connect):
    sock = connect()
    sock.sendall(GARBAGE[what])
    assert read_all(sock) == {"error": 'a request is a line like {"do": "status"}'}
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long_is_not_read_to_its_end(end, supervisor, connect):
    sock = connect()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(b"x" * 2**20 + end)
    assert read_all(sock) == {"error": f"a request has at most {MOST_REQUEST} bytes"}


def test_the_longest_request_is_understood(supervisor):
    request = {"do": "echo", "fill": ""}
    request["fill"] = "x" * (MOST_REQUEST - len(json.dumps(request)))
    assert ask(supervisor.path, request, PATIENCE) == request


def test_half_a_line_has_its_time(supervisor, connect, monkeypatch):
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.05)
    sock = connect()
    sock.sendall(b'{"do": ')
    assert read_all(sock) == {"error": "no request came within 0.05 s"}


def test_who_leaves_without_a_word_is_let_go(supervisor, connect, eventually):
    connect().close()
    eventually(lambda: "0 clients" in repr(supervisor.control))
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}


def test_fifty_clients_at_once_are_told_that_they_are_too_many(supervisor, connect):
    clients = [connect() for _ in range(50)]
    refused = [read_all(one) for one in clients[MOST_CLIENTS:]]
    assert refused == [{"error": f"{MOST_CLIENTS} clients are connected already"}] * (50 - MOST_CLIENTS)
    for one in clients[:MOST_CLIENTS]:
        one.sendall(b'{"do": "echo"}\n')
        assert read_all(one) == {"do": "echo"}
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}


def test_a_large_reply_arrives_whole(supervisor):
    answer = ask(supervisor.path, {"do": "large", "size": 5_000_000}, PATIENCE)
    assert len(answer["text"]) == 5_000_000


def test_a_client_that_never_reads_is_dropped(supervisor, connect, monkeypatch, eventually):
    monkeypatch.setattr(control, "REPLY_TIMEOUT", 0.05)
    connect().sendall(b'{"do": "large", "size": 5000000}\n')
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}
    eventually(lambda: "0 clients" in repr(supervisor.control))


@pytest.mark.parametrize(
    ("do", "error"),
    [
        ("raise", "internal error; see the log"),
        ("object", "internal error; see the log"),
    ],
)
def test_our_own_fault_is_logged_and_ends_nothing(do, error, supervisor, caplog):
    assert ask(supervisor.path, {"do": do}, PATIENCE) == {"error": error}
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}
    assert caplog.records[0].exc_info


@pytest.mark.parametrize("call", ["watch", "call_later"])
def test_a_client_for_whom_there_is_no_memory_hears_of_an_end(call, supervisor, connect, monkeypatch):
    real, calls = getattr(supervisor.loop, call), []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(supervisor.loop, call, fail)
    assert connect().recv(1) == b""
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}


def test_one_that_cannot_be_closed_either_hears_of_it_when_there_is_memory(supervisor, connect, monkeypatch):
    real, calls = supervisor.loop.unwatch, []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError
        return real(*arguments)

    def hear(client: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(supervisor.loop, "unwatch", fail)
    monkeypatch.setattr(control._Client, "_hear", hear)
    sock = connect()
    sock.sendall(b"anything\n")
    with contextlib.suppress(ConnectionResetError):  # an end, too: what it has said was not read
        assert sock.recv(1) == b""


def test_a_connection_that_is_kept_ends_with_us(supervisor):
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.append(ask(supervisor.path, {"do": "keep"}, PATIENCE, until_gone=True))
    )
    waiting.start()
    assert ask(supervisor.path, {"do": "keep"}, PATIENCE) == {"ok": True}  # the reply came; this one leaves
    waiting.join(0.05)
    assert waiting.is_alive()
    supervisor.end()
    waiting.join(PATIENCE)
    assert answers == [{"ok": True}]


def test_accepting_goes_on_after_descriptors_ran_out(supervisor, connect, monkeypatch, caplog):
    monkeypatch.setattr(control, "PAUSE", 0.01)
    real, failed = supervisor.control._socket, threading.Event()

    class Exhausted:
        fileno = real.fileno

        def _accept(self) -> Any:
            failed.set()
            supervisor.control._socket = real
            raise OSError(24, "Too many open files")

    supervisor.control._socket = Exhausted()
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}
    assert failed.is_set()
    assert "cannot accept: Too many open files" in caplog.text


def test_a_file_put_in_its_place_is_not_removed(supervisor):
    supervisor.path.unlink()
    supervisor.path.touch()
    supervisor.end()
    assert supervisor.path.exists()


def test_what_a_crash_has_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    it = Supervisor(path)
    assert ask(path, {"do": "echo"}, PATIENCE) == {"do": "echo"}
    it.end()


def test_what_is_in_use_is_left_alone(supervisor, tmp_path):
    with pytest.raises(PlaceError, match="somebody is listening there"):
        Supervisor(supervisor.path)
    (tmp_path / "data").write_text("precious")
    with pytest.raises(PlaceError, match="another file stands there"):
        Supervisor(tmp_path / "data")
    assert (tmp_path / "data").read_text() == "precious"
    with pytest.raises(PlaceError, match=r"the folder .* cannot be made: No such file"):
        Supervisor(tmp_path / "a" / "b" / "c.sock")
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}


def test_a_successor_goes_on_with_the_descriptor(tmp_path: Path) -> None:
    """As after an exec: the same socket, and nobody who connected meanwhile is lost."""
    path = tmp_path / "c.sock"
    with EventLoop() as loop:
        first = ControlSocket(path, loop, lambda request, reply: reply({"by": "first"}))
        (fd,) = map(os.dup, first.descriptors())
        first.close_in_child()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(path))
            sock.sendall(b'{"do": "who"}\n')
            with EventLoop() as other:
                second = ControlSocket(path, other, lambda request, reply: reply({"by": "second"}), fd=fd)
                assert not os.get_inheritable(fd)
                other.wait(PATIENCE)
                other.wait(PATIENCE)
                assert read_all(sock) == {"by": "second"}
                second.close()
    assert not path.exists()


def test_a_forked_child_leaves_and_nothing_changes(tmp_path: Path) -> None:
    code = (
        "import os, stat, sys\nfrom pathlib import Path\nfrom srvkit.net.event_loop import EventLoop\n"
        "from srvkit.process.supervisor.control_server import ControlSocket\nloop = EventLoop()\n"
        "def is_socket(fd):\n"
        "    try:\n        return stat.S_ISSOCK(os.fstat(fd).st_mode)\n"
        "    except OSError:\n        return False\n"
        "def answer(request, reply):\n"
        "    if request['do'] == 'stop':\n        control.close(); sys.exit()\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        control.close_in_child()\n"
        "        left = [fd for fd in range(3, 100) if is_socket(fd)]\n"
        "        control.close()\n"
        "        os._exit(len(left))\n"
        "    reply({'child': os.waitpid(child, 0)[1]})\n"
        "control = ControlSocket(Path(sys.argv[1]), loop, answer)\nprint('ready', flush=True)\n"
        "while True:\n    loop.wait()\n"
    )
    path = tmp_path / "c.sock"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == "ready\n"
        try:
            for _ in range(2):
                assert ask(path, {"do": "fork"}, PATIENCE) == {"child": 0}
            with pytest.raises(ControlError, match="srvkit ended before it answered"):
                ask(path, {"do": "stop"}, PATIENCE)
            assert program.wait(PATIENCE) == 0
        finally:
            program.kill()
    assert not path.exists()


@as_root
def test_another_user_is_refused_even_where_the_mode_would_let_him(supervisor, tmp_path, caplog):
    os.chmod(supervisor.path, 0o777)
    supervisor.path.parent.chmod(0o755)
    code = (
        "import os, socket, sys\nos.chdir(sys.argv[1])\n"
        "os.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
        "sock = socket.socket(socket.AF_UNIX)\nsock.connect('c.sock')\nprint(sock.recv(1000).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, supervisor.path.parent],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert json.loads(done.stdout) == {"error": "not permitted"}
    assert caplog.messages == [f"control socket: refused a client of the user {NOBODY}"]
    assert ask(supervisor.path, {"do": "echo"}, PATIENCE) == {"do": "echo"}


@as_root
def test_who_may_not_connect_is_told_whom_to_ask(supervisor):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom srvkit.process.control_client import *\n"
        "os.chdir(sys.argv[1])\nos.setuid(65534)\n"
        "try:\n    ask(Path('c.sock'), {'do': 'echo'}, 5)\n"
        "except ControlError as error:\n    print(error.exit_status, error)\n"
    )
    supervisor.path.parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, supervisor.path.parent],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1 c.sock is another user's: ask as that user, or as root\n"


def test_one_that_cannot_be_watched_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EventLoop() as loop:

        def fails(*_: object) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        monkeypatch.setattr(loop, "watch", fails)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            ControlSocket(tmp_path / "c.sock", loop, lambda *_: None)
    assert list(tmp_path.iterdir()) == []
