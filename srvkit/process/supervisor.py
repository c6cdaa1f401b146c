"""The process manager: owns the sockets, keeps workers serving, and does what operators ask.

It is kept small and pristine, for whatever breaks here breaks everything: one thread, no plugin, no event
loop but `EventLoop`, and nothing that waits. What a change of configuration takes is `reload`'s business,
what becomes of single workers that of `workers`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Literal

from srvkit.config.model import Config, Problems, SrvkitSettings
from srvkit.config.problems import Source
from srvkit.errors import SrvkitError
from srvkit.net.event_loop import Timer
from srvkit.net.listener import Listener
from srvkit.process import log_setup as logs
from srvkit.process import reexec as replacement
from srvkit.process import systemd
from srvkit.process.changes import told
from srvkit.process.channel import Message
from srvkit.process.child_reaper import ChildReaper
from srvkit.process.control_links import ControlLinks
from srvkit.process.control_server import ControlSocket
from srvkit.process.expiry import ExpiryReminder
from srvkit.process.fault_barrier import AGAIN, GuardedLoop, attempt, complain, in_words, report
from srvkit.process.log_file import LogFile
from srvkit.process.next_paths import NextPaths
from srvkit.process.reload import Change, Generation
from srvkit.process.reloader import Watch
from srvkit.process.runtime_paths import Lock, PidFile, PlaceError, control_path
from srvkit.process.signals import HANDLED, IGNORED, Signals
from srvkit.process.socket_set import SocketSet
from srvkit.process.status import Questions, report_of
from srvkit.process.systemd import Notifier
from srvkit.process.takeover import Takeover
from srvkit.process.worker import CLEAN, FORCED, where
from srvkit.process.worker_main import BEATS
from srvkit.process.worker_pool import CUT_TIME, Surroundings, WorkerPool

log = logging.getLogger("srvkit.process")

ANSWER_TIME = 1.0  # seconds for workers to say which connections they have
STOP_LISTENING_TIME = 1.0  # seconds for workers that retire to say that they take nothing new
LATE = 1.0  # seconds by which a timer may be late before this process was stopped, or its machine

Read = Callable[[], tuple[Config, Problems]]
Reply = Callable[..., None]


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
        self._takeover = takeover
        self._check_words = list(check)
        self._upgrade: Literal["", "wanted", "checking", "due"] = ""  # how far the next program has come
        self._check: replacement.Check | None = None  # of it
        self._read = read
        self._notifier = notifier
        self._signals = Signals(*HANDLED, ignored=IGNORED)
        self._loop = GuardedLoop()
        self._children = ChildReaper()
        self._loop.recover = self._recover
        self._watch = Watch(self._loop, self._files_changed) if watch else None
        self._began = time.time()
        self._generation: Generation | None = None
        self._old: list[WorkerPool] = []  # that finish what they have
        self._change: Change | None = None
        self._announcement: Callable[[], None] | None = None
        self._next_log: LogFile | None = None  # that a change would bring
        self._next_places: NextPaths | None = None  # the same
        self._again = False  # whether a reload was asked for while one was going on
        self._everything = False  # whether that one is to replace all workers
        self._replies: list[Reply] = []  # of those who wait for the reload
        self._later_replies: list[Reply] = []  # of those who wait for the one after it
        self._last_reload: Message | None = None
        self._stopping = False
        self._cutting = False
        self._status = CLEAN
        self._not_started: NotStarted | None = None
        self._look_timer: Timer | None = None
        self._look_planned = 0.0
        self._questions = Questions(self._loop)
        self._reminder = ExpiryReminder(self._loop)
        self._control: ControlSocket | None = None
        self._plates: ControlLinks | None = None
        self._lock: Lock | None = None
        self._gone: set[str] = set()  # what was said of files that are gone
        self._pid_file: PidFile | None = None

    def run(self) -> int:
        """Serve until told to stop; return the exit status. In the main thread.

        Raises ConfigError and the like where the first configuration cannot be put in force.
        """
        table = self._takeover.table()
        refused: list[str] = []
        try:
            config, problems = self._read()
            # What is refused must not leave a log behind; who goes on has one already.
            self._log_file = logs.open_log(config if table is not None else None)
        except Exception as error:
            if table is None:
                raise
            # It was valid a moment ago; running workers still use it.
            config, problems = Config(SrvkitSettings(), {}), Problems(Source())
            refused = _lines_of(error)
            self._log_file = logs.open_again(table["log"])
        logs.set_up(config.logging, self._log_file)
        self._around = Surroundings(
            self._loop,
            self._children,
            self._log_file,
            self._leave,
            self._found_good,
            self._changed,
            self._questions.answered,
            self._watch is not None,
        )
        # What there is by now stays. No worker's garbage collector is to touch it, and so copy 4 MB of pages.
        gc.freeze()
        with self._signals as signals, self._loop as loop:
            loop.watch(signals.fileno(), lambda: signals.hand_out(self._signalled))
            self._notifier.feed_watchdog(loop)
            try:
                if table is None:
                    self._claim(config)
                else:
                    self._take_over(table, config)
                    self._takeover.done()
                if refused:
                    self._reload_failed(refused)
                else:
                    self._begin_change(config, problems)
                while True:
                    try:
                        if self._is_over():
                            break
                        loop.wait()
                    except MemoryError:  # for the calls as such
                        continue
            finally:
                if not self._takeover.is_under_way:  # else there is another try
                    self._put_away()
        if self._not_started is not None:
            raise self._not_started
        for workers in self._all_workers():
            self._note_end(workers)
        return self._status

    def _claim(self, config: Config) -> None:
        settings = config.srvkit
        path = control_path(settings, config.path)
        if path is not None and config.path is not None:
            plates = ControlLinks(path)
            plates.refuse_another(config.path)
            self._lock = Lock.take(path)
            try:
                self._control = ControlSocket(path, self._loop, self._answer)
            except PlaceError as error:
                log.warning("srvkit status and the like will not work: %s", error)
            else:
                self._plates = plates
        if settings.pid_file:
            self._pid_file = PidFile.write(settings.pid_file, config.path or config.folder / "srvkit.toml")

    def _follow_names(self, config: Config) -> None:
        if self._plates is not None and config.path is not None:
            self._plates.follow(config.path)

    def _change_places(self) -> None:
        places, self._next_places = self._next_places, None
        if places is None:
            return
        if places.has_other_control and self._control is not None and self._plates is not None:
            self._control.move(*places.take_control())
            before, self._lock = self._lock, places.take_lock()
            if before is not None:
                before.remove()
            self._plates.move(self._control.path)
        if places.has_other_pid_file:
            file, self._pid_file = self._pid_file, places.take_pid_file()
            if file is not None:
                file.remove()

    def _renew_places(self) -> list[str]:
        """Make anew what somebody has removed, a cleaner of /tmp, say; return what cannot be."""
        folder = self._generation.config.folder if self._generation is not None else None
        gone = []
        for thing in (self._control, self._lock, self._pid_file):
            if thing is None:
                continue
            try:
                if folder is not None and folder.is_relative_to(thing.path.parent) and not folder.exists():
                    gone.append(f"{thing.path} is gone, and the folder of the configuration with it")
                elif thing.renew():
                    log.warning("%s: the file was removed; created it again", thing.path)
            except BlockingIOError as other:
                gone.append(f"{thing.path} belongs to another process by now: {other}")
            except (OSError, SrvkitError) as error:
                gone.append(f"{thing.path} is gone, and cannot be made anew: {in_words(error)}")
        return gone

    def _complain_of_places(self) -> None:
        for line in self._renew_places():
            log.warning("%s", line)

    def _look_at_files(self) -> None:
        gone = set(self._renew_places())
        for listener in self._generation.sockets if self._generation is not None else ():
            if listener.has_lost_its_file:
                gone.add(f"{listener.address}: its file is gone; a reload makes it anew")
        for line in sorted(gone - self._gone):
            log.warning("%s", line)
        self._gone = gone

    def _is_over(self) -> bool:
        return self._stopping and not self._children

    def _put_away(self) -> None:
        if self._generation is not None:
            self._generation.sockets.close()
        if self._plates is not None:
            self._plates.remove()
        if self._control is not None:
            attempt("closing the control socket", self._control.close)
        for file in (self._pid_file, self._lock):
            if file is not None:
                attempt(f"removing {file.path}", file.remove)
        self._notifier.close()

    def _leave(self, keep: Sequence[Listener]) -> None:
        """Close, in a child, what belongs to the supervisor and to other workers."""
        self._loop.close()  # first: what is closed next must not be taken out of the parent's epoll
        if self._next_log is not None:
            self._next_log.close()  # the one it gets comes by its channel
        if self._next_places is not None:
            self._next_places.close_in_child()
        kept = {id(listener) for listener in keep}
        for workers in self._all_workers():
            workers.close_in_child()
        for listener in self._all_listeners():
            if id(listener) not in kept:
                listener.close_in_child()
        for one in (self._control, self._pid_file, self._lock):
            if one is not None:
                one.close_in_child()
        self._notifier.close()

    def _all_workers(self) -> list[WorkerPool]:
        current = list(self._generation.workers.values()) if self._generation is not None else []
        coming = self._change.half_made if self._change is not None else []
        return [*current, *coming, *self._old]

    def _all_listeners(self) -> list[Listener]:
        found = list(self._generation.sockets) if self._generation is not None else []
        if self._change is not None:
            found += self._change.listeners
        return found

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
            self._reload()
        elif number == signal.SIGUSR1:
            self._reopen_log()
        elif number == signal.SIGUSR2:
            self._replace()
        elif number == signal.SIGTTIN:
            self._add_workers(times)
        elif number == signal.SIGTTOU:
            self._add_workers(-times)

    def _reopen_log(self) -> None:
        if self._log_file.reopen():
            self._pass_on_log()
            log.info("log reopened")

    def _pass_on_log(self) -> None:
        self._around.log_turn += 1
        for workers in self._all_workers():
            workers.broadcast({"do": "log"}, [self._log_file.fileno()])

    def _found_good(self, config: Config) -> None:
        """Open the log that a configuration wants, and have it where there is none yet.

        With the places it wants it is the same. Raises LogError, PlaceError, AlreadyRunning.
        """
        if self._generation is None:
            self._log_file.become(logs.open_log(config))
            logs.set_up(config.logging, self._log_file)
            return
        if not self._log_file.is_at(logs.path_of(config)):
            self._next_log = logs.open_log(config)
        self._next_places = NextPaths(config, self._control, self._pid_file)

    def _change_log(self, config: Config) -> None:
        next_log, self._next_log = self._next_log, None
        if next_log is not None:
            self._log_file.become(next_log)
            self._pass_on_log()
        logs.set_up(config.logging, self._log_file)

    def _forget_what_is_next(self) -> None:
        next_log, self._next_log = self._next_log, None
        if next_log is not None:
            next_log.close()
        places, self._next_places = self._next_places, None
        if places is not None:
            places.give_up()

    # ---- a new installation

    def _replace(self) -> None:
        """Let a new installation check the configuration, and then take the place of this one."""
        if not (self._stopping or self._upgrade or self._generation is None):
            self._upgrade = "wanted"
            self._go_on_with_upgrade()

    def _go_on_with_upgrade(self) -> None:
        """Take the next step to a new installation; may be called again, where there was no memory for it."""
        if self._upgrade == "wanted":
            self._begin_check()
        elif self._upgrade == "checking" and self._check is not None and self._check.is_over:
            self._upgrade = "due" if self._check.conclude() else ""
        if self._upgrade == "due" and self._change is None:
            self._execute()
            self._upgrade = ""

    def _begin_check(self) -> None:
        assert self._generation is not None
        log.info("USR2: the new installation checks the configuration")
        timeout = self._generation.config.srvkit.ready_timeout
        try:
            self._check = replacement.Check(
                self._check_words, self._around, timeout, self._go_on_with_upgrade
            )
        except Exception as error:
            report("the check cannot be run, so nothing is replaced", error)
            self._upgrade = ""
        else:
            self._upgrade = "checking"

    def _execute(self) -> None:
        if self._stopping or self._generation is None:
            return
        self._made_known()
        log.info("the new installation takes over")
        self._notifier.reloading()
        held = replacement.Held(
            self._began,
            self._generation,
            self._old,
            self._children,
            self._log_file.path,
            self._lock,
            self._pid_file,
            self._control,
            self._plates.made if self._plates is not None else [],
        )
        try:
            table, descriptors = replacement.table_of(held)
            with systemd.handed_over(self._notifier) as environ:
                replacement.execute(table, descriptors, environ, (*HANDLED, *IGNORED))
        except Exception as error:
            report("nothing is replaced", error)
        self._notifier.ready()

    def _take_over(self, table: Message, config: Config) -> None:
        """Go on where the program has ended whose place this one has taken."""
        self._began = table["began"]
        if table["lock"] is not None:
            self._lock = Lock(*replacement.path_and_descriptor(table["lock"]))
        if table["pid_file"] is not None:
            self._pid_file = PidFile(*replacement.path_and_descriptor(table["pid_file"]))
        if table["control"] is not None:
            path, fd = replacement.path_and_descriptor(table["control"])
            self._control = ControlSocket(path, self._loop, self._answer, fd=fd)
            self._plates = ControlLinks(path, map(Path, table.get("plates", ())))
        entries = [
            (*key, replacement.listener_of(entry, self._takeover.socket))
            for *key, entry in table["listeners"]
        ]
        sockets = SocketSet.inherited(entries)
        workers = {entry["name"]: self._adopted(entry, sockets, config) for entry in table["workers"]}
        self._old += [self._adopted(entry, sockets, config) for entry in table["old"]]
        for one in self._old:
            one.go_on_retiring([listener.number for listener in sockets])
        for name, one in workers.items():
            if name in config.server:  # until there are new ones, and for good where none come to be
                one.start_respawning(len(one.listening()))
        self._generation = Generation(table["generation"], config, sockets, workers=workers)
        for pid in table.get("children", ()):  # a check, say, that goes on or was just killed
            if pid not in self._children:
                self._children.adopt(pid, lambda _: None)
        self._look_after(config.srvkit.heartbeat_timeout)
        self._children.reap()  # those that ended meanwhile

    def _adopted(self, entry: Message, sockets: SocketSet, config: Config) -> WorkerPool:
        name = entry["name"]
        made = WorkerPool(name, config, Problems(Source()), sockets.of.get(name, []), 1, self._around)
        replacement.adopt_workers(entry, made, self._takeover.socket)
        return made

    def _add_workers(self, change: int) -> None:
        if self._generation is None or self._stopping:
            return
        for workers in self._generation.workers.values():
            if workers.one_process and change > 0:
                log.warning("%s: no worker is added: its handler's one_process asks for one", workers.name)
                continue
            wanted = max(1, workers.wanted + change)
            log.info("%s: now %d worker%s", workers.name, wanted, "s" * (wanted != 1))
            attempt(workers.name, partial(workers.want, wanted))

    # ---- stopping

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._made_known()
        self._notifier.stopping()
        if self._change is not None:
            attempt("giving up a change", partial(self._change.give_up, "srvkit stops"))
        if self._generation is None:
            return
        timeout = self._generation.config.srvkit.drain_timeout
        self._notifier.extend_timeout(timeout + CUT_TIME + 1)
        for workers in (*self._generation.workers.values(), *self._old):
            workers.stop(timeout)
        # The workers have copies, and take what waits there; when the last one closes its own, nobody
        # can connect any more.
        self._generation.sockets.close()

    def _cut(self) -> None:
        if not self._cutting:
            self._cutting = True
            for workers in self._all_workers():
                workers.cut()

    # ---- changing

    def _reload(self, reply: Reply | None = None, *, everything: bool = False) -> None:
        if self._stopping:
            if reply is not None:
                reply({"ok": False, "errors": ["srvkit is stopping"]})
            return
        if self._change is not None:
            # What is being tried may be older than what was asked for just now: once more, for all of them.
            self._again = True
            self._everything = self._everything or everything
            if reply is not None:
                self._later_replies.append(reply)
            return
        if reply is not None:
            self._replies.append(reply)
        try:
            log.info("reloading")
            self._notifier.reloading()
            attempt("looking at files", self._complain_of_places)
            self._begin_change(*self._read(), everything=everything)
        except Exception as error:
            if not isinstance(error, SrvkitError):
                complain("the configuration cannot be read", error)
            self._reload_failed(_lines_of(error))

    def _begin_change(self, config: Config, problems: Problems, *, everything: bool = False) -> None:
        self._made_known()
        self._change = Change(
            config, problems, self._generation, self._around, self._change_done, everything=everything
        )
        self._change.begin()

    def _changed(self) -> None:
        if self._change is not None:
            self._change.on_worker_change()
        if not any(workers.still_listening for workers in self._old):
            self._made_known()  # whoever connects from now on meets the new generation
        for workers in [one for one in self._old if not one.workers]:
            self._old.remove(workers)
            self._inherit(workers)
        if self._stopping and not self._children:
            self._loop.wake()

    def _inherit(self, workers: WorkerPool) -> None:
        """Add the counters of ended workers to their successors."""
        self._note_end(workers)
        heir = self._generation.workers.get(workers.name) if self._generation is not None else None
        if heir is not None:
            heir.before += workers.before
            heir.lost += workers.lost
            heir.restarts += workers.restarts

    def _note_end(self, workers: WorkerPool) -> None:
        if workers.cut_short:
            self._status = FORCED

    def _change_done(self, change: Change) -> None:
        # What takes memory comes first: until then nothing has happened, and `_recover` comes here again.
        before = self._generation if change.made is not None else None
        replaced = (
            [one for name, one in before.workers.items() if name not in change.made.kept]
            if before is not None and change.made is not None
            else []
        )
        old = [*self._old, *change.half_made, *replaced]
        failed = partial(self._change_failed, change)
        steps = self._steps_into_force(change, change.made, before) if change.made is not None else []
        self._change, self._old = None, old
        if change.made is None:
            attempt("the end of a change", failed)
        else:
            self._generation = change.made
            for step in steps:  # it is in force: what fails of the rest is no reason not to do all the others
                attempt("putting a configuration in force", step)
        attempt("a new installation", self._go_on_with_upgrade)
        again, self._again = self._again, False
        if again and not self._stopping:
            self._made_known()
            self._replies += self._later_replies
            self._later_replies.clear()
            everything, self._everything = self._everything, False
            self._reload(everything=everything)

    def _change_failed(self, change: Change) -> None:
        self._forget_what_is_next()
        if self._generation is None:
            if not self._stopping:
                self._not_started = NotStarted(change.errors, change.status)
            self._stopping = True
        else:
            self._reload_failed(change.errors)

    def _steps_into_force(
        self, change: Change, made: Generation, before: Generation | None
    ) -> list[Callable[[], object]]:
        announcement = partial(self._announce, made, change.began, before is not None)
        steps: list[Callable[[], object]] = [
            partial(setattr, self, "_announcement", announcement),
            partial(self._keep_up, made),
            *(
                partial(made.workers[name].go_on, made.config, change.problems, made.number)
                for name in made.kept
            ),
        ]
        if before is not None:
            steps.append(partial(self._retire, before, made))
            steps.append(partial(self._change_log, made.config))
        steps.append(partial(self._let_go, made))
        if self._watch is not None:
            steps.append(partial(self._watch_over, self._watch, made))
        if before is not None:
            steps.append(self._change_places)
        steps.append(partial(self._follow_names, made.config))
        steps.append(partial(self._tell_addresses, made, before is None))
        steps.append(partial(self._look_after, made.config.srvkit.heartbeat_timeout))
        steps.append(partial(self._reminder.about, made.terms, made.noted))
        steps += [self._changed, self._see_to_announcement]
        return steps

    def _keep_up(self, made: Generation) -> None:
        for workers in made.workers.values():
            if workers.on_trial:
                workers.start_respawning()

    def _recover(self) -> None:
        """Do again what may have been lost where something has raised: nobody else will."""
        self._children.reap()  # the signal of a child's end may be what was lost
        attempt("a new installation", self._go_on_with_upgrade)
        if self._control is not None:
            self._control.close_broken()
        if self._change is not None and self._change.is_over:
            self._change_done(self._change)
        self._settle()

    def _settle(self) -> None:
        """Bring about what is wanted of workers, where something has raised on the way to it."""
        generation = self._generation
        if generation is None:
            return
        if not self._stopping:
            self._keep_up(generation)
        for workers in (*generation.workers.values(), *self._old):
            step = workers.settle
            if workers in self._old and workers.order is None:  # nobody has told them yet
                shared = [listener.number for listener in generation.sockets]
                step = workers.cut if workers.on_trial else partial(workers.retire, shared)
            attempt(workers.name, step)

    def _retire(self, before: Generation, made: Generation) -> None:
        shared = [listener.number for listener in made.sockets]
        for name, workers in before.workers.items():
            if name not in made.kept:
                workers.retire(shared)
        # Each generation has its workers; more than so many, and the oldest ones finish what they have.
        numbers = sorted({workers.generation for workers in self._old if workers.workers})
        drained = numbers[: -made.config.srvkit.generations or None]
        for workers in self._old:
            if workers.generation in drained and (workers.order or {}).get("do") == "retire":
                workers.stop(made.config.srvkit.drain_timeout)

    def _let_go(self, made: Generation) -> None:
        for listener in made.sockets.take_over():
            listener.close()

    def _watch_over(self, watch: Watch, made: Generation) -> None:
        workers_of = [worker for one in made.workers.values() for worker in one.workers.values()]
        watch.over(made.config, {file for worker in workers_of for file in worker.files})

    def _tell_addresses(self, made: Generation, is_first: bool) -> None:
        for name, workers in made.workers.items():
            added = [listener for listener in workers.listeners if is_first or listener in made.sockets.added]
            if added:
                count = f", {workers.wanted} workers" * (workers.wanted != 1)
                log.info("%s: listening on %s%s", name, ", ".join(map(where, added)), count)

    def _announce(self, made: Generation, began: float, is_reload: bool) -> None:
        if is_reload:
            for line in told(made.changes):
                log.info("%s", line)
            log.info("reloaded: this is generation %d", made.number)
            self._last_reload = {"at": time.time(), "ok": True, "errors": []}
        self._answer_reload(
            {
                "ok": True,
                "generation": made.number,
                "seconds": round(monotonic() - began, 3),
                "servers": made.changes,
            }
        )
        self._notifier.ready()
        self._notifier.status(f"serving {', '.join(made.workers)}")

    def _see_to_announcement(self) -> None:
        if self._announcement is not None:
            self._loop.call_later(STOP_LISTENING_TIME, self._made_known)

    def _made_known(self) -> None:
        """Say that a generation is in force, if that has not been said yet."""
        announcement = self._announcement
        if announcement is not None:
            announcement()  # what it raises is no reason not to say so later
            self._announcement = None

    def _files_changed(self, names: list[str]) -> None:
        log.info("changed: %s", ", ".join(names))
        self._reload()

    def _reload_failed(self, errors: list[str]) -> None:
        try:
            self._tell_failure(errors)
        except MemoryError:  # who waits for the answer gets it as soon as there is memory for it
            self._loop.call_later(AGAIN, partial(self._tell_failure, errors))

    def _tell_failure(self, errors: list[str]) -> None:
        self._last_reload = {"at": time.time(), "ok": False, "errors": errors}
        for line in errors:
            log.error("%s", line)
        log.error("reload failed; still serving the previous configuration")
        self._answer_reload({"ok": False, "errors": errors})
        self._notifier.ready()

    def _answer_reload(self, answer: Message) -> None:
        replies, self._replies = self._replies, []
        for reply in replies:
            attempt("answering a reload", partial(reply, answer))

    # ---- heartbeats

    def _look_after(self, seconds: float) -> None:
        """Look at the workers' beats in so many seconds."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_planned = monotonic() + seconds
        self._look_timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        assert self._generation is not None
        self._children.reap()  # should a signal have been lost for want of memory
        timeout = self._generation.config.srvkit.heartbeat_timeout
        attempt("looking at files", self._look_at_files)
        self._settle()
        now = monotonic()
        if now > self._look_planned + LATE:
            # This process was stopped, and perhaps all of them were: let them come round first.
            self._look_after(timeout / BEATS + LATE)
            return
        again = min((workers.look(now, timeout) for workers in self._all_workers()), default=now + timeout)
        self._look_after(max(0.01, again - now))

    # ---- the control socket

    def _answer(self, request: Message, reply: Reply) -> None:
        do = request.get("do")
        if do == "status":
            reply(self._report())
        elif do == "reload":
            self._reload(reply, everything=request.get("all") is True)
        elif do == "stop":
            log.info("told to stop")
            reply({"ok": True}, keep=True)
            self._stop()
        elif do == "connections":
            self._questions.ask_all({"do": "connections"}, self._all_workers(), reply)
        elif do == "kill":
            self._questions.kill(str(request.get("id", "")), self._all_workers(), reply)
        else:
            reply({"error": f"unknown request {do!r}"})

    def _report(self) -> Message:
        state = "stopping" if self._stopping else "reloading" if self._change is not None else "running"
        generation = self._generation
        return {
            "pid": os.getpid(),
            "version": _version(),
            "config": str(generation.config.path) if generation and generation.config.path else None,
            "since": self._began,
            "state": "starting" if generation is None else state,
            "generation": generation.number if generation is not None else 0,
            "last_reload": self._last_reload,
            "servers": self._servers(),
        }

    def _servers(self) -> list[Message]:
        """Return the status of each server, and of removed ones as long as they have connections."""
        current = self._generation.workers if self._generation is not None else {}
        old: dict[str, list[WorkerPool]] = {}
        for one in self._old:
            old.setdefault(one.name, []).append(one)
        reports = [report_of(workers, old.pop(name, [])) for name, workers in current.items()]
        for first, *others in old.values():
            reports.append({**report_of(first, others), "wanted": 0, "removed": True})
        return reports


def _lines_of(error: Exception) -> list[str]:
    return str(error).splitlines() if isinstance(error, SrvkitError) else [in_words(error)]


def _version() -> str:
    with suppress(PackageNotFoundError, OSError):
        return _installed_version()
    return ""


@cache  # it is read from files, which may be another version's by and by
def _installed_version() -> str:
    return version("srvkit")
