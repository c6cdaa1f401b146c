"""Files without a name: memory that forked and executed processes can share by its descriptor."""

from __future__ import annotations

import errno
import os
import tempfile

from srvkit.net.closing import close

SHARED_MEMORY = "/dev/shm"  # a file there is memory, too

# What a filter of system calls answers, or a kernel that does not have the call.
_NOT_TO_BE_HAD = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL)


def unnamed_file(purpose: str, size: int = 0) -> int:
    """Open a file that nobody else can open, with so many zero bytes; the caller closes it.

    `purpose` shows in /proc. Where the kernel gives no memory of this kind it is a temporary file whose
    name is removed at once. Raises OSError, whose text says what could not be made.
    """
    try:
        fd = _open(purpose)
        try:
            if size:
                _make_room(fd, size)
        except BaseException:
            close(fd)
            raise
    except OSError as error:
        raise OSError(error.errno, f"no shared memory: {error.strerror}") from error
    return fd


def _open(purpose: str) -> int:
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(f"srvkit-{purpose}")
        except OSError as error:
            if error.errno not in _NOT_TO_BE_HAD:
                raise
    folder = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else None
    fd, path = tempfile.mkstemp(prefix=f"srvkit-{purpose}-", dir=folder)
    os.unlink(path)
    return fd


def _make_room(fd: int, size: int) -> None:
    """Allocate the memory now: writing to a mapping that lacks it kills the process."""
    os.ftruncate(fd, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
                raise


def contents(fd: int, most: int) -> str:
    """Return what was written to it, at most so many bytes."""
    return os.pread(fd, most, 0).decode(errors="replace")
