"""Where log lines go: a file, or standard error whatever that is. A write never waits and never raises.

A regular file is written to directly. A pipe or a terminal that nobody reads must not stop a server, so
they are opened once more without blocking: setting that on the inherited descriptor would hold for
everybody who shares it. This module knows bytes, not what a record is.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

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

    def fileno(self) -> int:
        """Return the descriptor; it keeps its number until `close`."""
        return self._fd

    def write(self, line: bytes) -> bool:
        """Write a whole line by one write; return whether all of it went out."""
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
            log.error("cannot reopen the log %s: %s; the old one stays", self._path, error.strerror or error)
            return False
        self.replace(fd)
        return True

    def replace(self, fd: int) -> None:
        """Go on with another descriptor, which is taken over; others may be writing meanwhile."""
        os.dup2(fd, self._fd, inheritable=False)  # at once: a line goes whole to one or the other
        os.close(fd)
        self._torn = False
        self._send = self._sender()

    def become(self, other: LogFile) -> None:
        """Go on with what `other` has opened, which is used up."""
        self._path = other._path
        self.replace(os.dup(other.fileno()))
        other.close()

    def close(self) -> None:
        """Close the descriptor; what is written from now on is lost."""
        fd, self._fd, self._send = self._fd, -1, _nowhere
        if self._socket is not None:
            self._socket.detach()
        if fd >= 0:
            os.close(fd)

    def _sender(self) -> Callable[[bytes], int]:
        """Choose how to write to the descriptor without waiting."""
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
    """Return a descriptor of the same file that does not block, or a copy where that cannot be had."""
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
        os.close(fd)
