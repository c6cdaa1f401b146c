"""The control socket: how commands speak to a srvkit that is running.

One line of JSON in, one line of JSON out, and the connection is closed. What is asked and answered is
not known here, only that no client, whatever it does, holds up or breaks the loop that serves it. The
client's side is `asking`.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from srvkit.net import unixpath
from srvkit.net.closing import close_one
from srvkit.net.event_loop import WRITE, EventLoop
from srvkit.net.socketfile import identity
from srvkit.process.runtime_paths import PlaceError, make_folder, remove_if, temporary_name

log = logging.getLogger("srvkit.process")

MOST_CLIENTS = 16
MOST_REQUEST = 64 * 1024  # bytes of the line
REQUEST_TIMEOUT = 5.0  # seconds for the whole of it
REPLY_TIMEOUT = 5.0  # seconds without the client taking a byte
PAUSE = 1.0  # seconds, where accepting failed because something ran out
_LOCAL_PEERCRED = 1  # <sys/un.h> of macOS and the BSDs; its level is 0


class Reply(Protocol):
    """Sends the answer to a request, now or later; what comes after the first is ignored."""

    def __call__(self, answer: dict[str, Any], /, *, keep: bool = False) -> None:
        """Send it and close; `keep` leaves the connection open until the socket is closed."""


Answer = Callable[[dict[str, Any], Reply], None]


class ControlSocket:
    """The supervisor's side: listens at `path`, in its loop, and hands each request to `answer`.

    `answer(request, reply)` is called in the loop and may reply later; a request is a table whose "do" is
    a string. Root and the user of this process may ask, nobody else. `fd` is the listening socket of a
    predecessor, see `descriptors`. Raises PlaceError; whoever makes it closes it.
    """

    def __init__(self, path: Path, loop: EventLoop, answer: Answer, *, fd: int | None = None) -> None:
        self.path = path
        self._loop = loop
        self._answer = answer
        self._clients: set[_Client] = set()
        self._socket = listen(path) if fd is None else socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._socket.set_inheritable(False)
        self._file = identity(path)
        try:
            loop.watch(self._socket.fileno(), self._accept)
        except BaseException:
            self._socket.close()
            if fd is None:
                remove_if(path, self._file)
            raise

    def __repr__(self) -> str:
        return f"<ControlSocket {self.path}: {len(self._clients)} clients>"

    def descriptors(self) -> list[int]:
        """Return what a program that takes the place of this one (`exec`) needs to go on listening."""
        return [self._socket.fileno()]

    def renew(self) -> bool:
        """Listen at the path anew where its file is gone; return whether it was. Raises PlaceError.

        Clients that are connected stay.
        """
        if identity(self.path) == self._file:
            return False
        self.move(self.path, listen(self.path))
        return True

    def move(self, path: Path, sock: socket.socket) -> None:
        """Go on with a socket that listens at another path, which is taken over; clients stay.

        Raises OSError where it cannot be watched, with all as it was.
        """
        try:
            sock.setblocking(False)
            sock.set_inheritable(False)
            self._loop.watch(sock.fileno(), self._accept)
        except BaseException:
            sock.close()
            remove_if(path, identity(path))
            raise
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        remove_if(self.path, self._file)
        self.path, self._socket, self._file = path, sock, identity(path)

    def close_in_child(self) -> None:
        """Close the descriptors alone, in a forked process: the loop and the file are its parent's."""
        self._socket.close()
        for client in self._clients:
            client.close_in_child()

    def close(self) -> None:
        """Stop listening, let go of every client, and remove the file unless it is another by now."""
        if self._socket.fileno() >= 0:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            remove_if(self.path, self._file)
        for client in list(self._clients):
            client.close()

    def _accept(self) -> None:
        for _ in range(MOST_CLIENTS):  # then others have their turn
            try:
                sock = _accept(self._socket)
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("control socket: cannot accept: %s", error.strerror)
                self._pause()
                return
            try:
                sock.setblocking(False)
                if refusal := self._refusal(sock):
                    _send_refusal(sock, refusal)
                else:
                    self._clients.add(_Client(sock, self._loop, self._answer, self._clients.discard))
            except Exception as error:
                self._loop.unwatch(sock.fileno())
                sock.close()  # it is better to hear of an end than of nothing
                if not isinstance(error, OSError):  # it cannot be watched
                    raise

    def close_broken(self) -> None:
        """Let go of clients that cannot be answered and could not be closed: they wait for either."""
        for client in list(self._clients):
            if client.is_broken:
                client.close()

    def _refusal(self, sock: socket.socket) -> str:
        uid = _peer_uid(sock)
        if uid not in (None, 0, os.geteuid()):
            log.warning("control socket: refused a client of the user %d", uid)
            return "not permitted"
        return f"{MOST_CLIENTS} clients are connected already" * (len(self._clients) >= MOST_CLIENTS)

    def _pause(self) -> None:
        fd = self._socket.fileno()
        self._loop.unwatch(fd)

        def resume() -> None:
            if self._socket.fileno() == fd:
                self._loop.watch(fd, self._accept)

        self._loop.call_later(PAUSE, resume)


