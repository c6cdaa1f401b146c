"""The worker's side of supervision: become one, tell the supervisor, do as it says, end when it is dead.

A worker has one server. It is forked from a process that has imported no plugin, so plugins are new here
each time.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic, sleep
from typing import Any

from srvkit.concurrency import monkey_patching as monkey
from srvkit.config.assemble import assemble
from srvkit.config.certificates import load_certificates
from srvkit.config.compose import Plan
from srvkit.config.makings import makings_of, own_modules, summary
from srvkit.config.model import Config, Problems
from srvkit.net.address import display
from srvkit.net.closing import close_one
from srvkit.net.event_loop import wait_for
from srvkit.net.listener import Listener
from srvkit.plugins.manager import Plugins
from srvkit.process import descriptor_limit as descriptors
from srvkit.process import privileges
from srvkit.process.channel import Channel, Message, end_at_news
from srvkit.process.child import refuse_threads
from srvkit.process.logging.file import LogFile
from srvkit.process.scoreboard import Board, ChildRows
from srvkit.process.signals import IGNORED_SIGNALS
from srvkit.process.worker.reporting import ReportingWorker, begin_afresh, keep_from_forks, run_and_report
from srvkit.server import lingering
from srvkit.server.blocking_handler import kind_of
from srvkit.server.stats import ForkedStatsMixIn, StatsMixIn
from srvkit.server.stream import TCPServer

log = logging.getLogger("srvkit.process")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGQUIT)
BEATS = 3  # in one heartbeat_timeout
SPARE_DESCRIPTORS = 64  # beside connections: listeners, files of handlers
KILL_TIME = 1.0  # seconds for a handler to notice that an operator has cut its connection
EXIT_TIME = 1.0  # seconds for functions of atexit, once everything is served
STOP_TIME = 0.5  # seconds for other threads to hold still while their stacks are written

# Asks a worker for the stacks of all its threads, and to end. On a build without the interpreter's lock a
# fatal signal shows the thread that it hits, and no other; but there Python can answer, whoever has hung.
# One that comes too early does nothing, and is followed by SIGABRT: there are no other threads yet.
ASK_FOR_STACKS = signal.SIGURG if "t" in sys.abiflags else None


@dataclass
class WorkerSpec:
    """What a new worker is given: its server's place in the configuration, and what it is to hold on to."""

    server: str
    config: Config
    problems: Problems
    listeners: list[Listener]
    channel: Channel
    lifeline: int  # one end of a pipe into which nobody writes; the other dies with the supervisor
    board: Board
    stacks: int  # where the interpreter writes every stack, when the worker is aborted
    log_file: LogFile
    files: Mapping[str, bytes]  # certificates and keys, by path, as they were when they were found good
    has_peers: bool  # whether there are other workers of this server
    tells_files: bool  # whether the supervisor wants to know what a developer may edit
    waits: bool  # whether it begins to serve only when it is told that others have ended


def serve(post: WorkerSpec) -> int:
    """Be a worker until told to stop; returns the exit status. In a process that was begun for this."""
    begin_afresh()
    post.log_file.tell_forks()
    faulthandler.enable(post.stacks)
    _hold_on_to(post.lifeline)
    keep_from_forks(post.channel, post.listeners, post.lifeline)
    for listener in post.listeners:
        listener.keep_in_child()
    status = run_and_report(post.server, post.channel, partial(_worker_of, post))
    monkey.start_thread(partial(_end_in_any_case, status), "the end")
    atexit._run_exitfuncs()
    logging.shutdown()
    return status


def _worker_of(post: WorkerSpec) -> SupervisedWorker:
    settings = post.config.srvkit
    raise_descriptor_limit(post.config.server[post.server].limits.max_connections)
    # Plugins will run here: of the keys of other servers they need not know.
    files, post.files = {post.server: post.files}, {}
    certificates = load_certificates(post.config, post.problems, files, [post.server])
    privileges.drop(settings.user, settings.group)
    assembled = assemble(post.config, post.problems, certificates, post.server)
    (plan,) = (plan for plan in assembled.plans if plan.name == post.server)
    if not plan.server_class.fork_beside_threads:
        refuse_threads()
    made_of = makings_of(post.config, assembled.plugins, [plan], files).get(post.server, {})
    return SupervisedWorker(plan, assembled.plugins, post, summary(made_of))


