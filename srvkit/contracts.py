"""What one floor promises another: protocols, null objects, and how a setting is declared.

The wings `server` and `concurrency` do not import each other; what they call on each other stands
here. So does everything that a floor above hands to one below. This module imports nothing of
srvkit but the errors.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, Self, TypeVar, cast

Duration = Annotated[float, "duration"]  # seconds; in TOML also "250ms", "30s", "5m", "1h"
Size = Annotated[int, "size"]  # bytes; in TOML also "64KiB", "1MiB"
WorkerCount = Annotated[int, "workers"]  # processes; in TOML also "auto", which is 0 here
FileMode = Annotated[str, "file mode"]  # permissions in octal digits, "0600"


Call = TypeVar("Call", bound=Callable[..., Any])

# The globals of `srvkit` itself. Programs replace names in them as they do in the standard library's module,
# by `mock.patch("socketserver._SocketWriter")` say; whoever uses such a name looks it up here each time.
open_names: dict[str, Any] = vars(sys.modules[__name__.partition(".")[0]])


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a field of a settings class: its default, its one-line documentation, its bounds.

    `srvkit explain`, the schema and the README's table are made from these. A list or a dict is
    copied for each instance.
    """
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def event_driven(method: Any) -> Any:
    """Mark a `service_actions` that the serving loop need not call on a clock.

    An override without the mark is called every `poll_interval`, as in the standard library.
    """
    method.event_driven = True
    return method


LET_ALL_IN: set[Any] = set()  # each `verify_request` that asks nothing, of no request


def lets_all_in(verify_request: Any) -> Any:
    """Put a `verify_request` among those that ask nothing."""
    LET_ALL_IN.add(verify_request)
    return verify_request


class Package(NamedTuple):
    """A package that a concurrency model needs and srvkit does not bring.

    A model says so by a class method `needs(**options)`, which returns those that it needs with these
    options; called without any, those that it cannot do without. What it makes of others that are
    broken, `notes(**options)` says; `try_loop()` makes the loop, and raises what keeps it from that.
    """

    name: str  # as it is imported
    install: str  # as pip is told
    option: str = ""  # the model's option whose value asks for it, if it is one

    def is_missing(self) -> bool:
        """Tell whether it is not installed; imports nothing of it."""
        from importlib.util import find_spec

        return find_spec(self.name) is None

    def why_broken(self) -> str:
        """Import it, and return what that raises; "" where it works."""
        try:
            import_module(self.name)
        except (Exception, SystemExit) as error:  # a missing library, one of another version: anything
            return in_one_line(error)
        return ""


def in_one_line(error: BaseException, text: str | None = None) -> str:
    """Return the kind of an exception and what it says, or `text` in place of that."""
    if text is None:
        try:
            text = str(error)
        except Exception:  # it is somebody's own, and not even that
            text = "<exception str() failed>"
    words = " ".join(text.split())
    return f"{type(error).__name__}{': ' if words else ''}{words}"


def missing_packages(model: Any, **options: Any) -> list[Package]:
    """Return what a concurrency model needs with these options and is not installed."""
    return [package for package in needed_packages(model, **options) if package.is_missing()]


def needed_packages(model: Any, **options: Any) -> list[Package]:
    """Return what a concurrency model needs with these options."""
    needs = getattr(model, "needs", None)
    return [] if needs is None else list(needs(**options))


def forks(model: Any) -> bool:
    """Tell whether a concurrency model handles each request in a process of its own.

    Such a model says so by `fork_beside_threads` in its `managed`: forking beside threads is not safe.
    """
    return not getattr(model, "managed", {}).get("fork_beside_threads", True)


