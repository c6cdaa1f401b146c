"""The workers of one server, as their supervisor sees them: start, watch, replace, retire.

What a worker does is its own business; what a configuration wants, and when it changes, is a reload's.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from time import monotonic

from srvkit.config.model import Config, Problems
from srvkit.net.closing import close, close_one
from srvkit.net.event_loop import Timer
from srvkit.net.listener import Listener
from srvkit.process.channel import Channel, Message, open_channel
from srvkit.process.child import end_group, ending
from srvkit.process.credential_store import CredentialStore
from srvkit.process.logging import setup
from srvkit.process.memfd import unnamed_file
from srvkit.process.scoreboard import Board, Counts
from srvkit.process.supervisor.fault_barrier import attempt, complain
from srvkit.process.supervisor.shared import Shared
from srvkit.process.supervisor.worker_process import WorkerProcess
from srvkit.process.worker.main import ASK_FOR_STACKS, WorkerSpec, serve

log = logging.getLogger("srvkit.process")

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds until one that never got ready is tried again, doubling
MOST_STARTS = 10  # in a second, of workers that replace one that had been ready
LAST_WORDS = 1.0  # seconds for an aborted worker to write its stacks
CUT_TIME = 1.5  # seconds for a worker to end that was told to cut everything


class WorkerPool:
    """As many workers of one server as are wanted, each replaced when it ends.

    Until `start_respawning()` is called they are on trial: one that ends before it is ready is not replaced,
    but makes `failed` hold why.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        problems: Problems,
        listeners: list[Listener],
        wanted: int,
        shared: Shared,
        kept: CredentialStore | None = None,
        one_process: bool = False,
        generation: int = 0,
    ) -> None:
        """Make it; `kept` are its certificates and keys, which it closes when it starts no more workers.

        `generation` is the number of the configuration that it serves. `one_process` is whether its
        handler asks for a single process: then `wanted` stays 1.
        """
        self.name = name
        self.model = config.server[name].concurrency.name if name in config.server else ""
        self.listeners = listeners
        self.still_listening: set[int] = set()  # workers told to retire that may still accept, by pid
        self.wanted = wanted
        self.one_process = one_process
        self.succeeds = False  # whether there are workers of this server that are to end first
        self.generation = generation
        self.restarts = 0
        self.lost = 0  # requests that were open in workers that died
        self.before = Counts()  # of workers that have ended
        self.failed: list[str] = []
        self.failed_status = 0
        self.cut_short = False  # whether a worker that was told to end did not end well
        self.workers: dict[int, WorkerProcess] = {}
        self._config = config
        self._problems = problems
        self._shared = shared
        self._kept = kept
        self.on_trial = True
        self.order: Message | None = None  # to all of them, to end
        self._patience = 0.0  # seconds that they have for that
        self._ending = False
        self._failures = 0  # to get ready, in a row
        self._starts: deque[float] = deque(maxlen=MOST_STARTS)
        self._waiting: Timer | None = None  # for the moment in which missing ones may be started
        self._to_retire: deque[WorkerProcess] = deque()

    # ---- what the supervisor sees

    @property
    def is_ready(self) -> bool:
        """Whether as many as are wanted can take clients."""
        return sum(worker.state == "ready" for worker in self.workers.values()) >= self.wanted

    def counts(self) -> Counts:
        """Return the sum over all workers there were and are."""
        total = Counts(self.before.cells())
        for worker in self.workers.values():
            if not worker.is_counted:
                total += worker.board.counts()
        return total

    # ---- what it does

    def start(self) -> None:
        """Start what is missing, now. On trial it raises what keeps it from that; later it tries again."""
        self._waiting = None
        while not self._ending and self._missing() > 0:
            try:
                self._start_one()
            except Exception as error:
                if self.on_trial:
                    raise
                complain(f"{self.name}: cannot start a worker", error)
                self._start_later(self._next_delay())
                return

    def go_on(self, config: Config, problems: Problems, generation: int) -> None:
        """Serve on by another configuration, in which nothing about these workers has changed."""
        self._config, self._problems, self.generation = config, problems, generation

    def adopt(self, worker: WorkerProcess) -> None:
        """Look after a worker that a predecessor of this program has started; see `start_respawning`."""
        self._ending, self.on_trial = True, False
        self.workers[worker.pid] = worker
        worker.ready_since = monotonic()
        worker.waits = self.one_process  # it may; and whoever does not, takes no notice
        self._shared.children.adopt(worker.pid, lambda status: self._ended(worker, status))
        self._attach(worker)
        if worker.state == "retiring":
            worker.order, worker.is_told = {}, True
            settings = self._config.srvkit
            self._kill_after(worker, settings.retire_timeout + settings.drain_timeout + CUT_TIME)

    def go_on_retiring(self, shared: Sequence[int]) -> None:
        """Know of adopted workers that all of them were told to retire."""
        self.order = self._order_to_retire(shared)
        self._ending, self._patience = True, self.order["seconds"] + self.order["timeout"]

    def is_made_of(self, makings: str) -> bool:
        """Tell whether every worker has said that it is made of this."""
        return all(one.makings == makings for one in self.workers.values() if one.order is None)

    def start_respawning(self, wanted: int | None = None) -> None:
        """Replace, from now on, whatever ends, so that there are as many as are wanted."""
        self.on_trial = self._ending = False
        if wanted is not None:
            self.wanted = wanted

    def want(self, count: int) -> None:
        """Have so many workers from now on."""
        self.wanted = count
        if self._missing() > 0:
            self.start()
        self._retire_surplus()

    def _retire_surplus(self) -> None:
        surplus = -self._missing()
        if surplus > 0:
            serving = [one for one in self.workers.values() if one.state in ("starting", "ready")]
            # Who takes the place of another one goes on: that one is to go.
            for worker in [one for one in serving if one.replaces is None][-surplus:]:
                self._retire(worker)

    def retire(self, shared: Sequence[int]) -> None:
        """Let all serve what they have to its end; others serve the listeners in `shared` from now on."""
        self.still_listening = {worker.pid for worker in self.listening()}
        order = self._order_to_retire(shared)
        self._end(order, order["seconds"] + order["timeout"])

    def _order_to_retire(self, shared: Sequence[int], at_once: bool = False) -> Message:
        """Return what a worker is told that is replaced; `at_once` it finishes what it has and no more."""
        settings = self._config.srvkit
        # With `run --reload` somebody waits to see the new code; a single process is not to be two for long.
        at_once = at_once or self.one_process or self._shared.tells_files
        return {
            "do": "retire",
            "seconds": 0.0 if at_once else settings.retire_timeout,
            "timeout": settings.drain_timeout,
            "shared": list(shared),
        }

    def stop(self, timeout: float) -> None:
        """Let all take what waits in the queues, finish, and end."""
        self._end({"do": "stop", "timeout": timeout}, timeout)

    def cut(self) -> None:
        """End everything that is open, and the workers."""
        self._end({"do": "cut"}, 0)

    def _end(self, message: Message, timeout: float) -> None:
        self._ending, self.order, self._patience = True, message, timeout
        self._forget_certificates()
        self._to_retire.clear()
        if self._waiting is not None:
            self._waiting.cancel()
        for worker in list(self.workers.values()):
            attempt(
                f"{self.name}: ending worker {worker.pid}",
                partial(self._tell_to_end, worker, message, timeout),
            )

    @property
    def is_retiring(self) -> bool:
        """Whether they serve what they have to its end, and were not told to make haste."""
        return self.order is not None and self.order["do"] == "retire"

    @property
    def waiting(self) -> list[WorkerProcess]:
        """The workers that wait for others to end, of which none is left here."""
        return [
            worker
            for worker in self.workers.values()
            if worker.waits and worker.state == "ready" and len(self.workers) == 1
        ]

    def let_begin(self) -> None:
        """Have those serve that have waited."""
        self.succeeds = False
        for worker in self.waiting:
            worker.channel.send({"do": "begin"})
            worker.waits = False

    def close_in_child(self, keep: Collection[object] = ()) -> None:
        """Close, in a child, what the supervisor has of them."""
        for worker in self.workers.values():
            worker.close()
        if not any(self._kept is one for one in keep):
            self._forget_certificates()

    def _forget_certificates(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _tell_to_end(self, worker: WorkerProcess, message: Message, timeout: float) -> None:
        if worker.state == "gone" or (worker.order is not None and worker.order.get("do") == "cut"):
            return
        worker.order, worker.patience, worker.is_told = message, timeout, False
        self._kill_after(worker, timeout + CUT_TIME)  # first: it ends, whatever it can be told
        if worker.state == "starting":
            self._shared.children.signal(worker.pid, signal.SIGTERM)
        elif worker.state != "hung":
            worker.state = "retiring"
            if not worker.channel.send(message):  # a process that nobody can tell to end has no hour for it
                self._kill_after(worker, min(timeout, self._config.srvkit.drain_timeout) + CUT_TIME)
        worker.is_told = True

    def settle(self) -> None:
        """Bring about what is wanted, where something has raised on the way to it."""
        for worker in list(self.workers.values()):
            if worker.order is not None:
                if not worker.is_told:
                    self._tell_to_end(worker, worker.order, worker.patience)
            elif self.order is not None:
                self._tell_to_end(worker, self.order, self._patience)
        if not self._ending and not self.on_trial:
            if self._waiting is None:
                self.start()
            self._retire_surplus()

    def broadcast(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message to all that listen."""
        for worker in self.listening():
            attempt(
                f"{self.name}: telling worker {worker.pid}",
                partial(worker.channel.send, message, descriptors),
            )

    def listening(self) -> list[WorkerProcess]:
        """Return the workers that read their channel."""
        return [worker for worker in self.workers.values() if worker.is_listening]

    def look(self, now: float, timeout: float) -> float:
        """End workers without a heartbeat for `timeout` seconds; return when to look again."""
        again = now + timeout
        for worker in list(self.workers.values()):
            if worker.state == "gone":  # when it ended, there was no memory to see to it
                attempt(f"{self.name}: the end of worker {worker.pid}", partial(self._clear_away, worker))
                continue
            if now > worker.overdue:
                self._kill(worker)  # again; or the first time, where there was no memory for a timer
            if worker.is_listening:
                due: float = max(worker.board.last_beat, worker.ready_since) + timeout
                if due <= now:
                    self._abort(worker, f"no heartbeat for {timeout:g} seconds")
                else:
                    again = min(again, due)
        return again

    # ---- births

    def _missing(self) -> int:
        """Count how many are to be started: replacements of those that are to retire besides."""
        coming = sum(worker.state in ("starting", "ready") for worker in self.workers.values())
        return self.wanted + bool(self._to_retire) - coming

    def _start_one(self) -> None:
        shared = self._shared
        replaces = self._to_retire[0] if self._to_retire else None
        with ExitStack() as handed, ExitStack() as kept:
            ours, theirs = open_channel()
            kept.callback(ours.close)
            handed.callback(theirs.close)
            handed_fd, kept_fds = [-1], [-1, -1]
            # What closes them comes first: once they are open, there may be no memory for it.
            handed.callback(_close_opened, handed_fd)
            kept.callback(_close_opened, kept_fds)
            handed_fd[0], kept_fds[0] = os.pipe()
            kept_fds[1] = unnamed_file("stacks")
            board = Board()
            kept.callback(board.close)
            (lifeline,), (other_end, stacks) = handed_fd, kept_fds
            worker = WorkerProcess(0, ours, other_end, board, stacks, time.time(), replaces)
            worker.log_turn = shared.log.turn
            worker.waits = self.one_process and (self.succeeds or replaces is not None)
            kept.pop_all()  # the worker closes them from now on
            try:
                worker.pid = shared.children.fork(
                    partial(self._be_a_worker, worker, theirs, lifeline),
                    lambda status: self._ended(worker, status),
                    (*self.listeners, self._kept),
                )
            except BaseException:
                worker.close()
                raise
        try:
            self.workers[worker.pid] = worker
            self._starts.append(monotonic())
            self._attach(worker)
            timeout = self._config.srvkit.ready_timeout
            worker.timer = shared.loop.call_later(timeout, lambda: self._too_late(worker))
        except BaseException:
            try:  # as it is: `children.signal` takes memory
                os.kill(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            raise
        log.debug("%s: worker %d starts", self.name, worker.pid)

    def _be_a_worker(self, worker: WorkerProcess, channel: Channel, lifeline: int) -> int:
        """Serve, in the process that was forked for it; return the exit status."""
        config, log_file = self._config, self._shared.log.file
        files = self._kept.read() if self._kept is not None else {}
        self._forget_certificates()
        worker.channel.close_in_child()
        close(worker.lifeline)
        setup.set_up(config.logging, log_file, server=self.name)
        return serve(
            WorkerSpec(
                self.name,
                config,
                self._problems,
                self.listeners,
                channel,
                lifeline,
                worker.board,
                worker.stacks,
                log_file,
                files,
                self.wanted > 1,
                self._shared.tells_files,
                worker.waits,
            )
        )

    def _attach(self, worker: WorkerProcess) -> None:
        def heard(message: Message, _: list[int]) -> None:
            attempt(f"{self.name}: a message of worker {worker.pid}", partial(self._heard, worker, message))

        worker.channel.attach(self._shared.loop, heard, lambda: None, descriptors=False)

    def _too_late(self, worker: WorkerProcess) -> None:
        if worker.state == "starting":
            worker.errors = [f"{self.name}: not ready within ready_timeout"]
            self._abort(worker, "it did not get ready within ready_timeout")

    def _start_later(self, delay: float) -> None:
        if self._waiting is None and not self._ending:
            self._waiting = self._shared.loop.call_later(delay, self.start)

    def _next_delay(self) -> float:
        """Return how long to wait before the next try after one that failed."""
        delay: float = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self._failures, 10))
        self._failures += 1
        return delay * random.uniform(0.9, 1.1)

    # ---- lives

    def _heard(self, worker: WorkerProcess, message: Message) -> None:
        event = message["event"]
        if event == "ready":
            worker.makings = message.get("makings", "")
            self._ready(worker, message["files"])
        elif event == "failed":
            worker.errors = message["errors"]
        elif event == "retire":
            if not self._ending and worker.state == "ready":
                log.info("%s: worker %d will be replaced: %s", self.name, worker.pid, message["why"])
                worker.is_urgent = message["why"] != "max_requests"
                self._to_retire.append(worker)
                self.start()
        elif event == "closed":
            self.still_listening.discard(worker.pid)
        elif event == "answer":
            worker.answers.append(message)

    def _ready(self, worker: WorkerProcess, files: list[str]) -> None:
        if worker.state != "starting":
            return
        if worker.timer is not None:
            worker.timer.cancel()
        if worker.order is not None:  # given while it was not ready to hear it
            worker.channel.send(worker.order)
            worker.state = "retiring"
            return
        worker.state, worker.ready_since = "ready", monotonic()
        if worker.log_turn != self._shared.log.turn:  # it was changed meanwhile
            worker.channel.send({"do": "log"}, [self._shared.log.file.fileno()])
        worker.files = files
        self._failures = 0
        log.debug("%s: worker %d is ready", self.name, worker.pid)
        if worker.replaces is not None:
            self._retire(worker.replaces)
            worker.replaces = None

    def _retire(self, worker: WorkerProcess) -> None:
        """Let others take over from one worker."""
        if worker in self._to_retire:
            self._to_retire.remove(worker)
        if worker.pid in self.workers and worker.order is None:
            order = self._order_to_retire([listener.number for listener in self.listeners], worker.is_urgent)
            self._tell_to_end(worker, order, order["seconds"] + order["timeout"])
            self._bound_retiring()
        if self._to_retire:
            self.start()

    def _bound_retiring(self) -> None:
        """Have the oldest of many that retire one by one finish what they have, as with generations."""
        settings = self._config.srvkit
        retiring = [one for one in self.workers.values() if (one.order or {}).get("do") == "retire"]
        for worker in retiring[: -settings.generations or None]:
            timeout = settings.drain_timeout
            self._tell_to_end(worker, {"do": "stop", "timeout": timeout}, timeout)

    # ---- deaths

    def _abort(self, worker: WorkerProcess, why: str) -> None:
        """Have its interpreter write every stack, and end it."""
        log.error("%s: worker %d killed: %s", self.name, worker.pid, why)
        worker.state = "hung"
        worker.overdue = monotonic() + 2 * LAST_WORDS  # first: whatever fails below, it is killed by then
        if ASK_FOR_STACKS is None:
            self._abort_now(worker)
        else:
            self._later(worker, LAST_WORDS, self._abort_now)
            self._shared.children.signal(worker.pid, ASK_FOR_STACKS)

    def _abort_now(self, worker: WorkerProcess) -> None:
        self._kill_after(worker, LAST_WORDS)
        self._shared.children.signal(worker.pid, signal.SIGABRT)

    def _kill_after(self, worker: WorkerProcess, seconds: float) -> None:
        worker.overdue = monotonic() + seconds
        self._later(worker, seconds, self._kill)

    def _later(self, worker: WorkerProcess, seconds: float, call: Callable[[WorkerProcess], None]) -> None:
        if worker.timer is not None:
            worker.timer.cancel()
        worker.timer = self._shared.loop.call_later(seconds, partial(call, worker))

    def _kill(self, worker: WorkerProcess) -> None:
        self._shared.children.signal(worker.pid, signal.SIGKILL)

    def _ended(self, worker: WorkerProcess, status: int) -> None:
        try:  # while it is still one of those whose word counts
            attempt(f"{self.name}: the end of worker {worker.pid}", worker.channel.read_the_rest)
        finally:
            worker.state, worker.status = "gone", status
        self._clear_away(worker)

    def _clear_away(self, worker: WorkerProcess) -> None:
        """See to all that the end of a worker asks for; `look` does again what raised."""
        if not worker.is_counted:
            attempt(f"{self.name}: the end of worker {worker.pid}", partial(self._take_stock, worker))
            worker.is_counted = True
        worker.close()
        self.still_listening.discard(worker.pid)
        if worker.timer is not None:
            worker.timer.cancel()
        if worker in self._to_retire:
            self._to_retire.remove(worker)
        status, was_ready = worker.status, bool(worker.ready_since)
        if worker.order is not None:
            if was_ready:  # else it had no clients
                self.cut_short = self.cut_short or status != 0
        elif self.on_trial:
            self.failed = worker.errors or [f"{self.name}: its worker {ending(status)} before it was ready"]
            self.failed_status = status if status in (2, 3) else 3
        else:
            self._start_later(self._delay(was_ready))
            self.restarts += 1
        self.workers.pop(worker.pid, None)

    def _take_stock(self, worker: WorkerProcess) -> None:
        if worker.status < 0:
            end_group(worker.pid)  # what it has forked
        counts = worker.board.counts()
        self.before += counts
        self.lost += counts.open
        self._report(worker)

    def _delay(self, was_ready: bool) -> float:
        if not was_ready:
            return self._next_delay()
        if len(self._starts) < MOST_STARTS:
            return 0.0
        earliest: float = self._starts[0] + 1.0
        return max(0.0, earliest - monotonic())

    def _log_stacks(self, worker: WorkerProcess, stacks: str) -> None:
        record = log.makeRecord(
            log.name,
            logging.ERROR,
            __file__,
            0,
            "%s: worker %d: its stacks when it ended",
            (self.name, worker.pid),
            None,
            sinfo=stacks,
        )
        log.handle(record)

    def _report(self, worker: WorkerProcess) -> None:
        status = worker.status
        stacks = worker.written_stacks()
        for line in worker.errors if not self.on_trial else ():  # else whoever tries it says so
            log.error("%s", line)
        if stacks:
            self._log_stacks(worker, stacks)
        level = logging.INFO
        if worker.order is None or status < 0:
            level = logging.ERROR
        elif status == 0:
            level = logging.DEBUG
        told_early = worker.order is not None and not worker.ready_since and status == -signal.SIGTERM
        if told_early or (self.on_trial and worker.errors):
            level = logging.DEBUG
        log.log(level, "%s: worker %d %s", self.name, worker.pid, ending(status))


def _close_opened(descriptors: list[int]) -> None:
    while descriptors:
        fd = descriptors.pop()
        if fd >= 0:
            close_one(fd)
