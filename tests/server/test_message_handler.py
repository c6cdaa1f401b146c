"""Message handlers: what they may answer, when, and how a conversation ends."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import srvkit

PATIENCE = 30
MODELS = ["serial", "threading", "pool"]
REASONS: list[str] = []


class Talk(srvkit.MessageHandler):
    """Do what the client says."""

    framing = srvkit.Lines()

    def connected(self) -> bytes:
        return b"welcome"

    def disconnected(self, reason: str) -> None:
        REASONS.append(reason)

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

    def fail(self, rest: bytes) -> bytes:
        raise ValueError("a mistake")

    def generate_and_fail(self, rest: bytes) -> Iterator[bytes]:
        yield b"one"
        raise ValueError("a mistake")

    def text(self, rest: bytes) -> Any:
        return "text"

    def number(self, rest: bytes) -> Any:
        return 7

    def netstrings(self, rest: bytes) -> bytes:
        self.framing = srvkit.Netstring()
        return b"ok"

    def from_a_thread(self, rest: bytes) -> None:
        thread = threading.Thread(target=self.send, args=(b"from a thread",))
        thread.start()
        thread.join()

    def last_words_from_a_thread(self, rest: bytes) -> bytes:
        def work() -> None:
            self.send(b"one")
            self.send(b"two")
            self.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return b"reply"

    def close_from_a_thread(self, rest: bytes) -> None:
        threading.Thread(target=self.close).start()


@pytest.fixture(autouse=True)
def reasons() -> list[str]:
    REASONS.clear()
    return REASONS


@pytest.fixture(params=MODELS)
def model(request: Any) -> Any:
    return request.param


def conversation(client: Any, model: str, said: bytes, handler: Any = Talk) -> bytes:
    """Everything that the server says when a client says this all at once, and then no more."""
    with (
        srvkit.serve(handler, "tcp://127.0.0.1:0", concurrency=model) as server,
        client(server.address) as sock,
    ):
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as answers:
            return bytes(answers.read())


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"echo hello\n", b"hello\n"),
        (b"echo hello\r\necho again\n", b"hello\nagain\n"),
        (b"nothing\necho x\n", b"x\n"),
        (b"many x\n", b"x\nx\nx\n"),
        (b"generate\n", b"one\nbetween\ntwo\n"),
        (b"twice\n", b"sent\nreturned\n"),
        (b"echo 1\ntwice\necho 2\n", b"1\nsent\nreturned\n2\n"),
        (b"from_a_thread\n", b"from a thread\n"),
        (b"echo\n", b"\n"),
    ],
)
def test_replies_arrive_in_order(
    said: bytes, answer: bytes, model: str, client: Any, reasons: list[str]
) -> None:
    """Whether returned, yielded or sent; after the greeting."""
    assert conversation(client, model, said) == b"welcome\n" + answer
    assert reasons == ["eof"]


def test_after_close_nothing_more_is_handled(model: str, client: Any, reasons: list[str]) -> None:
    """What was said before it is out."""
    said = b"echo 1\nbye\necho 2\n"
    assert conversation(client, model, said) == b"welcome\n1\nbye\n"
    assert reasons == ["closed"]


def test_another_thread_may_close(model: str, client: Any, reasons: list[str]) -> None:
    """Although the connection waits for its client at that moment."""
    with (
        srvkit.serve(Talk, "tcp://127.0.0.1:0", concurrency=model) as server,
        client(server.address) as sock,
    ):
        sock.sendall(b"echo 1\nclose_from_a_thread\n")
        with sock.makefile("rb") as answers:
            assert answers.read() == b"welcome\n1\n"
    assert reasons == ["closed"]


@pytest.mark.parametrize("model", [*MODELS, "event", "asyncio"])
def test_what_another_thread_sends_before_it_closes_arrives(model: str, client: Any) -> None:
    """So does the reply of the handler that was at work meanwhile."""
    with (
        srvkit.serve(Talk, "tcp://127.0.0.1:0", concurrency=model) as server,
        client(server.address) as sock,
    ):
        sock.sendall(b"last_words_from_a_thread\n")
        with sock.makefile("rb") as answers:
            assert answers.readline() == b"welcome\n"
            heard = answers.read().splitlines()
    assert sorted(heard) == [b"one", b"reply", b"two"]
    assert heard.index(b"one") < heard.index(b"two")


def test_another_thread_may_send_at_any_time(model: str, client: Any) -> None:
    """Whole messages, from many at once; and to one that has gone it is nothing."""
    rooms: list[Any] = []

    class Room(Talk):
        def connected(self) -> bytes:
            rooms.append(self)
            return b"welcome"

    with (
        srvkit.serve(Room, "tcp://127.0.0.1:0", concurrency=model) as server,
        client(server.address) as sock,
        sock.makefile("rb") as answers,
    ):
        assert answers.readline() == b"welcome\n"
        news = [bytes([65 + number]) * 10_000 for number in range(8)]
        threads = [
            threading.Thread(target=lambda text=text: [rooms[0].send(text) for _ in range(5)])
            for text in news
        ]
        for thread in threads:
            thread.start()
        lines = [answers.readline().strip() for _ in range(40)]
        for thread in threads:
            thread.join()
        assert sorted(lines) == sorted(news * 5)
    rooms[0].send(b"is anybody there?")


def test_what_a_handler_raises_comes_after_the_replies_before_it(
    model: str, client: Any, reasons: list[str], caplog: Any
) -> None:
    for word in (b"fail", b"text", b"number"):
        assert conversation(client, model, b"echo 1\n" + word + b"\necho 2\n") == b"welcome\n1\n"
    assert conversation(client, model, b"generate_and_fail\n") == b"welcome\none\n"
    assert reasons == ["error"] * 4
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(error) for error in errors] == [
        "a mistake",
        "Talk replied with a str; replies are bytes",
        "Talk replied with an int; replies are bytes",
        "a mistake",
    ]


@pytest.mark.parametrize("said", [b"echo 1\nnetstrings\n6:echo 2,6:echo 3,", b"netstrings\n6:echo 1,"])
def test_the_framing_may_change_in_the_middle_of_a_batch(
    said: bytes, model: str, client: Any, reasons: list[str]
) -> None:
    """What has arrived but was not handled goes through the new one, as do the replies from then on."""
    answer = conversation(client, model, said)
    if b"echo 3" in said:
        assert answer == b"welcome\n1\n2:ok,1:2,1:3,"
    else:
        assert answer == b"welcome\n2:ok,1:1,"
    assert reasons == ["eof"]


def test_the_framing_may_change_between_two_reads(model: str, client: Any) -> None:
    with (
        srvkit.serve(Talk, "tcp://127.0.0.1:0", concurrency=model) as server,
        client(server.address) as sock,
        sock.makefile("rb") as answers,
    ):
        sock.sendall(b"netstrings\n6:ec")
        assert answers.read(len(b"welcome\n2:ok,")) == b"welcome\n2:ok,"
        sock.sendall(b"ho 1,")
        assert answers.read(4) == b"1:1,"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "eof"),
        (b"echo 1\n", "eof"),
        (b"echo 1\nech", "truncated"),
        (b"bye\n", "closed"),
        (b"fail\n", "error"),
    ],
)
def test_the_handler_is_told_once_why_it_ended(
    said: bytes, reason: str, model: str, client: Any, reasons: list[str]
) -> None:
    conversation(client, model, said)
    assert reasons == [reason]


def test_a_mistake_in_connected_is_an_error_of_the_connection(
    model: str, client: Any, reasons: list[str], caplog: Any
) -> None:
    class Unwelcoming(Talk):
        def connected(self) -> bytes:
            raise ValueError("a mistake")

    assert conversation(client, model, b"", Unwelcoming) == b""
    assert reasons == ["error"]
    assert "ValueError: a mistake" in caplog.text


def test_the_configuration_replaces_the_framing(client: Any) -> None:
    with (
        srvkit.serve(Talk, "tcp://127.0.0.1:0", framing="netstring") as server,
        client(server.address) as sock,
        sock.makefile("rb") as answers,
    ):
        sock.sendall(b"6:echo 1,")
        assert answers.read(14) == b"7:welcome,1:1,"


def test_it_runs_on_a_bare_server_too(serving: Any, client: Any, reasons: list[str], eventually: Any) -> None:
    """Without limits, and with whatever server calls its constructor."""
    server = serving(srvkit.ThreadingTCPServer(("127.0.0.1", 0), Talk))
    with client(server.server_address) as sock, sock.makefile("rb") as answers:
        sock.sendall(b"echo 1\n")
        assert answers.readline() + answers.readline() == b"welcome\n1\n"
    eventually(lambda: reasons)
    assert reasons == ["eof"]


# Life


def test_startup_and_shutdown_run_once(model: str, client: Any) -> None:
    """Before the first connection and after the last."""
    life: list[Any] = []

    class Living(Talk):
        @classmethod
        def startup(cls, server: Any) -> None:
            life.append("startup")

        @classmethod
        def shutdown(cls, server: Any) -> None:
            life.append("shutdown")

        def disconnected(self, reason: str) -> None:
            life.append(reason)

    with srvkit.serve(Living, "tcp://127.0.0.1:0", concurrency=model) as server:
        for _ in range(2):
            with client(server.address) as sock:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(100):
                    pass
    assert life == ["startup", "eof", "eof", "shutdown"]


# Datagrams


def datagram(client: Any, said: bytes, handler: Any = Talk, model: str = "threading") -> bytes:
    with (
        srvkit.serve(handler, "udp://127.0.0.1:0", concurrency=model) as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        sock.send(said)
        return bytes(sock.recv(65536))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"echo hello", b"hello\n"),
        (b"echo hello\n", b"hello\n"),
        (b"echo 1\necho 2\r\nmany x\ntwice\necho 3", b"1\n2\nx\nx\nx\nsent\nreturned\n3\n"),
        (b"generate", b"one\nbetween\ntwo\n"),
        (b"echo 1\nbye\necho 2", b"1\nbye\n"),
        (b"echo 1\nfail\necho 2", b"1\n"),
        (b"netstrings\n6:echo 1,", b"2:ok,1:1,"),
    ],
)
def test_all_replies_to_a_datagram_leave_in_one(
    said: bytes, answer: bytes, model: str, client: Any, reasons: list[str]
) -> None:
    """Its end ends the last message; there is no greeting and no leave."""
    assert datagram(client, said, model=model) == answer
    assert reasons == []


def test_each_datagram_has_a_handler_and_a_framing_of_its_own(model: str, client: Any) -> None:
    with (
        srvkit.serve(Talk, "udp://127.0.0.1:0", concurrency=model) as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        for said, answer in ((b"netstrings", b"2:ok,"), (b"echo 1", b"1\n")):
            sock.send(said)
            assert sock.recv(100) == answer


def test_a_thread_may_answer_a_datagram_later(client: Any) -> None:
    answered = threading.Event()

    class Later(srvkit.MessageHandler):
        def handle_message(self, message: bytes) -> bytes:
            def later() -> None:
                answered.wait(PATIENCE)
                self.send(b"later")

            threading.Thread(target=later).start()
            return b"at once"

    with (
        srvkit.serve(Later, "udp://127.0.0.1:0") as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        sock.send(b"hello")
        assert sock.recv(100) == b"at once"
        answered.set()
        assert sock.recv(100) == b"later"


def test_a_reply_too_long_for_a_datagram_is_an_error(client: Any, caplog: Any, eventually: Any) -> None:
    class Long(srvkit.MessageHandler):
        def handle_message(self, message: bytes) -> bytes:
            return bytes(70_000)

    with (
        srvkit.serve(Long, "udp://127.0.0.1:0") as server,
        client(f"udp://127.0.0.1:{server.address[1]}") as sock,
    ):
        sock.send(b"hello")
        eventually(lambda: caplog.records)
    assert "Message too long" in caplog.text


# In a test, without a socket


def test_a_handler_is_driven_without_a_socket() -> None:
    talk = Talk()
    assert talk.handle_message(b"echo hello") == b"hello"
    talk.send(b"hello")
    assert talk.link.sent == [b"hello\n"]  # type: ignore[attr-defined]
    assert not talk.link.closed  # type: ignore[attr-defined]
    talk.close()
    assert talk.link.closed  # type: ignore[attr-defined]
    assert talk.client_address is talk.server is talk.request is None


def test_each_handler_has_a_framing_of_its_own() -> None:
    one, other = Talk(), Talk()
    one.framing.feed(b"half")
    assert one.framing.buffered and not other.framing.buffered and not Talk.framing.buffered


def test_a_handler_without_handle_message_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"MessageHandler has no handle_message\(\)"):
        srvkit.MessageHandler().handle_message(b"hello")


class Loose(srvkit.Lines):
    """Encodes some messages to what is no bytes."""

    def encode(self, message: bytes) -> Any:
        others: dict[bytes, Any] = {b"none": None, b"text": "text\n", b"list": [message, b"\n"], b"number": 5}
        return others[message] if message in others else super().encode(message)


class LooseTalk(srvkit.MessageHandler):
    """Answer with the message; `send` sends the rest of it before, from another thread."""

    framing = Loose()
    raised: list[type[BaseException]] = []

    def handle_message(self, message: bytes) -> bytes:
        word, _, rest = message.partition(b" ")
        if word == b"send":
            thread = threading.Thread(target=self.send_or_note, args=(rest,))
            thread.start()
            thread.join()
        return message

    def send_or_note(self, message: bytes) -> None:
        try:
            self.send(message)
        except TypeError as error:
            self.raised.append(type(error))


@pytest.mark.parametrize("way", [b"", b"send "])
@pytest.mark.parametrize("word", [b"none", b"text", b"list", b"number"])
@pytest.mark.parametrize("model", [*MODELS, "event", "asyncio"])
def test_what_a_framing_wrongly_encodes_harms_no_other_message(
    word: bytes, way: bytes, model: str, client: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error of that connection, or of the thread that sent it; what was said before arrives."""
    monkeypatch.setattr(LooseTalk, "raised", [])
    with (
        srvkit.serve(LooseTalk, "tcp://127.0.0.1:0", concurrency=model) as server,
        client(server.address) as sock,
        contextlib.ExitStack() as stack,
    ):
        sock.sendall(b"before\n")
        with sock.makefile("rb") as file:
            assert file.readline() == b"before\n"
            if model != "serial":  # which has one at a time
                other = stack.enter_context(client(server.address))
                other.sendall(b"first\n")
                assert other.recv(100) == b"first\n"
            sock.sendall(b"again\n" + way + word + b"\nafter\n")
            sock.shutdown(socket.SHUT_WR)
            heard = file.read().split(b"\n")
        assert heard[0] == b"again"
        assert (heard[1:3] == [way + word, b"after"]) == bool(way)
        if model != "serial":
            other.sendall(b"second\n")
            assert other.recv(100) == b"second\n"
    logged = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert LooseTalk.raised + logged == [TypeError]
