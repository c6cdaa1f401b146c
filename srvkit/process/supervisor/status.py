"""What a supervisor answers to those who ask how it goes: the status, and the connections.

Numbers come from the boards at once; which connections there are, only the workers know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from time import monotonic

from srvkit.net.datagrams import dropped_by_kernel
from srvkit.net.event_loop import EventLoop, Timer
from srvkit.process.channel import Message
from srvkit.process.supervisor.worker_pool import WorkerPool
from srvkit.process.supervisor.worker_process import WorkerProcess
from srvkit.process.worker.main import resident_size
from srvkit.process.worker.worker import where

ANSWER_TIME = 1.0  # seconds for workers to say which connections they have

Reply = Callable[..., None]


def report_of(workers: WorkerPool, retiring: Sequence[WorkerPool]) -> Message:
    """Return the status of one server; `retiring` are its workers of earlier configurations."""
    now = monotonic()
    total = workers.counts()
    lost, restarts = workers.lost, workers.restarts
    for old in retiring:
        total += old.counts()
        lost += old.lost
        restarts += old.restarts
    boards = [
        (worker, worker.board.counts())
        for one in (workers, *retiring)
        for worker in one.workers.values()
        if worker.state != "gone"
    ]
    return {
        "name": workers.name,
        "model": workers.model,
        "addresses": [where(listener) for listener in workers.listeners],
        "wanted": workers.wanted,
        "workers": [
            {
                "pid": worker.pid,
                "state": worker.state,
                "since": worker.since,
                "beat_age": round(now - worker.board.last_beat, 3) if worker.board.last_beat else None,
                "open": counts.open,
                "accepted": counts.accepted,
                "rss": resident_size(worker.pid),
            }
            for worker, counts in boards
        ],
        "counters": {
            **total.as_dict(),
            "open": sum(counts.open for _, counts in boards),
            "lost": lost,
            "restarts": restarts,
            "overrun": sum(
                dropped_by_kernel(listener.socket) for listener in workers.listeners if not listener.is_stream
            ),
        },
    }


class Questions:
    """Questions to workers that have not been answered by all of them yet."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._asks = count(1)
        self._gathering: dict[int, Gathering] = {}

    def ask_all(self, message: Message, all_workers: Sequence[WorkerPool], reply: Reply) -> None:
        """Ask all workers, and reply with what they answer in time, see `gather`."""
        asked = {worker.pid: workers.name for workers in all_workers for worker in workers.listening()}
        number = self._expect_answers(Gathering(reply, asked))
        for workers in all_workers:
            workers.broadcast(message | {"ask": number})

    def _expect_answers(self, gathering: Gathering) -> int:
        number = next(self._asks)
        self._gathering[number] = gathering
        seconds = ANSWER_TIME if gathering.silent else 0.0
        gathering.timer = self._loop.call_later(seconds, lambda: self._give_up(number))
        return number

    def _give_up(self, number: int) -> None:
        gathering = self._gathering.pop(number, None)
        if gathering is not None:
            gathering.finish()

    def gather(self, all_workers: Iterable[WorkerPool]) -> None:
        """Take what workers have answered since the last time."""
        for workers in all_workers:
            for worker in workers.workers.values():
                while worker.answers:
                    self._answered(worker, worker.answers.pop(0))

    def _answered(self, worker: WorkerProcess, message: Message) -> None:
        gathering = self._gathering.get(message["ask"])
        if gathering is not None and gathering.heard(worker.pid, message):
            del self._gathering[message["ask"]]
            gathering.finish()

    def kill(self, identity: str, all_workers: Sequence[WorkerPool], reply: Reply) -> None:
        pid, _, number = identity.partition("-")
        asked = [
            (workers, worker)
            for workers in all_workers
            for worker in workers.listening()
            if str(worker.pid) == pid
        ]
        if not asked or not number.isdecimal():
            reply({"error": f"there is no connection {identity}"})
            return
        ((workers, worker),) = asked
        ask = self._expect_answers(Gathering(reply, {worker.pid: workers.name}, one=identity))
        worker.channel.send({"do": "kill", "number": int(number), "ask": ask})


class Gathering:
    """The answers of several workers to one question, of which some may never come."""

    def __init__(self, reply: Reply, silent: dict[int, str], one: str = "") -> None:
        self.silent = silent  # the numbers of workers that have not answered yet, and their servers
        self.timer: Timer | None = None
        self._reply = reply
        self._one = one  # the connection that is to be killed, if that is what it is about
        self._connections: list[Message] = []
        self._killed = False

    def heard(self, pid: int, answer: Message) -> bool:
        """Take down an answer; return whether it was the last one."""
        server = self.silent.pop(pid, "")
        self._killed = self._killed or answer.get("killed", False)
        for one in answer.get("connections", ()):
            self._connections.append({**one, "server": server, "worker": pid})
        return not self.silent

    def finish(self) -> None:
        """Reply with what there is."""
        if self.timer is not None:
            self.timer.cancel()
        if not self._one:
            self._reply({"connections": self._connections, "silent": sorted(self.silent)})
        elif self._killed:
            self._reply({"killed": True})
        elif self.silent:
            self._reply({"error": f"worker {next(iter(self.silent))} does not answer"})
        else:
            self._reply({"error": f"there is no connection {self._one}"})
