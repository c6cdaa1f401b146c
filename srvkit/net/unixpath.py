"""Unix sockets by paths of any length, of which the kernel takes about a hundred bytes at once.

Where Linux's /proc is mounted, a folder that is open has a short name, /proc/self/fd/N, so that only the
file's own name must fit.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from srvkit.net.closing import close

# sockaddr_un.sun_path is 108 bytes on Linux, 104 on macOS and the BSDs, with the closing NUL.
MAX_PATH = 107 if hasattr(socket, "SO_PEERCRED") else 103
_FOLDERS = "/proc/self/fd"
MAX_NAME = MAX_PATH - len(f"{_FOLDERS}/1048575/")  # of the file alone, where the path is longer

_OPEN = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


def is_long(path: str | Path) -> bool:
    """Return whether a path is too long for those who name it as a whole, as most programs do."""
    return len(os.fsencode(path)) > MAX_PATH


def objection(path: str | Path) -> str:
    """Say why no socket can have this path; "" where one can."""
    if not is_long(path):
        return ""
    if not os.path.isdir(_FOLDERS):
        return f"{path} is longer than the {MAX_PATH} bytes a socket address holds"
    if len(os.fsencode(os.path.basename(path))) > MAX_NAME:
        return (
            f"{path} is longer than the {MAX_PATH} bytes a socket address holds, "
            f"and the file's name alone is longer than {MAX_NAME}"
        )
    return ""


@contextmanager
def short_name(path: str | Path) -> Iterator[str]:
    """Yield a name of the same file that a socket address holds, good while the context lasts.

    Raises OSError where the folder cannot be opened, or no such name can be created.
    """
    text = os.fspath(path)
    if not is_long(text):
        yield text
        return
    if why := objection(text):
        raise OSError(why)
    folder = os.open(os.path.dirname(text) or ".", _OPEN)
    try:
        yield f"{_FOLDERS}/{folder}/{os.path.basename(text)}"
    finally:
        close(folder)


def bind(sock: socket.socket, path: str | Path) -> None:
    """Bind a socket to a path of any length; raises OSError."""
    with short_name(path) as name:
        sock.bind(name)


def connect(sock: socket.socket, path: str | Path) -> None:
    """Connect a socket to a path of any length; raises OSError."""
    with short_name(path) as name:
        sock.connect(name)
