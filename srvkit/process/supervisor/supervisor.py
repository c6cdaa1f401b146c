"""The process manager: owns the sockets, keeps workers serving, and does what operators ask.

It is kept small and pristine, for whatever breaks here breaks everything: one thread, no plugin, no event
loop but `EventLoop`, and nothing that waits.

Design: signals, messages of workers and ends of children only leave a note of what has happened. After each
turn of the loop `_go_on` takes the steps that are due by then, top down: the reload goes on where it waits,
then the upgrade, then what was asked for next. So nothing climbs back up from a worker, and a step that
has failed, for want of memory, say, is taken again in the next turn.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version

from srvkit.config.model import Config, Problems, SrvkitSettings
from srvkit.errors import SrvkitError
from srvkit.process.channel import Message
from srvkit.process.logging import setup
from srvkit.process.signals import HANDLED, IGNORED, Signals
from srvkit.process.supervisor import reexec
from srvkit.process.supervisor.child_reaper import ChildReaper
from srvkit.process.supervisor.expiry import ExpiryReminder
from srvkit.process.supervisor.fault_barrier import GuardedLoop, attempt
from srvkit.process.supervisor.generation import Generations
from srvkit.process.supervisor.health_check import HealthCheck
from srvkit.process.supervisor.parts import Parts
from srvkit.process.supervisor.places import Places
from srvkit.process.supervisor.reload import Read, Reload, Reply
from srvkit.process.supervisor.reloader import Watch
from srvkit.process.supervisor.service_log import ServiceLog
from srvkit.process.supervisor.shared import Shared
from srvkit.process.supervisor.status import Questions, report_of
from srvkit.process.supervisor.takeover import Table, Takeover
from srvkit.process.supervisor.upgrade import Upgrade
from srvkit.process.supervisor.worker_pool import CUT_TIME, WorkerPool
from srvkit.process.systemd import Notifier
from srvkit.process.worker.worker import CLEAN, FORCED

log = logging.getLogger("srvkit.process")

_STOPPING: Message = {"ok": False, "errors": ["srvkit is stopping"]}


class NotStarted(SrvkitError):
    """The first configuration could not be put in force; `exit_status` says whose fault it is."""

    def __init__(self, errors: Sequence[str], status: int) -> None:
        self.exit_status = status
        super().__init__("\n".join(errors))


class Supervisor:
    """Serves what `read` returns, and what it returns later, when a reload is asked for."""

    def __init__(
        self,
        read: Read,
        notifier: Notifier,
        check: Sequence[str] = ("--version",),
        *,
        takeover: Takeover,
        watch: bool = False,
    ) -> None:
        """Make it; `check` are the words of a command that says whether a new installation would start.

        `takeover` has what a supervisor has handed over whose place this one takes. With `watch`, a change
        of a file that the servers are made of is a reload, too.
        """
        self._read = read
        self._check = check
        self._takeover = takeover
        self._notifier = notifier
        self._signals = Signals(*HANDLED, ignored=IGNORED)
        self._loop = GuardedLoop()
        self._watch = Watch(self._loop, self._files_changed) if watch else None
        self._reload: Reload | None = None
        # A reload that was asked for while another goes on, by whom, and whether it replaces all workers.
        self._is_wanted = False
        self._replies: list[Reply] = []
        self._everything = False
        self._last_reload: Message | None = None
        self._stopping = False
        self._cutting = False
        self._failure: NotStarted | None = None

    def run(self) -> int:
        """Serve until told to stop; return the exit status. In the main thread.

        Raises ConfigError and the like where the first configuration cannot be put in force.
        """
        table = self._takeover.table()
        config, read = self._first_configuration(table)
        self._make_parts()
        # What there is by now stays. No worker's garbage collector is to touch it, and so copy 4 MB of pages.
        gc.freeze()
        loop = self._loop
        with self._signals as signals, loop:
            loop.watch(signals.fileno(), lambda: signals.hand_out(self._signalled))
            self._notifier.feed_watchdog(loop)
            try:
                if table is None:
                    self._places.claim(config)
                else:
                    reexec.adopt(self._parts, table, config, self._takeover.socket)
                    self._takeover.done()
                self._reload = Reload(self._parts, read)
                loop.after_turn, loop.recover = self._go_on, self._recover
                self._go_on()
                while True:
                    try:
                        if self._stopping and not self._children:
                            break
                        loop.wait()
                    except MemoryError:  # for the calls as such
                        continue
            finally:
                if not self._takeover.is_under_way:  # else there is another try
                    self._put_away()
        if self._failure is not None:
            raise self._failure
        for pool in self._generations.pools():
            self._generations.note_end(pool)
        return FORCED if self._generations.cut_short else CLEAN

    def _first_configuration(self, table: Table | None) -> tuple[Config, Read]:
        """Read the configuration and open its log; return it, and what the first reload reads."""
        try:
            config, problems = self._read()
            # What is refused must not leave a log behind; who goes on has one already.
            self._log_file = setup.open_log(config if table is not None else None)
            read: Read = lambda: (config, problems)  # noqa: E731
        except Exception as error:
            if table is None:
                raise
            # It was valid a moment ago; running workers still use it.
            config, read = Config(SrvkitSettings(), {}), partial(_raise, error)
            self._log_file = setup.open_again(table["log"])
        setup.set_up(config.logging, self._log_file)
        return config, read

    def _make_parts(self) -> None:
        loop = self._loop
        self._children = children = ChildReaper()
        shared = Shared(loop, children, ServiceLog(self._log_file), self._watch is not None)
        self._log = shared.log
        self._generations = generations = Generations(shared)
        self._places = places = Places(loop, self._answer)
        self._health = health = HealthCheck(shared, generations, places)
        reminder = ExpiryReminder(loop)
        self._parts = Parts(
            shared, generations, places, health, reminder, self._notifier, self._watch, time.time()
        )
        self._questions = Questions(loop)
        self._upgrade = Upgrade(self._parts, self._check)
        children.belongings = (loop, shared.log, places, generations, self._notifier)

    def _put_away(self) -> None:
        generation = self._generations.current
        if generation is not None:
            generation.sockets.close()
        self._places.put_away()
        self._notifier.close()

    # ---- what is due

    def _go_on(self) -> None:
        """Take the steps that are due by now; after each turn of the loop."""
        attempt("what has become of workers", self._generations.go_on)
        attempt("the answers of workers", self._gather_answers)
        attempt("the reload", self._go_on_with_reload)
        if not self._stopping:
            attempt("a new installation", partial(self._upgrade.go_on, is_free=self._reload is None))

    def _gather_answers(self) -> None:
        self._questions.gather(self._generations.pools())

    def _go_on_with_reload(self) -> None:
        if self._reload is not None:
            self._reload.go_on()
            self._end_reload()
        if self._is_wanted and self._reload is None and not self._stopping:
            self._begin_reload()

    def _end_reload(self) -> None:
        reload = self._reload
        if reload is None or not reload.is_over:
            return
        self._reload, self._last_reload = None, reload.result or self._last_reload
        if self._generations.current is None:
            if not self._stopping:
                self._failure = NotStarted(reload.errors, reload.status)
            self._stopping = True

    def _recover(self) -> None:
        """Do again what may have been lost where something has raised: nobody else will."""
        self._children.reap()  # the signal of a child's end may be what was lost
        self._places.close_broken()
        self._generations.settle()

    # ---- signals

    def _signalled(self, number: int, times: int) -> None:
        attempt(signal.Signals(number).name, partial(self._obey, number, times))

    def _obey(self, number: int, times: int) -> None:
        if number == signal.SIGCHLD:
            self._children.reap()
        elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            at_once = self._stopping or number == signal.SIGQUIT or times > 1
            log.info("%s: stopping%s", signal.Signals(number).name, " at once" * at_once)
            self._stop()
            if at_once:
                self._cut()
        elif number == signal.SIGHUP:
            self._ask_for_reload()
        elif number == signal.SIGUSR1:
            self._reopen_log()
        elif number == signal.SIGUSR2:
            self._upgrade.begin()
        elif number == signal.SIGTTIN:
            self._add_workers(times)
        elif number == signal.SIGTTOU:
            self._add_workers(-times)

    def _reopen_log(self) -> None:
        if self._log.reopen():
            self._generations.pass_on_log()
            log.info("log reopened")

    def _add_workers(self, change: int) -> None:
        generation = self._generations.current
        if generation is None or self._stopping:
            return
        for pool in generation.workers.values():
            if pool.one_process and change > 0:
                log.warning("%s: no worker is added: its handler's one_process asks for one", pool.name)
                continue
            wanted = max(1, pool.wanted + change)
            log.info("%s: now %d worker%s", pool.name, wanted, "s" * (wanted != 1))
            attempt(pool.name, partial(pool.want, wanted))

    # ---- stopping

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._reload is not None:
            attempt("giving up a reload", partial(self._reload.give_up, "srvkit stops"))
        self._notifier.stopping()
        replies, self._replies = self._replies, []
        for reply in replies:
            attempt("answering a reload", partial(reply, _STOPPING))
        generation = self._generations.current
        if generation is None:
            return
        timeout = generation.config.srvkit.drain_timeout
        self._notifier.extend_timeout(timeout + CUT_TIME + 1)
        self._generations.stop(timeout)
        # The workers have copies, and take what waits there; when the last one closes its own, nobody
        # can connect any more.
        generation.sockets.close()

    def _cut(self) -> None:
        if not self._cutting:
            self._cutting = True
            self._generations.cut()

    # ---- reloading

    def _files_changed(self, names: list[str]) -> None:
        log.info("changed: %s", ", ".join(names))
        self._ask_for_reload()

    def _ask_for_reload(self, reply: Reply | None = None, *, everything: bool = False) -> None:
        """Have a reload begin, when the one that goes on is over.

        What that one is trying may be older than what was asked for just now: once more, for all of them.
        """
        if self._stopping:
            if reply is not None:
                reply(_STOPPING)
            return
        if reply is not None:
            self._replies.append(reply)
        self._everything = self._everything or everything
        self._is_wanted = True
        if self._reload is not None:
            self._reload.hurry()

    def _begin_reload(self) -> None:
        log.info("reloading")
        self._notifier.reloading()
        attempt("looking at files", self._health.look_at_places)
        self._reload = Reload(self._parts, self._read, self._replies, everything=self._everything)
        self._is_wanted, self._everything, self._replies = False, False, []
        self._reload.go_on()
        self._end_reload()

    # ---- the control socket

    def _answer(self, request: Message, reply: Reply) -> None:
        do = request.get("do")
        if do == "status":
            reply(self._report())
        elif do == "reload":
            self._ask_for_reload(reply, everything=request.get("all") is True)
        elif do == "stop":
            log.info("told to stop")
            reply({"ok": True}, keep=True)
            self._stop()
        elif do == "connections":
            self._questions.ask_all({"do": "connections"}, list(self._generations.pools()), reply)
        elif do == "kill":
            self._questions.kill(str(request.get("id", "")), list(self._generations.pools()), reply)
        else:
            reply({"error": f"unknown request {do!r}"})

    def _report(self) -> Message:
        generation, reload = self._generations.current, self._reload
        is_reloading = self._is_wanted or (reload is not None and not reload.is_in_force)
        state = "stopping" if self._stopping else "reloading" if is_reloading else "running"
        return {
            "pid": os.getpid(),
            "version": _version(),
            "config": str(generation.config.path) if generation and generation.config.path else None,
            "since": self._parts.began,
            "state": "starting" if generation is None else state,
            "generation": generation.number if generation is not None else 0,
            "last_reload": self._last_reload,
            "servers": self._servers(),
        }

    def _servers(self) -> list[Message]:
        """Return the status of each server, and of removed ones as long as they have connections."""
        generation = self._generations.current
        old: dict[str, list[WorkerPool]] = {}
        for pool in self._generations.old:
            old.setdefault(pool.name, []).append(pool)
        current = generation.workers if generation is not None else {}
        reports = [report_of(pool, old.pop(name, [])) for name, pool in current.items()]
        for first, *others in old.values():
            reports.append({**report_of(first, others), "wanted": 0, "removed": True})
        return reports


def _raise(error: Exception) -> tuple[Config, Problems]:
    raise error


def _version() -> str:
    with suppress(PackageNotFoundError, OSError):
        return _installed_version()
    return ""


@cache  # it is read from files, which may be another version's by and by
def _installed_version() -> str:
    return version("srvkit")
