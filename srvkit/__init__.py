"""Serve sockets: handlers in the style of the standard library, under any concurrency model.

`import srvkit as socketserver` keeps existing programs running. For new ones subclass
`MessageHandler`, name it in srvkit.toml, and `srvkit run srvkit.toml`. What there is:

    handlers    MessageHandler (whole messages, every model), StreamRequestHandler, DatagramRequestHandler,
                BaseRequestHandler (do their own reading and writing), AsyncHandler (coroutines)
    framings    Lines, Delimiter, LengthPrefix, Netstring, FixedSize, Raw; Framing to write one
    plugins     hookimpl marks what a plugin offers; the hooks are in srvkit.plugins.hookspecs
    embedding   serve(Handler, "tcp://127.0.0.1:0") runs a server inside a program
    servers     TCPServer, UDPServer, UnixStreamServer, UnixDatagramServer, on BaseServer
    models      mixins in front of them: ThreadingMixIn, ThreadPoolMixIn, ForkingMixIn, EventMixIn,
                TaskMixIn (asyncio), GreenletMixIn (gevent); pairs ready made: ThreadingTCPServer, ...
    errors      ConfigError, which lists everything that is wrong with a configuration; FrameError, which a
                framing raises for bytes that are no message
    testing     srvkit.pytest_plugin: converse, srvkit_models, and the fixture srvkit_server

    class Shout(MessageHandler):
        framing = Lines()

        def handle_message(self, message):
            return message.upper()

The house, bottom up; a floor imports only from those below it:

    errors, contracts        what can go wrong; what one floor promises another
    protocol                 what bytes mean, without a socket: framings, conversations, timeouts, outcomes
    net                      sockets and bytes: addresses, listeners, connections, TLS
    server | concurrency     the life of one connection | how many at once; they meet in a class statement
    plugins                  what others may add
    config                   from TOML text to a server class
    process                  operating-system processes: start, watch, replace, stop
    cli, testing             the commands; fixtures for tests of handlers

`srvkit docs architecture` shows the way of a message, a setting and a reload through it.

PYTEST_DONT_REWRITE: its asserts are not for tests, and a program may import it before pytest comes.
"""

from __future__ import annotations

import os
import selectors  # noqa: F401  (like those below without a use here: in the standard library's module, too)
import socket
import sys  # noqa: F401
import threading  # noqa: F401
from importlib import import_module
from io import BufferedIOBase  # noqa: F401
from time import monotonic as time  # noqa: F401
from typing import TYPE_CHECKING, Any

from srvkit.concurrency.asyncio.model import TaskMixIn
from srvkit.concurrency.events import EventMixIn

# Private in the standard library, but programs use and replace them: see `contracts.open_names`.
from srvkit.concurrency.executor import BusyThreads as _Threads  # noqa: F401
from srvkit.concurrency.executor import NoThreads as _NoThreads  # noqa: F401
from srvkit.concurrency.pool import ThreadPoolMixIn
from srvkit.concurrency.threads import ThreadingMixIn
from srvkit.errors import ConfigError, FrameError
from srvkit.protocol.framing import Delimiter, FixedSize, Framing, LengthPrefix, Lines, Netstring, Raw
from srvkit.server.async_handler import AsyncHandler
from srvkit.server.base import BaseServer
from srvkit.server.blocking_handler import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from srvkit.server.blocking_handler import _SocketWriter as _SocketWriter
from srvkit.server.datagram import UDPServer
from srvkit.server.message_handler import MessageHandler
from srvkit.server.stdlib_loop import STANDARD as _ServerSelector  # noqa: F401
from srvkit.server.stream import TCPServer

if TYPE_CHECKING:
    from srvkit.concurrency.gevent.model import GreenletMixIn
    from srvkit.plugins.hookspecs import hookimpl
    from srvkit.process.embed import serve

_LATE = {
    "GreenletMixIn": "srvkit.concurrency.gevent.model",
    "hookimpl": "srvkit.plugins.hookspecs",
    "serve": "srvkit.process.embed",
}

__version__ = "0.1.0"

__all__ = [
    "AsyncHandler",
    "BaseRequestHandler",
    "BaseServer",
    "ConfigError",
    "DatagramRequestHandler",
    "Delimiter",
    "EventMixIn",
    "FixedSize",
    "FrameError",
    "Framing",
    "GreenletMixIn",
    "LengthPrefix",
    "Lines",
    "MessageHandler",
    "Netstring",
    "Raw",
    "StreamRequestHandler",
    "TCPServer",
    "TaskMixIn",
    "ThreadPoolMixIn",
    "ThreadPoolTCPServer",
    "ThreadPoolUDPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "UDPServer",
    "hookimpl",
    "serve",
]


class ThreadingUDPServer(ThreadingMixIn, UDPServer):
    """A thread for each datagram."""


class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """A thread for each connection."""


class ThreadPoolUDPServer(ThreadPoolMixIn, UDPServer):
    """Datagrams in a bounded number of threads."""


class ThreadPoolTCPServer(ThreadPoolMixIn, TCPServer):
    """Connections in a bounded number of threads."""


if hasattr(os, "fork"):
    from srvkit.concurrency.forks import ForkingMixIn

    class ForkingUDPServer(ForkingMixIn, UDPServer):
        """A child process for each datagram."""

    class ForkingTCPServer(ForkingMixIn, TCPServer):
        """A child process for each connection."""

    __all__ += ["ForkingMixIn", "ForkingTCPServer", "ForkingUDPServer"]

if hasattr(socket, "AF_UNIX"):
    from srvkit.server.datagram import UnixDatagramServer
    from srvkit.server.stream import UnixStreamServer

    class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer):
        """A thread for each connection."""

    class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer):
        """A thread for each datagram."""

    class ThreadPoolUnixStreamServer(ThreadPoolMixIn, UnixStreamServer):
        """Connections in a bounded number of threads."""

    class ThreadPoolUnixDatagramServer(ThreadPoolMixIn, UnixDatagramServer):
        """Datagrams in a bounded number of threads."""

    __all__ += [
        "ThreadPoolUnixDatagramServer",
        "ThreadPoolUnixStreamServer",
        "ThreadingUnixDatagramServer",
        "ThreadingUnixStreamServer",
        "UnixDatagramServer",
        "UnixStreamServer",
    ]

    if hasattr(os, "fork"):

        class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer):
            """A child process for each connection."""

        class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer):
            """A child process for each datagram."""

        __all__ += ["ForkingUnixDatagramServer", "ForkingUnixStreamServer"]


def __getattr__(name: str) -> Any:
    """Import on first use what needs other packages: a program that only wants servers starts faster."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_LATE[name]), name)
    return found


def __dir__() -> list[str]:
    """List what is imported on first use too, so that `help(srvkit)` shows it."""
    return sorted({*globals(), *_LATE})
