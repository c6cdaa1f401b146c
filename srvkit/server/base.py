"""The life of a request, in the standard library's own step names.

    wait -> get_request -> the stages of `admission`, or verify_request where there are none
         -> admit_request -> process_request (the mixin) -> finish_request (the handler)
         -> shutdown_request -> close_request -> request_done

`BaseServer` knows no sockets of its own (`stream.py` and `datagram.py` do) and not how many requests are
handled at once: that is the business of a mixin in front of it. When to take requests is `accepting`'s
business, how to stop is `draining`'s.
"""

from __future__ import annotations

import logging
import os
import selectors
import sys
import threading
import traceback
from _thread import get_ident
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

from srvkit.contracts import ChildSignals, Stage, event_driven, lets_all_in
from srvkit.errors import EscapedError, FrameError, PeerError
from srvkit.net.address import display
from srvkit.net.connection import Connection, is_datagram
from srvkit.net.event_loop import EventLoop
from srvkit.net.listener import Listener
from srvkit.net.tls_context import ServerTls
from srvkit.protocol.outcomes import BAD_MESSAGE, EOF, ERROR, REFUSED, frame_outcome
from srvkit.server.accepting import OPEN, PAUSED
from srvkit.server.admission import Done, begin_tls
from srvkit.server.draining import Draining
from srvkit.server.limits import LimitSettings
from srvkit.server.message_handler import HandlerType, construct, drive
from srvkit.server.overridable import overridable
from srvkit.server.stdlib_loop import replaced_selector, wait_readable

log = logging.getLogger("srvkit.server")

BURST = 64  # requests taken per wake-up before the loop looks at anything else


