"""What a process costs: CPU time, memory, and whether other programs disturbed the measuring. Linux only.

A server is a process with all its descendants. It knows nothing of what they serve.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SETTLE = 0.03  # seconds without work that end the settling


@dataclass(frozen=True)
class Measurement:
    """One server under one load; times in microseconds, memory in bytes."""

    cpu: float = 0.0  # server CPU per operation
    rate: float = 0.0  # operations per second
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0
    rss: float = 0.0  # of the server, after the load
    lost: int = 0
    others: float = 0.0  # share of the two cores' time that went to other programs
    p99_alone: float = 0.0  # where there were idle connections: the same without them
    per_connection: float = 0.0  # memory of one that is idle

    @property
    def p99_growth(self) -> float:
        """How much longer an operation takes beside idle connections."""
        return self.p99 / self.p99_alone if self.p99_alone else 0.0


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started in here runs on this core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> Iterator[int]:
    """The process and its living descendants."""
    yield pid
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            for child in tasks.read_text().split():
                yield from family(int(child))


def cpu_time(pid: int) -> float:
    """Seconds of CPU a server has used, its ended threads and its reaped children included."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):  # has ended: its parent's account has it
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            clock = (~member << 3) | 2  # Linux: the clock of another process, in nanoseconds
            total += time.clock_gettime(clock) + (int(fields[13]) + int(fields[14])) / TICKS
    return total


def settled_cpu_time(pid: int) -> float:
    """The same, once the server has nothing left to do."""
    used = cpu_time(pid)
    for _ in range(200):
        time.sleep(SETTLE)
        before, used = used, cpu_time(pid)
        if used - before < 0.0005:
            break
    return used


def rss(pid: int) -> int:
    """Bytes of memory that a server holds: resident, and what its descendants have of their own."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {name: int(size) * 1024 for name, size, *_ in map(str.split, lines)}
            total += sizes["Rss:"] if member == pid else sizes["Private_Clean:"] + sizes["Private_Dirty:"]
    return total


def busy_time(cores: list[int]) -> float:
    """Seconds that anything at all, a hypervisor's other guests included, has spent on these cores."""
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    idle = {4, 5}  # columns: idle, waiting for a disk
    ticks = [
        sum(int(value) for column, value in enumerate(line[:9]) if column and column not in idle)
        for line in lines
        if line[0] in {f"cpu{core}" for core in cores}
    ]
    return sum(ticks) / TICKS


class Disturbance:
    """Watches what other programs take of the cores, from its making on."""

    def __init__(self, pid: int, cores: list[int]) -> None:
        self._pid, self._cores = pid, cores
        self._began, self._busy = time.monotonic(), busy_time(cores)
        self._ours = self._own()

    def share(self) -> float:
        """The share of the cores' time that went neither to the server nor to us and our children."""
        busy = busy_time(self._cores) - self._busy
        ours = self._own() - self._ours
        return max(0.0, busy - ours) / (len(self._cores) * (time.monotonic() - self._began))

    def _own(self) -> float:
        return cpu_time(self._pid) + sum(os.times()[:4])
