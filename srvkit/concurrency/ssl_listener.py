"""TLS of a listening socket that wraps its connections, as programs set it up and as `http.server` does.

Such a socket takes the handshake within `accept`, in the thread of the loop: a client that says nothing
keeps everybody else waiting. Here each connection's own thread or process takes it. The servers' own TLS,
of `[server.NAME.tls]`, is not concerned.
"""

from __future__ import annotations

import sys
from typing import Any

from srvkit.contracts import LET_ALL_IN, Steps


class SslListener(Steps):
    """Let connections be accepted without their handshake; for mixins that handle each by itself.

    Where `verify_request` is overridden, which may ask about the client's certificate, the handshake stays
    where it was.
    """

    handshakes_due = False  # whether connections come without it

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Handle requests until `shutdown()`."""
        self._put_off_handshakes()
        super().serve_forever(poll_interval)

    def handle_request(self) -> None:
        """Handle one request; waits for it at most `timeout` seconds, then calls `handle_timeout`."""
        self._put_off_handshakes()
        super().handle_request()

    def shake_hands(self, request: Any) -> bool:
        """Take the handshake that is due; False where it fails, which is the client's fault.

        Waits for the client, at most for the handler's `timeout` each time.
        """
        timeout = getattr(self.RequestHandlerClass, "timeout", None)
        try:
            if timeout is not None:
                request.settimeout(timeout)
            request.do_handshake()
        except OSError:
            return False
        return True

    def _put_off_handshakes(self) -> None:
        listening: Any = getattr(self, "socket", None)  # a server of a program's own may have none
        if getattr(listening, "do_handshake_on_connect", False) and self._may_put_off_handshakes():
            listening.do_handshake_on_connect = False
            self.handshakes_due = True

    def _may_put_off_handshakes(self) -> bool:
        verify = getattr(self.verify_request, "__func__", self.verify_request)
        standard = sys.modules.get("socketserver")
        return verify in LET_ALL_IN or (standard is not None and verify is standard.BaseServer.verify_request)
