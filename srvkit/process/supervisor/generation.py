"""The configuration in force, with its sockets and workers, and what there is of earlier and coming ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

from srvkit.config.makings import Makings
from srvkit.config.model import Config
from srvkit.net.listener import Listener
from srvkit.process.channel import Message
from srvkit.process.supervisor.changes import KEPT
from srvkit.process.supervisor.fault_barrier import attempt
from srvkit.process.supervisor.shared import Shared
from srvkit.process.supervisor.socket_set import SocketSet
from srvkit.process.supervisor.trial import Answer
from srvkit.process.supervisor.worker_pool import WorkerPool


@dataclass
class Generation:
    """A configuration: its sockets, and the workers of its servers."""

    number: int
    config: Config
    sockets: SocketSet
    trial: Answer = field(default_factory=Answer)  # what was found out about it
    workers: dict[str, WorkerPool] = field(default_factory=dict)  # by server
    changes: dict[str, Message] = field(default_factory=dict)  # what became of each server

    def keeps(self, name: str) -> bool:
        """Tell whether a server goes on with the workers it had."""
        return name in self.changes and self.changes[name]["change"] == KEPT

    def makings(self, name: str) -> Makings | None:
        """Return what a server is made of, where that is known."""
        return self.trial.makings.get(name)

    @property
    def started(self) -> list[WorkerPool]:
        """The workers that were started for it."""
        return [pool for name, pool in self.workers.items() if not self.keeps(name)]


class Generations:
    """The one in force, the one that a reload is about to make, and workers of earlier ones.

    Those finish what they have, and their counters go to their successors when they have ended.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.current: Generation | None = None
        self.coming: Generation | None = None
        self.old: list[WorkerPool] = []
        self.is_stopping = False
        self.cut_short = False  # whether a worker that was told to end did not end well

    def pools(self) -> Iterator[WorkerPool]:
        """Return all workers there are, server by server."""
        if self.current is not None:
            yield from self.current.workers.values()
        if self.coming is not None:
            yield from self.coming.started
        yield from self.old

    def listeners(self) -> Iterator[Listener]:
        """Return all listening sockets there are."""
        if self.current is not None:
            yield from self.current.sockets
        if self.coming is not None:
            yield from self.coming.sockets.added

    def close_in_child(self, keep: Collection[object] = ()) -> None:
        """Close, in a child, what belongs to the supervisor and to other workers."""
        for pool in self.pools():
            pool.close_in_child(keep)
        for listener in self.listeners():
            if not any(listener is one for one in keep):
                listener.close_in_child()

    # ---- from one to the next

    def put_in_force(self) -> None:
        """Let the one that is coming be the current one. Raises MemoryError with nothing changed."""
        before, made = self.current, self.coming
        assert made is not None
        replaced = before.workers.items() if before is not None else ()
        old = [*self.old, *(pool for name, pool in replaced if not made.keeps(name))]
        self.current, self.coming, self.old = made, None, old

    def give_up(self) -> None:
        """End what there is of the one that is coming. May be called again, where that has raised."""
        failed = self.coming
        if failed is not None:
            old = [*self.old, *failed.started]
            self.old, self.coming = old, None
            for pool in failed.started:
                attempt(f"{pool.name}: ending its new workers", pool.cut)
            attempt("closing new sockets", failed.sockets.give_up)

    def retire_old(self, made: Generation) -> None:
        """Have workers that were replaced by those of `made` finish what they have."""
        shared = [listener.number for listener in made.sockets]
        for pool in self.old:
            if pool.order is None:
                pool.retire(shared)
        # Each generation has its workers; more than so many, and the oldest ones finish what they have.
        settings = made.config.srvkit
        numbers = sorted({pool.generation for pool in self.old if pool.workers})
        drained = numbers[: -settings.generations or None]
        for pool in self.old:
            if pool.generation in drained and pool.is_retiring:
                pool.stop(settings.drain_timeout)

    @property
    def still_listens(self) -> bool:
        """Whether a worker that was replaced may still accept a client."""
        return any(pool.still_listening for pool in self.old)

    # ---- what is due

    def go_on(self) -> None:
        """See to what is due when workers have got ready, or have ended."""
        if self.current is not None:
            for name, pool in self.current.workers.items():
                if pool.waiting and not any(one.workers for one in self.old if one.name == name):
                    pool.let_begin()
        for pool in [one for one in self.old if not one.workers]:
            self.old.remove(pool)
            self._inherit(pool)

    def _inherit(self, pool: WorkerPool) -> None:
        self.note_end(pool)
        heir = self.current.workers.get(pool.name) if self.current is not None else None
        if heir is not None:
            heir.before += pool.before
            heir.lost += pool.lost
            heir.restarts += pool.restarts

    def note_end(self, pool: WorkerPool) -> None:
        """Note how the workers of a server have ended."""
        self.cut_short = self.cut_short or pool.cut_short

    def start_respawning(self) -> None:
        """Replace, from now on, what ends of the current one."""
        for pool in self.current.workers.values() if self.current is not None else ():
            if pool.on_trial:
                pool.start_respawning()

    def settle(self) -> None:
        """Bring about what is wanted of workers, where something has raised on the way to it."""
        generation = self.current
        if generation is None:
            return
        if not self.is_stopping:
            self.start_respawning()
        for pool in (*generation.workers.values(), *self.old):
            step = pool.settle
            if pool in self.old and pool.order is None:  # nobody has told them yet
                shared = [listener.number for listener in generation.sockets]
                step = pool.cut if pool.on_trial else partial(pool.retire, shared)
            attempt(pool.name, step)

    def stop(self, timeout: float) -> None:
        """Let all workers take what waits in the queues, finish, and end."""
        self.is_stopping = True
        for pool in list(self.pools()):
            pool.stop(timeout)

    def cut(self) -> None:
        """End everything that is open, and the workers."""
        for pool in list(self.pools()):
            pool.cut()

    def pass_on_log(self) -> None:
        """Have all workers write to the log that there is now."""
        for pool in self.pools():
            pool.broadcast({"do": "log"}, [self._shared.log.file.fileno()])