def _end_in_any_case(status: int) -> None:
    """End the process when what a plugin has registered with `atexit` takes too long."""
    sleep(EXIT_TIME)
    log.warning("functions that a plugin registered with atexit did not stop in time, abandoned")
    os._exit(status)


def _hold_on_to(lifeline: int) -> None:
    """Let the kernel end this process, and all it forks, at once when the supervisor is no more.

    Whatever a plugin does meanwhile: the interpreter is not asked, its lock may be held for ever.
    """
    end_at_news(lifeline, -os.getpgrp())
    if wait_for(lifeline, 0):  # it died before
        os._exit(1)


class SupervisedWorker(ReportingWorker):
    """A worker that answers to a supervisor."""

    def __init__(self, plan: Plan, plugins: Plugins, post: WorkerSpec, makings: str) -> None:
        settings = post.config.srvkit
        limits = post.config.server[post.server].limits
        self._interval = settings.heartbeat_timeout / BEATS
        self._max_rss = limits.max_rss
        self._runs_in_loop = plan.model == "serial"
        self._blocks = kind_of(plan.handler) == "blocking"
        self._seen: dict[int, float] = {}  # when the connections being handled had moved, at the last look
        self._asked_to_retire = False
        self._board = post.board
        self._log_file = post.log_file
        self._stacks = post.stacks
        self._tells_files = post.tells_files
        self._makings = makings
        self._waits = post.waits
        server: Any = _with_accounts(
            plan, post.board, self._interval, limits.max_requests, post.has_peers
        ).build(post.listeners)
        signals = STOP_SIGNALS if ASK_FOR_STACKS is None else (*STOP_SIGNALS, ASK_FOR_STACKS)
        super().__init__(post.channel, [server], plugins, settings.drain_timeout, signals, IGNORED_SIGNALS)
        self._server = server
        self._server.on_max_requests = self._has_enough
        self._server.on_beat = self._interpreter.put_back
        if self._runs_in_loop:
            self._loop.call_later(self._interval, self._beat_for_handler)
        if self._max_rss:
            self._loop.call_later(self._interval, self._check_rss)

    def announce(self, server: TCPServer) -> None:
        """Leave it to the supervisor, which has all of a server's workers in view."""

    # ---- what it tells

    def _particulars(self) -> Message:
        files = sorted(set(map(os.path.realpath, own_modules().values()))) if self._tells_files else []
        return {"files": files, "makings": self._makings}

    def _await_turn(self) -> bool:
        """Say that it is ready, and wait until the one before it has ended: there are never two of them."""
        if self._waits:
            self.on_ready = bool  # the supervisor knows by then
            self._tell_ready()
        while self._waits and not self._stopping:
            self._board.beat()
            self._loop.wait(self._interval)
        return not self._stopping

    def _tell_closed(self) -> None:
        """Say that others have the addresses which are shared; the loop of the server has seen to it."""
        self._channel.send({"event": "closed"})

    def _has_enough(self) -> None:
        self._loop.call_soon(lambda: self._ask_to_retire("max_requests"))

    def _ask_to_retire(self, why: str) -> None:
        if not self._asked_to_retire:
            self._asked_to_retire = True
            self._channel.send({"event": "retire", "why": why})

    def _check_rss(self) -> None:
        if resident_size(self.pid) > self._max_rss:
            self._ask_to_retire("max_rss")
        else:
            self._loop.call_later(self._interval, self._check_rss)

    def _beat_for_handler(self) -> None:
        """Send heartbeats while a handler blocks the loop, unless it hangs.

        A handler that does its own reading may take its time. A message handler may not, but waits for
        its peer are srvkit's own: while there is one, or there was one since, all is well.
        """
        if self._blocks and self._server.requests_at_hand():
            self._board.beat()
        seen, self._seen = self._seen, {}
        for record in self._server.requests_at_hand():
            if record.at_work == inf:  # it waits for its handler
                continue
            self._seen[record.number] = record.last
            if not record.at_work or seen.get(record.number) != record.last:
                self._board.beat()
        self._loop.call_later(self._interval, self._beat_for_handler)

    # ---- what it is told

    def _signalled(self, numbers: list[int]) -> None:
        for number in numbers:
            if number == ASK_FOR_STACKS:
                self._leave_stacks()
            elif number == signal.SIGTERM and self._is_heard and not self._stopping:
                self._ask_to_retire("TERM")  # whoever sent it wants this one replaced
            elif number in STOP_SIGNALS:
                super()._signalled([number])

    def _leave_stacks(self) -> None:
        # A thread in an extension may never hold still; then they are written all the same, at some risk.
        faulthandler.dump_traceback_later(STOP_TIME, file=self._stacks)
        faulthandler.dump_traceback(self._stacks)
        os.kill(self.pid, signal.SIGABRT)

    def _heard(self, message: Message, descriptors: Sequence[int]) -> None:
        do = message["do"]
        if do == "retire":
            self._server.shared = frozenset(message["shared"])
            self.retire(message["seconds"], message["timeout"])
            if self._runs_in_loop:  # a handler may have the loop for long, and nothing is accepted meanwhile
                self._tell_closed()
            else:
                self._server.on_stopped_listening(lambda: self._loop.call_soon(self._tell_closed))
        elif do == "begin":
            self._waits = False
        elif do == "log":
            if descriptors:
                self._log_file.replace(descriptors[0])
            else:  # the kernel had no room for it here
                log.error(
                    "%s: no file descriptor left for the new log; keeping the old one", self._server.name
                )
        elif do == "connections":
            self._channel.send({"event": "answer", "ask": message["ask"], "connections": self._connections()})
        elif do == "kill":
            self._channel.send(
                {"event": "answer", "ask": message["ask"], "killed": self._kill(message["number"])}
            )
        else:
            super()._heard(message, descriptors)

    def _orphaned(self) -> None:
        log.warning("%s: the supervisor is gone; stopping this worker", self._server.name)
        super()._orphaned()

    def _connections(self) -> list[Message]:
        now = monotonic()
        found = []
        for record in self._server.requests_at_hand():
            moves = record.driver or record  # in a loop, who moves the bytes has the account
            at_work = moves.at_work
            found.append(
                {
                    "id": f"{self.pid}-{record.number}",
                    "peer": display(record.client_address),
                    "seconds": round(now - record.since, 3),
                    "bytes_in": moves.bytes_in,
                    "bytes_out": moves.bytes_out,
                    "state": "idle" if moves.idle else "active",
                    "since_last_byte": round(now - (moves.last or record.since), 3),
                    "in_handler": round(max(0.0, now - at_work), 3) if at_work else 0.0,
                }
            )
        return found

    def _kill(self, number: int) -> bool:
        record = self._server.request_of(number)
        if record is None:
            return False
        if self._runs_in_loop:
            self._loop.call_later(KILL_TIME, lambda: self._end_if_still_there(record))
        return bool(self._server.abort_request(record))

    def _end_if_still_there(self, record: Any) -> None:
        """End the process where a handler that has it to itself takes no notice of its connection's end."""
        if self._server.request_of(record.number) is not None:
            log.error(
                "%s: %s does not end, so its worker does", self._server.name, display(record.client_address)
            )
            os._exit(1)


