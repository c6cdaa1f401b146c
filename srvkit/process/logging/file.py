"""Where log lines go: a file, or standard error whatever that is. A write never waits and never raises.

A regular file is written to directly. A pipe or a terminal that nobody reads must not stop a server, so
they are opened once more without blocking: setting that on the inherited descriptor would hold for
everybody who shares it. This module knows bytes, not what a record is.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import select
import signal
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from srvkit.net.closing import close

log = logging.getLogger("srvkit.process")

STANDARD_ERROR = 2
FIRST_FREE = 3  # lowest descriptor for our own: those below belong to the standard files

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class LogFile:
    """The file that several processes append their lines to; make it with `open`.

    What cannot be written is dropped and counted in `lost`; whoever writes says so when it works again,
    and sets it back.
    """

    def __init__(self, fd: int, path: Path | None = None) -> None:
        """Take over a descriptor; `path` is what `reopen` opens, None where it has no name."""
        self.lost = 0  # lines
        self._path = path
        self._fd = fd
        self._torn = False  # the last line was written in part
        self._socket: socket.socket | None = None
        self._notices: _Notices | None = None
        self._send = self._sender()

    def __repr__(self) -> str:
        return f"<LogFile {self._path or 'standard error'}, descriptor {self._fd}>"

    @classmethod
    def open(cls, path: Path | None = None) -> LogFile:
        """Open a file to append to, made with mode 0640 if there is none; None: standard error.

        Raises OSError. A pipe without a reader is refused. Root follows a symbolic link only if it is
        root's own: a folder that the serving user may write to must not lead root elsewhere.
        """
        if path is None:
            return cls(_own_description(STANDARD_ERROR))
        path = path.absolute()
        return cls(_open(path), path)

    @property
    def path(self) -> Path | None:
        """Where it is; None for standard error."""
        return self._path

    def fileno(self) -> int:
        """Return the descriptor; it keeps its number until `close`."""
        return self._fd

    def write(self, line: bytes) -> bool:
        """Write a whole line by one write; return whether all of it went out."""
        notices = self._notices
        if notices is not None and notices.has_news():
            self._follow(notices)
        data = b"\n" + line if self._torn else line
        try:
            written = self._send(data)
        except OSError:  # nobody reads, the disk is full, the pipe is closed: none of it may end a server
            written = 0
        if written == len(data):
            self._torn = False
            return True
        self._torn = self._torn or written > 0
        self.lost += 1
        return False

    def reopen(self) -> bool:
        """Open the file by its name again, after it was renamed; return whether that worked.

        Where it does not, an error is logged to the old one, which stays. Standard error stays anyway.
        """
        if self._path is None:
            return True
        try:
            fd = _open(self._path)
        except OSError as error:
            log.error(
                "cannot reopen the log %s: %s; keeping the old one", self._path, error.strerror or error
            )
            return False
        self.replace(fd)
        return True

    def tell_forks(self) -> None:
        """Let what is forked from here go on with what `replace` is given, from its next line on."""
        self._notices = _Notices()

    def replace(self, fd: int) -> None:
        """Go on with another descriptor, which is taken over; others may be writing meanwhile."""
        if self._notices is not None:
            self._notices.put_up(fd)
        self._go_on_with(fd)

    def _follow(self, notices: _Notices) -> None:
        fd = notices.read()
        if fd is not None:
            self._go_on_with(fd)

    def _go_on_with(self, fd: int) -> None:
        try:
            os.dup2(fd, self._fd, inheritable=False)  # at once: a line goes whole to one or the other
        finally:
            close(fd)
        self._torn = False
        self._send = self._sender()

    def is_at(self, path: Path | None) -> bool:
        """Return whether this path, by now, leads to the file that is open; None: to standard error."""
        if path is None or self._path is None:
            return path is self._path
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._fd))
        except OSError:
            return False

    def become(self, other: LogFile) -> None:
        """Go on with what `other` has opened, which is used up."""
        self.replace(other._release())
        self._path = other._path

    def close(self) -> None:
        """Close the descriptor; what is written from now on is lost."""
        fd = self._release()
        if fd >= 0:
            close(fd)

    def _release(self) -> int:
        fd, self._fd, self._send = self._fd, -1, _nowhere
        self._notices = None
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        return fd

    def _sender(self) -> Callable[[bytes], int]:
        """Choose how to write to the descriptor without waiting."""
        mode = 0  # of what is to be treated with all caution
        with suppress(OSError):
            mode = os.fstat(self._fd).st_mode
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=self._fd)
            return self._send_to_socket
        plainly = stat.S_ISREG(mode) or fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_NONBLOCK
        send = self._write if plainly else self._write_when_ready
        return partial(_in_the_background, send) if os.isatty(self._fd) else send

    def _write(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def _send_to_socket(self, data: bytes) -> int:
        assert self._socket is not None
        return self._socket.send(data, socket.MSG_DONTWAIT)

    def _write_when_ready(self, data: bytes) -> int:
        """Write as much as there is room for; more than PIPE_BUF at once could wait for a reader."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        written = 0
        while written < len(data) and poll.poll(0):
            written += os.write(self._fd, data[written : written + select.PIPE_BUF])
        return written


class _Notices:
    """Where a process puts up its latest descriptor, for all that were forked from it.

    It waits in a socket, where each of them finds it by looking without taking it away. How often there
    was a new one is counted in memory they share, so that a line which is written costs no system call.
    """

    def __init__(self) -> None:
        self._put, self._look = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._put.setblocking(False)
        self._look.setblocking(False)
        self._count = mmap.mmap(-1, 1)
        self._seen = 0

    def put_up(self, fd: int) -> None:
        with suppress(BlockingIOError):
            self._look.recv(1)
        with suppress(OSError):  # too many are in flight: they stay with the old one
            socket.send_fds(self._put, [b"!"], [fd])
            self._seen = self._count[0] = (self._seen + 1) % 256

    def has_news(self) -> bool:
        return self._count[0] != self._seen

    def read(self) -> int | None:
        """Return a copy of the latest descriptor; None where it cannot be opened just now."""
        count = self._count[0]
        try:
            _, fds, _, _ = socket.recv_fds(self._look, 1, 1, socket.MSG_PEEK)
        except OSError:  # between two of them, no descriptor left, or closed by a stranger
            return None
        self._seen = count
        return _above_standard_files(fds[0]) if fds else None


def _nowhere(data: bytes) -> int:
    return 0


def _in_the_background(send: Callable[[bytes], int], data: bytes) -> int:
    """Write to a terminal that may be somebody else's now.

    Under `stty tostop` it answers such a write with SIGTTOU, and with the next as soon as that was
    handled; who holds the signal back may write.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        return send(data)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open(path: Path) -> int:
    follow = os.geteuid() != 0 or (path.is_symlink() and path.lstat().st_uid == 0)
    return _above_standard_files(os.open(path, _FLAGS | (0 if follow else os.O_NOFOLLOW), 0o640))


def _own_description(fd: int) -> int:
    """Return a descriptor of the same file that does not block, or a copy where that fails."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        try:
            return _above_standard_files(os.open(f"/proc/self/fd/{fd}", flags))
        except OSError:  # no /proc here, a pipe without a reader, or the terminal of somebody else
            pass
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)


def _above_standard_files(fd: int) -> int:
    if fd >= FIRST_FREE:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
    finally:
        close(fd)
