"""An encrypted connection as its user sees it: a pair of sockets, and a peer that encrypts in memory."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from srvkit.errors import PeerError
from srvkit.net.connection import DONT_WAIT
from srvkit.net.event_loop import READ, WRITE
from srvkit.net.tls_connection import BATCH, RECORD, TlsConnection, TlsError
from srvkit.net.tls_context import ServerTls, TlsSettings


class Peer:
    """The client's end: it encrypts in memory, and sends when it is told to."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def shake_hands(self) -> None:
        """Take the handshake as far as what has come allows."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()

    def send(self) -> None:
        """Send what was encrypted so far."""
        self.sock.sendall(self.outgoing.read())

    def hear(self) -> bytes:
        """Take what has come off the socket; return it, still encrypted."""
        heard = b""
        with contextlib.suppress(BlockingIOError):  # as the socket blocks otherwise: it has no timeout
            while data := self.sock.recv(1 << 20, socket.MSG_DONTWAIT):
                heard += data
        self.incoming.write(heard)
        return heard

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self.send()

    def read(self) -> bytes:
        """Return all that has come, decrypted."""
        self.hear()
        read = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := self.tls.read(1 << 20):
                read += data
        return read


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ServerTls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    context.set_alpn_protocols(["line/1"])
    return ServerTls(TlsSettings(cert="cert.pem"), context, {}, [])


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["line/1"])
    return context


@pytest.fixture
def pair(client_context: ssl.SSLContext) -> Iterator[tuple[TlsConnection, Peer]]:
    """A connection on which nothing was said yet, and its peer."""
    ours, theirs = socket.socketpair()
    connection = TlsConnection(fileno=ours.detach())
    with connection, theirs:
        yield connection, Peer(theirs, client_context)


def finish(connection: TlsConnection, peer: Peer) -> None:
    """Take the handshake to its end."""
    peer.shake_hands()
    peer.send()
    assert connection.shake_hands() == READ
    peer.hear()
    peer.shake_hands()
    peer.send()
    assert connection.shake_hands() == 0


@pytest.fixture
def encrypted(pair: tuple[TlsConnection, Peer], server_tls: ServerTls) -> tuple[TlsConnection, Peer]:
    """The same, when they have shaken hands; the peer has read what TLS says behind that."""
    connection, peer = pair
    connection.begin_tls(server_tls)
    finish(connection, peer)
    assert peer.read() == b""
    return connection, peer


def fill(connection: TlsConnection, size: int = 1 << 16) -> int:
    """Have the kernel hold so much for the peer that it takes no more; return how much that is."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += socket.socket.send(connection, bytes(size), DONT_WAIT)
    return sent


# The handshake


def test_each_step_says_what_to_wait_for(pair: Any, server_tls: ServerTls) -> None:
    connection, peer = pair
    assert not connection.is_encrypted and connection.version() is None
    connection.begin_tls(server_tls)
    assert connection.is_encrypted and not connection.has_heard
    assert connection.shake_hands() == READ
    peer.shake_hands()
    hello = peer.outgoing.read()
    peer.sock.sendall(hello[:50])
    assert connection.shake_hands() == READ
    assert connection.has_heard
    peer.sock.sendall(hello[50:])
    assert connection.shake_hands() == READ
    peer.hear()
    peer.shake_hands()
    peer.send()
    assert connection.shake_hands() == 0
    assert (connection.version(), connection.server_name) == ("TLSv1.3", "localhost")
    assert connection.selected_alpn_protocol() == "line/1"
    assert connection.cipher() is not None
    assert connection.getpeercert() is connection.getpeercert(binary_form=True) is None


def test_where_the_kernel_takes_nothing_it_waits_to_write(pair: Any, server_tls: ServerTls) -> None:
    connection, peer = pair
    filled = fill(connection, 1 << 12)
    connection.begin_tls(server_tls)
    peer.shake_hands()
    peer.send()
    assert connection.shake_hands() == WRITE
    assert connection.shake_hands() == WRITE
    while filled:
        filled -= len(peer.sock.recv(filled))
    assert connection.shake_hands() == READ
    peer.hear()
    peer.shake_hands()
    peer.send()
    assert connection.shake_hands() == 0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "^the client spoke HTTP in the clear$"),
        (b"hello there, whoever you are\n", "^the client did not speak TLS$"),
        (b"", "^the client ended it$"),
        (b"\x16\x03\x01\x02", "^the client ended it$"),
    ],
)
def test_who_does_not_shake_hands_is_said_to(
    said: bytes, reason: str, pair: Any, server_tls: ServerTls
) -> None:
    connection, peer = pair
    connection.begin_tls(server_tls)
    peer.sock.sendall(said)
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(TlsError, match=reason) as caught:
        connection.shake_hands()
    assert isinstance(caught.value, PeerError)


