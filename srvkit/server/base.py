"""The life of a request, in the standard library's own step names.

    wait -> get_request -> verify_request -> admit_request (a PROXY header, TLS)
         -> process_request (the mixin)
         -> finish_request (the handler) -> shutdown_request -> close_request

`BaseServer` knows no sockets of its own (`stream.py` and `datagram.py` do) and not how many requests are
handled at once: that is the business of a mixin in front of it.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import sys
import threading
import traceback
from _thread import get_ident
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Self

from srvkit.contracts import ChildSignals, Steps, event_driven
from srvkit.errors import EscapedError, FrameError, PeerError
from srvkit.net.address import display
from srvkit.net.connection import Connection, account_of
from srvkit.net.event_loop import EXCLUSIVE, READ, EventLoop
from srvkit.net.listener import CAPACITY_ERRNOS, FATAL_ERRNOS, Listener, is_dead
from srvkit.net.send_queue import end_reading
from srvkit.protocol.outcomes import BAD_MESSAGE, EOF, ERROR, REFUSED, frame_outcome
from srvkit.server.limits import ConnectionLimit, LimitSettings
from srvkit.server.lingering import Lingering
from srvkit.server.message_handler import HandlerType, construct, drive
from srvkit.server.overridable import overridable
from srvkit.server.stdlib_loop import ShutdownFlag, replaced_selector, wait_readable

log = logging.getLogger("srvkit.server")

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0  # seconds without accepting after a capacity error, doubling
FAILURES_IN_A_ROW = 100  # from here on even errors that should pass are met with a pause
STOPPING, MAX_CONNECTIONS = "the stop", "max_connections"  # reasons not to accept
BURST = 64  # requests taken per wake-up before the loop looks at anything else


class BaseServer(Steps):
    """Wait for requests and see each through its steps; the root of all server classes.

    For the caller: `serve_forever`, `shutdown`, `handle_request`, `server_close`, `stop_serving`,
    `fileno`, and use as a context manager (closes at the end).

    Steps that may be overridden: `server_bind`, `server_activate`, `get_request`, `handle_timeout`,
    `verify_request`, `process_request`, `finish_request`, `shutdown_request`, `close_request`,
    `service_actions`, `handle_error`.

    Class attributes, as in the standard library: `timeout` (seconds for `handle_request`, None), and in
    the subclasses `address_family`, `socket_type`, `request_queue_size`, `allow_reuse_address`,
    `allow_reuse_port`, `max_packet_size`.

    Class attributes that `srvkit run` sets, off here because a program could notice: `limits` (bounds
    and timeouts), `contain_exit` (SystemExit and its like in a handler end the connection, not the
    server), `log_errors` (through `logging`, peers that vanish in one line, instead of a traceback on
    standard error), `always_finish` (`finish()` runs although `setup()` failed), `drop_truncated`,
    `reply_only_if_written`, `fork_beside_threads`, `child_signals` (what signals mean to
    what it forks); and `name`, by which logs call the server.

    Source of the names and their order: the standard module of servers, documented in the library
    reference under "A framework for network servers".
    """

    timeout: float | None = None

    _srvkit_has_loop = True
    name = ""
    limits: LimitSettings | None = None
    contain_exit = False
    log_errors = False
    always_finish = False
    drop_truncated = False
    reply_only_if_written = False
    fork_beside_threads = True
    child_signals: ChildSignals | None = None
    connection_class: type[Connection] | None = None  # what compose lets connections be
    on_serving: Callable[[], None] | None = None  # called in the loop, in its first turn

    socket: Any  # the listening socket; in a server of several, the one the current request came in by
    # Programs set attributes of their own, `_loop` say: such names of ours say whose they are.
    _srvkit_listeners: Sequence[
        Listener
    ] = ()  # the sockets of a server from TOML; else there is just self.socket
    _srvkit_seats: ConnectionLimit | None = None
    _srvkit_lingering: Lingering | None = (
        None  # connections whose peers have not ended, once they were handled
    )
    has_peers = False  # whether other processes wait for the same listening sockets
    shared: frozenset[int] = frozenset()  # listeners whose queues others serve when this server has stopped
    draining = False  # whether drain() was called: conversations end after the current message
    patience = 0.0  # while draining: seconds in which who has just connected is expected to say a first word
    _srvkit_pauses: Any = frozenset()  # why no requests are accepted; each server has a set of its own
    _srvkit_loop: EventLoop | None = None
    lives_in_loop = False  # whether the connections of its model do
    __shutdown_request: Any = ShutdownFlag()  # programs set it where they cannot wait for shutdown()
    _shared_loop: EventLoop | None = None
    _srvkit_loop_thread: int | None = None
    _srvkit_burst = 1
    _waits_to_take = True  # whether get_request() blocks where the socket does
    _in_burst = False  # whether get_request() must not wait: there may be nothing left
    _may_gather = False
    taking_requests = False  # whether further requests may follow before requests_taken() is called
    _srvkit_more = False  # whether another request may be waiting at the listener being drained
    _drains_backlog = False  # whether what is taken is what waited when the server was told to drain
    _failures_in_a_row = 0  # to get a request, in a row
    _shortage: BaseException | None = None  # because of which accepting was paused last
    _last_complaint = 0.0
    _complaints_held_back = 0

    def __init__(self, server_address: Any, RequestHandlerClass: Any) -> None:
        """Remember the address and the handler's class. May be extended, do not override."""
        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass
        self._srvkit_pauses: set[str] = set()
        self.__is_shut_down = threading.Event()
        self.__is_shut_down.set()
        self.__shutdown_request = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.server_close()

    def __repr__(self) -> str:
        state = "serving" if self._srvkit_loop is not None else "idle"
        if self._srvkit_pauses:
            state += f", paused by {', '.join(sorted(self._srvkit_pauses))}"
        if self._srvkit_seats is not None:
            state += f", {self._srvkit_seats}"
        # None where a program's tests left out the constructor.
        address = getattr(self, "server_address", "")
        return f"<{type(self).__name__} {display(address)} {state}>"

    def server_activate(self) -> None:
        """Make the server ready for requests. May be overridden."""

    def server_close(self) -> None:
        """Release what the server holds. May be overridden."""

    # ---- waiting

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Handle requests until `shutdown()`.

        The loop sleeps until something happens. `poll_interval`, in seconds, matters only where
        `service_actions` is overridden: it is then called at least that often. Ignores `timeout`.
        Raises OSError when the listening socket is broken.
        """
        # In this order, and at the end in the reverse: a signal handler that calls shutdown() anywhere in
        # between would wait for its own thread.
        self._srvkit_loop_thread = get_ident()
        self.__is_shut_down.clear()
        try:
            if self.__shutdown_request:
                return
            self._srvkit_loop = self._shared_loop
            selector_class = (
                None if self._srvkit_loop is not None or self.lives_in_loop else replaced_selector()
            )
            if self._srvkit_loop is not None:
                self.__serve(self._srvkit_loop, poll_interval)
            elif selector_class is not None:
                self.__serve_polling(selector_class, poll_interval)
            else:
                with self.make_loop() as self._srvkit_loop:
                    self.__serve(self._srvkit_loop, poll_interval)
        finally:
            self._srvkit_loop = None
            self.__shutdown_request = False
            self.__is_shut_down.set()
            self._srvkit_loop_thread = None

    def use_loop(self, loop: EventLoop) -> None:
        """Serve in this loop, with whatever else is watched there, and not in one of the server's own.

        The caller closes it.
        """
        self._shared_loop = loop

    def make_loop(self) -> EventLoop:
        """Make a loop of the server's own; it is closed when `serve_forever` ends. May be overridden."""
        return EventLoop()

    def loop_begins(self, loop: EventLoop) -> None:
        """Watch whatever else matters while `loop` serves. May be extended."""

    def loop_ends(self, loop: EventLoop) -> None:
        """Put away what lived in `loop`, which serves no longer but still works. May be extended."""

    def __serve(self, loop: EventLoop, poll_interval: float) -> None:
        polled = not getattr(self.service_actions, "event_driven", False)
        # An overridden service_actions expects to be called after each single request.
        self._srvkit_burst = 1 if polled else self._burst_size()
        # Steps of somebody else's may take their time; then no request waits for the rest of its burst.
        self._may_gather = all(
            getattr(type(self), step).__module__.startswith(("srvkit.server.", "srvkit.concurrency."))
            for step in ("get_request", "verify_request", "process_request")
        )
        made_non_blocking = []
        try:
            for fd in self._listening_fds() if self._srvkit_burst > 1 and self._waits_to_take else ():
                if os.get_blocking(fd):
                    # Not settimeout(0): the descriptor alone becomes non-blocking, so that the socket's
                    # timeout, which handle_request() and accepted sockets go by, stays as it was.
                    os.set_blocking(fd, False)
                    made_non_blocking.append(fd)
            self.loop_begins(loop)
            self._listen_again()
            if self.on_serving is not None:
                loop.call_soon(self.on_serving)
            while not self.__shutdown_request:
                loop.wait(poll_interval if polled else None)
                if not self.__shutdown_request:
                    self.service_actions()
        finally:
            still_ours = set(self._listening_fds())
            for fd in still_ours - {-1}:
                loop.unwatch(fd)
            for fd in made_non_blocking:
                if fd in still_ours:  # not closed meanwhile, its number perhaps somebody else's
                    os.set_blocking(fd, True)
            self.loop_ends(loop)
            if self._srvkit_lingering is not None:  # also those that have just ended
                self._srvkit_lingering.end(loop)

    def __serve_polling(self, selector_class: Any, poll_interval: float) -> None:
        """Serve as the standard library does, by the selector that a program has put in place of its own."""
        with selector_class() as selector:
            selector.register(self, selectors.EVENT_READ)
            while not self.__shutdown_request:
                ready = selector.select(poll_interval)
                if self.__shutdown_request:
                    break
                if ready:
                    self._handle_request_noblock()
                self.service_actions()

    def shutdown(self) -> None:
        """Stop the `serve_forever` loop and wait until it is out.

        From the loop's own thread (a handler, a signal handler), and where no loop runs, it returns at
        once; in the latter case the next `serve_forever` returns immediately.
        """
        self.__shutdown_request = True  # by no method: programs have a stop_serving() of their own
        if self._srvkit_loop_thread != get_ident():
            self.__is_shut_down.wait()

    def stop_serving(self) -> None:
        """Ask the `serve_forever` loop to stop and do not wait; safe from threads and signal handlers."""
        self.__shutdown_request = True  # which wakes the loop

    def drain(self, patience: float = 0.0) -> None:
        """Stop gracefully: accept nothing new, let open requests finish, then end `serve_forever`.

        What waits in the kernel's queue is still taken, as room for it comes free; connections that are
        idle between two messages end at once. So do those that have not said anything yet, unless there
        is `patience`: then they stay, for the caller to end by calling again, without, after so many
        seconds. Safe from any thread. For servers from TOML, which know
        their open requests.
        """
        self.draining, self.patience = True, patience
        loop = self._srvkit_loop
        for request in self.requests_at_hand():
            if getattr(request, "idle", False) and not (patience and request.waits <= 1):
                end_reading(request, loop)
        if loop is None:
            self.stop_serving()
        else:
            loop.call_soon(self._drain_backlog)

    def runs_here(self) -> bool:
        """Tell whether the caller is a handler of this server: its loop's thread, or one of its own."""
        return self._srvkit_loop_thread == get_ident()

    def on_stopped_listening(self, callback: Callable[[], None]) -> None:
        """Call back, in the loop's thread, when nothing more comes by the addresses that others share.

        To be called after `drain`, which sees to that.
        """
        loop = self._srvkit_loop
        if loop is None:
            callback()
        else:
            loop.call_soon(callback)

    def abort_all(self) -> int:
        """End the requests that are still open, whatever they are doing; return how many there were.

        What still waits in the kernel's queue is left there. Safe from any thread. Datagrams have no
        connection to cut; their handlers are left to themselves.
        """
        self._srvkit_pauses.add(STOPPING)
        loop = self._srvkit_loop
        if loop is not None:
            if self._srvkit_lingering is not None:
                loop.call_soon(partial(self._srvkit_lingering.end, loop))
            loop.call_soon(self._stop_listening)
        requests = self.requests_at_hand()
        for request in requests:
            with suppress(OSError, AttributeError):  # gone already, or a datagram
                request.shutdown(socket.SHUT_RDWR)
        return len(requests)

    def abort_request(self, request: Any) -> bool:
        """End one request, whatever its handler is doing; return False where that is not possible."""
        try:
            request.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):  # gone already, or a datagram
            return False
        return True

    def _drain_backlog(self) -> None:
        """Take what waits in the kernel's queue, and when nothing does any more, close the door."""
        for listener in self._srvkit_listeners:
            if listener.fileno() >= 0 and listener.number in self.shared:
                assert self._srvkit_loop is not None
                self._srvkit_loop.unwatch(listener.fileno())
                if self.has_peers and not self._srvkit_pauses:
                    self._take_what_waits(listener)  # the kernel may have woken this process, and no other
                continue
            if self._srvkit_pauses:
                return  # it goes on here when there is room again
            self._take_what_waits(listener)
            if self._srvkit_more:  # a burst of many, or no room
                assert self._srvkit_loop is not None
                self._srvkit_loop.call_later(0, self._drain_backlog)
                return
        self._stop_listening()

    def _take_what_waits(self, listener: Listener) -> None:
        self._drains_backlog = True
        self._taker(listener)()
        self._drains_backlog = False

    def _stop_listening(self) -> None:
        self.pause_accepting(STOPPING)
        for listener in self._srvkit_listeners:
            if listener.is_stream:  # datagrams' handlers may still answer through theirs
                listener.close()
        self._stop_when_empty()

    def _stop_when_empty(self) -> None:
        if STOPPING in self._srvkit_pauses and not self.requests_at_hand() and not self._srvkit_lingering:
            self.stop_serving()

    @overridable
    def listeners(self) -> Sequence[Listener]:
        """The listeners of a server from TOML; empty in any other."""
        return self._srvkit_listeners

    def requests_at_hand(self) -> list[Any]:
        """Return the requests that are being handled; of servers from TOML."""
        return [] if self._srvkit_seats is None else self._srvkit_seats.requests()

    @event_driven
    def service_actions(self) -> None:
        """Do what is to be done once per turn of the loop. May be overridden."""

    def handle_request(self) -> None:
        """Handle one request; waits for it at most `timeout` seconds, then calls `handle_timeout`."""
        timeout = self.socket.gettimeout()
        if timeout is None:
            timeout = self.timeout
        elif self.timeout is not None:
            timeout = min(timeout, self.timeout)
        if wait_readable(self, timeout):
            self._handle_request_noblock()
        else:
            self.handle_timeout()

    def fileno(self) -> int:
        """Return the listening socket's descriptor."""
        fd: int = self.socket.fileno()
        return fd

    # ---- the steps of one request

    def _handle_request_noblock(self) -> None:
        try:
            request, client_address = self.get_request()
        except OSError as error:
            self._get_request_failed(error)
            return
        if self._srvkit_seats is not None and not self._srvkit_seats.take(request):
            log.warning(
                "%s: connection limit reached: closed %s", self._srvkit_name(), display(client_address)
            )
            self.refuse_request(request)
            return
        if not self.verify_request(request, client_address):
            self.refuse_request(request)
            return
        self.admit_request(request, client_address)

    def admit_request(self, request: Any, client_address: Any) -> None:
        """Have a verified request handled, whatever comes of it. May be extended, to do so later."""
        try:
            self.process_request(request, client_address)
        except Exception as error:
            if error is self._shortage:  # which was said already
                self._shortage = None
                self._mark_refused(request)
            else:
                self.handle_error(request, client_address)
            self.shutdown_request(request)
        except BaseException:
            self.shutdown_request(request)
            raise
        else:
            self._failures_in_a_row = 0

    def run_step(self, step: Callable[[], object]) -> None:
        """Take a step of a connection that is not handled yet; the mixins override it to do so elsewhere."""
        step()

    def get_request(self) -> tuple[Any, Any]:
        """Take one request: return it and its client's address. Raises OSError where there is none."""
        raise NotImplementedError(f"{type(self).__name__} has no get_request()")

    def handle_timeout(self) -> None:
        """Do what is to be done when `handle_request` waited in vain. May be overridden."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether the request may be handled. May be overridden."""
        return True

    def refuse_request(self, request: Any) -> None:
        """End a request that is not to be handled."""
        self._mark_refused(request)
        self.shutdown_request(request)

    def _mark_refused(self, request: Any) -> None:
        if self._srvkit_listeners and self.limits is not None:
            self._end_as(request, REFUSED)

    def _end_as(self, request: Any, outcome: str) -> None:
        with suppress(AttributeError):  # a datagram of a server that keeps no accounts
            account_of(request).outcome = outcome

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle the request here and now; the mixins override it to do so elsewhere."""
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let a handler handle the request.

        A message handler is constructed, then driven; the constructor of any other does it all.
        """
        handler_class = self.RequestHandlerClass
        try:
            if type(handler_class) is HandlerType:  # as calling it does, in fewer steps
                handler = construct(handler_class, request, client_address, self)
                if isinstance(handler, handler_class):
                    drive(handler)
            else:
                handler_class(request, client_address, self)
        except Exception:
            raise
        except BaseException as error:
            if not self.contain_exit:
                raise
            raise EscapedError(f"the handler raised {type(error).__name__}") from error

    def shutdown_request(self, request: Any) -> None:
        """End a request that was handled or refused; called once for each, in whatever thread handled it."""
        try:
            self.close_request(request)
        finally:
            self.request_done(request)

    def close_request(self, request: Any) -> None:
        """Release what the request holds in this process. May be overridden."""

    def request_done(self, request: Any) -> None:
        """Give the request's seat back; called once for each, in the process that accepts."""
        if self._srvkit_seats is not None:
            self._srvkit_seats.give_back(request)
            if STOPPING in self._srvkit_pauses:
                self._stop_when_empty()

    def datagram_dropped(self) -> None:
        """Hear of a datagram that was no message, or too long to be handed over; in whatever thread."""

    def close_in_child(self, request: Any) -> None:
        """Close, in a forked child, the listening sockets that its request has no use for."""
        answers_through_it = isinstance(request, tuple)  # a datagram
        for listener in self._srvkit_listeners:
            listener.close_in_child(keep_socket=answers_through_it)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report the error that is being handled. May be overridden; the server goes on afterwards."""
        if self.log_errors:
            self._log_error(request, client_address)
            return
        line = "-" * 40
        print(line, file=sys.stderr)
        print("Exception occurred during processing of request from", client_address, file=sys.stderr)
        traceback.print_exc()
        print(line, file=sys.stderr)

    def own_error(self, request: Any, error: BaseException | None) -> BaseException | None:
        """Return what the handler raised; None where that is the peer's fault, or its leaving."""
        if isinstance(error, EscapedError):
            return error.__cause__
        fault = getattr(account_of(request), "fault", None)
        if isinstance(error, PeerError) or (fault is not None and error is fault):
            return None
        return error

    def _log_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        peer = display(client_address)
        own = self.own_error(request, error)
        if own is None:
            if isinstance(error, FrameError):
                self._end_as(request, frame_outcome(error))
                if isinstance(request, tuple):
                    self.datagram_dropped()
            outcome = getattr(account_of(request), "outcome", BAD_MESSAGE)
            level = logging.DEBUG if outcome == EOF else logging.INFO
            log.log(level, "%s: %s ended: %s (%s)", self._srvkit_name(), peer, outcome, error)
            return
        self._end_as(request, ERROR)
        # Formatted by logging, which survives an exception whose __str__ raises.
        log.error("%s: error while handling %s", self._srvkit_name(), peer, exc_info=own)

    # ---- accepting: when not to, and what may go wrong

    def _listening_fds(self) -> list[int]:
        return [listener.fileno() for listener in self._srvkit_listeners] or [self.fileno()]

    def _burst_size(self) -> int:
        """Return how many requests to take per wake-up: above 1 only where get_request() cannot block."""
        return 1

    def _listen_again(self) -> None:
        loop = self._srvkit_loop
        if loop is None or self._srvkit_pauses:
            return
        if self.draining and self._srvkit_listeners:
            self._drain_backlog()
            return
        if not self._srvkit_listeners:
            loop.watch(self.fileno(), self._take_requests)
        events = READ | EXCLUSIVE if self.has_peers else READ
        for listener in self._srvkit_listeners:
            loop.watch(listener.fileno(), self._taker(listener), events)

    def _taker(self, listener: Listener) -> Callable[[], None]:
        if len(self._srvkit_listeners) == 1:
            return self._take_requests

        def take_requests() -> None:
            self.socket = listener.socket  # the steps read self.socket: the current listener
            self._take_requests()

        return take_requests

    def _take_requests(self) -> None:
        self._in_burst = True
        self.taking_requests = self._may_gather
        try:
            for _ in range(self._srvkit_burst):
                if self._takes_no_more():
                    break
                self._srvkit_more = True
                self._handle_request_noblock()
                if not self._srvkit_more:
                    break
        finally:
            self._in_burst = self.taking_requests = False
            self.requests_taken()

    def _takes_no_more(self) -> bool:
        return (
            self.__shutdown_request
            or bool(self._srvkit_pauses)
            # Told to while the handler of one was at work. Of any other server it is the program's own word.
            or bool(self.draining and self._srvkit_listeners and not self._drains_backlog)
        )

    def requests_taken(self) -> None:
        """Do what is to be done once for all requests of a burst. May be extended."""

    def pause_accepting(self, reason: str) -> None:
        """Leave new requests to the kernel's queue until `resume_accepting(reason)`; in the loop's thread."""
        self._srvkit_pauses.add(reason)
        if self._srvkit_loop is not None:
            for fd in self._listening_fds():
                self._srvkit_loop.unwatch(fd)

    def resume_accepting(self, reason: str, unless: Callable[[], bool] | None = None) -> None:
        """Take back `pause_accepting(reason)`; safe from any thread, does nothing where it was not called.

        `unless`, asked in the loop's thread, tells of a reason that has come up again meanwhile.
        """
        if reason not in self._srvkit_pauses:
            return
        loop = self._srvkit_loop
        if loop is not None and get_ident() != self._srvkit_loop_thread:
            loop.call_soon(lambda: self.resume_accepting(reason, unless))
            return
        if unless is not None and unless():
            return
        self._srvkit_pauses.discard(reason)
        self._listen_again()

    def _get_request_failed(self, error: OSError) -> None:
        if isinstance(error, BlockingIOError):
            self._srvkit_more = False
            return
        if error.errno in CAPACITY_ERRNOS:
            self.back_off_accepting(error)
        elif error.errno in FATAL_ERRNOS and is_dead(self.socket):
            self._srvkit_more = False
            if not self.__shutdown_request:
                raise error
        elif self._failures_in_a_row >= FAILURES_IN_A_ROW:
            self.back_off_accepting(error)
        else:
            self._failures_in_a_row += 1

    def back_off_accepting(self, error: BaseException) -> None:
        """Stop accepting for a moment because something ran out: 10 ms, doubling up to 1 s.

        Logs at most one line a second. Without a loop (`handle_request`) it only logs.
        """
        self._srvkit_more = False
        self._shortage = error
        delay = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures_in_a_row, 10))
        self._failures_in_a_row += 1
        now = monotonic()
        if now - self._last_complaint >= 1.0:
            held = f" ({self._complaints_held_back} like it held back)" if self._complaints_held_back else ""
            log.warning(
                "%s: cannot accept: %s; next try in %d ms%s", self._srvkit_name(), error, delay * 1000, held
            )
            self._last_complaint, self._complaints_held_back = now, 0
        else:
            self._complaints_held_back += 1
        if self._srvkit_loop is not None:
            self.pause_accepting("a shortage")
            self._srvkit_loop.call_later(delay, self._try_again)

    def _try_again(self) -> None:
        self.resume_accepting("a shortage")
        self.requests_taken()  # some may still be without what ran out
