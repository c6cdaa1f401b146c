"""Files without a name: memory that forked and executed processes can share by its descriptor."""

from __future__ import annotations

import os
import tempfile


def unnamed_file(purpose: str) -> int:
    """Open an empty file that nobody else can open; `purpose` shows in /proc. The caller closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"srvkit-{purpose}")
    fd, path = tempfile.mkstemp(prefix=f"srvkit-{purpose}-")
    os.unlink(path)
    return fd


def contents(fd: int, most: int) -> str:
    """Return what was written to it, at most so many bytes."""
    return os.pread(fd, most, 0).decode(errors="replace")
