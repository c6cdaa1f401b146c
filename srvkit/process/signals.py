"""Signals as bytes on a descriptor, so that all work is done in the loop and none in a handler."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import get_ident
from types import TracebackType
from typing import Any

from srvkit.net.closing import close

_ONCE_MORE = b"\0"  # no signal has this number
# What a supervisor answers to; and what would end it, but does nothing.
HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)
IGNORED = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO)  # each would end the process
PLAIN: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}  # what Python itself does at its start
# What is said to a whole group of processes, or to all of one name, is meant for the first of them.
IGNORED_SIGNALS = tuple(
    getattr(signal, name)
    for name in (
        "SIGINT",
        "SIGHUP",
        "SIGUSR1",
        "SIGUSR2",
        "SIGTTIN",
        "SIGTTOU",
        "SIGALRM",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
    )
    if hasattr(signal, name)
)


def hold_back(*numbers: int) -> None:
    """Leave these signals waiting until a `Signals` catches them: none ends what is half started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def let_through(*numbers: int) -> None:
    """Give these signals their default effect, and hold them back no longer."""
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def hold_back_only(*numbers: int) -> None:
    """Leave these signals waiting, and let all others through."""
    signal.pthread_sigmask(signal.SIG_SETMASK, numbers)


def forget_handlers() -> None:
    """Give every signal its default effect in a child, where the program's handlers would go on in its name.

    So would the descriptor that wakes the program up. What is ignored stays so, but for SIGCHLD.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)) or number == signal.SIGCHLD:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def interrupts_held_back() -> Iterator[Callable[[], object]]:
    """Keep Ctrl-C from this thread while the context lasts, or until what it yields is called."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield let_go
    finally:
        let_go()


def disregard(*numbers: int) -> None:
    """Let these signals do nothing here, and have their default effect in programs started from here.

    SIG_IGN would be inherited by them: a handler's `sleep` could not be interrupted.
    """
    for number in numbers:
        signal.signal(number, _nothing)


def _nothing(number: int, frame: Any) -> None:
    pass


class Signals:
    """Catch the given signals while the context lasts, also those held back; main thread only.

    `fileno()` becomes readable when one arrives, `read()` returns their numbers. Those in `ignored` do
    nothing. On leaving, the program's own dispositions are back.

    While `breaking` is set, because nobody reads here but somebody else's code has the main thread, a
    second signal, or QUIT, raises KeyboardInterrupt in that code.

    A process forked meanwhile, by whomever, has them no more: there they have their default effect, and
    none is told here.
    """

    def __init__(self, *numbers: int, ignored: Sequence[int] = ()) -> None:
        self.breaking = False
        self._numbers = numbers
        self._ignored = ignored
        self._unread = 0
        self._pending = bytearray()  # read, and not handed out yet
        # Where they are read into, and how many there are: once they are read, nothing takes memory.
        self._fresh, self._count = bytearray(4096), 0
        self._into = [self._fresh]
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            # The byte is written by the interpreter's own C handler; this one need not.
            self._before[number] = signal.signal(number, self._noted)
        for number in self._ignored:
            self._before[number] = signal.signal(number, _nothing)
        _forks.begin(self._before, self._forked)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._numbers, *self._ignored})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        signal.set_wakeup_fd(self._wakeup_before)
        _forks.end()
        close(self._read, self._write)

    def take_back(self) -> None:
        """Catch them again, where somebody else's code had the main thread and has changed that."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, self._noted)
        for number in self._ignored:
            signal.signal(number, _nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._numbers, *self._ignored})

    def _forked(self) -> None:
        signal.set_wakeup_fd(-1)  # what is written there would be a signal to the parent
        close(self._read, self._write)

    def fileno(self) -> int:
        return self._read

    def read(self) -> list[int]:
        """Return the signals that came since the last call, in order; never waits.

        The interpreter writes a byte for every signal with a handler of Python's, whoever has set that;
        only those that are caught here count.
        """
        self._unread = 0
        try:
            return [number for number in os.read(self._read, 4096) if number in self._numbers]
        except BlockingIOError:
            return []

    def hand_out(self, obey: Callable[[int, int], object]) -> None:
        """Call `obey(number, times)` for each kind of signal that came since the last call; never waits.

        Where that raises, those that were not obeyed come once more.
        """
        self._unread = 0
        try:
            if not self._count:
                with suppress(BlockingIOError):
                    self._count = os.readv(self._read, self._into)
            self._pending += self._fresh[: self._count]
            self._count = 0
            while self._pending:
                number = self._pending[0]
                if number in self._numbers:
                    obey(number, self._pending.count(number))
                while number in self._pending:
                    self._pending.remove(number)
        except BaseException:
            with suppress(BlockingIOError):  # it is full, and so it wakes us anyway
                os.write(self._write, _ONCE_MORE)
            raise

    def _noted(self, number: int, frame: Any) -> None:
        self._unread += 1
        if self.breaking and (self._unread > 1 or number == signal.SIGQUIT):
            raise KeyboardInterrupt


class SignalsOfChildren:
    """What signals mean to the children of a forking server, which serve on their own."""

    def __init__(self, ignored: Iterable[int]) -> None:
        # Ctrl-C goes to all; the parent says what it means.
        self._ignored = {signal.SIGINT, *ignored}
        self.held_back = frozenset({signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD, *self._ignored})

    def take(self, handlers: Mapping[int, Callable[[int, Any], object]]) -> None:
        """Have these called, the rest forgotten, and nothing held back any more; in a child."""
        for number, handler in handlers.items():
            signal.signal(number, handler)
        disregard(*self._ignored)
        _forks.begin({*handlers, *self._ignored}, bool)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.held_back)


class _Forks:
    """Sees to it that whatever is forked from here has ordinary signals."""

    def __init__(self) -> None:
        self._numbers: Collection[int] = ()  # that are caught here
        self._forked: Callable[[], object] = bool  # called in the child
        self._masks: dict[int, set[int]] = {}  # of threads that are about to fork
        self._is_known = False

    def begin(self, numbers: Collection[int], forked: Callable[[], object]) -> None:
        self._numbers, self._forked = numbers, forked
        if not self._is_known:
            self._is_known = True
            os.register_at_fork(
                before=self._hold_back, after_in_parent=self._go_on, after_in_child=self._begin_anew
            )

    def end(self) -> None:
        self._numbers, self._forked = (), bool

    def _hold_back(self) -> None:
        # One that comes to the child too early would be taken down as if it were the parent's.
        if self._numbers:
            self._masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def _go_on(self) -> None:
        mask = self._masks.pop(get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _begin_anew(self) -> None:
        for number in self._numbers:
            signal.signal(number, PLAIN.get(number, signal.SIG_DFL))
        self._forked()
        self.end()
        self._go_on()
        self._masks.clear()


_forks = _Forks()
