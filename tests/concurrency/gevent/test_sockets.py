"""Sockets of greenlets: every way of reading and writing lets others run."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.concurrency.gevent.greenlet_servers import BIG, PATIENCE, gevent, later

green = pytest.importorskip("gevent.socket")

pytestmark = pytest.mark.usefixtures("nothing_is_patched")


@pytest.fixture
def pair() -> Iterator[tuple[Any, socket.socket]]:
    """A cooperative socket, used in the test's own greenlet, and its plain peer."""
    from srvkit.concurrency.gevent.sockets import CooperativeSocket

    one, two = socket.socketpair()
    one = CooperativeSocket.of(one)
    two.settimeout(PATIENCE)
    with one, two:
        yield one, two


@pytest.mark.parametrize(
    ("read", "result"),
    [
        (lambda sock: sock.recv(10), b"hello"),
        (lambda sock: sock.recv_into(bytearray(10)), 5),
        (lambda sock: sock.recvfrom(10)[0], b"hello"),
        (lambda sock: sock.recvfrom_into(bytearray(10))[0], 5),
        (lambda sock: sock.recvmsg(10)[0], b"hello"),
        (lambda sock: sock.recvmsg_into([bytearray(10)])[0], 5),
        (lambda sock: sock.makefile("rb").read(5), b"hello"),
    ],
)
def test_every_way_of_reading_lets_others_run(read: Any, result: Any, pair: Any) -> None:
    one, two = pair
    for _ in range(2):
        later(two.sendall, b"hello")
        assert read(one) == result


@pytest.mark.parametrize(
    "write",
    [
        lambda sock, data: sock.sendall(data),
        lambda sock, data: sock.sendall(memoryview(data)),
        lambda sock, data: send_by(sock.send, data),
        lambda sock, data: send_by(lambda rest: sock.sendmsg([rest]), data),
    ],
)
def test_every_way_of_writing_lets_others_run(write: Any, pair: Any) -> None:
    one, two = pair
    data = os.urandom(1 << 20)
    writing = gevent.spawn(write, one, data)
    received = bytearray()
    gevent.sleep(0)
    assert not writing.ready()
    while len(received) < len(data):
        green.wait_read(two.fileno(), PATIENCE)
        received += two.recv(1 << 16)
    writing.get(timeout=PATIENCE)
    assert received == data


def send_by(send: Callable[[memoryview], int], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[send(rest) :]


def test_a_file_is_sent_cooperatively(pair: Any, tmp_path: Path) -> None:
    one, two = pair
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    with (tmp_path / "file").open("rb") as file:
        sending = gevent.spawn(one.sendfile, file)
        received = bytearray()
        while len(received) < 1 << 20:
            green.wait_read(two.fileno(), PATIENCE)
            received += two.recv(1 << 16)
        assert sending.get(timeout=PATIENCE) == 1 << 20
    assert received == (tmp_path / "file").read_bytes()


def test_timeouts_are_the_sockets_own(pair: Any) -> None:
    one, two = pair
    assert (one.gettimeout(), one.timeout, one.getblocking()) == (None, None, True)
    one.settimeout(0.01)
    assert (one.gettimeout(), one.timeout, one.getblocking()) == (0.01, 0.01, True)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            one.recv(10)
    with pytest.raises(TimeoutError):
        one.sendall(bytes(BIG))
    one.setblocking(False)
    assert (one.gettimeout(), one.getblocking()) == (0.0, False)
    with pytest.raises(BlockingIOError):
        one.recv(10)
    two.sendall(b"hello")
    assert one.recv(10) == b"hello"
    one.settimeout(None)
    with pytest.raises(BlockingIOError):
        one.recv(10, socket.MSG_DONTWAIT)
    with pytest.raises(ValueError, match="out of range"):
        one.settimeout(-1)


def test_a_timeout_is_counted_anew_for_each_wait(pair: Any) -> None:
    """The timer of the first wait must not end a later one, nor one that has no limit any more."""
    one, two = pair
    one.settimeout(0.05)
    later(two.sendall, b"a")
    assert one.recv(10) == b"a"
    gevent.sleep(0.03)
    one.settimeout(PATIENCE)
    gevent.spawn_later(0.06, two.sendall, b"b")
    assert one.recv(10) == b"b"
    one.settimeout(0.05)
    later(two.sendall, b"c")
    assert one.recv(10) == b"c"
    one.settimeout(None)
    gevent.spawn_later(0.1, two.sendall, b"d")
    assert one.recv(10) == b"d"


def test_a_shorter_timeout_than_the_last_one_holds(pair: Any) -> None:
    one, two = pair
    one.settimeout(PATIENCE)
    later(two.sendall, b"a")
    assert one.recv(10) == b"a"
    one.settimeout(0.01)
    with gevent.Timeout(PATIENCE / 2), pytest.raises(TimeoutError):
        one.recv(10)


def test_who_waits_for_a_socket_that_is_closed_gets_an_error(pair: Any) -> None:
    one, _ = pair
    later(one.close)
    with pytest.raises(OSError, match="closed by another greenlet") as caught:
        one.recv(10)
    assert caught.value.errno == errno.EBADF


def test_two_greenlets_do_not_read_one_socket(pair: Any) -> None:
    one, two = pair
    reading = gevent.spawn(one.recv, 10)
    gevent.sleep(0)
    with pytest.raises(gevent.exceptions.ConcurrentObjectUseError):
        one.recv(10)
    two.sendall(b"hello")
    assert reading.get(timeout=PATIENCE) == b"hello"


def test_shutdown_from_another_thread_wakes_who_waits(pair: Any) -> None:
    one, _ = pair
    later(threading.Thread(target=one.shutdown, args=(socket.SHUT_RD,)).start)
    with gevent.Timeout(PATIENCE):
        assert one.recv(10) == b""
