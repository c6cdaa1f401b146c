"""The file of a Unix socket: made with care for what stands there, and claimed for as long as it is ours."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

from srvkit.errors import ListenError
from srvkit.net import unixpath
from srvkit.net.address import Address
from srvkit.net.closing import close_one

try:
    import fcntl
except ImportError:  # Windows, where no socket has a file
    pass

LOCK_TIME, LOCK_INTERVAL = 1.0, 0.01  # seconds for others to make their sockets in the same folder

FileIdentity = tuple[int, int]  # device and inode: what a file is, whatever its name


class Permissions(NamedTuple):
    """What a file is to have; -1 leaves user or group as they are."""

    mode: int
    user: int = -1
    group: int = -1


def identity(path: Path | str | int) -> FileIdentity | None:
    """Return what a file or an open descriptor is; None where there is none. Links are not followed."""
    try:
        found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def make(
    sock: socket.socket,
    address: Address,
    path: str,
    wanted: Permissions,
    held: socket.socket | None = None,
) -> socket.socket | None:
    """Bind a socket to its file, in place of one that a dead server has left.

    Returns what keeps the path ours for as long as it is open, where there is such a thing; the caller
    closes it. `held` is one that keeps it already: then there may be none. Raises ListenError, OSError.
    """
    with _directory_locked(address, path) as folder:
        claim = _claim(address, path, folder, held)
        try:
            _remove_if_stale(sock, address, path)
            # The mode of the socket itself is the most that bind() gives its file (Linux): there is no
            # moment in which others may connect. chmod() gives back what the umask took away.
            os.fchmod(sock.fileno(), wanted.mode)
            unixpath.bind(sock, path)
            try:
                set_permissions(path, wanted)
            except BaseException:
                os.unlink(path)
                raise
        except BaseException:
            if claim is not None:
                claim.close()
            raise
    return claim


def set_permissions(path: str, wanted: Permissions) -> None:
    """Give the file to whom it is to belong; raises OSError."""
    if (wanted.user, wanted.group) != (-1, -1):
        os.chown(path, wanted.user, wanted.group)
    os.chmod(path, wanted.mode)


def _claim(address: Address, path: str, folder: int, held: socket.socket | None) -> socket.socket | None:
    """Take the path as ours for as long as the socket returned is open.

    A socket that is bound and does not listen yet refuses connections as a stale one does. An abstract
    name, which is gone with its last descriptor, tells the two apart (Linux alone has them). It is made
    of what the folder is, not of what it is called: abstract names belong to a network namespace, and in
    another container, which may share that with us, a path of the same spelling is another folder.
    """
    if not sys.platform.startswith("linux"):
        return None
    found = os.fstat(folder)
    place = b"%d:%d/%s" % (found.st_dev, found.st_ino, os.fsencode(os.path.basename(path)))
    name = f"\0srvkit:{os.getuid()}:{hashlib.sha256(place).hexdigest()}".encode()
    if held is not None and held.getsockname() == name:
        return None
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(name)
    except OSError:
        claim.close()
        if os.path.lexists(path):
            raise ListenError(address, "another server is listening there") from None
        return None  # it has lost its file: whoever comes next may have the path
    return claim


@contextmanager
def _directory_locked(address: Address, path: str) -> Iterator[int]:
    """Keep two starting servers from replacing each other's file; yields the folder's descriptor.

    The folder itself is locked, no file is left behind.
    """
    folder = os.path.dirname(path)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        named = os.path.dirname(address.path)  # as people wrote it
        raise ListenError(address, f"the folder {named} does not exist") from None
    try:
        _lock(fd, address, folder)
        yield fd
    finally:
        close_one(fd)


def _lock(fd: int, address: Address, folder: str) -> None:
    """Lock a folder. Others of us have it for a moment only, and no stranger makes us wait for ever."""
    deadline = monotonic() + LOCK_TIME
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() > deadline:
                raise ListenError(address, f"another process has locked the folder {folder}") from None
            sleep(LOCK_INTERVAL)
        else:
            return


def _remove_if_stale(sock: socket.socket, address: Address, path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(address, "a file that is no socket stands there; it was left untouched")
    with socket.socket(socket.AF_UNIX, sock.type) as probe:
        probe.setblocking(False)
        try:
            unixpath.connect(probe, path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EPROTOTYPE, errno.EAGAIN, errno.EINPROGRESS):
                raise
    raise ListenError(address, "another server is listening there")
