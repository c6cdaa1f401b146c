"""The steps of a server at which plugins stand: mixins for `compose` to put in front.

There is one for each group of hooks, and it is used only where some plugin implements one of them, so
that no connection pays for a hook that nobody has. Servers are known by their steps only.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from srvkit.contracts import Steps
from srvkit.net.connection import account_of
from srvkit.plugins.manager import Plugins


def hook_mixins(plugins: Plugins) -> list[type[Any]]:
    """Return the mixins, with their `plugins` set, that the loaded plugins make necessary."""
    return [
        type(mixin.__name__, (mixin,), {"__module__": __name__, "plugins": plugins})
        for mixin in (VerifyHookMixIn, ConnectionHooksMixIn, ErrorHookMixIn)
        if any(plugins.implementers(hook) for hook in mixin.hooks)
    ]


class VerifyHookMixIn(Steps):
    """Ask the plugins about each request; any False refuses it."""

    hooks = ("srvkit_verify_request",)
    plugins: Plugins

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if not super().verify_request(request, client_address):
            return False
        try:
            answers = self.plugins.hook.srvkit_verify_request(
                server=self, request=request, client_address=client_address
            )
        except Exception:
            self.handle_error(request, client_address)
            return False
        return not any(answer is False for answer in answers)


class ConnectionHooksMixIn(Steps):
    """Tell the plugins of each connection or datagram that a handler gets, and of its end."""

    hooks = ("srvkit_connection_open", "srvkit_connection_close")
    plugins: Plugins

    def finish_request(self, request: Any, client_address: Any) -> None:
        opened: dict[int, tuple[Any, float]] = vars(self).setdefault("_opened", {})
        opened[id(request)] = client_address, monotonic()
        self.plugins.notify("srvkit_connection_open", server=self, client_address=client_address)
        super().finish_request(request, client_address)

    def request_done(self, request: Any) -> None:
        # Before the seat is given back: with the last one a server that stops, and its process, may end.
        client_address, began = vars(self).get("_opened", {}).pop(id(request), (None, None))
        try:
            if began is not None:  # else refused, and never opened
                self._tell_of_the_end(request, client_address, monotonic() - began)
        finally:
            super().request_done(request)

    def _tell_of_the_end(self, request: Any, client_address: Any, seconds: float) -> None:
        account = account_of(request)
        self.plugins.notify(
            "srvkit_connection_close",
            server=self,
            client_address=client_address,
            outcome=getattr(account, "outcome", "closed"),
            seconds=seconds,
            bytes_in=len(request[0]) if isinstance(request, tuple) else getattr(request, "bytes_in", 0),
            bytes_out=getattr(account, "bytes_out", 0),
        )


class ErrorHookMixIn(Steps):
    """Tell the plugins of what a handler raised, unless it is the peer's fault."""

    hooks = ("srvkit_error",)
    plugins: Plugins

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = self.own_error(request, sys.exception())
        if error is not None:
            self.plugins.notify("srvkit_error", server=self, client_address=client_address, error=error)
        super().handle_error(request, client_address)
