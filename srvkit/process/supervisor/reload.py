"""From one configuration to the next, as a transaction: read, tried out, bound, started, and then in force.

`Reload._text` is the whole of it, in order, from top to bottom. The first start is the same, with nothing
before it. What fails on the way leaves everything as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from time import monotonic

from srvkit.config.cpus import usable_cpus
from srvkit.config.makings import changed, summary
from srvkit.config.model import Config, Problems
from srvkit.errors import SrvkitError
from srvkit.net.listener import Listener
from srvkit.process import descriptor_limit as descriptors
from srvkit.process.channel import Message
from srvkit.process.supervisor.changes import ADDED, KEPT, REMOVED, REPLACED, told
from srvkit.process.supervisor.fault_barrier import attempt, complain, in_words
from srvkit.process.supervisor.generation import Generation
from srvkit.process.supervisor.parts import Parts
from srvkit.process.supervisor.socket_set import SocketSet
from srvkit.process.supervisor.trial import Refused, Trial
from srvkit.process.supervisor.worker_pool import WorkerPool
from srvkit.process.worker.worker import CANNOT_START, where

log = logging.getLogger("srvkit.process")

STOP_LISTENING_TIME = 2.0  # seconds for workers that retire to say that they take nothing new
# Descriptors that a change takes: memory that is mapped has one of its own, and so has the claim of a path.
FOR_A_WORKER, FOR_A_LISTENER, SPARE = 5, 2, 64

Read = Callable[[], tuple[Config, Problems]]
Reply = Callable[..., None]
IsDue = Callable[[], bool]


class Reload:
    """One transaction: `go_on()` takes the steps that are due, whenever something has happened.

    When it `is_over`, either its generation is in force, or `errors` says why not, and `status` how bad that
    is; whoever waits for it in `replies` was answered. Whatever raises in one of its steps is the end of it,
    and nothing else.
    """

    def __init__(
        self, parts: Parts, read: Read, replies: Sequence[Reply] = (), *, everything: bool = False
    ) -> None:
        """Make it; with `everything` no server keeps its workers."""
        self.is_over = False
        self.is_in_force = False
        self.errors: list[str] = []
        self.status = CANNOT_START
        self.result: Message | None = None  # for the status, once it is over
        self._parts = parts
        self._read = read
        self._replies = list(replies)
        self._everything = everything
        self._before = parts.generations.current
        self._began = monotonic()
        self._trial: Trial | None = None
        self._stage = ""  # what an error says that is not meant for people
        self._is_hurried = False
        self._steps = self._text()
        self._is_due: IsDue = _now
        self._is_done = False  # whether there is nothing left but to tell

    # ---- from top to bottom

    def _text(self) -> Generator[IsDue, None, None]:
        """Do all of it; what is yielded says when to go on."""
        parts, generations, before = self._parts, self._parts.generations, self._before
        loop = parts.shared.loop

        # Read the file.
        config, problems = self._read()

        # Try it out, in a child that nobody will miss: its plugins may hang or crash.
        self._stage = "the configuration cannot be tried out: "
        known = before.sockets.hosts() if before is not None else {}
        self._trial = trial = Trial(config, problems, known, parts.shared)
        yield trial.is_over
        self._stage = "the trial of the configuration: "
        answer = trial.answer()

        # Open the log and take the places that it wants, beside those there are.
        if before is None:
            parts.shared.log.begin(config)
        else:
            parts.shared.log.prepare(config)
            parts.places.prepare(config)
        for note in answer.notes:
            log.info("%s", note)

        # Bind what is new, beside what is old, and start the workers of what has changed.
        self._stage = "the new workers cannot be started: "
        descriptors.make_room(_descriptors_for(config))
        sockets = SocketSet(config, before.sockets if before is not None else None, answer.names)
        number = before.number + 1 if before is not None else 1
        generations.coming = made = Generation(number, config, sockets, answer)
        made.changes = self._compare(made)
        for name in config.server:
            self._have_workers(name, made, problems)
        for pool in made.started:
            pool.start()
        trial.close()
        yield partial(_is_ready, made)
        _refuse_if_failed(made)

        # There is no way back. What fails from here on is logged, and all the rest is done all the same.
        steps = self._steps_in_force(made, problems)
        generations.put_in_force()
        self.is_in_force = True
        for step in steps:
            attempt("putting a configuration in force", step)

        # Say so when whoever connects is sure to meet the new workers.
        deadline = monotonic() + STOP_LISTENING_TIME
        loop.call_later(STOP_LISTENING_TIME, _nothing)  # wakes up who looks
        yield lambda: self._is_hurried or not generations.still_listens or monotonic() >= deadline

    def _steps_in_force(self, made: Generation, problems: Problems) -> list[Callable[[], object]]:
        """Return what is done then, in order, made beforehand: there may be no memory for it later."""
        parts, before = self._parts, self._before
        kept = [pool for name, pool in made.workers.items() if made.keeps(name)]
        steps: list[Callable[[], object]] = [
            parts.generations.start_respawning,
            *(partial(pool.go_on, made.config, problems, made.number) for pool in kept),
            partial(parts.generations.retire_old, made),
        ]
        if before is not None:
            steps.append(partial(self._change_log, made.config))
        steps.append(partial(_close_unused, made.sockets))
        if parts.watch is not None:
            steps.append(partial(self._watch_over, made))
        if before is not None:
            steps.append(parts.places.change)
        steps += [
            partial(parts.places.follow, made.config),
            partial(self._tell_addresses, made),
            partial(parts.health.look_in, made.config.srvkit.heartbeat_timeout),
            partial(parts.reminder.about, made.trial.terms, made.trial.noted),
        ]
        return steps

    # ---- what drives it

    def go_on(self) -> None:
        """Take the steps that are due. Raises what keeps it from telling the end; call it again then."""
        while not self._is_done:
            try:
                if not self._is_due():
                    return
                self._is_due = next(self._steps)
            except StopIteration:
                self._is_done = True
            except Exception as error:
                self._break_off(error)
        if not self.is_over:
            self._conclude()
            self.is_over = True
            self._steps.close()  # it and this would keep each other, and all there was before
            self._is_due = _now

    def hurry(self) -> None:
        """Be over now if it is in force: something else is to begin."""
        if self.is_in_force:
            self._is_hurried = True
            self.go_on()

    def give_up(self, why: str) -> None:
        """Break it off, unless it is in force."""
        self.hurry()
        if not self._is_done:
            self._break_off(Refused([why]))
        self.go_on()

    def _break_off(self, error: Exception) -> None:
        """Take down what has raised; in plain steps first, should there be no memory for more."""
        self._is_done, self.errors = True, _OUT_OF_MEMORY
        if self.is_in_force:
            complain("telling of a reload", error)
        elif isinstance(error, SrvkitError):
            self.errors, self.status = str(error).splitlines(), error.exit_status
        else:
            if not isinstance(error, OSError | MemoryError):
                complain(self._stage.removesuffix(": ") or "the configuration cannot be read", error)
            self.errors = [f"{self._stage}{in_words(error)}"]

    def _conclude(self) -> None:
        """Leave no trace of what is not in force, and tell whoever waits."""
        parts = self._parts
        if self._trial is not None:
            self._trial.close()
        if self.is_in_force:
            self._announce()
            return
        parts.generations.give_up()
        parts.shared.log.forget_next()
        parts.places.forget_next()
        if self._before is not None:
            self._tell_failure()

    # ---- the new generation

    def _compare(self, made: Generation) -> dict[str, Message]:
        """Return what becomes of each server: kept, replaced with what has changed, added, removed."""
        before = self._before
        if before is None:
            return {}
        changes: dict[str, Message] = {}
        for name in made.config.server:
            if name not in before.workers:
                changes[name] = {"change": ADDED}
                continue
            pool, known, now = before.workers[name], before.makings(name), made.makings(name)
            keys = changed(known, now) if known is not None and now is not None else []
            is_same = (
                known is not None
                and known == now
                and pool.is_made_of(summary(known))
                and not self._everything
                and pool.order is None
                and _are_same(before.sockets.of[name], made.sockets.of[name])
            )
            changes[name] = {"change": KEPT} if is_same else {"change": REPLACED, "keys": keys}
        return changes | {name: {"change": REMOVED} for name in before.workers if name not in changes}

    def _have_workers(self, name: str, made: Generation, problems: Problems) -> None:
        """Have a server served by workers that there are, or by new ones, which are not started yet."""
        before = self._before.workers.get(name) if self._before is not None else None
        if before is not None and made.keeps(name):
            made.workers[name] = before
            return
        one_process, credentials = name in made.trial.one_process, made.trial.credentials
        made.workers[name] = pool = WorkerPool(
            name,
            made.config,
            problems,
            made.sockets.of[name],
            1 if one_process else made.config.server[name].workers or usable_cpus(),
            self._parts.shared,
            credentials.get(name),
            one_process=one_process,
            generation=made.number,
        )
        credentials.pop(name, None)  # it closes them
        pool.succeeds = before is not None

    # ---- what is done when it is in force

    def _change_log(self, config: Config) -> None:
        if self._parts.shared.log.change(config):
            self._parts.generations.pass_on_log()

    def _watch_over(self, made: Generation) -> None:
        if self._parts.watch is not None:
            workers = [worker for pool in made.workers.values() for worker in pool.workers.values()]
            self._parts.watch.over(made.config, {file for worker in workers for file in worker.files})

    def _tell_addresses(self, made: Generation) -> None:
        for name, pool in made.workers.items():
            is_first = self._before is None
            added = [one for one in pool.listeners if is_first or one in made.sockets.added]
            if added:
                count = f", {pool.wanted} workers" * (pool.wanted != 1)
                log.info("%s: listening on %s%s", name, ", ".join(map(where, added)), count)

    # ---- the end

    def _announce(self) -> None:
        made = self._parts.generations.current
        assert made is not None
        if self._before is not None:
            for line in told(made.changes):
                log.info("%s", line)
            log.info("reloaded: this is generation %d", made.number)
            self.result = {"at": time.time(), "ok": True, "errors": []}
        self._answer(
            {
                "ok": True,
                "generation": made.number,
                "seconds": round(monotonic() - self._began, 3),
                "servers": made.changes,
            }
        )
        self._parts.notifier.ready()
        self._parts.notifier.status(f"serving {', '.join(made.workers)}")

    def _tell_failure(self) -> None:
        self.result = {"at": time.time(), "ok": False, "errors": self.errors}
        for line in self.errors:
            log.error("%s", line)
        log.error("reload failed; still serving the previous configuration")
        self._answer({"ok": False, "errors": self.errors})
        self._parts.notifier.ready()

    def _answer(self, answer: Message) -> None:
        replies, self._replies = self._replies, []
        for reply in replies:
            attempt("answering a reload", partial(reply, answer))


_OUT_OF_MEMORY = ["MemoryError"]  # made beforehand


def _descriptors_for(config: Config) -> int:
    """Return how many descriptors the servers of a configuration may take in the supervisor."""
    return SPARE + sum(
        (settings.workers or usable_cpus()) * FOR_A_WORKER
        + len(settings.listen) * FOR_A_LISTENER
        + (settings.tls is not None)
        for settings in config.server.values()
    )


def _close_unused(sockets: SocketSet) -> None:
    for listener in sockets.take_over():
        listener.close()


def _are_same(before: list[Listener], now: list[Listener]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def _is_ready(made: Generation) -> bool:
    """Tell whether all new workers can take clients, or one of them never will."""
    return all(pool.is_ready for pool in made.started) or any(pool.failed for pool in made.started)


def _refuse_if_failed(made: Generation) -> None:
    failed = [pool for pool in made.started if pool.failed]
    if failed:
        raise Refused(
            [line for pool in failed for line in pool.failed], max(pool.failed_status for pool in failed)
        )


def _now() -> bool:
    return True


def _nothing() -> None:
    pass
