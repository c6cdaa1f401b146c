"""What srvkit is to reach, measured side by side, and whether it does.

A goal that is not met says why in `why`, as far as that is known.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from measure import Measurement
from workloads import ASYNC, CONNECT, DROP_IN, DROP_IN_UDP, IDLE, LINES, PIPELINED, UDP

Rounds = Sequence[Mapping[str, Measurement]]  # for each round what each server showed


@dataclass(frozen=True)
class Goal:
    """A `figure` of a server, at most `most` times that of the server `to`, both of the same round."""

    text: str
    workload: str
    server: str
    most: float
    to: str = ""  # nothing: the figure itself, in `unit`
    figure: str = "cpu"
    unit: str = ""
    divisor: float = 1.0  # from microseconds or bytes to the unit
    why: str = ""

    def values(self, rounds: Rounds) -> list[float]:
        """The figure or the ratio in each round in which both were measured."""
        found = []
        for measured in rounds:
            if self.server in measured and (not self.to or self.to in measured):
                own = getattr(measured[self.server], self.figure)
                found.append(own / (getattr(measured[self.to], self.figure) if self.to else self.divisor))
        return found


@dataclass(frozen=True)
class Outcome:
    """One line of the table of goals."""

    text: str
    goal: str
    measured: str
    met: bool | None  # None: not measured
    why: str = ""


_THREADING = "drop-in, threading, connect-echo-close"
_STREAM, _READ = "threading, StreamRequestHandler, one line", "threading, BaseRequestHandler, one read"
_UNTIL = "threading, BaseRequestHandler, until the client closes"
_MESSAGE = "srvkit threading, MessageHandler, until the client closes"
_UDP_BASE, _UDP_HANDLER = "threading, UDP, BaseRequestHandler", "threading, UDP, DatagramRequestHandler"

_THREAD_WHY = (
    "what starts a thread per connection costs here 85 to 165 µs from one minute to the next, and the ratio "
    "moves with it; of srvkit's own 41 to 54 µs the C server needs 20, waking a kept thread 10"
)
_LINES_WHY = (
    "the C server took 5.0 to 8.3 µs and `event` 6.9 to 8.4 from run to run on this machine: at the edge"
)
_DATAGRAM_WHY = (
    "recvfrom and sendto called from Python cost what all of uvloop does (0.98 to 1.01); the rest is one "
    "handler, framing and link for each datagram, 1.5 µs"
)

GOALS = [
    Goal(
        f"{_THREADING}, StreamRequestHandler",
        DROP_IN,
        f"srvkit {_STREAM}",
        0.40,
        f"socketserver {_STREAM}",
        why=_THREAD_WHY,
    ),
    Goal(
        f"{_THREADING}, BaseRequestHandler",
        DROP_IN,
        f"srvkit {_READ}",
        1 / 3,
        f"socketserver {_READ}",
        why=_THREAD_WHY,
    ),
    Goal(
        f"{_THREADING}, MessageHandler; both until the client closes",
        DROP_IN,
        _MESSAGE,
        1 / 3,
        f"socketserver {_UNTIL}",
        why=_THREAD_WHY,
    ),
    Goal(
        f"{_THREADING}, MessageHandler until the client closes; socketserver reads once",
        DROP_IN,
        _MESSAGE,
        1 / 3,
        f"socketserver {_READ}",
        why="a message handler reads on until the client closes, one system call and one wait more",
    ),
    Goal(
        "drop-in, threading UDP, BaseRequestHandler",
        DROP_IN_UDP,
        f"srvkit {_UDP_BASE}",
        1 / 5,
        f"socketserver {_UDP_BASE}",
    ),
    Goal(
        "drop-in, threading UDP, DatagramRequestHandler",
        DROP_IN_UDP,
        f"srvkit {_UDP_HANDLER}",
        1 / 5,
        f"socketserver {_UDP_HANDLER}",
    ),
    Goal(
        "`event`, framed lines, 64 connections, to C",
        LINES,
        "srvkit event",
        1.35,
        "C epoll",
        why=_LINES_WHY,
    ),
    Goal(
        "`event`, framed lines, 64 connections, to uvloop streams",
        LINES,
        "srvkit event",
        1.0,
        "uvloop streams",
        why=_LINES_WHY,
    ),
    Goal("`event`, connect-echo-close, to C", CONNECT, "srvkit event", 1.7, "C epoll"),
    Goal("`event`, pipelined lines, CPU per message", PIPELINED, "srvkit event", 1.0, unit="µs"),
    Goal(
        "`event`, UDP, to uvloop", UDP, "srvkit event, UDP", 1.0, "uvloop DatagramProtocol", why=_DATAGRAM_WHY
    ),
    Goal(
        "`serial`, UDP, to uvloop",
        UDP,
        "srvkit serial, UDP",
        1.1,
        "uvloop DatagramProtocol",
        why=_DATAGRAM_WHY,
    ),
    Goal(
        "`serial`, as each worker of a pre-fork server, connect-echo-close, to forking socketserver",
        CONNECT,
        "srvkit serial",
        1 / 30,
        "socketserver forking",
        why="what forking costs depends on how much memory the parent has mapped: 1.0 to 1.5 ms here",
    ),
    Goal(
        "`event`, memory of an idle connection, 15,000 of them",
        IDLE,
        "srvkit event",
        1.0,
        figure="per_connection",
        unit="KB",
        divisor=1024,
        why="0.96 of it is the connection's; the rest are pages of the supervisor's memory that a worker "
        "has copied",
    ),
    Goal(
        "`event`, p99 of an active connection among 15,000 idle ones, to the same alone",
        IDLE,
        "srvkit event",
        2.0,
        figure="p99_growth",
        unit="times",
    ),
    Goal(
        "`asyncio` with uvloop, AsyncHandler, to bare uvloop streams",
        ASYNC,
        "srvkit asyncio, AsyncHandler",
        1.05,
        "uvloop streams",
    ),
]


def judge(goal: Goal, rounds: Rounds) -> Outcome:
    """Compare the median over the rounds with the goal."""
    wanted = f"≤ {_number(goal.most)}{_unit(goal)}"
    values = goal.values(rounds)
    if not values:
        return Outcome(goal.text, wanted, "", None, "not measured")
    median = statistics.median(values)
    spread = f" [{_number(min(values))}, {_number(max(values))}]" if len(values) > 1 else ""
    met = median <= goal.most
    return Outcome(goal.text, wanted, f"{_number(median)}{_unit(goal)}{spread}", met, "" if met else goal.why)


def _unit(goal: Goal) -> str:
    return f" {goal.unit}" if goal.unit else ""


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
