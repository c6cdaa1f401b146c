"""From one configuration to the next, as a transaction: tried out, bound, started, and only then in force.

The first start is the same, with nothing before it. What fails on the way leaves everything as it was.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from srvkit.config.cpus import usable_cpus
from srvkit.config.makings import Makings, changed, summary
from srvkit.config.model import Config, Problems
from srvkit.errors import SrvkitError
from srvkit.net.event_loop import Timer
from srvkit.net.listener import Listener
from srvkit.net.tls_context import Term
from srvkit.process import descriptor_limit as descriptors
from srvkit.process.changes import ADDED, KEPT, REMOVED, REPLACED
from srvkit.process.channel import Message, open_channel
from srvkit.process.child_reaper import end_group, ending
from srvkit.process.credential_store import CredentialStore, parts
from srvkit.process.fault_barrier import attempt, complain, in_words
from srvkit.process.socket_set import NO_NAMES, Names, SocketSet
from srvkit.process.worker import CANNOT_START
from srvkit.process.worker_main import try_out
from srvkit.process.worker_pool import Surroundings, WorkerPool

log = logging.getLogger("srvkit.process")

# Descriptors that a change takes: memory that is mapped has one of its own, and so has the claim of a path.
FOR_A_WORKER, FOR_A_LISTENER, SPARE = 5, 2, 64


@dataclass
class Generation:
    """A configuration in force: its sockets, and the workers of its servers."""

    number: int
    config: Config
    sockets: SocketSet
    terms: list[Term] = field(default_factory=list)  # of its certificates
    noted: float = 0.0  # when what was to be noted of them was, on the wall clock
    workers: dict[str, WorkerPool] = field(default_factory=dict)
    makings: dict[str, Makings] = field(default_factory=dict)  # what each server is made of
    changes: dict[str, Message] = field(default_factory=dict)  # what became of each server

    @property
    def kept(self) -> list[str]:
        """The names of servers that go on with the workers they had."""
        return [name for name, change in self.changes.items() if change["change"] == KEPT]


class Change:
    """One transaction; `done(self)` is called when it is over, one way or the other.

    Afterwards `made` is the new generation, or None, with `errors` saying why and `status` how bad it is.
    Whatever raises in one of its steps is the end of it, and nothing else.
    """

    def __init__(
        self,
        config: Config,
        problems: Problems,
        before: Generation | None,
        around: Surroundings,
        done: Callable[[Change], None],
        *,
        everything: bool = False,
    ) -> None:
        """Make it; with `everything` no server keeps its workers."""
        self.config = config
        self.made: Generation | None = None
        self.errors: list[str] = []
        self.status = 0
        self.began = monotonic()
        self.problems = problems
        self._before = before
        self._everything = everything
        self._around = around
        self._new: Generation | None = None
        self._kept: dict[str, CredentialStore] = {}  # certificates and keys, until workers have them
        self._child = 0
        self._timer: Timer | None = None
        self._over = False
        self._broken: Exception | None = None  # what a step has raised, and which
        self._broken_step = ""
        self._end = partial(done, self)  # made now: later there may be no memory for it
        self._names: Names = NO_NAMES
        self._doing = "starting a process"  # what the trial is at
        self._answer: Message | None = None

    def begin(self) -> None:
        """Try the configuration out, in a child that nobody will miss."""
        self._step("the configuration cannot be tried out", self._try_out)

    def give_up(self, why: str) -> None:
        """Break it off; nothing has changed."""
        self._fail([why])

    def on_worker_change(self) -> None:
        """Look at what has become of the new workers."""
        self._step("the new workers cannot be looked at", self._look)

    def _step(self, what: str, step: Callable[[], None]) -> None:
        if self._over:
            return
        try:
            step()
        except Exception as error:
            self._broken, self._broken_step = error, what
            self._break_off(error)

    def _break_off(self, error: Exception) -> None:
        if isinstance(error, SrvkitError):
            self._fail(str(error).splitlines(), error.exit_status)
            return
        if not isinstance(error, OSError | MemoryError):
            complain(self._broken_step, error)
        self._fail([f"{self._broken_step}: {in_words(error)}"])

    def _look_after(self) -> None:
        """See to it that there is an end, also where what should have ended it found no memory for that."""
        if self._broken is not None:
            self._break_off(self._broken)
        elif self._answer is None:
            self._fail([f"the configuration was not tried out within ready_timeout: still {self._doing}"])
        else:  # each new worker has its own time
            self._timer = self._around.loop.call_later(self.config.srvkit.ready_timeout, self._look_after)

    # ---- the trial

    def _try_out(self) -> None:
        self._timer = self._around.loop.call_later(self.config.srvkit.ready_timeout, self._look_after)
        known = self._before.sockets.hosts() if self._before is not None else {}
        ours, theirs = open_channel()

        def main() -> int:
            self._around.close_in_child(())
            ours.close()
            return try_out(self.config, self.problems, known, theirs)

        def ended(status: int) -> None:
            try:
                end_group(self._child)  # what a plugin has forked: nobody else would end it
                ours.read_the_rest()
            finally:
                ours.close()
                try:
                    self._step("the trial of the configuration", lambda: self._tried(status))
                finally:
                    for left_over in self._kept.values():
                        left_over.close()

        try:
            self._child = self._around.children.fork(main, ended)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.attach(self._around.loop, self._heard, lambda: None)

    def _heard(self, message: Message, descriptors: list[int]) -> None:
        if descriptors or message.get("certificates"):
            self._step("the certificates cannot be kept", lambda: self._keep(message, descriptors))
        if "doing" in message:
            self._doing = str(message["doing"])
        elif "names" in message:
            if self._names is NO_NAMES:  # what comes later is of a plugin, whose word does not count
                self._names = message["names"]
        elif self._answer is None:
            self._answer = message

    def _keep(self, message: Message, descriptors: list[int]) -> None:
        kept, self._kept = self._kept, parts(descriptors, message.get("certificates", {}))
        for one in kept.values():
            one.close()

    def _tried(self, status: int) -> None:
        answer = self._answer
        if answer is None:
            self._fail([f"the process that tried the configuration out {ending(status)}"])
        elif answer["errors"]:
            self._fail(answer["errors"], answer["status"])
        else:
            self._around.found_good(self.config)
            for note in answer["notes"]:
                log.info("%s", note)
            self._start(answer)

    # ---- the new workers

    def _start(self, answer: Message) -> None:
        before = self._before
        terms, one_process = [Term(**term) for term in answer["terms"]], answer["one_process"]
        descriptors.make_room(
            sum(
                (settings.workers or usable_cpus()) * FOR_A_WORKER
                + len(settings.listen) * FOR_A_LISTENER
                + (settings.tls is not None)
                for settings in self.config.server.values()
            )
            + SPARE
        )
        sockets = SocketSet(self.config, before.sockets if before is not None else None, self._names)
        number = before.number + 1 if before is not None else 1
        self._new = new = Generation(number, self.config, sockets, terms, answer["noted"])
        new.makings = answer["makings"]
        new.changes = self._compare(new)
        for name, settings in self.config.server.items():
            if before is not None and name in new.kept:
                new.workers[name] = before.workers[name]
                continue
            new.workers[name] = WorkerPool(
                name,
                self.config,
                self.problems,
                sockets.of[name],
                1 if name in one_process else settings.workers or usable_cpus(),
                self._around,
                self._kept.pop(name, None),
                one_process=name in one_process,
                generation=number,
            )
        for workers in self._new_workers():
            workers.start()
        self._look()  # there may be nobody to wait for

    def _compare(self, new: Generation) -> dict[str, Message]:
        """Return what becomes of each server: kept, replaced with what has changed, added, removed."""
        before = self._before
        if before is None:
            return {}
        changes: dict[str, Message] = {}
        for name in self.config.server:
            if name not in before.workers:
                changes[name] = {"change": ADDED}
                continue
            known = before.makings.get(name)
            now = new.makings.get(name)
            keys = changed(known, now) if known is not None and now is not None else []
            is_same = (
                known is not None
                and known == now
                and before.workers[name].is_made_of(summary(known))
                and not self._everything
                and before.workers[name].order is None
                and _are_same(before.sockets.of[name], new.sockets.of[name])
            )
            if is_same:
                changes[name] = {"change": KEPT}
            else:
                changes[name] = {"change": REPLACED, "keys": keys}
        return changes | {name: {"change": REMOVED} for name in before.workers if name not in changes}

    def _new_workers(self) -> list[WorkerPool]:
        """Return those that this change has started, as far as it has come."""
        new = self._new
        return [] if new is None else [one for name, one in new.workers.items() if name not in new.kept]

    def _look(self) -> None:
        if self._new is None:
            return
        failed = [one for one in self._new_workers() if one.failed]
        if failed:
            self._fail(
                [line for one in failed for line in one.failed], max(one.failed_status for one in failed)
            )
        elif all(one.is_ready for one in self._new_workers()):
            self._finish()
            self.made = self._new
            attempt("the new generation", self._end)

    # ---- the end

    def _fail(self, errors: list[str], status: int = CANNOT_START) -> None:
        if self._over:
            return
        self.errors, self.status = errors, status
        self._around.children.signal(self._child, signal.SIGKILL)
        if self._new is not None:
            for workers in self._new_workers():
                attempt(f"{workers.name}: ending its new workers", workers.cut)
            self._new.sockets.give_up()
        self._finish()
        attempt("the end of a change", self._end)

    def _finish(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end, be it known to who began it or not."""
        return self._over

    @property
    def listeners(self) -> list[Listener]:
        """Return the sockets that were added for what is not in force yet."""
        return self._new.sockets.added if self._new is not None and self.made is None else []

    @property
    def half_made(self) -> list[Any]:
        """Return the workers of a generation that is not, or never came to be, in force."""
        return self._new_workers() if self.made is None else []


def _are_same(before: list[Listener], now: list[Listener]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))
