"""Where one message ends and the next begins: framings, pure objects that turn bytes into messages.

A framing is fed whatever arrived and hands out whole messages; it keeps what is incomplete. It knows
nothing of sockets, handlers or timeouts, and does no I/O: whoever feeds it decides what a fault means.
"""

from __future__ import annotations

import copy
import inspect
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeAlias

from srvkit.contracts import Size
from srvkit.errors import FrameError

# As much as nginx takes for a request body and websockets for a message. asyncio's readline() stops at
# 64 KiB, which real lines of JSON exceed; gRPC's 4 MiB times a thousand connections is a lot of memory.
DEFAULT_MAX_MESSAGE = 1024 * 1024

# Bytes of a message from which on find() beats split(), which looks at each byte by itself: a line of
# 64 KiB costs a server 30 µs where it took 54.
LONG = 1024

MOST_STILL = 100  # changes of the framing in a row, within one read, that use up nothing

Data: TypeAlias = bytes | bytearray | memoryview

_AT_FIRST = (("max_message", None), ("limit", DEFAULT_MAX_MESSAGE), ("held", b""), ("_fault", ""))
_BYTES = (bytes, bytearray, memoryview)
_CR = ord("\r")  # `in` with a number costs half of `in` with bytes, which raises and catches inside
_COMMA = ord(",")
_NETSTRING_HEAD = re.compile(rb"(0|[1-9][0-9]{0,19})(:?)")  # more digits than any maximum has
_new = object.__new__

# Of what cannot change, every connection may have the same one.
_UNCHANGING = (int, float, complex, str, bytes, bool, type(None), struct.Struct)


class _Remade:
    """What `Framing.fresh` makes the like of: it remembers by what arguments it was made.

    A class of its own behind `Framing`, so that whoever asks for the parameters of a framing (`inspect`, the
    configuration) finds those of `__init__` first.
    """

    __slots__ = ("_arguments",)

    _arguments: tuple[list[Any], dict[str, Any]]

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        new = super().__new__(cls)
        # For an __init__ that does not call super(): that of a dataclass, say.
        for name, value in _AT_FIRST:
            setattr(new, name, value)
        # Taken down now: later on they may have changed with what was fed.
        new._arguments = [_own(one) for one in args], {key: _own(one) for key, one in settings.items()}
        return new


class _Shared:
    """Stands for an argument of which there is only one."""

    def __init__(self, argument: object) -> None:
        self.kind = type(argument).__name__


def _own(argument: Any) -> Any:
    """Return an argument for one framing alone."""
    if isinstance(argument, _UNCHANGING):
        return argument
    if isinstance(argument, Framing):
        return argument.fresh()
    try:
        return copy.deepcopy(argument)
    except Exception:  # whatever it cannot be copied for
        return _Shared(argument)