def test_a_client_that_is_refused_is_told_so(pair: Any, server_tls: ServerTls) -> None:
    """By an alert (RFC 8446, 6): whatever comes is no handshake."""
    connection, peer = pair
    connection.begin_tls(server_tls)
    peer.sock.sendall(b"\x16\x03\x03\x00\x05\xff\0\0\1x")
    with pytest.raises(TlsError):
        connection.shake_hands()
    assert peer.hear()[:1] == b"\x15"


def test_a_client_that_refuses_says_why(pair: Any, server_tls: ServerTls) -> None:
    connection, peer = pair
    stranger = Peer(peer.sock, ssl.create_default_context())
    connection.begin_tls(server_tls)
    stranger.shake_hands()
    stranger.send()
    assert connection.shake_hands() == READ
    stranger.hear()
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.tls.do_handshake()
    stranger.send()
    with pytest.raises(TlsError, match="alert unknown ca"):
        connection.shake_hands()


def test_a_handshake_that_is_waited_for_has_its_time(pair: Any, server_tls: ServerTls) -> None:
    connection, _ = pair
    connection.begin_tls(server_tls)
    with pytest.raises(TimeoutError):
        connection.wait_for_handshake(0.001)


# Reading


def test_it_is_read_in_any_pieces_and_what_is_left_is_pending(encrypted: Any) -> None:
    connection, peer = encrypted
    peer.say(b"hello world")
    assert not connection.pending  # the kernel has it, and a poll tells
    assert connection.recv(5) == b"hello"
    assert connection.pending  # which no poll tells
    assert connection.recv(100) == b" world"
    assert not connection.pending


def test_all_records_that_have_come_are_read_at_once(encrypted: Any) -> None:
    connection, peer = encrypted
    for word in (b"one ", b"two ", b"three"):
        peer.tls.write(word)
    peer.send()
    assert connection.recv(100) == b"one two three"


def test_half_a_record_is_nothing_yet(encrypted: Any) -> None:
    connection, peer = encrypted
    peer.tls.write(b"hello")
    record = peer.outgoing.read()
    peer.sock.sendall(record[:-1])
    with pytest.raises(BlockingIOError):
        connection.recv(100, DONT_WAIT)
    peer.sock.sendall(record[-1:])
    assert connection.recv(100, DONT_WAIT) == b"hello"
    with pytest.raises(BlockingIOError):
        connection.recv(100, DONT_WAIT)


def test_what_comes_with_the_end_of_the_handshake_is_pending(pair: Any, server_tls: ServerTls) -> None:
    connection, peer = pair
    connection.begin_tls(server_tls)
    peer.shake_hands()
    peer.send()
    assert connection.shake_hands() == READ
    peer.hear()
    peer.shake_hands()
    peer.say(b"hello")
    assert connection.shake_hands() == 0
    assert connection.pending
    assert connection.recv(100) == b"hello"


def test_a_buffer_is_read_into(encrypted: Any) -> None:
    connection, peer = encrypted
    peer.say(b"hello world")
    room = bytearray(8)
    assert connection.recv_into(room, 5) == 5
    assert room == b"hello\0\0\0"
    assert connection.recvfrom(100) == (b" world", None)


@pytest.mark.parametrize("announced", [True, False])
def test_what_has_come_is_read_before_the_end(announced: bool, encrypted: Any) -> None:
    connection, peer = encrypted
    peer.tls.write(b"goodbye")
    if announced:
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
    peer.send()
    peer.sock.shutdown(socket.SHUT_WR)
    assert connection.recv(100) == b"goodbye"
    for _ in range(2):
        assert connection.recv(100) == b""


def test_what_is_changed_on_the_way_is_an_error_and_no_data(encrypted: Any) -> None:
    connection, peer = encrypted
    peer.tls.write(b"hello")
    record = bytearray(peer.outgoing.read())
    record[-1] ^= 1
    peer.sock.sendall(record)
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac|decryption failed"):
        connection.recv(100)
    with pytest.raises(ssl.SSLError, match="alert"):
        peer.read()


# Writing


def test_what_is_sent_arrives_encrypted(encrypted: Any) -> None:
    connection, peer = encrypted
    assert connection.send(b"hello ") == 6
    assert connection.sendmsg([b"to ", b"the "]) == 7
    connection.sendall(memoryview(b"world"))
    raw = peer.hear()
    assert b"hello" not in raw and b"world" not in raw
    assert peer.read() == b"hello to the world"


def test_a_send_takes_no_more_than_a_batch(encrypted: Any) -> None:
    connection, peer = encrypted
    assert connection.send(bytes(BATCH + RECORD)) == BATCH
    assert len(peer.read()) == BATCH


