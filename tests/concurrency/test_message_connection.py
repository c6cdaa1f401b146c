"""Connections that live in a loop: what a peer that does not take what it is sent may cost."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

import srvkit

PATIENCE = 30


@pytest.mark.parametrize("model", ["event", "pool", "asyncio"])
def test_a_member_of_a_room_that_does_not_read_is_dropped_and_the_room_goes_on(
    model: str, client: Any, eventually: Any
) -> None:
    """Others cannot know how much it has not taken yet; the server does, and bounds it."""
    members: list[Any] = []
    reasons: list[str] = []

    class Room(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def connected(self) -> bytes:
            members.append(self)
            return b"welcome"

        def disconnected(self, reason: str) -> None:
            members.remove(self)
            reasons.append(reason)

        def handle_message(self, message: bytes) -> bytes:
            for one in list(members):
                if one is not self:
                    one.send(message)
            return b"said"

    with srvkit.serve(Room, "tcp://127.0.0.1:0", concurrency=model, limits={"write_timeout": 0}) as server:
        client(server.address).recv(1)
        with client(server.address) as speaker, speaker.makefile("rb") as heard:
            assert heard.readline() == b"welcome\n"
            for _ in range(400):
                speaker.sendall(bytes(65536) + b"\n")
                assert heard.readline() == b"said\n"
                if reasons:
                    break
            eventually(lambda: reasons)
            assert reasons == ["overflow"]
            speaker.sendall(b"alone\n")
            assert heard.readline() == b"said\n"


class EventTCPServer(srvkit.EventMixIn, srvkit.TCPServer):
    pass


class TaskTCPServer(srvkit.TaskMixIn, srvkit.TCPServer):
    pass


@pytest.mark.parametrize("server_class", [EventTCPServer, srvkit.ThreadPoolTCPServer, TaskTCPServer])
def test_connections_end_with_the_loop_they_live_in(server_class: Any, client: Any) -> None:
    """A handler shuts its server down: its reply leaves, and nobody is left waiting for a dead loop."""
    reasons: list[str] = []
    faults: list[Any] = []

    class Stop(srvkit.MessageHandler):
        framing = srvkit.Lines()

        def connected(self) -> bytes:
            return b"welcome"

        def disconnected(self, reason: str) -> None:
            reasons.append(reason)

        def handle_message(self, message: bytes) -> bytes:
            self.server.shutdown()
            return b"done"

    class Noting(server_class):
        def handle_error(self, request: Any, client_address: Any) -> None:
            faults.append(sys.exception())

    with Noting(("127.0.0.1", 0), Stop) as server:
        for _ in range(2):  # it may serve again after that
            loop = threading.Thread(target=server.serve_forever)
            loop.start()
            idle, stopping = (client(server.server_address).makefile("rwb", 0) for _ in range(2))
            assert idle.readline() == stopping.readline() == b"welcome\n"
            stopping.write(b"stop\n")
            assert stopping.readline() == b"done\n"
            assert idle.read() == stopping.read() == b""
            loop.join(PATIENCE)
            assert not loop.is_alive()
    assert reasons == ["stopped"] * 4
    assert not faults