class Lock(Protocol):
    """What one holds at a time; a context manager, too."""

    def acquire(self) -> Any:
        """Wait until nobody holds it, and do."""

    def release(self) -> Any:
        """Let another one hold it."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> Any: ...


class Runners(Protocol):
    """Those who share one connection: threads, unless its socket has other `runners`.

    `lock` makes whoever wants it wait, and nobody else.
    """

    lock: Lock

    def current(self) -> object:
        """Return who is running now."""

    def run(self, call: Callable[[], object], weight: int) -> bool:
        """Make a call that may wait for the connection; it may return before that is done.

        False where calls of too much weight, in bytes, wait already: then it is not made.
        """

    def finish(self) -> None:
        """Wait for queued calls; called by the owner."""

    def give_way(self) -> None:
        """Let others run that would otherwise have to wait until this one does."""


class Threads:
    """The runners of an ordinary socket."""

    __slots__ = ("lock",)

    current = staticmethod(threading.get_ident)

    def __init__(self) -> None:
        self.lock: Lock = threading.Lock()

    def run(self, call: Callable[[], object], weight: int) -> bool:
        call()
        return True

    def finish(self) -> None:
        pass

    def give_way(self) -> None:
        pass


class Board(Protocol):
    """Where a server shows that it lives and what it has done; `process` gives it one."""

    def beat(self) -> None:
        """Show that the loop comes round."""

    def accepted(self) -> None:
        """Count a request that is about to be handled; in the loop's thread."""

    def refused(self) -> None:
        """Count a request that is not."""

    def failed(self) -> None:
        """Count an exception of a handler."""

    def ended(self, outcome: str, bytes_in: int, bytes_out: int) -> None:
        """Count the end of a request, from any thread."""

    def handled(self, count: int, bytes_in: int, bytes_out: int, unusual: list[str]) -> None:
        """Count datagrams that were handled at once, and outcomes of some; in the loop's thread."""

    def dropped(self) -> None:
        """Count a datagram that was no message, or too long."""

    def unanswered(self) -> None:
        """Count a reply that its client could not be given."""


class Rows(Protocol):
    """Where forked children leave their accounts; `process` gives a server one."""

    def take(self) -> int:
        """Return the number of a row for the next child; in the parent."""

    def write(self, row: int, outcome: str, bytes_in: int, bytes_out: int, unanswered: int) -> None:
        """Leave an account; in the child."""

    def give_back(self, row: int) -> tuple[str, int, int, int] | None:
        """Return what the child has left, None where it came to no end of its own; in the parent."""


class ChildSignals(Protocol):
    """What signals mean to the forked children of a server; `process` gives it one."""

    held_back: frozenset[int]  # by the parent while it forks

    def take(self, handlers: Mapping[int, Callable[[int, Any], object]]) -> None:
        """Have these called, the rest forgotten, and nothing held back any more; in a child."""


class Stage:
    """One stage of admission, of those that a request passes before the model gets it.

    It either decides at once, by `admit`, or `waits` for the peer, from `begin` on. One that `counts` keeps
    its count for one server, and hears of the end of each request by `release`.
    """

    waits = False
    counts = False

    def for_server(self) -> Self:
        """Return the stage for one server more; itself, where it does not count."""
        return self

    def admit(self, server: Any, record: Any) -> str | None:
        """Return None for who may pass, else why not; "" where that was said already."""
        raise NotImplementedError

    def begin(self, admission: Any, record: Any) -> None:
        """Wait for the peer in the loop; `admission.go_on(record, self)` or `admission.end` comes next."""
        raise NotImplementedError

    def release(self, server: Any, record: Any) -> None:
        """Hear that a request has ended, in whatever thread; also of one that was never admitted."""


class Link(Protocol):
    """Where a message handler's bytes go; each concurrency model brings its own."""

    def send(self, message: bytes, encode: Callable[[bytes], bytes]) -> None:
        """Send a message to the peer, encoded in the order in which messages leave; safe from any thread."""

    def close(self) -> None:
        """End the connection once what was written is out; safe from any thread."""

    def start_tls(self) -> None:
        """Encrypt the connection once what was written is out."""


def _handed_on(step: Call) -> Call:
    """Have a step that does nothing go on to the class behind it, if that is a program's and has one, too."""
    name = step.__name__

    @wraps(step)
    def find(self: Any, *args: Any, **settings: Any) -> Any:
        behind = getattr(super(Steps, self), name, None)
        return step(self, *args, **settings) if behind is None else behind(*args, **settings)

    return cast(Call, find)


