"""systemd's two protocols: sockets that it passes at the start, and news that it wants to hear.

Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3). Nothing of systemd is needed, and
without it all of this does nothing. What is ready, hung or stopping is decided elsewhere.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final

from srvkit.errors import ListenError
from srvkit.net import socket_activation as inherited
from srvkit.net.event_loop import EventLoop
from srvkit.net.socket_activation import Inherited

FIRST_FD = 3  # SD_LISTEN_FDS_START
LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
NO_NAME = "unknown"  # what sd_listen_fds_with_names(3) calls descriptors where no names came

_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


def begin(environ: MutableMapping[str, str] = os.environ) -> Notifier:
    """Take over everything that systemd gave to this process; once, before anything else is opened.

    Returns the notifier, which the caller closes. Raises ListenError.
    """
    receive(environ)
    return Notifier.from_environ(environ)


def receive(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """Take over the descriptors that were passed, for `systemd:NAME` addresses; return the sockets by name.

    They are kept for as long as the process lasts, used or not. The variables are removed whether they
    are meant for this process or not, and no program that it starts gets the descriptors. Raises
    ListenError where the variables contradict each other or the descriptors.
    """
    values = {name: environ.pop(name, "") for name in LISTEN_VARIABLES}
    if values["LISTEN_PID"] != str(os.getpid()) or not values["LISTEN_FDS"]:
        return {}
    found: dict[str, list[socket.socket]] = {}
    taken = [_take(name, fd) for fd, name in enumerate(_names(values), FIRST_FD)]
    inherited.keep(taken)
    for one in taken:
        if one.socket is not None:
            found.setdefault(one.name, []).append(one.socket)
    return found


def _names(values: Mapping[str, str]) -> list[str]:
    shown = f"LISTEN_FDS={values['LISTEN_FDS']}"
    try:
        count = int(values["LISTEN_FDS"])
    except ValueError:
        raise ListenError(shown, "a number of descriptors is expected") from None
    names = values["LISTEN_FDNAMES"].split(":") if values["LISTEN_FDNAMES"] else [NO_NAME] * count
    if len(names) != count:
        raise ListenError(shown, f"LISTEN_FDNAMES={values['LISTEN_FDNAMES']} has {len(names)} names")
    return names


def _take(name: str, fd: int) -> Inherited:
    try:
        os.set_inheritable(fd, False)
    except OSError as error:
        raise ListenError(f"systemd:{name}", f"descriptor {fd} was not passed ({error.strerror})") from error
    try:
        return Inherited(name, fd, socket.socket(fileno=fd))
    except OSError:
        return Inherited(name, fd, None)


@contextmanager
def handed_over(notifier: Notifier) -> Iterator[dict[str, str]]:
    """Let a program that takes the place of this one (`exec`) begin as this one did.

    Yields the variables for its environment; the descriptors are under their numbers still. Left only
    where the exec failed: then no program gets them again.
    """
    passed = inherited.passed()
    variables = dict(notifier.environ)
    if passed:
        variables |= {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(passed)),
            "LISTEN_FDNAMES": ":".join(one.name for one in passed),
        }
    try:
        for one in passed:
            os.set_inheritable(one.fd, True)
        yield variables
    finally:
        for one in passed:
            os.set_inheritable(one.fd, False)


class Notifier:
    """Tells the service manager what goes on; where there is none, each call does nothing.

    No call waits, and none fails: a manager that does not listen must not harm the service.
    """

    def __init__(
        self,
        address: str = "",
        watchdog_interval: float | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.watchdog_interval: Final = watchdog_interval  # seconds from one `watchdog` to the next, or None
        self.environ: Final = dict(environ or {})  # what was removed from the environment
        self._target = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            # Open for good: no shortage of descriptors keeps the watchdog from hearing of us.
            with suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take NOTIFY_SOCKET and WATCHDOG_* out of the environment: they are for this process alone."""
        taken = {name: environ.pop(name) for name in NOTIFY_VARIABLES if name in environ}
        return cls(taken.get("NOTIFY_SOCKET", ""), _interval(taken), taken)

    def __repr__(self) -> str:
        return f"<Notifier {self.environ.get('NOTIFY_SOCKET', 'of nobody')}>"

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def ready(self) -> None:
        """Say that the start, or a reload, is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a reload begins; `ready` says that it is over, whatever came of it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the stop has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show one line of text to people (`systemctl status`)."""
        self._send(f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> None:
        """Say that all is well; at least every `watchdog_interval` seconds."""
        self._send("WATCHDOG=1")

    def feed_watchdog(self, loop: EventLoop) -> None:
        """Say so for as long as `loop` comes round, if anybody wants to hear it."""
        if self.watchdog_interval is not None:
            self.watchdog()
            loop.call_later(self.watchdog_interval, lambda: self.feed_watchdog(loop))

    def mainpid(self, pid: int) -> None:
        """Name the process that is to be watched from now on."""
        self._send(f"MAINPID={pid}")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for so much time, counted from now, until the start or stop under way must be complete."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def close_in_child(self, keep: Collection[object] = ()) -> None:
        """Close its descriptor in a child, which has nothing to say to systemd."""
        self.close()

    def close(self) -> None:
        """Release the socket; further calls do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(errors="replace"), _DONT_WAIT, self._target)


def _interval(variables: Mapping[str, str]) -> float | None:
    """Return half of the time after which the manager takes us for hung; None where it does not watch us."""
    if variables.get("WATCHDOG_PID") not in (None, "", str(os.getpid())):
        return None
    limit = variables.get("WATCHDOG_USEC", "")
    return int(limit) / 2_000_000 if limit.isascii() and limit.isdigit() and int(limit) else None
