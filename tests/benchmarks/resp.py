"""A small server of the Redis protocol, enough for redis-benchmark: PING, GET, SET, INCR, DEL.

The framing cuts commands out of the stream, arrays of bulk strings and inline ones; `answer` turns one
into its reply. Neither knows who serves it, so peers are measured with the same two.
Source: the Redis serialization protocol specification (RESP2).
"""

from __future__ import annotations

from typing import Any

from srvkit import MessageHandler
from srvkit.errors import FrameError
from srvkit.protocol.framing import Framing

ARRAY, BULK = b"*$"
MOST_ARGUMENTS = 1024

store: dict[bytes, bytes] = {}


class Commands(Framing):
    """Whole commands, as the bytes that arrived; replies are sent as they are."""

    __slots__ = ()

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        if data[start] != ARRAY:
            end = data.find(b"\n", seen)
            if (len(data) if end < 0 else end) - start > self.limit:
                raise FrameError(f"command longer than {self.limit} bytes")
            return None if end < 0 else (bytes(data[start:end]), end + 1)
        header = self._number(data, start)
        if header is None:
            return None
        count, at = header
        if count > MOST_ARGUMENTS:
            raise FrameError(f"command of more than {MOST_ARGUMENTS} arguments")
        for _ in range(count):
            if at >= len(data):
                return None
            if data[at] != BULK:
                raise FrameError("an argument that is no bulk string")
            header = self._number(data, at)
            if header is None:
                return None
            at = header[1] + header[0] + 2
            if at - start > self.limit:
                raise FrameError(f"command longer than {self.limit} bytes")
        return (bytes(data[start:at]), at) if at <= len(data) else None

    def _number(self, data: bytes | bytearray, at: int) -> tuple[int, int] | None:
        """Read the number of a header line, and where the line after it begins."""
        end = data.find(b"\r\n", at, at + 32)
        if end < 0:
            if len(data) - at >= 32:
                raise FrameError("a header without an end")
            return None
        digits = data[at + 1 : end]
        if not digits.isdigit():
            raise FrameError("a length that is no number")
        return int(digits), end + 2

    def encode(self, message: bytes) -> bytes:
        return message

    def datagram(self, data: Any) -> list[bytes]:
        raise FrameError("Redis commands come over streams")


def words(command: bytes) -> list[bytes]:
    if command[:1] != b"*":
        return command.split()
    parts = command.split(b"\r\n")
    if len(parts) == 2 * int(parts[0][1:]) + 2:
        return parts[2::2]
    found, at = [], command.index(b"\r\n") + 2  # some argument has a line's end in it
    while at < len(command):
        begin = command.index(b"\r\n", at) + 2
        end = begin + int(command[at + 1 : begin - 2])
        found.append(command[begin:end])
        at = end + 2
    return found


def answer(command: bytes) -> bytes:
    """Reply to one command."""
    match [word if index else word.upper() for index, word in enumerate(words(command))]:
        case [b"GET", key]:
            value = store.get(key)
            return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)
        case [b"SET", key, value]:
            store[key] = value
            return b"+OK\r\n"
        case [b"PING"]:
            return b"+PONG\r\n"
        case [b"PING", text]:
            return b"$%d\r\n%s\r\n" % (len(text), text)
        case [b"INCR", key]:
            try:
                number = int(store.get(key, b"0")) + 1
            except ValueError:
                return b"-ERR value is not an integer or out of range\r\n"
            store[key] = b"%d" % number
            return b":%d\r\n" % number
        case [b"DEL", *keys]:
            return b":%d\r\n" % sum(store.pop(key, None) is not None for key in keys)
        case []:
            return b""
        case _:
            return b"-ERR unknown command, or a wrong number of arguments\r\n"


framing = Commands


class Resp(MessageHandler):
    """Serve the commands."""

    framing = Commands()

    def handle_message(self, message: bytes) -> bytes:
        return answer(message)
