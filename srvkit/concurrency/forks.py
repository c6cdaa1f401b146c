"""A child process for each request."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from srvkit.concurrency.ssl_listener import SslListener
from srvkit.contracts import ChildSignals, event_driven, setting
from srvkit.fork import fork
from srvkit.net.connection import ends_at_once
from srvkit.net.parent_socket import ParentSocket
from srvkit.net.send_queue import end_reading

FULL = "max_children"
# To a child. Does nothing by default: one that comes too early is followed by a SIGTERM soon after.
DRAIN_WITH_PATIENCE = signal.SIGURG if hasattr(signal, "SIGURG") else 0
NO_PIDFD_INTERVAL = 0.5  # seconds between looks at the children where the kernel cannot announce their end


class ForkingMixIn(SslListener):
    """Handle each request in a child process; stands in front of a server class.

    Class attributes: `max_children` (40), `timeout` (300 seconds, of `handle_request`), `block_on_close`
    (True: `server_close` waits for the children), `active_children` (None, or the set of their pids).

    Children are reaped one by one as they end, by pid, so that other children of the program are left
    alone. At `max_children` the server takes no further requests until one has ended. A child closes
    the listening sockets and whatever else of the server's it has no use for, and always ends by
    `os._exit`: with status 0, or 1 when its handler failed.
    """

    @dataclass(frozen=True)
    class Options:
        max_children: int = setting(1024, "children at once", minimum=1)

    handler_kinds = frozenset({"blocking", "message"})

    # Under srvkit run: draining has waited for the children, and killed the last of them.
    managed = MappingProxyType({"fork_beside_threads": False})

    timeout: float | None = 300
    active_children: set[int] | None = None
    max_children = 40
    block_on_close = True
    child_signals: ChildSignals | None = None  # set by srvkit run, whose handlers are of no use in a child
    _requests_of_children: dict[int, Any] | None = None
    _pidfds: dict[int, int] | None = None
    _looks_in: Any = None  # the loop that has a timer for children without such a descriptor

    def server_activate(self) -> None:
        """Listen, unless each connection would be refused for the sake of threads."""
        self._refuse_threads()
        super().server_activate()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Fork a child that handles the request. Raises OSError when the system cannot fork."""
        if self.active_children is None or self._requests_of_children is None:
            self.active_children, self._requests_of_children, self._pidfds = set(), {}, {}
        if self._srvkit_loop is None:
            self._wait_for_room()
        self._refuse_threads()
        _flush_standard_files()  # or the child would write the same once more
        held_back = self.child_signals.held_back if self.child_signals is not None else ()
        if held_back:  # what comes to the child before it has handlers of its own waits for them
            signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
        try:
            pid = fork()
            if pid == 0:
                self._be_the_child(request, client_address)
                return  # only where a program's tests have put something in the place of os._exit()
        except OSError as error:
            self.back_off_accepting(error)
            raise
        finally:
            if held_back:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, held_back)
        self.active_children.add(pid)
        self._requests_of_children[pid] = request
        self._watch_child(pid)
        self.close_request(request)

    def drain(self, patience: float = 0.0) -> None:
        """Drain, and let the children know: each ends after its current message."""
        super().drain(patience)
        self._signal_children(DRAIN_WITH_PATIENCE if patience else signal.SIGTERM)

    def abort_all(self) -> int:
        """Kill the children that are left; return how many."""
        super().abort_all()
        return self._signal_children(signal.SIGKILL)

    def abort_request(self, request: Any) -> bool:
        """Kill the child that handles this request, or end one that has none yet; False where that fails."""
        for pid, one in list((self._requests_of_children or {}).items()):
            if one is request:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still the child's
                return True
        return super().abort_request(request)

    def _signal_children(self, number: int) -> int:
        children = list(self.active_children or ())
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, number)  # not reaped yet, so the pid is still the child's
        return len(children)

    def collect_children(self, *, blocking: bool = False) -> None:
        """Reap the children that have ended; with `blocking`, wait until all have. May be extended."""
        self._reap(blocking)

    def _reap(self, blocking: bool = False) -> None:
        for pid in list(self.active_children or ()):
            try:
                reaped, _ = os.waitpid(pid, 0 if blocking else os.WNOHANG)
            except ChildProcessError:
                reaped = pid  # somebody else has waited for it, or SIGCHLD is ignored
            if reaped == pid:
                self._forget_child(pid)

    def handle_timeout(self) -> None:
        """Reap children when `handle_request` waited in vain. May be extended."""
        self.collect_children()

    @event_driven
    def service_actions(self) -> None:
        """Reap children; srvkit's own loop does so as they end. May be extended."""
        super().service_actions()
        if self._srvkit_loop is None:  # a loop that is not srvkit's own
            self.collect_children()

    def server_close(self) -> None:
        """Close the server and wait for the children, if `block_on_close`."""
        super().server_close()
        self.collect_children(blocking=self.block_on_close)

    # ---- the parent's side

    def loop_begins(self, loop: Any) -> None:
        """Watch the children that were left over when an earlier loop ended. May be extended."""
        super().loop_begins(loop)
        self._reap()
        for pid in self.active_children or ():
            self._watch_child(pid)

    def _watch_child(self, pid: int) -> None:
        assert self.active_children is not None
        loop = self._srvkit_loop
        if loop is None:
            return
        assert self._pidfds is not None
        if pid in self._pidfds:
            os.close(self._pidfds.pop(pid))
        try:
            self._pidfds[pid] = pidfd = os.pidfd_open(pid)
            loop.watch(pidfd, self._reaper(pid))
        except (AttributeError, OSError):  # no such call, not permitted, no descriptor left, no watch left
            if pid in self._pidfds:
                os.close(self._pidfds.pop(pid))
            self._look_later()
        if len(self.active_children) >= self.max_children:
            self.pause_accepting(FULL)

    def _reaper(self, pid: int) -> Any:
        def reap() -> None:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)  # the descriptor became readable: the child has ended
            self._forget_child(pid)

        return reap

    def _look_later(self) -> None:
        loop = self._srvkit_loop
        if loop is not None and self._looks_in is not loop:
            self._looks_in = loop
            loop.call_later(NO_PIDFD_INTERVAL, self._look_after_children)

    def _look_after_children(self) -> None:
        """Reap those whose end nobody announces, as long as there are any."""
        self._looks_in = None
        self._reap()
        if set(self.active_children or ()) - set(self._pidfds or ()):
            self._look_later()

    def _forget_child(self, pid: int) -> None:
        assert self.active_children is not None and self._requests_of_children is not None
        assert self._pidfds is not None
        self.active_children.discard(pid)
        request = self._requests_of_children.pop(pid, None)
        pidfd = self._pidfds.pop(pid, None)
        if pidfd is not None:
            loop = self._srvkit_loop
            if loop is not None:
                loop.unwatch(pidfd)
            os.close(pidfd)
        self.request_done(request)
        if len(self.active_children) < self.max_children:
            self.resume_accepting(FULL)

    def _wait_for_room(self) -> None:
        """Reap, and wait for a child where all are busy; srvkit's own loop does both as they end."""
        assert self.active_children is not None
        self._reap()
        while len(self.active_children) >= self.max_children:
            _wait_for_any(self.active_children)
            self._reap()

    def _refuse_threads(self) -> None:
        if self.fork_beside_threads or threading.active_count() == 1:
            return
        names = ", ".join(t.name for t in threading.enumerate() if t is not threading.main_thread())
        raise RuntimeError(
            f"not forking beside other threads ({names}): the child could wait for their locks for ever; "
            "start threads where a connection is handled, or choose another concurrency"
        )

    # ---- the child's side

    def _be_the_child(self, request: Any, client_address: Any) -> None:
        status = 1
        try:
            self._close_what_is_not_the_childs(request)
            if self.child_signals is not None:
                self.child_signals.take(self._drain_handlers(request))
            if not self.handshakes_due or self.shake_hands(request):
                self.finish_request(request, client_address)
            status = 0
        except Exception:
            self.handle_error(request, client_address)
        finally:
            try:
                self.shutdown_request(request)
            finally:
                try:
                    _flush_standard_files()
                finally:
                    os._exit(status)

    def _close_what_is_not_the_childs(self, request: Any) -> None:
        loop = self._srvkit_loop
        if loop is not None:
            loop.close()
            self._srvkit_loop: Any = None
        for pidfd in (self._pidfds or {}).values():
            with suppress(OSError):  # closed by a program that closes all it does not know
                os.close(pidfd)
        self._pidfds = {}
        self.active_children = set()
        self.close_in_child(request)
        listening = None if self._srvkit_listeners else getattr(self, "socket", None)  # its only one
        if getattr(listening, "type", None) == socket.SOCK_STREAM:  # datagrams are answered through it
            self.socket: Any = ParentSocket(listening)

    def _drain_handlers(self, request: Any) -> dict[int, Callable[[int, Any], object]]:
        def drain(number: int, _: Any) -> None:
            self.draining, self.patience = True, float(number == DRAIN_WITH_PATIENCE)
            if ends_at_once(request, self.patience):
                end_reading(request, None)

        return {signal.SIGTERM: drain, DRAIN_WITH_PATIENCE: drain}


def _wait_for_any(pids: set[int]) -> None:
    """Wait until one of these children, and no other, has ended."""
    poll = select.poll()
    fds = []
    longest: float | None = None  # milliseconds
    try:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                return  # reaped by somebody else
            except (AttributeError, OSError):  # its end is found at the next look
                longest = NO_PIDFD_INTERVAL * 1000
                continue
            fds.append(fd)
            poll.register(fd, select.POLLIN)
        poll.poll(longest)
    finally:
        for fd in fds:
            os.close(fd)


def _flush_standard_files() -> None:
    for file in (sys.stdout, sys.stderr):
        with suppress(Exception):  # None, a full disk, closed, or whatever a program has put there
            file.flush()
