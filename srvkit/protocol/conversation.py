"""A message handler's side of one connection: bytes in, bytes out, and how it ends. No I/O.

A driver hands what it has read to `receive`, and sends what `take` returns; as long as the conversation is
`busy` it then calls `pull` for more. Between two pulls it may wait until its peer has taken what was sent, or
let other connections have their turn:

    conversation.greet()
    while data := read():
        conversation.receive(data)
        send(conversation.take())
        while conversation.busy:
            conversation.pull()
            send(conversation.take())
        ...  # closing, fault and wants_tls tell whether and how it goes on

What the handler raises comes out of `greet`, `receive` and `pull`; the replies before it can still be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from srvkit.errors import FrameError, PeerGone
from srvkit.protocol.framing import data_before_tls, hand_over, keep_bytes, no_reply, stands_still

BATCH = 65536  # bytes of replies after which they are sent before the next message is handled
PARTS = 64  # of one reply that is a list, after which they are sent
TURN = 16  # pauses after which other connections have their turn
NO_REPLY: Any = object()  # stands for a reply that is not known yet

Encode = Callable[[bytes], bytes]
Lock = AbstractContextManager[Any]


class Conversation:
    """Messages of one connection, the replies to them, and what is wrong with them.

    `lock` is for drivers whose connections other threads send on too: it is held whenever a message is
    encoded, and by the driver from `take` to the end of the write, so that messages leave in that order.
    """

    __slots__ = (
        "_size",
        "_work",
        "closing",
        "completed",
        "deaf",
        "fault",
        "handler",
        "lock",
        "out",
        "wants_tls",
    )

    def __init__(self, handler: Any, lock: Lock | None = None) -> None:
        self.handler = handler
        self.lock = lock
        self.out: list[bytes] = []  # what is encoded and was not taken yet
        self.closing: bool | str = False  # whether the handler has ended the conversation
        self.completed = False  # whether the last `receive` has found a whole message
        self.deaf = False  # whether the peer hears nothing more: what it has said is handled all the same
        self.fault: FrameError | None = None  # what the peer has done wrong, once all before that is handled
        self.wants_tls = False  # whether the handler has asked for it: it begins when all replies are sent
        self._size = 0  # bytes of replies since the last pause
        self._work: Iterator[None] | None = None  # messages that are not handled, or replies that are not out

    @property
    def busy(self) -> bool:
        """Whether there is more to `pull`, as soon as what was taken is sent."""
        return self._work is not None

    @property
    def between_messages(self) -> bool:
        """Whether nothing is being handled and nothing has begun to arrive."""
        return self._work is None and not self.out and not self.handler.framing.buffered

    def greet(self) -> None:
        """Let the handler speak first."""
        try:
            greeting = self.handler.connected()
        except PeerGone:
            if not self.deaf:
                raise
        else:
            if greeting is not None:
                self._work = self._greeting(greeting)
                self.pull()

    def receive(self, data: bytes) -> bool:
        """Handle the messages that `data` completes, as far as it goes without a pause.

        Return whether there is nothing to do, when all replies are sent, but to read on.
        """
        handler = self.handler
        framing = handler.framing
        try:
            messages = framing.feed(data)
        except FrameError as error:
            self.completed = bool(error.messages)
            self._work = self._handle(framing, error.messages, data, error, NO_REPLY)
            self.pull()
            return False
        self.completed = not not messages  # noqa: SIM208 (a third of bool())
        # The usual case, short: each message has one reply or none, and all of them are few bytes.
        lock, out, size = self.lock, self.out, 0
        todo = iter(messages)
        for message in todo:
            try:
                reply = handler.handle_message(message)
            except PeerGone:
                if not self.deaf:
                    raise
                reply = None
            if (
                (type(reply) is not bytes and reply is not None)
                or handler.framing is not framing
                or self.closing
                or self.wants_tls
                or size > BATCH
            ):
                self._size = size
                self._work = self._handle(framing, [message, *todo], data, None, reply)
                self.pull()
                return False
            if reply is not None:
                size += len(reply)
                if lock is None:
                    out.append(framing.encode(reply))
                else:
                    with lock:
                        out.append(framing.encode(reply))
        return not (framing.held or (framing.buffers_more and framing.buffered))

    def go_through(
        self, framing: Any, messages: list[bytes], data: bytes = b"", fault: Any = None, reply: Any = NO_REPLY
    ) -> None:
        """Handle all of these messages, which `framing` has cut out of `data`, without a pause.

        `fault` is what was wrong behind them; the first one has its reply already unless that is NO_REPLY.
        """
        self._work = self._handle(framing, messages, data, fault, reply)
        while self._work is not None:
            self.pull()

    def pull(self) -> None:
        """Go on with messages and replies until the next pause."""
        if self._work is not None:
            try:
                next(self._work)
            except StopIteration:
                self._work = None
            except BaseException:
                self._work = None
                raise

    def take(self) -> bytes:
        """Return what is to be sent. Raises TypeError where `encode` returned no bytes; the rest stays."""
        out = self.out
        if not out:
            return b""
        try:
            data = out[0] if len(out) == 1 else b"".join(out)
        except TypeError as error:
            raise keep_bytes(out) or error from None
        out.clear()
        return data

    def hold(self, message: Any, encode: Encode) -> None:
        """Keep one message, encoded, for the next `take`."""
        lock = self.lock
        if lock is None:
            self.out.append(encode(message))
        else:
            with lock:
                self.out.append(encode(message))

    def end_of_input(self) -> FrameError | None:
        """Return what is wrong with a stream that ends here."""
        try:
            self.handler.framing.eof()
        except FrameError as error:
            return error
        return None

    def tls_began(self) -> None:
        """Go on encrypted: through a fresh framing, which has seen nothing of what came in the clear."""
        self.wants_tls = False
        self.handler.framing = self.handler.framing.fresh()

    def _greeting(self, greeting: Any) -> Iterator[None]:
        try:
            yield from self._deliver(greeting)
        except PeerGone:
            if not self.deaf:
                raise

    def _handle(
        self, framing: Any, messages: list[bytes], data: bytes, fault: FrameError | None, reply: Any
    ) -> Iterator[None]:
        """Handle messages, the first of which has its reply unless that is NO_REPLY; yields at each pause."""
        handler = self.handler
        still = 0
        while True:
            for index, message in enumerate(messages):
                try:
                    if reply is NO_REPLY:
                        reply = handler.handle_message(message)
                    if reply is not None:
                        yield from self._deliver(reply)
                except PeerGone:
                    if not self.deaf:
                        raise
                reply = NO_REPLY
                if self.closing:
                    return
                if self.wants_tls:
                    self.fault = fault or data_before_tls(messages[index + 1 :], framing)
                    return
                if handler.framing is not framing:
                    rest = hand_over(framing, handler.framing, messages[index + 1 :], data)
                    still = stands_still(framing, still) if len(rest) >= len(data) else 0
                    data = rest
                    break
            else:
                self.fault = fault
                return
            if not data:
                return
            framing, fault = handler.framing, None
            try:
                messages = self._feed(framing, data)
            except FrameError as error:
                messages, fault = error.messages, error

    def _feed(self, framing: Any, data: bytes) -> list[bytes]:
        messages: list[bytes] = framing.feed(data)
        return messages

    def _deliver(self, reply: Any) -> Iterator[None]:
        if isinstance(reply, (bytes, bytearray, memoryview)):
            self.hold(reply, self.handler.framing.encode)
            self._size += len(reply)
            if self._size >= BATCH:
                self._size = 0
                yield
            return
        if isinstance(reply, str) or not hasattr(reply, "__iter__"):
            raise no_reply(self.handler, reply)
        at_once = not isinstance(reply, (list, tuple))  # a generator may take its time between two replies
        for part in reply:
            self.hold(part, self.handler.framing.encode)
            if at_once or len(self.out) >= PARTS:
                yield
            if self.closing or self.deaf:
                return


class DatagramConversation(Conversation):
    """The messages of one datagram, whose end is also the end of the last one."""

    __slots__ = ()

    def _feed(self, framing: Any, data: bytes) -> list[bytes]:
        messages: list[bytes] = framing.datagram(data)
        return messages
