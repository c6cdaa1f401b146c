"""Where plugins stand on the way of a connection: a stage of admission, and mixins in front of a server.

There is one for each group of hooks, and it is used only where some plugin implements one of them, so
that no connection pays for a hook that nobody has. Servers are known by their steps only.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from srvkit.contracts import Stage, Steps
from srvkit.plugins.manager import Plugins


def hook_mixins(plugins: Plugins) -> list[type[Any]]:
    """Return the mixins, with their `plugins` set, that the loaded plugins make necessary."""
    return [
        type(mixin.__name__, (mixin,), {"__module__": __name__, "plugins": plugins})
        for mixin in (ConnectionHooksMixIn, ErrorHookMixIn)
        if any(plugins.implementers(hook) for hook in mixin.hooks)
    ]


def verify_stage(plugins: Plugins) -> list[Stage]:
    """Return the stage at which plugins may refuse a request; none where no plugin wants to."""
    return [VerifyHook(plugins)] if plugins.implementers("srvkit_verify_request") else []


class VerifyHook(Stage):
    """The stage of the hook `srvkit_verify_request`; any False refuses the request."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    def __repr__(self) -> str:
        return "VerifyHook()"

    def admit(self, server: Any, record: Any) -> str | None:
        """Ask the plugins. Raises what one of them raises: then it is refused, too."""
        answers = self._plugins.hook.srvkit_verify_request(
            server=server, request=record, client_address=record.client_address
        )
        return "" if any(answer is False for answer in answers) else None


class ConnectionHooksMixIn(Steps):
    """Tell the plugins of each connection or datagram that a handler gets, and of its end."""

    hooks = ("srvkit_connection_open", "srvkit_connection_close")
    plugins: Plugins

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.opened = monotonic()
        self.plugins.notify("srvkit_connection_open", server=self, client_address=client_address)
        super().finish_request(request, client_address)

    def request_done(self, request: Any) -> None:
        # Before the seat is given back: with the last one a server that stops, and its process, may end.
        try:
            if request is not None and request.opened:  # else refused, or handled in a child
                seconds, request.opened = monotonic() - request.opened, 0.0
                self.plugins.notify(
                    "srvkit_connection_close",
                    server=self,
                    client_address=request.client_address,
                    outcome=request.outcome,
                    seconds=seconds,
                    bytes_in=request.bytes_in,
                    bytes_out=request.bytes_out,
                )
        finally:
            super().request_done(request)


class ErrorHookMixIn(Steps):
    """Tell the plugins of what a handler raised, unless it is the peer's fault."""

    hooks = ("srvkit_error",)
    plugins: Plugins

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = self.own_error(request, sys.exception())
        if error is not None:
            self.plugins.notify("srvkit_error", server=self, client_address=client_address, error=error)
        super().handle_error(request, client_address)
