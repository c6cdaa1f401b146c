"""A greenlet for each request: handlers that block, by the thousand, in one thread.

The mixin alone: what stands on gevent, `hub` and `cooperation`, is imported when a server begins to serve.
Servers are known by their steps.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from socket import socket as Socket  # as it is before anybody patches it
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from srvkit.concurrency import monkey_patching as monkey
from srvkit.contracts import Package, Steps, in_one_line
from srvkit.net.connection import is_datagram
from srvkit.protocol.outcomes import STOPPED

if TYPE_CHECKING:
    from srvkit.concurrency.gevent.hub import Greenlets

GEVENT = Package("gevent", "srvkit[gevent]")
GRACE = 0.25  # seconds for a greenlet to end by itself, once its connection was cut and once it was killed


class GreenletMixIn(Steps):
    """Handle each request in a greenlet; stands in front of a server class. Needs the package gevent.

    Handlers block as they do on threads; whenever one waits for its socket, others run. Nothing is
    patched: a handler that waits for anything else uses gevent's own (`gevent.sleep`, `gevent.queue`,
    `gevent.socket` for its clients), or all wait with it. `self.request` is a `socket.socket` that
    waits in gevent's hub; a subclass of it that `get_request` made, for TLS say, is handed over as it is.

    Class attribute: `block_on_close` (True: `serve_forever`, once shut down, waits for open requests
    through before it returns, and `server_close` waits for that; False: it ends them).

    Greenlets run while `serve_forever` does: the request of `handle_request`, and all of them on servers
    of the standard library, are handled one after the other, in the caller's thread.
    """

    handler_kinds = frozenset({"blocking", "message"})

    # Under srvkit run, draining waits for requests, and with a deadline.
    managed = MappingProxyType({"block_on_close": False})

    lives_in_loop = True
    block_on_close = True
    connection_class: Any
    _plain_class: Any
    _greenlets: Greenlets | None = None
    _ended: threading.Event | None = None
    _serving_thread = 0

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        # gevent takes the thread that imports it for the main one; serve_forever may be called in another.
        with suppress(Exception, SystemExit):  # serve_forever says why
            import gevent  # noqa: F401

    @classmethod
    def needs(cls, **options: Any) -> list[Package]:
        """Return the packages that the model needs with these options."""
        return [GEVENT]

    @classmethod
    def try_loop(cls) -> None:
        """Make a hub and a loop in it, and release both; in a thread, whose hub it is."""
        ended, end = os.pipe()  # known to be the system's own, whatever has been patched
        raised: list[Exception] = []

        def attempt() -> None:
            try:
                from srvkit.concurrency.gevent.hub import HubLoop, HubOfThread

                with HubOfThread(), HubLoop() as loop:
                    loop.wait(0)
            except Exception as error:
                raised.append(error)
            finally:
                os.close(end)

        thread = monkey.start_thread(attempt, "try gevent")
        os.read(ended, 1)
        os.close(ended)
        if thread is not None:
            thread.join()  # forking models refuse to start beside a thread
        for error in raised:
            raise error

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Handle requests until `shutdown()`. Raises ImportError where there is no gevent that works."""
        if not self._srvkit_has_loop:  # a server of the standard library
            super().serve_forever(poll_interval)
            return
        try:
            from srvkit.concurrency.gevent.hub import Greenlets, HubOfThread
        except Exception as error:
            reason = f"pip install {GEVENT.install!r}" if GEVENT.is_missing() else in_one_line(error)
            raise ImportError(f"GreenletMixIn needs the package {GEVENT.name}: {reason}") from error

        self._ended = threading.Event()
        self._serving_thread = threading.get_native_id()
        try:
            with HubOfThread(), Greenlets(GRACE, self._stop) as self._greenlets:
                super().serve_forever(poll_interval)
                if self.block_on_close:
                    self._greenlets.join()
        finally:
            self._greenlets = None
            self._serving_thread = 0
            self._ended.set()

    def make_loop(self) -> Any:
        """Make a loop that waits in the hub."""
        from srvkit.concurrency.gevent.hub import HubLoop

        return HubLoop()

    def loop_begins(self, loop: Any) -> None:
        """Have the connections of this loop wait in the hub. May be extended."""
        super().loop_begins(loop)
        from srvkit.concurrency.gevent.sockets import cooperative

        self._plain_class = cooperative(Socket)
        if self.connection_class is not None:
            self.connection_class = cooperative(self.connection_class)

    def loop_ends(self, loop: Any) -> None:
        """Have those of `handle_request` wait as they did. May be extended."""
        super().loop_ends(loop)
        self._plain_class = Socket

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a greenlet handle the request."""
        if self._greenlets is None:
            super().process_request(request, client_address)
        else:
            self._greenlets.spawn(self.process_request_greenlet, request, client_address)

    def process_request_greenlet(self, request: Any, client_address: Any) -> None:
        """Handle the request; runs in its greenlet. May be extended."""
        assert self._greenlets is not None
        if type(request) is Socket:  # of a get_request() of somebody else's
            request = self._greenlets.cooperative_socket(request)
        try:
            self.finish_request(request, client_address)
        except Exception as error:
            if self._greenlets.was_cut(error):
                with suppress(AttributeError):  # of a server that keeps no records
                    request.outcome = STOPPED
            else:
                self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Let a handler handle the request; a datagram's answers through a socket that does not block."""
        waits = not self._srvkit_listeners  # of a server from TOML it never does
        if self._greenlets is not None and is_datagram(request) and waits:
            request = request[0], self._greenlets.answering_socket(request[1])
        super().finish_request(request, client_address)

    def abort_all(self) -> int:
        """End the requests that are still open: cut their connections, kill what goes on all the same."""
        count = super().abort_all()
        loop = self._srvkit_loop
        if loop is not None:
            loop.call_soon(lambda: loop.call_later(GRACE, self._kill))
        return count

    def server_close(self) -> None:
        """Close the server and wait for the requests being handled, if `block_on_close`."""
        super().server_close()
        elsewhere = self._serving_thread != threading.get_native_id()
        if self.block_on_close and self._ended is not None and elsewhere:
            self._ended.wait()

    def _kill(self) -> None:
        if self._greenlets is not None:
            self._greenlets.kill()

    def _stop(self) -> None:
        if self._srvkit_loop is not None:
            self.stop_serving()
