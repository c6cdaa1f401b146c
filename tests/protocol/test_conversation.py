"""One conversation for all models: bytes in, bytes out, without a socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import srvkit
from srvkit.errors import FrameError, PeerGone
from srvkit.protocol.conversation import BATCH, PARTS, Conversation, DatagramConversation
from srvkit.protocol.framing import hand_over


class Driver(Conversation):
    """A conversation that is its handler's `link`, too."""

    send = Conversation.hold

    def close(self) -> None:
        self.closing = True

    def start_tls(self) -> None:
        self.wants_tls = True


class Talk(srvkit.MessageHandler):
    """Do what the message says."""

    framing = srvkit.Lines(max_message=100)

    def connected(self) -> bytes:
        return b"welcome"

    def handle_message(self, message: bytes) -> Any:
        word, _, rest = message.partition(b" ")
        return getattr(self, word.decode())(rest)

    def echo(self, rest: bytes) -> bytes:
        return rest

    def nothing(self, rest: bytes) -> None:
        return None

    def many(self, rest: bytes) -> list[bytes]:
        return [rest, rest, rest]

    def generate(self, rest: bytes) -> Iterator[bytes]:
        yield b"one"
        self.send(b"between")
        yield b"two"

    def twice(self, rest: bytes) -> bytes:
        self.send(b"sent")
        return b"returned"

    def bye(self, rest: bytes) -> bytes:
        self.close()
        return b"bye"

    def bye_midway(self, rest: bytes) -> Iterator[bytes]:
        yield b"one"
        self.close()
        yield b"two"
        yield b"never"

    def fail(self, rest: bytes) -> None:
        raise ValueError("a mistake")

    def fail_midway(self, rest: bytes) -> Iterator[bytes]:
        yield b"one"
        raise ValueError("a mistake")

    def text(self, rest: bytes) -> str:
        return "text"

    def number(self, rest: bytes) -> int:
        return 5

    def netstrings(self, rest: bytes) -> bytes:
        self.framing = srvkit.Netstring()
        return b"ok"

    def tls(self, rest: bytes) -> bytes:
        self.start_tls()
        return b"go"

    def big(self, rest: bytes) -> bytes:
        return bytes(BATCH // 2)

    def gone(self, rest: bytes) -> None:
        raise PeerGone("reset")

    def gone_midway(self, rest: bytes) -> Iterator[bytes]:
        raise PeerGone("reset")
        yield b"never"


def conversation(
    kind: type[Any] = Driver, handler: type[srvkit.MessageHandler] = Talk, **settings: Any
) -> Any:
    talk: Any = handler(None, ("x", 1))
    talk.link = made = kind(talk, **settings)
    return made


def everything(one: Conversation) -> bytes:
    """Return what is said until the next read."""
    said = one.take()
    while one.busy:
        one.pull()
        said += one.take()
    return said


def talk(*pieces: bytes, **settings: Any) -> tuple[Any, bytes]:
    one = conversation(**settings)
    one.greet()
    said = everything(one)
    for piece in pieces:
        one.receive(piece)
        said += everything(one)
        if one.closing or one.fault or one.wants_tls:
            break
    return one, said


LOCKS: list[Callable[[], Any]] = [lambda: None, threading.Lock]


@pytest.mark.parametrize("lock", LOCKS, ids=["alone", "shared"])
@pytest.mark.parametrize("cut", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"echo hello\n", b"hello\n"),
        (b"echo hello\r\necho again\n", b"hello\nagain\n"),
        (b"nothing\necho x\n", b"x\n"),
        (b"many x\n", b"x\nx\nx\n"),
        (b"generate\n", b"one\nbetween\ntwo\n"),
        (b"echo 1\ngenerate\necho 2\n", b"1\none\nbetween\ntwo\n2\n"),
        (b"twice\n", b"sent\nreturned\n"),
        (b"echo 1\ntwice\necho 2\n", b"1\nsent\nreturned\n2\n"),
        (b"echo\n", b"\n"),
        (b"bye\necho x\n", b"bye\n"),
        (b"bye_midway\necho x\n", b"one\ntwo\n"),
        (b"netstrings\n6:echo x,", b"2:ok,1:x,"),
        (b"echo 1\nnetstrings\n6:echo x,7:twice a,", b"1\n2:ok,1:x,4:sent,8:returned,"),
    ],
)
def test_replies_are_the_same_however_it_arrives(
    said: bytes, answer: bytes, cut: int, lock: Callable[[], Any]
) -> None:
    _, got = talk(*[said[i : i + cut] for i in range(0, len(said), cut)], lock=lock())
    assert got == b"welcome\n" + answer


def test_a_fault_comes_after_what_was_good() -> None:
    one, got = talk(b"echo x\n" + b"y" * 200)
    assert got == b"welcome\nx\n"
    assert isinstance(one.fault, FrameError)


def test_a_fault_behind_another_framing_is_found_too() -> None:
    one, got = talk(b"netstrings\nno number")
    assert got == b"welcome\n2:ok,"
    assert isinstance(one.fault, FrameError)


def test_what_comes_behind_a_wish_for_tls_is_a_fault() -> None:
    one, got = talk(b"tls\necho x\n")
    assert "in the clear" in str(one.fault)
    assert got == b"welcome\ngo\n"
    one, _ = talk(b"tls\nech")
    assert "in the clear" in str(one.fault)


def test_tls_begins_with_a_fresh_framing() -> None:
    one, got = talk(b"tls\n")
    assert got == b"welcome\ngo\n"
    assert one.wants_tls
    assert one.fault is None
    before = one.handler.framing
    one.tls_began()
    assert not one.wants_tls
    assert one.handler.framing is not before
    assert one.receive(b"echo x\n")
    assert one.take() == b"x\n"


