"""Handlers of whole messages: what to answer, and nothing of how bytes travel.

A `MessageHandler` runs under every concurrency model. Its `__init__` only constructs. Whoever calls the class
with a request also has the request seen through, by blocking reads and writes: `HandlerType` does that once
`__init__` has returned. A model with a loop of its own calls the class without a request and gives the
handler a `link`. Servers are known by duck typing only.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from srvkit.contracts import Link
from srvkit.net.connection import is_datagram
from srvkit.protocol.framing import Framing, Raw
from srvkit.server.blocking import DatagramDriver, converse
from srvkit.server.has_peer import HasPeer

Reply = bytes | Iterable[bytes] | None

construct = type.__call__  # makes an instance of a class as `type` does, whatever the metaclass adds


def drive(handler: Any) -> None:
    """See the request of a handler through, by blocking reads and writes; without one do nothing."""
    try:
        request = handler.request
    except AttributeError:
        raise TypeError(
            f"{type(handler).__qualname__}.__init__() leaves out super().__init__(*args, **kwargs), "
            "which keeps the request"
        ) from None
    if request is None:
        return
    if is_datagram(request):
        DatagramDriver(handler).converse(handler)
    else:
        converse(handler)


if TYPE_CHECKING:
    _ProtocolType = ABCMeta
else:
    _ProtocolType = type(Protocol)  # a handler may also derive from a protocol, or from an abstract class


class HandlerType(_ProtocolType):
    """Construct a handler, then drive it: `Handler(request, client_address, server)` does both.

    The class of handler classes, so that the whole `__init__` of a subclass has run before its first
    callback, whoever calls the class: srvkit's servers, the standard library's, or a `finish_request` of a
    program's own. A metaclass of a program's own for its handlers derives from `type(MessageHandler)`.
    """

    _is_protocol = False  # Python 3.11 asks it of each such class in isinstance(), and only protocols have it

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return a handler; where it was given a request, one that has seen it through."""
        handler = construct(cls, *args, **kwargs)
        if isinstance(handler, cls):  # else its __new__() has called another class, which saw to that
            drive(handler)
        return handler


class _NotConnected:
    """The link of a handler whose `__init__` still runs."""

    def send(self, *message: Any) -> None:
        raise RuntimeError("the connection begins when __init__() has returned: greet in connected()")

    def close(self) -> None:
        raise RuntimeError("the connection begins when __init__() has returned: close it in connected()")

    def start_tls(self) -> None:
        raise RuntimeError("the connection begins when __init__() has returned: start TLS in connected()")


class MessageHandler(HasPeer, metaclass=HandlerType):
    """Answer messages; subclass it and write `handle_message`.

    Class attributes: `framing`, how messages are told apart in a stream (default `Raw()`: what arrives,
    as it arrives); the configuration may replace it. A nested class `Options` (a dataclass) declares
    the handler's options; `self.options` is an instance of it. `one_process = True` is for a handler that
    keeps state in its process: `workers` above 1 and `forking` are then errors of the configuration.

    In an instance: `self.client_address`, `self.server`, `self.options`, `self.peer` (all that is known of
    the client), and `self.framing`, which may be
    replaced between messages: what was received but not yet handled goes through the new one.

    There is one instance for each connection; on datagrams one for each datagram, whose end also ends
    its last message, and all of whose replies leave in one datagram. `connected`, `disconnected` and
    the timeouts of connections do not apply there.

    A subclass may have an `__init__(self, *args, **kwargs)` that first calls
    `super().__init__(*args, **kwargs)` and then sets attributes. It only constructs: the conversation begins
    when it has returned, under every model and on every server. `client_address`, `server` and `options` are
    there by then; `request` is not under every model. What it raises ends this connection and no other, and
    `disconnected` is not called.

    Without a request (`Shout()`) nothing runs: call `handle_message` in a test and look at `link.sent`.
    """

    framing: Framing = Raw()
    options: Any = None
    one_process = False
    link: Link = _NotConnected()

    def __init__(self, request: Any = None, client_address: Any = None, server: Any = None) -> None:
        """Keep what the handler works with. May be extended."""
        self.request = request
        self.client_address = client_address
        self.server = server
        self.framing = self.framing.fresh()
        if request is None:
            self.link = Outbox()

    @classmethod
    def startup(cls, server: Any) -> None:
        """Make what all connections share; once in each worker, before the first connection."""

    @classmethod
    def shutdown(cls, server: Any) -> None:
        """Release what all connections share; once in each worker, after the last connection."""

    def connected(self) -> Reply:
        """Greet: called when a connection begins; may return replies as `handle_message` does."""
        return None

    def handle_message(self, message: bytes) -> Reply:
        """Answer one message: None, one reply, or an iterable of replies, sent as they come."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_message()")

    def disconnected(self, reason: str) -> None:
        """Take leave: called once when the connection has ended.

        `reason` is "eof", "closed", "truncated" (the peer ended in the middle of a message),
        "bad-message", "reset", "first-byte-timeout", "idle-timeout", "request-timeout",
        "write-timeout", "overflow" (others sent it more than it took), "bad-tls" and "tls-timeout" (after
        `start_tls`), "stopped" or "error".

        What is sent here leaves before the end where the peer can still hear it, as one can that has ended
        its own side only. Where it cannot, nothing is sent, and nothing is raised.
        """

    def send(self, message: bytes) -> None:
        """Send a message to the peer, from any thread.

        Within `handle_message` it leaves at once, after the replies before it. Raises PeerGone (a
        ConnectionError) when the peer cannot be written to; called from another thread it then does
        nothing, since that thread has no part in this connection.

        The framing encodes messages one at a time, in the order in which they leave. Raises what `encode`
        does; where the sender's thread is not the one that encodes, that is reported instead, and the
        message left out.
        """
        self.link.send(message, self.framing.encode)

    def close(self) -> None:
        """End the connection, from any thread, after what was sent before is out; the rest is not read."""
        self.link.close()

    def start_tls(self) -> None:
        """Encrypt the connection once the replies to this message are out; from within `handle_message`.

        The next message comes encrypted, through a fresh framing. For servers with certificates and
        `begin = "handler"`; RuntimeError on others. A client that has sent more behind this message, in
        the clear, is a bad one, and a failed handshake the end of the connection.
        """
        self.link.start_tls()


class Outbox:
    """The link of a handler without a connection: keeps what was sent."""

    __slots__ = ("closed", "encrypted", "sent")

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False
        self.encrypted = False

    def send(self, message: bytes, encode: Callable[[bytes], bytes]) -> None:
        self.sent.append(encode(message))

    def close(self) -> None:
        self.closed = True

    def start_tls(self) -> None:
        self.encrypted = True