def test_a_send_that_has_to_wait_is_repeated_and_arrives_once(encrypted: Any) -> None:
    connection, peer = encrypted
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    said = bytes(range(256)) * (BATCH // 256)
    with pytest.raises(BlockingIOError) as caught:
        while True:
            connection.send(said, DONT_WAIT)
    assert caught.value.characters_written > 0
    with pytest.raises(BlockingIOError) as caught:
        connection.send(said, DONT_WAIT)
    assert caught.value.characters_written == 0
    heard = peer.read()
    while True:
        try:
            assert connection.send(said, DONT_WAIT) == len(said)
            break
        except BlockingIOError:
            heard += peer.read()
    heard += peer.read()
    assert len(heard) % len(said) == 0
    assert heard == said * (len(heard) // len(said))


def test_a_file_is_sent(encrypted: Any, tmp_path: Path) -> None:
    connection, peer = encrypted
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb") as file:
        assert connection.sendfile(file, 2, 5) == 5
    assert peer.read() == b"23456"


# Time


def test_its_timeout_is_its_own_and_the_one_before_goes_on(pair: Any, server_tls: ServerTls) -> None:
    """To the kernel the socket blocks: whoever waits for it does so in the model's way."""
    connection, peer = pair
    connection.settimeout(7)
    connection.begin_tls(server_tls)
    assert (connection.gettimeout(), connection.timeout) == (7, 7)
    assert socket.socket.gettimeout(connection) is None
    finish(connection, peer)
    connection.settimeout(0.001)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.setblocking(False)
    assert not connection.getblocking()
    with pytest.raises(BlockingIOError):
        connection.recv(1)
    with pytest.raises(ValueError, match="out of range"):
        connection.settimeout(-1)


def test_the_limit_of_a_read_holds_where_no_timeout_was_set(encrypted: Any) -> None:
    connection, peer = encrypted
    connection.receive_timeout = 0.001
    with pytest.raises(TimeoutError):
        connection.recv(1)
    peer.say(b"hello")
    assert connection.recv(100) == b"hello"


# What a socket can, and an encrypted connection cannot


@pytest.mark.parametrize(
    "call",
    [
        lambda one: one.recvmsg(10),
        lambda one: one.recvmsg_into([bytearray(1)]),
        lambda one: one.recvfrom_into(bytearray(1)),
        lambda one: one.sendto(b"x", "y"),
        lambda one: one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")]),
        lambda one: one.detach(),
        lambda one: one.dup(),
    ],
    ids=["recvmsg", "recvmsg_into", "recvfrom_into", "sendto", "sendmsg", "detach", "dup"],
)
def test_what_would_go_past_the_encryption_is_refused(
    call: Callable[[TlsConnection], object], encrypted: Any
) -> None:
    connection, peer = encrypted
    with pytest.raises(OSError, match="not possible on an encrypted connection"):
        call(connection)
    peer.say(b"still here")
    assert connection.recv(100) == b"still here"


@pytest.mark.parametrize(
    "call", [lambda one, flags: one.recv(1, flags), lambda one, flags: one.send(b"x", flags)]
)
def test_flags_are_refused_that_would_mean_nothing(call: Any, encrypted: Any) -> None:
    with pytest.raises(ValueError, match="flags"):
        call(encrypted[0], socket.MSG_PEEK)


def test_in_the_clear_it_is_a_socket_like_any_other(pair: Any) -> None:
    connection, peer = pair
    connection.sendall(b"hello")
    assert peer.sock.recv(100) == b"hello"
    peer.sock.sendall(b"you there")
    assert connection.recv(3, socket.MSG_PEEK) == b"you"
    assert connection.recvmsg(3)[0] == b"you"
    assert connection.recv(100) == b" there"
    assert not connection.pending and connection.cipher() is None and connection.getpeercert() is None
    connection.dup().close()


# The end


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_shutdown_is_announced(how: int, encrypted: Any) -> None:
    connection, peer = encrypted
    connection.send(b"goodbye")
    connection.shutdown(how)
    peer.hear()
    assert peer.tls.read(100) == b"goodbye"
    assert peer.tls.read(100) == b""  # one that was not announced would be waited for


def test_who_has_said_all_still_hears(encrypted: Any) -> None:
    connection, peer = encrypted
    connection.shutdown(socket.SHUT_WR)
    peer.say(b"last words")
    assert connection.recv(100) == b"last words"


def test_a_shutdown_of_what_comes_tells_the_peer_nothing(encrypted: Any) -> None:
    connection, peer = encrypted
    connection.shutdown(socket.SHUT_RD)
    assert peer.hear() == b""


def test_a_peer_that_has_gone_keeps_nobody_from_shutting_down(encrypted: Any) -> None:
    connection, peer = encrypted
    peer.sock.close()
    connection.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        connection.send(b"too late")
