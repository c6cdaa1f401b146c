"""The program of the supervisor is executed anew, in the same process, and handed all that is open.

The number of the process stays, and so does everything that is open: sockets, lock, control socket, and
the channels to the workers, who notice nothing and serve until the new ones are ready. What the new
program must know of all that is a table in a file without a name, whose descriptor is in its environment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from srvkit.config.model import Config, Problems
from srvkit.config.problems import Source
from srvkit.errors import SrvkitError
from srvkit.net.address import parse
from srvkit.net.closing import close
from srvkit.net.listener import Listener
from srvkit.process import command_line as origin
from srvkit.process.channel import Channel
from srvkit.process.memfd import unnamed_file
from srvkit.process.runtime_paths import Lock, PidFile
from srvkit.process.scoreboard import Board, Counts
from srvkit.process.signals import hold_back
from srvkit.process.supervisor.control_server import ControlSocket
from srvkit.process.supervisor.generation import Generation
from srvkit.process.supervisor.parts import Parts
from srvkit.process.supervisor.socket_set import SocketSet
from srvkit.process.supervisor.takeover import VARIABLE, Table
from srvkit.process.supervisor.worker_pool import WorkerPool
from srvkit.process.supervisor.worker_process import WorkerProcess

ROOM = 16  # descriptors that a program takes to come to its loop

SocketOf = Callable[[int], socket.socket]  # makes the socket of a descriptor that was handed over


class NotReplaced(SrvkitError):
    """The new program cannot be executed."""


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


def table_of(parts: Parts) -> tuple[Table, list[int]]:
    """Return what the new program must know, and the descriptors that this speaks of."""
    fds: list[int] = []
    generations, places, log_file = parts.generations, parts.places, parts.shared.log.file
    generation, control = generations.current, places.control
    assert generation is not None
    table = {
        "began": parts.began,
        "generation": generation.number,
        "listeners": [
            [server, name, address, listener_entry(listener, fds)]
            for server, name, address, listener in generation.sockets.entries()
        ],
        "workers": [workers_entry(one, fds) for one in generation.workers.values()],
        "old": [workers_entry(one, fds) for one in generations.old],
        "children": list(parts.shared.children),  # those that are no workers included
        "log": str(log_file.path) if log_file.path is not None else None,
        "lock": path_entry(places.lock, places.lock.fileno(), fds) if places.lock else None,
        "pid_file": path_entry(places.pid_file, places.pid_file.fileno(), fds) if places.pid_file else None,
        "control": path_entry(control, control.descriptors()[0], fds) if control else None,
        "plates": [str(path) for path in places.links.made] if places.links is not None else [],
    }
    return table, fds


def adopt(parts: Parts, table: Table, config: Config, socket_of: SocketOf) -> None:
    """Go on where the program has ended whose place this one has taken."""
    parts.began = table["began"]
    places = ("lock", "pid_file", "control")
    parts.places.adopt(
        map(Path, table.get("plates", ())),
        **{name: path_and_descriptor(table[name]) if table[name] else None for name in places},
    )
    entries = [(*key, listener_of(entry, socket_of)) for *key, entry in table["listeners"]]
    sockets = SocketSet.inherited(entries)

    def adopted(entry: Table) -> WorkerPool:
        name = entry["name"]
        made = WorkerPool(name, config, Problems(Source()), sockets.of.get(name, []), 1, parts.shared)
        adopt_workers(entry, made, socket_of)
        return made

    workers = {entry["name"]: adopted(entry) for entry in table["workers"]}
    generations, children = parts.generations, parts.shared.children
    generations.old += [adopted(entry) for entry in table["old"]]
    for one in generations.old:
        one.go_on_retiring([listener.number for listener in sockets])
    for name, one in workers.items():
        if name in config.server:  # until there are new ones, and for good where none come to be
            one.start_respawning(len(one.listening()))
    generations.current = Generation(table["generation"], config, sockets, workers=workers)
    for pid in table.get("children", ()):  # a check, say, that goes on or was just killed
        if pid not in children:
            children.adopt(pid, lambda _: None)
    parts.health.look_in(config.srvkit.heartbeat_timeout)
    children.reap()  # those that ended meanwhile


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
