"""The workers of a server as their supervisor sees them, without any process: what is wanted comes about."""

from __future__ import annotations

from typing import Any

import pytest

from srvkit.config.loader import from_table
from srvkit.process.supervisor.worker_pool import WorkerPool
from srvkit.process.supervisor.worker_process import WorkerProcess


class Channel:
    """Keeps what it is told to send, unless it is short of memory."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.short = 0
        self.is_closed = False

    def send(self, message: Any, descriptors: Any = ()) -> bool:
        if self.short:
            self.short -= 1
            raise MemoryError
        if not self.is_closed:
            self.sent.append(message["do"])
        return not self.is_closed


class Shared:
    """A supervisor in which nothing happens by itself."""

    tells_files = False

    def __init__(self) -> None:
        self.loop = self.children = self
        self.signals: list[tuple[int, int]] = []
        self.waits: list[float] = []

    def call_later(self, seconds: float, callback: Any) -> Any:
        self.waits.append(seconds)
        return self

    def cancel(self) -> None:
        pass

    def signal(self, pid: int, number: int) -> None:
        self.signals.append((pid, number))


@pytest.fixture
def pool() -> WorkerPool:
    """Three workers that are ready, of which two are wanted."""
    table = {"listen": "tcp://127.0.0.1:0", "handler": "echo"}
    config, problems = from_table({"server": {"a": table}})
    shared: Any = Shared()
    pool = WorkerPool("a", config, problems, [], 3, shared)
    for pid in (11, 12, 13):
        channel: Any = Channel()
        worker = WorkerProcess(pid, channel, -1, None, -1, 0.0, None)  # type: ignore[arg-type]
        worker.state = "ready"
        pool.workers[pid] = worker
    pool.start_respawning()
    return pool


def told(pool: WorkerPool) -> list[list[str]]:
    return [worker.channel.sent for worker in pool.workers.values()]  # type: ignore[attr-defined]


def test_one_too_many_retires_although_the_first_try_fails(pool: WorkerPool) -> None:
    pool.workers[13].channel.short = 1  # type: ignore[attr-defined]
    with pytest.raises(MemoryError):
        pool.want(2)
    assert told(pool) == [[], [], []]
    for _ in range(2):  # the second time there is nothing left to do
        pool.settle()
        assert told(pool) == [[], [], ["retire"]]


def test_who_takes_the_place_of_another_one_is_not_the_one_too_many(pool: WorkerPool) -> None:
    pool.workers[13].replaces = pool.workers[11]
    pool._to_retire.append(pool.workers[11])
    pool.wanted = 2
    pool.settle()
    assert told(pool) == [[], [], []]


def test_all_end_although_some_could_not_be_told(pool: WorkerPool) -> None:
    for pid in (11, 12):
        pool.workers[pid].channel.short = 1  # type: ignore[attr-defined]
    pool.stop(5.0)
    assert told(pool) == [[], [], ["stop"]]
    for _ in range(2):
        pool.settle()
        assert told(pool) == [["stop"], ["stop"], ["stop"]]


def test_one_that_cannot_be_told_has_no_hour_to_end(pool: WorkerPool) -> None:
    """Its plugin has closed all descriptors, say: what it serves has `drain_timeout`."""
    for pid in (11, 12):
        pool.workers[pid].channel.is_closed = True  # type: ignore[attr-defined]
    pool.retire([])
    waits = pool._shared.waits  # type: ignore[attr-defined]
    assert [wait > 3600 for wait in waits] == [True, False, True, False, True]
    assert waits[1] == waits[3] < 40
