"""What supervisor and child say to each other arrives whole, in order, and with its descriptors."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from srvkit.fork import fork
from srvkit.net.event_loop import EventLoop
from srvkit.process.channel import Channel, open_channel


class End:
    """One end of a channel on a loop of its own, and what it hears."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.loop = EventLoop()
        self.heard: list[dict[str, Any]] = []
        self.descriptors: list[int] = []
        self.ends = 0
        channel.attach(self.loop, self._heard, self._ended)

    def _heard(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self.heard.append(message)
        self.descriptors += descriptors

    def _ended(self) -> None:
        self.ends += 1

    def wait(self) -> None:
        self.loop.wait(0)


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    one, other = End((pair := open_channel())[0]), End(pair[1])
    yield one, other
    for end in (one, other):
        end.channel.close()
        end.loop.close()
        for fd in end.descriptors:
            os.close(fd)


def go_round(*ends: End) -> None:
    """Have both sides do what they can."""
    for _ in range(200):
        for end in ends:
            end.wait()


def test_messages_arrive_in_order_both_ways(ends):
    one, other = ends
    for number in range(3):
        one.channel.send({"number": number, "text": "ä\n\0"})
    other.channel.send({"back": [1, None, 0.5]})
    go_round(one, other)
    assert other.heard == [{"number": number, "text": "ä\n\0"} for number in range(3)]
    assert one.heard == [{"back": [1, None, 0.5]}]


def test_more_than_the_kernel_holds_goes_out_bit_by_bit_and_nobody_waits(ends):
    one, other = ends
    messages = [{"number": number, "text": "x" * 100_000} for number in range(30)]
    for message in messages:
        one.channel.send(message)
    assert not other.heard
    go_round(one, other)
    assert other.heard == messages


def test_each_message_has_its_own_descriptors(ends):
    one, other = ends
    pipes = [os.pipe() for _ in range(3)]
    one.channel.send({"first": True}, [pipes[0][0], pipes[1][0]])
    one.channel.send({"between": True})
    one.channel.send({"text": "y" * 300_000, "second": True}, [pipes[2][0]])
    for reading, _ in pipes:
        os.close(reading)
    counts = []
    other.channel._heard = lambda message, fds: (counts.append(len(fds)), other._heard(message, fds))
    go_round(one, other)
    assert counts == [2, 0, 1]
    for (_, writing), fd in zip(pipes, other.descriptors, strict=True):
        os.write(writing, b"%d" % writing)
        assert os.read(fd, 10) == b"%d" % writing
        assert not os.get_inheritable(fd)
        os.close(writing)


def test_the_end_is_heard_once_after_everything_that_was_said(ends):
    one, other = ends
    one.channel.send({"last": "words"})
    one.channel.close()
    go_round(other)
    assert (other.heard, other.ends) == ([{"last": "words"}], 1)


def test_to_somebody_who_is_gone_nothing_is_said(ends):
    one, other = ends
    other.channel.close()
    one.channel.send({"do": "stop"}, [2])
    one.channel.send({"do": "stop"})
    go_round(one)
    assert one.ends == 1
    one.channel.send({"do": "stop"}, [2])


def test_a_descriptor_for_somebody_who_is_gone_is_not_kept(ends):
    one, other = ends
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    while not one.channel._outgoing:  # until there is no room, and what comes has to wait
        one.channel.send({"text": "x" * 65536})
    one.channel.send({"do": "log"}, [writing])
    other.channel.close()
    go_round(one)
    one.channel.send({"do": "log"}, [writing])
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_everything_that_was_said_before_the_end_can_be_read_when_there_is_no_time_for_the_loop(ends):
    """A process says what is wrong with hundreds of lines, and ends."""
    one, other = ends
    errors = ["x" * 150 for _ in range(650)]
    one.channel.send_blocking({"errors": errors})
    one.channel.send_blocking({"errors": []})
    one.channel.close()
    other.channel.read_the_rest()
    assert other.heard == [{"errors": errors}, {"errors": []}]
    other.channel.read_the_rest()
    assert len(other.heard) == 2


def test_what_is_read_to_the_end_does_not_wait_for_more(ends):
    one, other = ends
    one.channel.send_blocking({"only": 1})
    other.channel.read_the_rest()
    assert (other.heard, other.ends) == ([{"only": 1}], 0)


def test_a_channel_that_is_closed_by_what_it_says_is_not_read_any_further(ends):
    one, other = ends
    other.channel._heard = lambda message, fds: (other.heard.append(message), other.channel.close())
    one.channel.send({"do": "close"})
    one.channel.send({"do": "more"})
    go_round(one, other)
    assert other.heard == [{"do": "close"}]
    assert other.ends == 0


def test_waiting_until_it_is_out_does_not_mind_a_slow_reader(ends):
    """As a process that is about to end: the reader is another one."""
    one, other = ends
    pid = fork()
    if pid == 0:
        other.loop.close()  # first: what is closed next must not be taken out of the parent's epoll
        other.channel.close()
        one.channel.send_blocking({"text": "z" * 2_000_000})
        os._exit(0)
    one.channel.close()
    while not other.ends:
        other.loop.wait(30)
    assert os.waitpid(pid, 0)[1] == 0
    assert [len(message["text"]) for message in other.heard] == [2_000_000]


@pytest.mark.parametrize("news", ["end", "word"])
def test_the_kernel_ends_a_child_that_does_not_read_when_the_other_side_is_heard(news):
    ours, theirs = open_channel()
    ready, told = os.pipe()
    pid = fork()
    if pid == 0:
        ours.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        theirs.die_with_the_other_side()
        os.write(told, b"1")
        while True:
            signal.pause()
    theirs.close()
    os.read(ready, 1)
    if news == "word":
        ours.send_blocking({"do": "stop"})
    else:
        ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGIO
    ours.close()
    for fd in (ready, told):
        os.close(fd)


def test_descriptors_that_nobody_took_are_closed_with_the_channel():
    ours, theirs = open_channel()
    reading, writing = os.pipe()
    end = End(theirs)
    socket.send_fds(ours._socket, [b'{"half": '], [writing])
    os.close(writing)
    end.wait()
    theirs.close()
    assert os.read(reading, 1) == b""  # the last copy of its other end is gone
    ours.close()
    os.close(reading)
    end.loop.close()