class _Client:
    """One connection, from its request to its reply."""

    def __init__(
        self, sock: socket.socket, loop: EventLoop, answer: Answer, gone: Callable[[_Client], None]
    ) -> None:
        self._socket = sock
        self._loop = loop
        self._answer = answer
        self._gone = gone
        self._received = bytearray()
        self._unsent = memoryview(b"")
        self._replied = False
        self._keep = False
        self.is_broken = False  # whether something has raised, so that there will be no answer
        self._timer = loop.call_later(REQUEST_TIMEOUT, self._too_slow)
        loop.watch(sock.fileno(), self._read)

    def reply(self, answer: dict[str, Any], /, *, keep: bool = False) -> None:
        if self._replied or self._socket.fileno() < 0:
            return
        self._replied = True
        self._keep = keep
        self._timer.cancel()
        try:
            self._begin_to_write(answer)
        except Exception:
            self.is_broken = True
            self.close()  # it is better to hear of an end than of nothing
            raise

    def _begin_to_write(self, answer: dict[str, Any]) -> None:
        try:
            line = json.dumps(answer)
        except (TypeError, ValueError, RecursionError):
            log.exception("control socket: an answer cannot be written as JSON")
            line = '{"error": "internal error; see the log"}'
        self._unsent = memoryview(line.encode() + b"\n")
        self._timer = self._loop.call_later(REPLY_TIMEOUT, self.close)
        self._write()

    def close_in_child(self) -> None:
        self._socket.close()

    def close(self) -> None:
        self._timer.cancel()
        if self._socket.fileno() >= 0:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
        self._gone(self)

    def _read(self) -> None:
        try:
            self._hear()
        except Exception:
            self.is_broken = True
            self.close()  # nobody else would tell the client that there is no answer
            raise

    def _hear(self) -> None:
        data = self._receive()
        if data is None:
            return
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if len(line) > MOST_REQUEST:
            self.reply({"error": f"a request has at most {MOST_REQUEST} bytes"})
        elif newline or (not data and line):  # the end of all input ends a line as well
            self._requested(bytes(line))
        elif not data:
            self.close()

    def _receive(self) -> bytes | None:
        """Return what has come, b"" at the end; None where nothing has, or the client is gone."""
        try:
            return self._socket.recv(MOST_REQUEST)
        except BlockingIOError:
            return None
        except OSError:
            self.close()
            return None

    def _requested(self, line: bytes) -> None:
        self._received.clear()
        self._timer.cancel()
        try:
            self._loop.watch(self._socket.fileno(), self._read_on)
        except OSError as error:
            self.reply({"error": f"srvkit cannot answer now: {error.strerror}"})
            return
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("do"), str):
            self.reply({"error": 'a request is a line like {"do": "status"}'})
            return
        try:
            self._answer(request, self.reply)
        except Exception:
            log.exception("control socket: the request %r failed", request["do"][:60])
            self.reply({"error": "internal error; see the log"})

    def _read_on(self) -> None:
        """Notice that the client has gone: nobody waits for the reply, and its place is free."""
        data = self._receive()
        if data is None:
            return
        if not data and _has_hung_up(self._socket):
            self.close()
        else:  # it still listens; what it says now is of no interest, but would wake the loop for ever
            self._loop.unwatch(self._socket.fileno())

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            if sent:
                self._timer.cancel()
                self._timer = self._loop.call_later(REPLY_TIMEOUT, self.close)
            self._loop.watch(self._socket.fileno(), self._write, WRITE)
        elif self._keep:
            self._timer.cancel()
            self._loop.watch(self._socket.fileno(), self._read_on)
        else:
            self.close()

    def _too_slow(self) -> None:
        self.reply({"error": f"no request came within {REQUEST_TIMEOUT:g} s"})


def _accept(listening: socket.socket) -> socket.socket:
    """Accept a client; where there is no memory for its socket it hears the end at once."""
    fd, _ = listening._accept()  # type: ignore[attr-defined]
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)
    except BaseException:
        close_one(fd)
        raise


def listen(path: Path) -> socket.socket:
    """Listen at a path, for our own user alone and from the first moment; raises PlaceError."""
    make_folder(path.parent)
    _refuse_what_is_in_use(path)
    temporary = temporary_name(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(OSError):  # Linux: the most that bind() gives the file; elsewhere chmod() is in time
            os.fchmod(sock.fileno(), 0o600)
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        unixpath.bind(sock, temporary)
        try:
            os.chmod(temporary, 0o600)
            sock.listen(MOST_CLIENTS * 4)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        sock.close()
        raise PlaceError(f"the control socket {path} cannot be made: {error.strerror or error}") from None
    return sock


def _refuse_what_is_in_use(path: Path) -> None:
    try:
        found = os.stat(path)  # a link to a socket is a name that another srvkit had
    except OSError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise PlaceError(f"the control socket {path} cannot be made: another file stands there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            unixpath.connect(probe, path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:  # its queue is full, or it is of another kind
            pass
    raise PlaceError(f"the control socket {path} cannot be made: somebody is listening there")


def _peer_uid(sock: socket.socket) -> int | None:
    """Return whose process is at the other end; None where the system does not tell."""
    uid: int
    try:
        if hasattr(socket, "SO_PEERCRED"):
            _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        else:  # struct xucred: a version, the user, the groups
            _, uid = struct.unpack_from("II", sock.getsockopt(0, _LOCAL_PEERCRED, 128))
    except (OSError, struct.error):
        return None  # the file's mode is what is left
    return uid


def _send_refusal(sock: socket.socket, reason: str) -> None:
    with sock, suppress(OSError):
        sock.send(json.dumps({"error": reason}).encode() + b"\n")
        sock.recv(MOST_REQUEST)  # or what it has said already would turn the end into a reset


def _has_hung_up(sock: socket.socket) -> bool:
    """Tell a peer that has gone from one that has only said all it had to say."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))
