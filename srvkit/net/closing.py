"""Closing descriptors: what the system says of it then comes too late to matter."""

from __future__ import annotations

import errno
import os


def close(*descriptors: int) -> None:
    """Close them all. Each is gone afterwards, also where the file's disk had something to say (close(2))."""
    for fd in descriptors:
        close_one(fd)


def close_one(fd: int) -> None:
    """Close it, as `close` does, with a call that takes no memory."""
    try:
        os.close(fd)
    except OSError as error:
        if error.errno == errno.EBADF:  # a mistake of ours, which may hit somebody else's descriptor
            raise
