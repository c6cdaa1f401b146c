"""Upload: takes files over a connection, and goes on with those that were interrupted."""

import fcntl
import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from srvkit import StreamRequestHandler, hookimpl

CHUNK = 256 * 1024  # bytes of a file in memory at once
NAME = re.compile(r"\w[\w .+-]{0,60}")  # no slash and no leading dot: it stays in the folder
SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


class Refused(Exception):
    """What the client asks for will not be done; the text is for the client."""


class Upload(StreamRequestHandler):
    """Store one file.

    The client sends a line, `{"name": …, "size": …, "sha256": …}`, and is told how many bytes are here
    already: `{"have": 0}`. It sends the others, and hears `{"stored": …}`. In place of either answer it
    may be told `{"error": …}`.
    """

    @dataclass
    class Options:
        folder: str = "uploads"
        largest: int = 2 * 2**30  # bytes

    def handle(self):
        try:
            name, size, sha256 = self.read_header()
            self.store(name, size, sha256)
        except Refused as refusal:
            log.warning("refused: %s", refusal)
            self.answer(error=str(refusal))

    def answer(self, **fields):
        self.wfile.write(json.dumps(fields).encode() + b"\n")

    def read_header(self):
        try:
            header = json.loads(self.rfile.readline(4096))
            name, size, sha256 = header["name"], header["size"], header["sha256"]
        except (ValueError, TypeError, KeyError):
            raise Refused("the first line must be JSON with name, size and sha256") from None
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise Refused(
                f"{name!r} is no name for a file here: up to 61 letters, digits, spaces, and any of _.+-"
            )
        if type(size) is not int or not 0 <= size <= self.options.largest:
            raise Refused(f"the size must be a number of bytes, up to {self.options.largest}")
        if not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
            raise Refused("sha256 must be 64 hexadecimal digits in lower case")
        return name, size, sha256

    def store(self, name, size, sha256):
        folder = Path(self.options.folder)
        folder.mkdir(exist_ok=True)
        # Named for its content: what goes on is the same file, and nothing else.
        part = folder / f".{sha256}.part"
        with open(part, "a+b", opener=open_no_link) as file:
            lock(file, part)
            self.receive(file, size)
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                part.unlink()
                raise Refused("these are not the bytes that were announced")
            os.fsync(file.fileno())
            put_in_place(part, folder / name)
        log.info("stored %s, %d bytes", name, size)
        self.answer(stored=name)

    def receive(self, file, size):
        """Append to the file what is missing of it."""
        have = file.seek(0, os.SEEK_END)
        if have > size:
            raise Refused(f"{have} bytes of it are here already, more than {size}")
        self.answer(have=have)
        while have < size:
            data = self.rfile.read1(min(CHUNK, size - have))
            if not data:
                raise Refused(f"interrupted; kept {have} of {size} bytes")
            file.write(data)
            file.flush()  # whatever happens next, it is kept
            have += len(data)


def open_no_link(path, flags):
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def lock(file, part):
    """Keep others from writing to it, be they threads or processes; closing the file ends it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking it, somebody may have finished it and given it its name.
        still_part = os.path.samestat(os.fstat(file.fileno()), part.stat())
    except (BlockingIOError, FileNotFoundError):
        still_part = False
    if not still_part:
        raise Refused("somebody is uploading this very file")


def put_in_place(part, target):
    """Give the file its name, in one step; another of that name is replaced."""
    try:
        part.replace(target)
    except IsADirectoryError:
        raise Refused(f"{target.name} is a folder") from None


@hookimpl
def srvkit_handlers():
    return {"upload": Upload}