class Steps:
    """What srvkit's servers have beside the steps of the standard library's: here it is and does nothing.

    The mixins derive from it, and so does `BaseServer`. In front of a server of srvkit's it is therefore the
    last class that is asked. In front of one of the standard library's it stands between and fills what that
    one lacks. A step that the standard library has is declared for the type checker only: it must be found
    in the class behind. Where a program's own server behind it has a step of the same name, that is called.
    """

    name = ""
    limits: Any = None
    contain_exit = False
    fork_beside_threads = True
    draining = False
    patience = 0.0
    taking_requests = False
    _srvkit_has_loop = False  # whether it serves in a loop of srvkit's
    _srvkit_loop: Any = None
    _srvkit_loop_thread: int | None = None
    _srvkit_listeners: Sequence[Any] = ()
    _srvkit_admission: Any = None  # of a server from TOML, which keeps a record of each request
    _srvkit_link: Any = None  # what a model makes of each request in its loop, which ends the request itself

    def __init_subclass__(cls, **settings: Any) -> None:
        """Let a class behind this one keep its own names: a program's server may have a `drain`, too."""
        super().__init_subclass__(**settings)
        order = cls.__mro__
        for name in _FILLED if order[-2] is not Steps else ():
            first, *others = (one for one in order if name in vars(one))
            if first is Steps and others:
                setattr(cls, name, vars(others[0])[name])

    @_handed_on
    def loop_begins(self, loop: Any) -> None:
        """Begin with a loop of srvkit's."""

    @_handed_on
    def loop_ends(self, loop: Any) -> None:
        """Put away what lived in it."""

    @_handed_on
    def run_step(self, step: Callable[[], object]) -> None:
        """Take a step of a connection that is not handled yet."""
        step()

    @_handed_on
    def runs_here(self) -> bool:
        """Tell whether the caller is a handler of this server."""
        return False

    @_handed_on
    def requests_taken(self) -> None:
        """Do what is to be done once for all requests of a burst."""

    @_handed_on
    def request_done(self, request: Any) -> None:
        """Hear of the end of a request, in the process that accepts."""

    @_handed_on
    def pause_accepting(self, reason: str) -> None:
        """Accept no more: such a server cannot wait with that."""

    @_handed_on
    def resume_accepting(self, reason: str, unless: Callable[[], bool] | None = None) -> None:
        """Take `pause_accepting` back."""

    @_handed_on
    def back_off_accepting(self, error: BaseException) -> None:
        """Accept nothing for a moment, because something ran out."""

    @_handed_on
    def drain(self, patience: float = 0.0) -> None:
        """Accept nothing new, and let open requests finish."""

    @_handed_on
    def abort_all(self) -> int:
        """End all open requests; return how many there were."""
        return 0

    @_handed_on
    def abort_request(self, request: Any) -> bool:
        """End one request; return whether that was possible."""
        return False

    @_handed_on
    def close_in_child(self, request: Any) -> None:
        """Close, in a forked child, the listening sockets of a server from TOML."""

    @_handed_on
    def datagram_dropped(self) -> None:
        """Hear of a datagram that was no message."""

    @_handed_on
    def reply_lost(self, client_address: Any, why: str) -> None:
        """Hear of a reply that its client could not be given."""

    def _srvkit_name(self) -> str:
        """Return the name by which logs call the server."""
        return self.name or type(self).__name__

    if TYPE_CHECKING:
        RequestHandlerClass: Any
        socket: Any

        def __init__(self, *args: Any, **settings: Any) -> None: ...
        def serve_forever(self, poll_interval: float = ...) -> None: ...
        def handle_request(self) -> None: ...
        def stop_serving(self) -> None: ...
        def server_activate(self) -> None: ...
        def server_close(self) -> None: ...
        def service_actions(self) -> None: ...
        def handle_timeout(self) -> None: ...
        def admit_request(self, request: Any, client_address: Any) -> None: ...
        def process_request(self, request: Any, client_address: Any) -> None: ...
        def finish_request(self, request: Any, client_address: Any) -> None: ...
        def shutdown_request(self, request: Any) -> None: ...
        def close_request(self, request: Any) -> None: ...
        def datagrams_handled(
            self, count: int, bytes_in: int, bytes_out: int, unusual: list[str]
        ) -> None: ...
        def verify_request(self, request: Any, client_address: Any) -> bool: ...
        def refuse_request(self, request: Any) -> None: ...
        def request_admitted(self, request: Any) -> None: ...
        def request_ended(self, request: Any) -> None: ...
        def fileno(self) -> int: ...
        def _handle_request_noblock(self) -> None: ...
        def requests_at_hand(self) -> list[Any]: ...
        def own_error(self, request: Any, error: BaseException | None) -> BaseException | None: ...
        def handle_error(self, request: Any, client_address: Any) -> None: ...
        def secure(self, request: Any, done: Callable[[str, Exception | None], object]) -> None: ...


_FILLED = [name for name in vars(Steps) if not name.startswith("__")]