def _with_accounts(plan: Plan, board: Board, interval: float, retire_after: int, has_peers: bool) -> Plan:
    server_class: type[Any] = plan.server_class
    attributes = {
        "__module__": __name__,
        "board": board,
        "beat_interval": interval,
        "retire_after": _with_jitter(retire_after),
        "has_peers": has_peers,
    }
    mixin: type[StatsMixIn] = StatsMixIn
    if not server_class.fork_beside_threads:
        mixin = ForkedStatsMixIn
        attributes["rows"] = ChildRows(server_class.max_children)
    made = type(server_class.__name__, (mixin, server_class), attributes)
    return Plan(plan.name, plan.addresses, plan.socket, plan.model, made, plan.handler)


def _with_jitter(requests: int) -> int:
    """Return up to a tenth more, so that workers started together do not retire together."""
    return requests + int.from_bytes(os.urandom(4)) % (requests // 10 + 1) if requests else 0


def raise_descriptor_limit(connections: int) -> None:
    """Let this process have descriptors for so many connections, as far as it may."""
    wanted = connections + lingering.MOST + SPARE_DESCRIPTORS
    allowed = descriptors.raise_limit(wanted)
    if allowed < wanted:
        log.warning("max_connections is %d, but a process may have %d descriptors only", connections, allowed)


def resident_size(pid: int) -> int:
    """Return how much memory a process has, in bytes; 0 where the platform does not tell."""
    try:
        fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 200).split()[1]) * os.sysconf("SC_PAGESIZE")
        finally:
            close_one(fd)
    except (OSError, IndexError):
        return 0
