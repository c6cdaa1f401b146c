"""What a worker and the process that has begun it say to each other, over a channel.

The worker tells, each as a message whose "event" is one of these:

    ready     clients can connect                            files, makings (where a supervisor wants them)
    failed    it could not start, or broke                   errors
    retire    it asks to be replaced                         why
    closed    it has stopped listening, as it was told to
    answer    to a question                                  ask, connections or killed
    ended     it ends now                                    status

and is told, each as a message whose "do" is one of these:

    stop        drain, and cut what is left after so long      timeout
    cut         end everything that is open
    retire      accept nothing more, and stop after so long    seconds, timeout, shared
    begin       serve: the worker before it has ended
    log         write to another log, whose descriptor comes with it
    connections, kill    answer a question                     ask, number

Who does not know a message does nothing. Before it has said that it is ready a worker hears nothing: it is
told by signals then, TERM for stop and QUIT for cut.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from srvkit.errors import SrvkitError
from srvkit.net.closing import close_one
from srvkit.net.listener import Listener
from srvkit.process.channel import Channel, Message
from srvkit.process.signals import IGNORED_SIGNALS, disregard, hold_back_only
from srvkit.process.worker.worker import CANNOT_START, Worker

LAST_MOMENT = 0.4  # seconds for handlers to notice, when there is nobody any more who has begun the worker


class ReportingWorker(Worker):
    """A worker that answers to the process that has begun it."""

    def __init__(self, channel: Channel, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._channel = channel
        self._is_heard = False  # whether the other side knows that it is ready
        self.on_ready = self._tell_ready

    def _particulars(self) -> Message:
        """Return what is to be said along with that it is ready."""
        return {}

    def _tell_ready(self) -> None:
        """Say so before the first client can do harm; in the server's thread."""
        self._channel.send_blocking({"event": "ready", **self._particulars()})
        self._is_heard = True
        self._loop.call_soon(lambda: self._channel.attach(self._loop, self._heard, self._orphaned))

    def _heard(self, message: Message, descriptors: Sequence[int]) -> None:
        if message["do"] == "stop":
            self.stop(message["timeout"])
        elif message["do"] == "cut":
            self.cut()

    def _orphaned(self) -> None:
        """End: the process that has begun this one is gone."""
        self.after_the_cut = LAST_MOMENT
        self.cut()


def run_and_report(name: str, channel: Channel, make: Callable[[], ReportingWorker]) -> int:
    """Make a worker and run it; say what keeps it from that. Return the exit status."""
    failure: list[str] = []
    try:
        worker = make()
        status = worker.run()
        if worker.failure:
            failure = [f"{name}: {worker.failure}"]
    except SrvkitError as error:
        failure, status = str(error).splitlines(), error.exit_status
    except OSError as error:
        failure, status = [f"{name}: cannot run: {error.strerror or error}"], CANNOT_START
    if failure:
        channel.send_blocking({"event": "failed", "errors": failure})
    return status


def begin_afresh() -> None:
    """Undo what a fork leaves of the supervisor: its signals, and what the import system remembers.

    Compiled files are told from stale ones by size and whole seconds, so none is written here: a plugin
    may be edited twice in one second.
    """
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    disregard(*IGNORED_SIGNALS)
    hold_back_only()


def keep_from_forks(channel: Channel, listeners: Sequence[Listener] = (), lifeline: int = -1) -> None:
    """Have what is for the worker alone closed in its children: only it speaks for itself, or accepts."""
    os.register_at_fork(after_in_child=_LettingGo(channel, listeners, lifeline))


class _LettingGo:
    """Closes, in a child of a worker, what is not for it.

    Not once more in a child of that child, where the number may be of a file of somebody else.
    """

    def __init__(self, channel: Channel, listeners: Sequence[Listener], lifeline: int) -> None:
        self._channel: Channel | None = channel
        self._listeners = listeners
        self._lifeline = lifeline

    def __call__(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close_in_child()
            if self._lifeline >= 0:
                close_one(self._lifeline)
            for listener in self._listeners:
                if listener.is_stream:  # datagrams are answered through theirs
                    listener.close_in_child()
