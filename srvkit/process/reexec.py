"""USR2: a new installation of srvkit takes the place of the supervisor, in the same process.

The number of the process stays, and so does everything that is open: sockets, lock, control socket, and
the channels to the workers, who notice nothing and serve until the new ones are ready. What the new
program must know of all that is a table in a file without a name, whose descriptor is in its environment.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from srvkit.errors import SrvkitError
from srvkit.net.address import parse
from srvkit.net.closing import close, close_one
from srvkit.net.event_loop import Timer
from srvkit.net.listener import Listener
from srvkit.process import command_line as origin
from srvkit.process.channel import Channel
from srvkit.process.child_reaper import ending
from srvkit.process.control_server import ControlSocket
from srvkit.process.memfd import contents, unnamed_file
from srvkit.process.reload import Generation
from srvkit.process.runtime_paths import Lock, PidFile
from srvkit.process.scoreboard import Board, Counts
from srvkit.process.signals import hold_back
from srvkit.process.takeover import VARIABLE, Table
from srvkit.process.worker import CANNOT_START
from srvkit.process.worker_pool import Surroundings, WorkerPool, WorkerProcess

log = logging.getLogger("srvkit.process")

MOST_OUTPUT = 65536  # bytes
ROOM = 16  # descriptors that a program takes to come to its loop

SocketOf = Callable[[int], socket.socket]  # makes the socket of a descriptor that was handed over


class NotReplaced(SrvkitError):
    """The new program cannot be executed."""


class Check:
    """A command of the new installation that says whether it would start; runs in a child.

    It is started as this program was, and as it will be when it takes over, and told to do what `words`
    say. `concluded()` is called when it has ended. Raises OSError where it cannot be started.
    """

    def __init__(
        self, words: list[str], around: Surroundings, timeout: float, concluded: Callable[[], None]
    ) -> None:
        self._words = words
        self._around = around
        self._concluded = concluded
        self._command = origin.command()
        self._timer: Timer | None = None
        self._status: int | None = None  # once it has ended
        self._output = unnamed_file("check")
        try:
            self._pid = around.children.fork(self._main, self._ended)
        except BaseException:
            close(self._output)
            raise
        try:
            self._timer = around.loop.call_later(
                timeout, lambda: around.children.signal(self._pid, signal.SIGKILL)
            )
        except BaseException:
            around.children.signal(self._pid, signal.SIGKILL)
            raise

    @property
    def is_over(self) -> bool:
        """Whether it has ended, be that known to who began it or not."""
        return self._status is not None

    def conclude(self) -> bool:
        """Log what it has printed if it failed; return whether the new installation would start.

        May be called again, where there was no memory for all of it.
        """
        lines: list[str] = []
        if self._status:
            with suppress(OSError):
                lines = contents(self._output, MOST_OUTPUT).splitlines()
            lines.append(f"the check {ending(self._status)}, so nothing is replaced")
        for line in lines:
            log.error("%s", line)
        close_one(self._output)
        return not self._status

    def _main(self) -> int:
        self._around.close_in_child(())
        os.dup2(self._output, 1)
        os.dup2(self._output, 2)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        command = self._command
        try:
            with origin.in_folder():
                os.execve(command[0], command, os.environ | origin.instead(self._words))
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode(errors="backslashreplace"))
        return CANNOT_START

    def _ended(self, status: int) -> None:
        self._status = status
        if self._timer is not None:
            self._timer.cancel()
        self._concluded()


def execute(table: Table, descriptors: list[int], environ: dict[str, str], signals: tuple[int, ...]) -> None:
    """Run this command once more in this process, and let it have the table and the descriptors.

    Does not return. Raises NotReplaced, with everything as it was.
    """
    memory = -1
    try:
        _see_that_there_is_room()
        memory = unnamed_file("replaces")
        _write_all(memory, json.dumps(table | {"format": origin.FORMAT}).encode())
        hold_back(*signals)  # the new program has no handlers yet
        with _inheritable([*descriptors, memory]), origin.in_folder():
            for file in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    file.flush()
            command = origin.command()
            os.execve(command[0], command, os.environ | environ | {VARIABLE: str(memory)})
    except OSError as error:
        raise NotReplaced(f"{sys.executable}: {error.strerror or error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        if memory >= 0:
            close(memory)


def _see_that_there_is_room() -> None:
    """Raise OSError where the new program would be short of descriptors when there is no way back."""
    taken: list[int] = []
    try:
        for _ in range(ROOM):
            taken.append(os.dup(0))
    finally:
        for fd in taken:
            close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def _inheritable(descriptors: list[int]) -> Iterator[None]:
    try:
        for fd in descriptors:
            os.set_inheritable(fd, True)
        yield
    finally:
        for fd in descriptors:
            os.set_inheritable(fd, False)


@dataclass
class Held:
    """What a supervisor holds on to, and hands over."""

    began: float
    generation: Generation
    old: list[WorkerPool]
    children: Iterable[int]  # by their numbers, those that are no workers included
    log: Path | None
    lock: Lock | None
    pid_file: PidFile | None
    control: ControlSocket | None
    plates: list[Path]


def table_of(held: Held) -> tuple[Table, list[int]]:
    """Return the table, and the descriptors it speaks of."""
    fds: list[int] = []
    control = held.control
    table = {
        "began": held.began,
        "generation": held.generation.number,
        "listeners": [
            [server, name, address, listener_entry(listener, fds)]
            for server, name, address, listener in held.generation.sockets.entries()
        ],
        "workers": [workers_entry(one, fds) for one in held.generation.workers.values()],
        "old": [workers_entry(one, fds) for one in held.old],
        "children": list(held.children),
        "log": str(held.log) if held.log is not None else None,
        "lock": path_entry(held.lock, held.lock.fileno(), fds) if held.lock else None,
        "pid_file": path_entry(held.pid_file, held.pid_file.fileno(), fds) if held.pid_file else None,
        "control": path_entry(control, control.descriptors()[0], fds) if control else None,
        "plates": [str(path) for path in held.plates],
    }
    return table, fds


# ---- sockets


def listener_entry(listener: Listener, descriptors: list[int]) -> Table:
    """Return a listener as it stands in the table."""
    claim = listener.claim
    descriptors += [listener.fileno(), *([claim.fileno()] if claim is not None else [])]
    return {
        "address": str(listener.address),
        "fd": listener.fileno(),
        "claim": claim.fileno() if claim is not None else None,
        "path": listener.path,
        "file": listener.file,
    }


def listener_of(entry: Table, socket_of: SocketOf) -> Listener:
    """Make the listener of an entry."""
    claim = socket_of(entry["claim"]) if entry["claim"] is not None else None
    address = parse(entry["address"])
    path, file = entry.get("path"), entry.get("file")
    if path is None:  # of a version that went by the address alone
        folder, name = os.path.split(address.path if address.is_unix and not address.is_abstract else "")
        path = os.path.join(os.path.realpath(folder), name) if name else ""
    return Listener(address, socket_of(entry["fd"]), None, claim, path, tuple(file) if file else None)


# ---- workers


def workers_entry(workers: WorkerPool, descriptors: list[int]) -> Table:
    """Return the workers of a server as they stand in the table."""
    entries = []
    for worker in workers.workers.values():
        fds = [worker.channel.fileno(), worker.lifeline, worker.board.fileno(), worker.stacks]
        descriptors += fds
        entries.append({"pid": worker.pid, "since": worker.since, "state": worker.state, "fds": fds})
    return {
        "name": workers.name,
        "model": workers.model,
        "wanted": workers.wanted,
        "one_process": workers.one_process,
        "generation": workers.generation,
        "workers": entries,
        "before": workers.before.cells(),
        "lost": workers.lost,
        "restarts": workers.restarts,
    }


def adopt_workers(entry: Table, workers: WorkerPool, socket_of: SocketOf) -> None:
    """Fill `workers` with those of an entry."""
    workers.wanted = entry.get("wanted", len(entry["workers"]))
    # Not told by earlier versions:
    workers.one_process = entry.get("one_process", False)
    workers.generation = entry.get("generation", 0)
    workers.before = Counts(entry["before"])
    workers.lost, workers.restarts = entry["lost"], entry["restarts"]
    for one in entry["workers"]:
        channel, lifeline, board, stacks = one["fds"]
        for fd in one["fds"]:
            os.set_inheritable(fd, False)
        worker = WorkerProcess(
            one["pid"],
            Channel(socket_of(channel)),
            lifeline,
            Board(board),
            stacks,
            one["since"],
            None,
        )
        worker.state = one["state"]
        workers.adopt(worker)


def path_entry(thing: Lock | PidFile | ControlSocket, fd: int, descriptors: list[int]) -> Table:
    """Return something that has a path and a descriptor as it stands in the table."""
    descriptors.append(fd)
    return {"path": str(thing.path), "fd": fd}


def path_and_descriptor(entry: Table) -> tuple[Path, int]:
    """Return what `path_entry` wrote."""
    os.set_inheritable(entry["fd"], False)
    return Path(entry["path"]), entry["fd"]
