"""A connection that speaks TLS, and is used like any other socket.

The bytes are moved here and OpenSSL sees only memory: so every model uses the same connection, whether it
waits in a thread, a greenlet or a loop; a handshake is a step that never waits; and no byte that came in
the clear can be taken for one that did not. Servers and handlers are not known here.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, NoReturn

from srvkit.errors import PeerError
from srvkit.net.connection import DONT_WAIT, Connection, TimedConnection, wait_for
from srvkit.net.event_loop import READ, WRITE
from srvkit.net.tls_context import ServerTls, in_words

RECORD = 16384  # bytes of plain text in a record, at most (RFC 8446, 5.1)
OVERHEAD = 2048  # bytes that a record may be longer
BATCH = 4 * RECORD  # bytes that are encrypted before any of them is sent

_recv, _send = socket.socket.recv, socket.socket.send  # the system calls, without the way there


class TlsError(PeerError):
    """A peer's handshake failed."""


class TlsConnection(Connection):
    """A connection that is encrypted from `begin_tls` and its handshake on.

    With `DONT_WAIT`, `recv` and `send` raise BlockingIOError where they would have to wait; a `send` that
    did is to be repeated with the same bytes first, since they are encrypted already; the exception's
    `characters_written` tells whether any of them have left meanwhile. `receive_timeout`,
    in seconds, bounds single waits of `recv` where `settimeout` was not called. One thread may read while
    another writes.

    An end of the stream that nobody announced counts as one, as with the standard library's sockets:
    what ends a message is for its framing to say.
    """

    receive_timeout: float | None = None
    _tls: ssl.SSLObject | None = None
    _tls_timeout: float | None = None
    _encrypted = b""  # what the kernel has not taken yet
    _is_drained = False  # whether the last read has taken all that had come
    _moved = 0  # how many bytes of it the kernel took last
    _promised = 0  # how many bytes of the next send() are in that
    _is_over = False  # whether the stream has ended, announced or not
    has_heard = False  # whether anything encrypted has come
    floods = False  # whether the peer keeps asking for answers that it does not take

    # ---- the handshake

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS has begun, be the handshake over or not."""
        return self._tls is not None

    def begin_tls(self, tls: ServerTls) -> None:
        """Let everything from now on be encrypted; `shake_hands` is next."""
        self._tls_timeout = super().gettimeout()
        super().settimeout(None)
        self._lock = threading.Lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def shake_hands(self) -> int:
        """Take the handshake as far as it goes; return READ or WRITE to wait for, 0 when it is done.

        Never waits. Raises TlsError when it has failed, OSError when the peer has gone.
        """
        assert self._tls is not None
        with self._lock:
            done = False
            while True:
                try:
                    self._tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:
                    self._flush()  # the alert that says why
                    raise TlsError(_in_words(error)) from error
                try:
                    has_left = self._flush()
                except OSError:
                    if not done:
                        raise
                    has_left = True  # the peer has all it needs, and has gone: reading will tell
                if not has_left:
                    return WRITE
                if done:
                    return 0
                if not self._fill(RECORD):
                    return READ
                if self._is_over:
                    raise TlsError("the client ended it")

    def wait_for_handshake(self, seconds: float) -> None:
        """Take the handshake to its end, waiting at most so long (0: without end) in all.

        Raises TimeoutError after that, and what `shake_hands` raises.
        """
        deadline = monotonic() + seconds if seconds else None
        while wanted := self.shake_hands():
            wait_for(self, wanted, None if deadline is None else deadline - monotonic())

    # ---- what is known of the peer

    @property
    def pending(self) -> bool:  # type: ignore[override]
        """Whether something was received that `recv` has not returned: no poll tells."""
        return self._tls is not None and bool(self._incoming.pending or self._tls.pending())

    @property
    def server_name(self) -> str | None:
        """The host name that the client asked for (SNI, RFC 6066)."""
        return getattr(self._tls, "server_name", None)

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return the client's certificate: a dict, or DER; None where it presented none."""
        certificate = None if self._tls is None else self._tls.getpeercert(binary_form)
        return certificate or None

    def version(self) -> str | None:
        """Return "TLSv1.3", say; None in the clear."""
        return None if self._tls is None else self._tls.version()

    def cipher(self) -> tuple[str, str, int] | None:
        """Return the cipher's name, the version that defines it, and its bits; None in the clear."""
        return None if self._tls is None else self._tls.cipher()

    def selected_alpn_protocol(self) -> str | None:
        """Return the protocol that was agreed on, if one was."""
        return None if self._tls is None else self._tls.selected_alpn_protocol()

    # ---- reading

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self._tls is None:
            if self.receive_timeout is not None and not flags:
                wait_for(self, READ, self.receive_timeout)
            return super().recv(size, flags)
        self._check_flags(flags)
        seconds = self.receive_timeout if self._tls_timeout is None else self._tls_timeout
        deadline = None if seconds is None else monotonic() + seconds
        if self._is_drained and not flags and seconds != 0:
            wait_for(self, READ, seconds)  # first: it saves an attempt in vain for each message
        while True:
            with self._lock:
                data = self._read(size)
            if data is not None:
                return data
            if flags or seconds == 0:
                raise _would_block()
            wait_for(self, READ, None if deadline is None else deadline - monotonic())

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if self._tls is None:
            return super().recv_into(buffer, nbytes, flags)
        with memoryview(buffer) as view, view.cast("B") as room:
            data = TlsConnection.recv(self, nbytes or len(room), flags)
            room[: len(data)] = data
        return len(data)

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Any]:
        return (super().recvfrom(size, flags)) if self._tls is None else (self.recv(size, flags), None)

    def recvmsg(self, *args: Any) -> Any:
        return self._refuse("recvmsg") if self._tls is not None else super().recvmsg(*args)

    def recvmsg_into(self, *args: Any) -> Any:
        return self._refuse("recvmsg_into") if self._tls is not None else super().recvmsg_into(*args)

    def recvfrom_into(self, *args: Any) -> Any:
        return self._refuse("recvfrom_into") if self._tls is not None else super().recvfrom_into(*args)

    def _read(self, size: int) -> bytes | None:
        """Return what there is, b"" at the end; None where there is nothing yet.

        All that was received is taken out, so that what the kernel tells of the socket stays true: with
        room for one record more than is read at a time.
        """
        assert self._tls is not None
        pieces: list[bytes] = []
        left = size
        has_filled = self._is_drained = False
        try:
            while left:
                try:
                    piece = self._tls.read(min(left, RECORD))
                except ssl.SSLWantReadError:
                    if self._is_over:
                        return self._at_end(pieces)
                    # Once each time: records without any data must not keep the loop's thread.
                    if pieces or has_filled or not self._fill(max(RECORD, size - RECORD - OVERHEAD)):
                        self._is_drained = not has_filled
                        break
                    has_filled = True
                    continue
                if not piece:
                    return self._at_end(pieces)
                pieces.append(piece)
                left -= len(piece)
        except ssl.SSLZeroReturnError:
            return self._at_end(pieces)
        except ssl.SSLError:
            if not pieces:
                self._flush()
                raise
        if self._outgoing.pending:
            try:
                self._flush()  # an answer of the protocol's own
            except OSError:
                if not pieces:
                    raise  # else: what has come before the peer went is handed out first
            if not self._promised and len(self._encrypted) > RECORD:
                self.floods = True
                raise ConnectionError("the peer sends TLS control messages but does not read the replies")
        if not pieces:
            return None if left else b""
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _at_end(self, pieces: list[bytes]) -> bytes:
        if pieces:
            # The end came together with these: the kernel has nothing left that a poll would tell of.
            with suppress(OSError):  # gone already
                super().shutdown(socket.SHUT_RD)
        return b"".join(pieces)

    def _fill(self, size: int) -> bool:
        try:
            data = _recv(self, size, DONT_WAIT)
        except BlockingIOError:
            return False
        if data:
            self.has_heard = True
            self._incoming.write(data)
        else:
            # OpenSSL is not told: to an end that was not announced it answers with an alert that forbids
            # every further word, the reply to what came before included.
            self._is_over = True
        return True

    # ---- writing

    def send(self, data: Any, flags: int = 0) -> int:
        if self._tls is None:
            return super().send(data, flags)
        self._check_flags(flags)
        seconds = self._tls_timeout
        while True:
            with self._lock:
                self._moved = 0
                sent = self._encrypt(data)
            if sent is not None:
                return sent
            if flags or seconds == 0:
                raise _would_block(self._moved)
            wait_for(self, WRITE, seconds)

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._tls is None:
            super().sendall(data, flags)
            return
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                sent += TlsConnection.send(self, rest[sent:], flags)

    def sendmsg(self, buffers: Iterable[Any], ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        if self._tls is None:
            return super().sendmsg(buffers, ancdata, flags)
        if ancdata or address is not None:
            self._refuse("sendmsg with ancillary data")
        return TlsConnection.send(self, b"".join(buffers), flags)

    def sendto(self, *args: Any) -> int:
        return self._refuse("sendto") if self._tls is not None else super().sendto(*args)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        if self._tls is None:
            return super().sendfile(file, offset, count)
        return self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined, no-any-return]

    def _encrypt(self, data: Any) -> int | None:
        """Return how many bytes have left; None where the ones encrypted last have not."""
        assert self._tls is not None
        if not self._promised:
            if not self._flush():
                return None
            with memoryview(data) as view, view.cast("B") as plain:
                while self._promised < min(len(plain), BATCH):
                    piece = plain[self._promised : self._promised + RECORD]
                    self._promised += self._tls.write(piece)
        if not self._flush():
            return None
        sent, self._promised = self._promised, 0
        return sent

    def _flush(self) -> bool:
        """Send what is encrypted; return whether all of it has left."""
        if self._outgoing.pending:
            made = self._outgoing.read()
            self._encrypted = self._encrypted + made if self._encrypted else made
        while self._encrypted:
            try:
                sent = _send(self, self._encrypted, DONT_WAIT)
            except BlockingIOError:
                return False
            self._encrypted = self._encrypted[sent:]
            self._moved += sent
        return True

    # ---- waiting, and the end

    def settimeout(self, value: float | None) -> None:
        if self._tls is None:
            super().settimeout(value)
            return
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._tls_timeout = value

    def gettimeout(self) -> float | None:
        return super().gettimeout() if self._tls is None else self._tls_timeout

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        return self.gettimeout() != 0

    timeout = property(gettimeout)

    def shutdown(self, how: int) -> None:
        """Shut down one half of the connection or both; tells the peer first that no more is sent."""
        if self._tls is not None and how != socket.SHUT_RD:
            with self._lock:
                try:
                    self._tls.unwrap()
                except (OSError, ValueError):
                    pass  # it wants to see the peer's farewell, which nobody waits for
                try:
                    self._flush()
                except OSError:
                    pass  # the peer has gone first
        super().shutdown(how)

    def detach(self) -> int:
        return self._refuse("detach") if self._tls is not None else super().detach()

    def dup(self) -> Any:
        return self._refuse("dup") if self._tls is not None else super().dup()

    def _check_flags(self, flags: int) -> None:
        if flags & ~DONT_WAIT:
            raise ValueError("flags are of no use on an encrypted connection, MSG_DONTWAIT excepted")

    def _refuse(self, what: str) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, f"{what} is not possible on an encrypted connection")


class TimedTlsConnection(TimedConnection, TlsConnection):
    """A connection that speaks TLS and keeps the limits, for handlers that do their own I/O."""


def _would_block(moved: int = 0) -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, "the peer must be waited for", moved)


def _in_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {error.verify_message}"
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return "the client ended it"
    reason = in_words(error)
    meaning = {
        "http request": "the client spoke HTTP in the clear",
        "wrong version number": "the client did not speak TLS",
        "callback failed": "invalid host name in SNI",
        "peer did not return a certificate": "the client presented no certificate",
    }
    return meaning.get(reason, reason)