class BaseServer(Draining):
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
    admission: Sequence[Stage] = ()  # what a request passes before the model gets it; of servers from TOML
    tls: ServerTls | None = None  # what connections are encrypted with; of servers from TOML
    # Programs set attributes of their own, `_loop` say: such names of ours say whose they are. The sockets of
    # a server from TOML are `_srvkit_listeners`, else there is just self.socket.
    lives_in_loop = False  # whether the connections of its model do
    _shared_loop: EventLoop | None = None
    _srvkit_loop_thread: int | None = None
    _waits_to_take = True  # whether get_request() blocks where the socket does

    def __init__(self, server_address: Any, RequestHandlerClass: Any) -> None:
        """Remember the address and the handler's class. May be extended, do not override."""
        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass
        self.__is_shut_down = threading.Event()
        self.__is_shut_down.set()
        self.__shutdown_request = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.server_close()

    def __repr__(self) -> str:
        state = "serving" if self._srvkit_loop is not None else "idle"
        accepting = self._srvkit_accepting
        if accepting is not OPEN:
            state += f", {accepting.name.lower()}"
        if accepting is PAUSED:
            state += f" by {', '.join(sorted(self._srvkit_reasons))}"
        if self._srvkit_admission is not None:
            state += f", {self._srvkit_admission}"
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
        if self._srvkit_admission is not None:
            self._srvkit_admission.loop_begins(loop)

    def loop_ends(self, loop: EventLoop) -> None:
        """Put away what lived in `loop`, which serves no longer but still works. May be extended."""
        if self._srvkit_admission is not None:
            self._srvkit_admission.loop_ends()

    def __serve(self, loop: EventLoop, poll_interval: float) -> None:
        polled = not getattr(self.service_actions, "event_driven", False)
        # An overridden service_actions expects to be called after each single request.
        self._srvkit_burst = 1 if polled else self._burst_size()
        # Where the model gathers what it starts, no request is to wait for a step that takes its time.
        self._may_gather = self._srvkit_burst > 1 and self._has_own("verify_request", BaseServer)
        made_non_blocking = []
        try:
            for fd in self._listening_fds() if self._srvkit_burst > 1 and self._waits_to_take else ():
                if os.get_blocking(fd):
                    # Not settimeout(0): the descriptor alone becomes non-blocking, so that the socket's
                    # timeout, which handle_request() and accepted sockets go by, stays as it was.
                    os.set_blocking(fd, False)
                    made_non_blocking.append(fd)
            self.loop_begins(loop)
            self._begin_accepting()
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

    def runs_here(self) -> bool:
        """Tell whether the caller is a handler of this server: its loop's thread, or one of its own."""
        return self._srvkit_loop_thread == get_ident()

    @overridable
    def listeners(self) -> Sequence[Listener]:
        """The listeners of a server from TOML; empty in any other."""
        return self._srvkit_listeners

    def requests_at_hand(self) -> list[Any]:
        """Return the records of the open requests, as of now; of servers from TOML. Safe from any thread."""
        return [] if self._srvkit_admission is None else self._srvkit_admission.registry.records()

    def request_of(self, number: int) -> Any:
        """Return the record of the open request with this number; None where it has ended."""
        return None if self._srvkit_admission is None else self._srvkit_admission.registry.get(number)

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
        if self._srvkit_admission is not None:
            self._srvkit_admission.begin(request, client_address)
        elif self.verify_request(request, client_address):
            self.admit_request(request, client_address)
        else:
            self.refuse_request(request)

    def admit_request(self, request: Any, client_address: Any) -> None:
        """Have a verified request handled, whatever comes of it."""
        try:
            self.process_request(request, client_address)
        except Exception as error:
            if self._was_told(error):
                self._mark_refused(request)
            else:
                self.handle_error(request, client_address)
            self.shutdown_request(request)
        except BaseException:
            self.shutdown_request(request)
            raise
        else:
            self._failures_in_a_row = 0

    def secure(self, request: Any, done: Done) -> None:
        """Begin TLS on a connection and call `done` when the handshake is over; in the loop's thread."""
        assert self._srvkit_admission is not None and self.tls is not None
        begin_tls(self._srvkit_admission, request, self.tls, done)

    def run_step(self, step: Callable[[], object]) -> None:
        """Take a step of a connection that is not handled yet; the mixins override it to do so elsewhere."""
        step()

    def get_request(self) -> tuple[Any, Any]:
        """Take one request: return it and its client's address. Raises OSError where there is none."""
        raise NotImplementedError(f"{type(self).__name__} has no get_request()")

    def handle_timeout(self) -> None:
        """Do what is to be done when `handle_request` waited in vain. May be overridden."""

    @lets_all_in
    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether the request may be handled. May be overridden."""
        return True

    def refuse_request(self, request: Any) -> None:
        """End a request that is not to be handled."""
        self._mark_refused(request)
        self.shutdown_request(request)

    def _mark_refused(self, request: Any) -> None:
        if self._srvkit_admission is not None:
            request.outcome = REFUSED

    def _end_as(self, request: Any, outcome: str) -> None:
        with suppress(AttributeError):  # of a server that keeps no records
            request.outcome = outcome

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle the request here and now, or let the loop have it; mixins override it for other ways."""
        self.finish_request(request, client_address)
        if self._srvkit_link is None:
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let a handler handle the request.

        A message handler is constructed, then driven; the constructor of any other does it all. Under a
        model whose connections live in the loop it gets what arrives from now on.
        """
        if self._srvkit_link is not None:
            self._srvkit_link(self, self._srvkit_loop, request, client_address).begin()
            return
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
        admission = self._srvkit_admission
        if admission is not None and request is not None:
            if request.is_admitted and self._srvkit_hears_requests:
                self.request_ended(request)
            admission.release(request)
            if self._srvkit_closed:
                self._stop_when_empty()

    def request_admitted(self, request: Any) -> None:
        """Hear of a request of a server from TOML that is about to be handled, or to shake hands."""

    def request_ended(self, request: Any) -> None:
        """Hear of its end, before its seat is given back; in the child, too, if one handled it."""

    def datagram_dropped(self) -> None:
        """Hear of a datagram that was no message, or too long to be handed over; in whatever thread."""

    def close_in_child(self, request: Any) -> None:
        """Close, in a forked child, the listening sockets that its request has no use for."""
        for listener in self._srvkit_listeners:  # datagrams are answered through theirs
            listener.close_in_child(keep_socket=not listener.is_stream)
        if self._srvkit_admission is not None:
            self._srvkit_admission.close_in_child()

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
        fault = getattr(request, "fault", None)
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
                if is_datagram(request):
                    self.datagram_dropped()
            outcome = getattr(request, "outcome", BAD_MESSAGE)
            level = logging.DEBUG if outcome == EOF else logging.INFO
            log.log(level, "%s: %s ended: %s (%s)", self._srvkit_name(), peer, outcome, error)
            return
        self._end_as(request, ERROR)
        # Formatted by logging, which survives an exception whose __str__ raises.
        log.error("%s: error while handling %s", self._srvkit_name(), peer, exc_info=own)

    # ---- what may be overridden

    def _burst_size(self) -> int:
        """Return how many requests to take per wake-up: above 1 only where get_request() cannot block."""
        return 1

    def _has_own(self, step: str, server_class: type[BaseServer]) -> bool:
        """Tell whether a step is that of one of srvkit's server classes, and no program's."""
        return step not in vars(self) and getattr(type(self), step) is getattr(server_class, step)

    def requests_taken(self) -> None:
        """Do what is to be done once for all requests of a burst. May be extended."""
