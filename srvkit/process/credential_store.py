"""The bytes of certificates and keys, kept for the workers of one generation in a file without a name.

Whoever tries a configuration out reads the files and keeps what is in them. A worker is given what belongs
to its server, be it the first one or a later one's replacement, and whatever has become of the files.
"""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Mapping, Sequence

from srvkit.net.closing import close_one
from srvkit.process.memfd import unnamed_file

Places = Mapping[str, Sequence[int]]  # of each server: where its part begins, and how long it is


def keep(files: Mapping[str, Mapping[str, bytes]]) -> tuple[int, Places]:
    """Write each server's files, by path, one part behind the other; the caller closes the descriptor."""
    fd = unnamed_file("certificates")
    try:
        places: dict[str, tuple[int, int]] = {}
        end = 0
        for server, contents in files.items():
            part = json.dumps({path: base64.b64encode(data).decode() for path, data in contents.items()})
            places[server] = end, len(part)
            _write(fd, part.encode())
            end += len(part)
    except BaseException:
        close_one(fd)
        raise
    return fd, places


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class CredentialStore:
    """The part of one server; whoever has it closes it."""

    def __init__(self, fd: int, place: Sequence[int]) -> None:
        """Keep a descriptor of one's own. Raises OSError where there is none left."""
        self._fd = os.dup(fd)
        self._start, self._length = place

    def read(self) -> dict[str, bytes]:
        """Return the server's files, by path."""
        data = b""
        while len(data) < self._length:
            piece = os.pread(self._fd, self._length - len(data), self._start + len(data))
            if not piece:
                break
            data += piece
        return {path: base64.b64decode(text) for path, text in json.loads(data).items()}

    def close(self) -> None:
        """Let go of it. Does nothing the second time."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_one(fd)


def parts(descriptors: Sequence[int], places: Places) -> dict[str, CredentialStore]:
    """Return the part of each server, and close the descriptors. Raises OSError with nothing left open."""
    found: dict[str, CredentialStore] = {}
    try:
        if places and not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # the kernel had no room for it here
        for server, place in places.items():
            found[server] = CredentialStore(descriptors[0], place)
    except BaseException:
        for one in found.values():
            one.close()
        raise
    finally:
        for fd in descriptors:
            close_one(fd)
    return found
