"""One worker, as its supervisor sees it."""

from __future__ import annotations

from math import inf
from typing import Literal

from srvkit.net.closing import close_one
from srvkit.net.event_loop import Timer
from srvkit.process.channel import Channel, Message
from srvkit.process.memfd import contents
from srvkit.process.scoreboard import Board

State = Literal["starting", "ready", "retiring", "hung", "gone"]

MOST_STACKS = 65536  # bytes


class WorkerProcess:
    """One worker: its number, its channel, its board."""

    def __init__(
        self,
        pid: int,
        channel: Channel,
        lifeline: int,
        board: Board,
        stacks: int,
        since: float,
        replaces: WorkerProcess | None,
    ) -> None:
        self.pid = pid
        self.channel = channel
        self.lifeline = lifeline  # its end of a pipe, which the kernel closes with this process
        self.board = board
        self.stacks = stacks
        self.since = since  # on the wall clock
        self.replaces = replaces
        self.state: State = "starting"
        self.waits = False  # whether it is to be told when it may begin to serve
        self.order: Message | None = None  # to end, once it was given
        self.patience = 0.0  # seconds that it has for that
        self.is_told = False  # whether it was told in full
        self.errors: list[str] = []
        self.answers: list[Message] = []  # to questions, until somebody takes them
        self.files: list[str] = []
        self.makings = ""  # a digest of what it is made of, once it has said so
        self.log_turn = 0  # the log that it was given
        self.is_urgent = False  # whether it is to be replaced as soon as it has finished what it is doing
        self.ready_since = 0.0  # on the monotonic clock
        self.timer: Timer | None = None
        self.overdue = inf  # when it should have ended, on the monotonic clock
        self.status = 0  # once it is gone: its exit status, or the negative number of the signal
        self.is_counted = False  # whether what it had counted was taken over

    @property
    def is_listening(self) -> bool:
        """Whether it hears what is said on its channel; before, anything would end it."""
        return self.state in ("ready", "retiring")

    def close(self) -> None:
        """Release what belongs to it here. May be called again, where there was no memory to do it all."""
        self.channel.close()
        self.board.close()
        if self.lifeline >= 0:
            close_one(self.lifeline)
            self.lifeline = -1
        if self.stacks >= 0:
            close_one(self.stacks)
            self.stacks = -1

    def written_stacks(self) -> str:
        """Return what its interpreter wrote when it was aborted or crashed."""
        return contents(self.stacks, MOST_STACKS).strip()
