"""One server from its start to its end: prepare, listen, serve, put away."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from srvkit.plugins.manager import Plugins
from srvkit.server.stream import TCPServer

log = logging.getLogger("srvkit.process")


def serve_until_stopped(server: TCPServer, plugins: Plugins, ready: Callable[[], None]) -> None:
    """Serve until the server is stopped; `ready` is called once clients can connect and are accepted.

    Raises what kept it from starting or broke its loop. In any case it is closed afterwards, and what
    was started is shut down again.
    """
    try:
        call_life_method(server.RequestHandlerClass, "startup", server)
        try:
            plugins.hook.srvkit_server_start(server=server)
            try:
                server.server_activate()
                server.on_serving = ready  # a loop that cannot be made or run has never said it
                server.serve_forever()
            finally:
                server.server_close()
                plugins.notify("srvkit_server_stop", server=server)
        finally:
            try:
                call_life_method(server.RequestHandlerClass, "shutdown", server)
            except Exception:
                log.exception("%s: shutdown() of its handler failed; the stop goes on", server.name)
    finally:
        server.server_close()


def call_life_method(handler: Any, name: str, server: TCPServer) -> None:
    """Call `startup` or `shutdown` of a handler's class, where it is a class method.

    A handler from elsewhere may have a method of that name that means something else.
    """
    if isinstance(inspect.getattr_static(handler, name, None), classmethod):
        getattr(handler, name)(server)