class Framing(_Remade):
    """The base of all framings, and of yours.

    A framing of your own writes two methods, `take` (how one message is read) and `encode` (how one is
    sent); all others have defaults. A length of one byte in front:

        class Short(Framing):
            def take(self, data, start, seen):
                end = start + 1 + data[start]
                if data[start] > self.limit:
                    raise FrameError(f"message longer than {self.limit} bytes")
                return None if len(data) < end else (bytes(data[start + 1 : end]), end)

            def encode(self, message):
                return bytes([len(message)]) + message

    One that writes `feed` instead of `take` keeps incomplete bytes in `self.held`; `eof`, `buffered` and
    `rest` go by that. Settings are annotated parameters of `__init__`, kept under the same names: the
    configuration `framing = { name = "short", max_message = 100 }` sets them. `take` may be overridden in
    a subclass of any framing here, to unescape or check what `super().take` found. What a framing keeps
    besides (lists, decoders, framings within it) it makes in `__init__`: each connection has one that was
    made anew, by the same arguments.

    May be read: `max_message`, what the author of the handler asked for, or None; `limit`, the maximum in
    force, in bytes; `held`, the bytes of the incomplete message. One framing serves one connection and
    is not safe to share between threads.
    """

    __slots__ = ("_fault", "held", "limit", "max_message")

    buffers_more: ClassVar[bool] = False  # whether it overrides `buffered`: not all is in `held`
    max_message: int | None
    limit: int
    held: bytes | bytearray  # never empty after a fault: one test on the hot path covers both
    _fault: str

    def __init__(self, max_message: Size | None = None) -> None:
        if max_message is not None:
            _check_positive("max_message", max_message)
        self.max_message = max_message
        self.limit = DEFAULT_MAX_MESSAGE if max_message is None else max_message
        self.held = b""
        self._fault = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # The built-in feed() methods have short cuts around take(): whoever overrides it means every message.
        super().__init_subclass__(**kwargs)
        cls.buffers_more = cls.buffered is not Framing.buffered
        if "take" in cls.__dict__ and "feed" not in cls.__dict__:
            cls.feed = Framing.feed  # type: ignore[method-assign]

    def fresh(self, max_message: int | None = None) -> Self:
        """Return a framing of the same settings that holds nothing; `max_message` replaces the maximum.

        One whose class has an `__init__` of its own is made again by the arguments that this one was made
        with: framings among them are made fresh, other things that may change are copied. Raises ValueError
        for a maximum the framing cannot keep, TypeError where an argument cannot be copied.
        """
        cls = self.__class__
        if cls.__init__ not in _PLAIN:
            return self._made_again(max_message)
        new = _new(cls)
        if max_message is None:
            new.max_message = self.max_message
            new.limit = self.limit
        else:
            if max_message < 1:
                _check_positive("max_message", max_message)
            new.max_message = new.limit = max_message
        new.held = b""
        new._fault = ""
        return new

    def _made_again(self, max_message: int | None) -> Self:
        if max_message is not None:
            _check_positive("max_message", max_message)
        args, settings = self._arguments
        for argument in (*args, *settings.values()):
            if isinstance(argument, _Shared):
                raise TypeError(
                    f"the framing {type(self).__name__} was given a {argument.kind}, which cannot be copied: "
                    f"all connections would have the same one; let its __init__ make it, or override fresh()"
                )
        again = [_own(one) for one in args]
        named = {key: _own(one) for key, one in settings.items()}
        if max_message is not None:
            names = list(inspect.signature(type(self)).parameters)
            if "max_message" in names[: len(again)]:
                again[names.index("max_message")] = max_message
            elif "max_message" in names:
                named["max_message"] = max_message
        new = type(self)(*again, **named)
        new.max_message = self.max_message if max_message is None else max_message
        new.limit = self.limit if max_message is None else max_message
        return new

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        """Read the message that begins at `data[start]`: return it and where the next begins.

        Return None if it is incomplete. At least one byte is there. Whoever searches may begin at `seen`
        (>= start): up to there an earlier call has looked in vain. Raise FrameError as soon as no
        continuation could be a message of at most `self.limit` bytes, so that nothing is held for it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no take()")

    def encode(self, message: bytes) -> bytes:
        """Return what is sent for `message`; raise ValueError if it cannot be expressed."""
        raise NotImplementedError(f"{type(self).__name__} has no encode()")

    def feed(self, data: Data) -> list[bytes]:
        """Return the messages that `data` completes, often none; keep what is incomplete.

        Raises FrameError when the bytes are no message or it is too long; its `messages` came before the
        fault. From then on every call raises it, without messages.
        """
        if self.held:
            return self._resume(data, Framing.feed)
        if type(data) is not bytes:
            data = bytes(data)
        messages: list[bytes] = []
        start = 0
        while start < len(data):
            found = self._take(data, start, start, messages)
            if found is None:
                break
            message, start = found
            messages.append(message)
        self.held = data[start:]
        return messages

    def eof(self) -> None:
        """Raise FrameError if the stream ended in the middle of a message, or if there was a fault."""
        if self._fault:
            raise FrameError(self._fault)
        if self.held:
            self._fail(self._cut("stream"), [], self.held, cut_short=True)

    def datagram(self, data: Data) -> list[bytes]:
        """Return the messages of one whole datagram; raise FrameError if the last one is cut short."""
        messages = self.feed(data)
        if self.held:
            self._fail(self._cut("datagram"), messages, self.held)
        return messages

    @property
    def buffered(self) -> int:
        """How many bytes of an incomplete message are held back; 0 between messages."""
        return len(self.held)

    def rest(self, unhandled: list[bytes], data: Data) -> bytes:
        """Give up everything not yet handled, as the bytes that arrived, and hold nothing any more.

        For a successor that reads on in the middle of a batch: `data` was the argument of the last
        `feed`, `unhandled` are the last messages of what it returned or of its FrameError, never all of
        them. Bytes of a fault are given up too, and the fault is forgotten: they may be right for the
        successor. Override it where `encode` does not restore the very bytes that came.
        """
        return b"".join(map(self.encode, unhandled)) + self._release()

    def __repr__(self) -> str:
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if parameter.default is parameter.empty:
                shown.append(repr(value))
            elif value != parameter.default:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _unfinished(self) -> str:
        """Say what the bytes held back are the beginning of."""
        return "the message"

    def _cut(self, what: str) -> str:
        count = len(self.held)
        return f"{what} ended after {count} byte{'s' * (count != 1)}, before the end of {self._unfinished()}"

    def _resume(self, data: Data, feed: Callable[[Self, Data], list[bytes]]) -> list[bytes]:
        """Go on in the middle of a message; `feed` is the caller itself, for what follows that message.

        It is not looked up on self: a subclass whose feed() changes the messages would do so twice.
        """
        if self._fault:
            raise FrameError(self._fault)
        held = self.held
        if isinstance(held, bytes):
            held = self.held = bytearray(held)
        seen = len(held)
        held += data
        found = self._take(held, 0, seen, [])
        if found is None:
            return []
        message, end = found
        self.held = b""
        try:
            return [message, *feed(self, bytes(memoryview(held)[end:]))]
        except FrameError as error:
            error.messages.insert(0, message)
            raise

    def _take(
        self, data: bytes | bytearray, start: int, seen: int, messages: list[bytes]
    ) -> tuple[bytes, int] | None:
        """Call take(), remember its fault, and hold a careless one to the maximum all the same."""
        try:
            found = self.take(data, start, seen)
        except FrameError as error:
            self._fail(str(error), messages, data[start:])
        message, end = found or (b"", len(data))
        if not start < end <= len(data):
            self._stand_still(start, end, len(data))
        # Escapes may double a message; no known header and trailer come to more than a kilobyte.
        if len(message) > self.limit or end - start > 2 * self.limit + 1024:
            self._fail(f"message longer than {self.limit} bytes", messages, data[start:])
        return found

    def _stand_still(self, start: int, end: int, length: int) -> NoReturn:
        """Tell the author, whose fault it is: a message takes at least a byte, and no more than there are."""
        where = "behind the data"
        if end <= start:
            where = "before it begins" if end < start else "where it begins"
        raise RuntimeError(
            f"{type(self).__name__}.take() says that a message ends {where} (at {end}, of {length} bytes "
            f"from {start} on); it returns None while a message is incomplete, and its end otherwise"
        )

    def _fail(
        self, text: str, messages: list[bytes], held: bytes | bytearray, cut_short: bool = False
    ) -> NoReturn:
        self._fault = text
        self.held = held
        raise FrameError(text, messages, cut_short) from None

    def _release(self) -> bytes:
        held, self.held, self._fault = self.held, b"", ""
        return bytes(held)


class Delimiter(Framing):
    """Messages that end with a delimiter, which is not part of them.

    A message must not contain the delimiter; `encode` does not look. The end of a datagram ends the last
    message even where the delimiter is missing.
    """

    __slots__ = ("delimiter",)

    def __init__(self, delimiter: bytes, max_message: Size | None = None) -> None:
        super().__init__(max_message)
        if not isinstance(delimiter, bytes):
            raise ValueError(f"delimiter must be bytes such as b'\\0', not {delimiter!r}")
        if not 1 <= len(delimiter) <= 255:
            raise ValueError(f"delimiter must have 1 to 255 bytes, not {len(delimiter)}")
        self.delimiter = delimiter

    def fresh(self, max_message: int | None = None) -> Self:
        new = Framing.fresh(self, max_message)
        new.delimiter = self.delimiter
        return new

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        width = len(self.delimiter)
        last = start + self.limit  # where the delimiter begins at the latest
        end = data.find(self.delimiter, max(start, seen - width + 1))
        if end > last or (end < 0 and len(data) > last and not self._may_end(data, start)):
            raise FrameError(f"message longer than {self.limit} bytes")
        return None if end < 0 else (_piece(data, start, end), end + width)

    def _may_end(self, data: bytes | bytearray, start: int) -> bool:
        """Tell if data ends with the beginning of a delimiter that still is within the maximum."""
        first = max(start, len(data) - len(self.delimiter) + 1)
        return any(self.delimiter.startswith(bytes(data[at:])) for at in range(first, start + self.limit + 1))

    def feed(self, data: Data) -> list[bytes]:
        if self.held:
            return self._resume(data, Delimiter.feed)
        if type(data) is not bytes:
            data = bytes(data)
        if not 0 <= data.find(self.delimiter) < LONG:
            return Framing.feed(self, data)
        messages = data.split(self.delimiter)
        if len(data) > self.limit and max(map(len, messages)) > self.limit:
            return Framing.feed(self, data)
        self.held = messages.pop()
        return messages

    def datagram(self, data: Data) -> list[bytes]:
        messages = self.feed(data)
        if self.held:
            whole = bytes(self.held) + self.delimiter
            # A delimiter that overlaps itself must not be found any earlier than where it was put.
            found = self._take(whole, 0, len(whole) - 1, messages)
            if found is None:
                self._fail(self._cut("datagram"), messages, self.held)
            messages.append(found[0])
            self.held = b""
        return messages

    def encode(self, message: bytes) -> bytes:
        return message + self.delimiter


class Lines(Delimiter):
    r"""Lines of text as bytes: takes `\n` and `\r\n`, sends `\n`.

    One `\r` before the `\n` belongs to the line's end and, like it, does not count towards the maximum.
    """

    __slots__ = ()

    def __init__(self, max_message: Size | None = None) -> None:
        super().__init__(b"\n", max_message)

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        end = data.find(b"\n", seen)
        stop = len(data) if end < 0 else end
        if stop > start and data[stop - 1] == _CR:  # a line's end, or half of one
            stop -= 1
        if stop - start > self.limit:
            raise FrameError(f"line longer than {self.limit} bytes")
        return None if end < 0 else (_piece(data, start, stop), end + 1)

    def feed(self, data: Data) -> list[bytes]:
        if self.held:
            return self._resume(data, Lines.feed)
        if type(data) is not bytes:
            data = bytes(data)
        end = data.find(b"\n")
        if not 0 <= end < LONG:
            if 0 <= end == len(data) - 1 <= self.limit:  # just one, as long lines mostly come
                return [data[: end - 1 if data[end - 1] == _CR else end]]
            return Framing.feed(self, data)
        lines = (data.replace(b"\r\n", b"\n") if _CR in data else data).split(b"\n")
        if len(data) > self.limit and max(map(len, lines)) > self.limit:
            return Framing.feed(self, data)
        self.held = lines.pop()
        return lines

    def encode(self, message: bytes) -> bytes:
        return message + b"\n"

    def rest(self, unhandled: list[bytes], data: Data) -> bytes:
        # Whether a line had ended with \r\n is known to data alone; walk back over its newlines.
        held = self._release()
        if not unhandled:
            return held
        data = bytes(data)
        at = len(data) - len(held)
        if data.endswith(b"\n", 0, at):
            at -= 1
        for _ in unhandled:
            at = data.rfind(b"\n", 0, at)
        return data[at + 1 :]

    def _unfinished(self) -> str:
        return "the line"


class LengthPrefix(Framing):
    """Messages after their length in `size` bytes; the length does not count itself."""

    __slots__ = ("byteorder", "size")

    def __init__(
        self,
        size: Literal[1, 2, 3, 4, 8] = 4,
        byteorder: Literal["big", "little"] = "big",
        max_message: Size | None = None,
    ) -> None:
        super().__init__(max_message)
        if size not in (1, 2, 3, 4, 8):
            raise ValueError(f"size must be 1, 2, 3, 4 or 8 bytes, not {size!r}")
        if byteorder not in ("big", "little"):
            raise ValueError(f"byteorder must be 'big' or 'little', not {byteorder!r}")
        self.size = size
        self.byteorder = byteorder

    def fresh(self, max_message: int | None = None) -> Self:
        new = Framing.fresh(self, max_message)
        new.size = self.size
        new.byteorder = self.byteorder
        return new

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        body = start + self.size
        if len(data) < body:
            return None
        length = int.from_bytes(data[start:body], self.byteorder)
        if length > self.limit:
            raise FrameError(f"message of {length} bytes announced, longer than {self.limit} bytes")
        end = body + length
        return None if len(data) < end else (bytes(memoryview(data)[body:end]), end)

    def feed(self, data: Data) -> list[bytes]:
        if self.held:
            return self._resume(data, LengthPrefix.feed)
        if type(data) is not bytes:
            data = bytes(data)
        size, byteorder, limit, total = self.size, self.byteorder, self.limit, len(data)
        messages: list[bytes] = []
        start = 0
        while (body := start + size) <= total:
            length = int.from_bytes(data[start:body], byteorder)
            end = body + length
            if length > limit:
                self._take(data, start, start, messages)
            if end > total:
                break
            messages.append(data[body:end])
            start = end
        self.held = data[start:]
        return messages

    def encode(self, message: bytes) -> bytes:
        try:
            return len(message).to_bytes(self.size, self.byteorder) + message
        except OverflowError:
            text = f"message of {len(message)} bytes does not fit a {self.size}-byte length"
            raise ValueError(text) from None

    def _unfinished(self) -> str:
        if len(self.held) < self.size:
            return f"the {self.size}-byte length"
        return f"the {int.from_bytes(self.held[: self.size], self.byteorder)}-byte message"


class Netstring(Framing):
    """Netstrings, `5:hello,` (https://cr.yp.to/proto/netstrings.txt); a length has no leading zeros."""

    __slots__ = ()

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        head = _NETSTRING_HEAD.match(data, start)
        digits, colon = head.groups() if head else (b"", b"")
        if int(digits or 0) > self.limit if colon else len(digits) > len(str(self.limit)):
            raise FrameError(f"netstring longer than {self.limit} bytes")
        body = start + len(digits) + len(colon)
        if not colon:
            if body == len(data):
                return None
            came = bytes(data[start : body + 1])
            raise FrameError(f"netstring begins with {came!r}, not with a length and ':'")
        end = body + int(digits)
        if end >= len(data):
            return None
        if data[end] != _COMMA:
            came = bytes(data[end : end + 1])
            raise FrameError(f"netstring of {int(digits)} bytes ends with {came!r}, not with ','")
        return bytes(memoryview(data)[body:end]), end + 1

    def encode(self, message: bytes) -> bytes:
        return b"%d:%b," % (len(message), message)

    def _unfinished(self) -> str:
        return "the netstring"


class FixedSize(Framing):
    """Messages of `size` bytes each; the size is the maximum, and `max_message` must not be below it.

    One that a handler puts in the place of another framing keeps to that one's maximum: with a larger size,
    which a peer may have named, nothing is read.
    """

    __slots__ = ("size",)

    def __init__(self, size: Size, max_message: Size | None = None) -> None:
        super().__init__(max_message)
        _check_positive("size", size)
        self._check_room(size, max_message)
        self.size = self.limit = size

    def fresh(self, max_message: int | None = None) -> Self:
        new = Framing.fresh(self, max_message)
        new.size = self.size
        if max_message is not None:
            self._check_room(self.size, max_message)
            new.limit = self.size
        return new

    @staticmethod
    def _check_room(size: int, max_message: int | None) -> None:
        if max_message is not None and size > max_message:
            raise ValueError(f"size = {size} does not fit max_message = {max_message}")

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        if self.size > self.limit:
            raise FrameError(f"message of {self.size} bytes announced, longer than {self.limit} bytes")
        end = start + self.size
        return None if len(data) < end else (bytes(memoryview(data)[start:end]), end)

    def feed(self, data: Data) -> list[bytes]:
        if self.held:
            return self._resume(data, FixedSize.feed)
        if type(data) is not bytes:
            data = bytes(data)
        size, total = self.size, len(data)
        if size > self.limit:
            return Framing.feed(self, data)
        if total == size:
            return [data]
        whole = total - total % size
        self.held = data[whole:]
        return [data[start : start + size] for start in range(0, whole, size)]

    def encode(self, message: bytes) -> bytes:
        if len(message) != self.size:
            raise ValueError(f"message of {len(message)} bytes, where each has {self.size}")
        return message

    def _unfinished(self) -> str:
        return f"the {self.size}-byte message"


class Raw(Framing):
    """What arrives, as it arrives, in pieces of at most the maximum; a datagram is one message."""

    __slots__ = ()

    def take(self, data: bytes | bytearray, start: int, seen: int) -> tuple[bytes, int] | None:
        piece = bytes(data[start : start + self.limit])
        return piece, start + len(piece)

    def feed(self, data: Data) -> list[bytes]:
        if type(data) is not bytes:
            data = bytes(data)
        if 0 < len(data) <= self.limit:
            return [data]
        return [data[start : start + self.limit] for start in range(0, len(data), self.limit)]

    def datagram(self, data: Data) -> list[bytes]:
        if len(data) > self.limit:
            raise FrameError(f"datagram of {len(data)} bytes, longer than {self.limit} bytes")
        return [bytes(data)]

    def encode(self, message: bytes) -> bytes:
        return message


# Their instances are all that was set: fresh() need not call them.
_PLAIN = frozenset(one.__init__ for one in (Framing, Delimiter, Lines, LengthPrefix, FixedSize))

UNASKED = "more was sent, in the clear, behind the request for TLS"


def data_before_tls(messages: Sequence[bytes], framing: Framing) -> FrameError | None:
    """Return the fault of a peer that sent more where it had to wait for TLS; None where it did not.

    What came in the clear must never be taken for what comes encrypted (CVE-2011-0411).
    """
    return FrameError(UNASKED) if messages or framing.buffered else None


def keep_bytes(encoded: list[Any]) -> TypeError | None:
    """Leave in the list what can be sent; return what is wrong with the framing that encoded the rest."""
    wrong = [one for one in encoded if not isinstance(one, _BYTES)]
    encoded[:] = [one for one in encoded if isinstance(one, _BYTES)]
    if not wrong:
        return None
    return TypeError(
        f"encode() returned an object of type {type(wrong[0]).__name__} for a message, not bytes"
    )


def no_reply(handler: object, reply: object) -> TypeError:
    """Say what a handler has returned that is neither None, bytes nor an iterable of them."""
    kind = type(reply).__name__
    article = "an" if kind[0] in "aeiou" else "a"
    return TypeError(f"{type(handler).__name__} replied with {article} {kind}; replies are bytes")


def hand_over(old: Framing, new: Framing, unhandled: list[bytes], data: bytes) -> bytes:
    """Take from one framing what the next is to read: see `Framing.rest`.

    The new one keeps the old one's maximum unless it has one of its own.
    """
    if new.max_message is None:
        new.limit = old.limit
    return old.rest(unhandled, data)


def stands_still(old: Framing, rounds: int) -> int:
    """Count a hand-over that left as much to be read as before, within one read; return how many there were.

    Raises RuntimeError when that goes on and on: `rest` gives up what was handled already.
    """
    if rounds > MOST_STILL:
        raise RuntimeError(
            f"{type(old).__name__}.rest() gives up as much as ever, however many messages are handled"
        )
    return rounds + 1


def _piece(data: bytes | bytearray, start: int, end: int) -> bytes:
    # A slice of a bytearray would be copied once more.
    return data[start:end] if type(data) is bytes else bytes(memoryview(data)[start:end])


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of bytes, at least 1, not {value!r}")