@pytest.mark.parametrize("word", [b"fail", b"text", b"number"])
def test_what_a_handler_raises_comes_out_and_earlier_replies_stay(word: bytes) -> None:
    one = conversation()
    with pytest.raises((ValueError, TypeError)):
        one.receive(b"echo x\n" + word + b"\n")
    assert one.take() == b"x\n"
    assert not one.busy


def test_what_a_generator_raises_comes_out_where_it_does() -> None:
    one = conversation()
    one.receive(b"fail_midway\n")
    assert one.take() == b"one\n"
    with pytest.raises(ValueError, match="a mistake"):
        one.pull()
    assert not one.busy


def test_a_generator_waits_for_its_peer() -> None:
    one = conversation()
    assert not one.receive(b"generate\necho x\n")
    assert one.take() == b"one\n"
    assert one.busy
    assert not one.between_messages
    one.pull()
    assert one.take() == b"between\ntwo\n"
    assert everything(one) == b"x\n"
    assert one.between_messages


def test_long_lists_and_many_replies_pause() -> None:
    class Long(Talk):
        def handle_message(self, message: bytes) -> Any:
            return [b"x"] * (3 * PARTS) if message == b"list" else bytes(BATCH // 4)

    one = conversation(handler=Long)
    one.receive(b"list\n")
    assert len(one.take()) == 2 * PARTS
    assert len(everything(one)) == 4 * PARTS
    one.receive(b"x\n" * 40)
    longest = len(one.take())
    while one.busy:
        one.pull()
        longest = max(longest, len(one.take()))
    assert BATCH <= longest <= 3 * BATCH


def test_steady_is_who_has_nothing_to_do_but_to_read_on() -> None:
    one = conversation()
    assert one.receive(b"echo x\nnothing\n")
    assert one.completed
    assert not one.receive(b"ech")
    assert not one.completed
    assert one.receive(b"o x\n")
    assert not one.receive(b"bye\n")


def test_where_the_peer_is_deaf_the_rest_is_still_handled() -> None:
    one = conversation()
    with pytest.raises(PeerGone):
        one.receive(b"gone\n")
    one.deaf = True
    one.receive(b"gone\necho x\ngenerate\necho y\n")
    assert everything(one) == b"x\none\ny\n"  # nobody waits for the rest of what is generated


def test_also_where_it_was_in_a_reply_that_it_went_deaf() -> None:
    one = conversation()
    one.deaf = True
    one.receive(b"gone_midway\necho x\nnothing\ngone_midway\necho y\n")
    assert everything(one) == b"x\ny\n"


def test_a_greeting_that_nobody_hears_ends_nothing() -> None:
    class Greets(Talk):
        def connected(self) -> Any:
            return self.gone_midway(b"")

    one = conversation(handler=Greets)
    with pytest.raises(PeerGone):
        one.greet()
    one.deaf = True
    one.greet()
    one.receive(b"echo x\n")
    assert everything(one) == b"x\n"


def test_the_end_of_input() -> None:
    one, _ = talk(b"echo x\nech")
    assert isinstance(one.end_of_input(), FrameError)
    one, _ = talk(b"echo x\n")
    assert one.end_of_input() is None


def test_messages_are_encoded_under_the_lock() -> None:
    class Watchful:
        held = False

        def __enter__(self) -> None:
            self.held = True

        def __exit__(self, *_: object) -> None:
            self.held = False

    lock = Watchful()
    seen: list[bool] = []

    class Noting(srvkit.Lines):
        def encode(self, message: bytes) -> bytes:
            seen.append(lock.held)
            return super().encode(message)

    class Noted(Talk):
        framing = Noting()

        def handle_message(self, message: bytes) -> Any:
            assert not lock.held  # a handler may take long, or send to somebody who sends to it
            return super().handle_message(message)

    one = conversation(handler=Noted, lock=lock)
    one.greet()
    one.receive(b"echo x\ngenerate\nmany y\n")
    everything(one)
    assert seen == [True] * 8


def test_what_encode_returns_that_is_no_bytes_is_told_and_the_rest_stays() -> None:
    class Wrong(srvkit.Lines):
        def encode(self, message: bytes) -> Any:
            return 5 if message == b"bad" else super().encode(message)

    class Talks(Talk):
        framing = Wrong()

    one = conversation(handler=Talks)
    one.receive(b"echo x\necho bad\necho y\n")
    with pytest.raises(TypeError, match="encode"):
        one.take()
    assert one.take() == b"x\ny\n"


def test_the_messages_of_a_datagram_have_its_end() -> None:
    one = conversation(kind=DatagramConversation)
    one.go_through(one.handler.framing, [b"netstrings"], b"netstrings\n6:echo x,")
    assert one.take() == b"2:ok,"
    one = conversation(kind=DatagramConversation)
    framing = one.handler.framing
    messages = framing.datagram(b"echo 1\ngenerate")
    one.closing = False
    one.handler.link = type("Link", (), {"send": staticmethod(one.hold)})
    one.go_through(framing, messages)
    assert one.take() == b"1\none\nbetween\ntwo\n"


def test_a_rest_that_is_given_up_again_and_again_is_a_mistake() -> None:
    class Greedy(srvkit.Lines):
        def rest(self, unhandled: list[bytes], data: Any) -> bytes:
            super().rest(unhandled, data)
            return bytes(data)

    class Turning(Talk):
        framing = Greedy()

        def handle_message(self, message: bytes) -> None:
            self.framing = Greedy()

    with pytest.raises(RuntimeError, match="gives up as much as ever"):
        talk(b"x\n", handler=Turning)
    assert hand_over(srvkit.Lines(), srvkit.Lines(), [], b"") == b""
