"""The log of a process: one handler for the root logger, a level, a format, and a bound on floods.

Everything else uses `logging.getLogger` and knows nothing of this. Nothing here waits or raises: a log
that cannot be written costs lines, which are counted, and never a connection.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from srvkit.config.model import Config, LoggingSettings
from srvkit.errors import SrvkitError
from srvkit.plugins import connection_log
from srvkit.process.logging import guard as loggers
from srvkit.process.logging.file import LogFile
from srvkit.process.logging.format import json_layout, shortened, text_layout

BURST = 20  # records of a kind that may come at once
RATE = 10.0  # records of a kind in a second, from then on
REPORT_EVERY = 1.0  # seconds
MOST_KINDS = 1024  # told apart; those beyond it share a bound
log = logging.getLogger("srvkit.logs")

UNBOUNDED = ("srvkit.process", connection_log.LOGGER)  # rare and important; asked for one by one

_PREFIX = 100  # characters of a message that tell its kind: what is formatted too early has no template

Kind = tuple[str, int, str]  # logger, level, template


class LogError(SrvkitError):
    """The log cannot be opened."""

    exit_status = 3


def path_of(config: Config | None) -> Path | None:
    """Return what `[logging] file` names, relative to the configuration; None for standard error."""
    if config is None or not config.logging.file:
        return None
    return config.folder / config.logging.file


def open_log(config: Config | None) -> LogFile:
    """Open what `[logging] file` names, relative to the configuration, or standard error.

    It is standard error also while there is no configuration yet. Raises LogError. The caller closes it.
    """
    name = config.logging.file if config is not None else ""
    try:
        return LogFile.open(path_of(config))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LogError(f"cannot open the log{f' {name}' if name else ''}: {reason}") from error


def open_again(path: str | None) -> LogFile:
    """Open the log that a predecessor of this program had, or standard error. Raises LogError."""
    with suppress(OSError):
        return LogFile.open(Path(path) if path is not None else None)
    return open_log(None)


def set_up(settings: LoggingSettings, log_file: LogFile, *, server: str = "") -> None:
    """Let every record of this process go to `log_file`, and nowhere else; again after a fork.

    `server` is the name that lines carry, "srvkit" where the process has no single one. Python's
    warnings are records too. `log_file` stays the caller's, to reopen and to close.
    """
    logging.raiseExceptions = False  # or other handlers' faults go to standard error, which may block
    logging.captureWarnings(True)
    root = logging.getLogger()
    replaced = root.handlers[:]
    ours = LogHandler(log_file, settings.format, server or "srvkit")
    root.addHandler(ours)
    loggers.keep_on(ours, settings.level.upper())
    for handler in replaced:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(settings.level.upper())
    sys.unraisablehook = _log_unraisable
    connections = logging.getLogger(connection_log.LOGGER)  # whoever turns them on wants to see them
    connections.setLevel(logging.INFO if settings.connections else logging.NOTSET)


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Log an exception that Python can raise nowhere, which it would print itself, line by line."""
    error, where = unraisable.exc_value, unraisable.err_msg or "exception ignored in"
    if unraisable.object is not None:  # from Python 3.14 on, the message says it
        where = f"{where}: {unraisable.object!r}"
    if isinstance(error, UnicodeDecodeError) and repr(error.object) in where:
        log.debug("invalid name: %r", error.object)  # of a TLS client, whose handshake fails for it
    else:
        log.error("%s", where, exc_info=error)


class LogHandler(logging.Handler):
    """Writes records to a `LogFile`, in their format, unless there are too many of a kind."""

    def __init__(self, file: LogFile, form: str, server: str, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._file = file
        self._layout = (json_layout if form == "json" else text_layout)(server)
        self._floods = Floods(clock)
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and before it what has to be said about those that were not written."""
        try:
            if record.process != self._pid:
                self._start_afresh()
            passes = record.name in UNBOUNDED or self._floods.passes(record)
            for kind, held in self._floods.reports():
                self._write(_report(kind, held))
            if passes:
                self._write(record)
        except Exception:  # a log never takes its process down
            self._file.lost += 1

    def flush(self) -> None:
        """Say what was held back so far; at the end of the process."""
        self.acquire()
        try:
            if os.getpid() == self._pid:
                for kind, held in self._floods.reports(now=True):
                    self._write(_report(kind, held))
        finally:
            self.release()

    def close(self) -> None:
        """Say what was held back, and leave the file to its owner."""
        self.flush()
        super().close()

    def _write(self, record: logging.LogRecord) -> None:
        line = self._layout(record).encode("utf-8", "backslashreplace") + b"\n"
        if self._file.lost and not self._write_lost():
            return
        self._file.write(line)

    def _write_lost(self) -> bool:
        lost = self._file.lost
        record = _record("srvkit.process", logging.WARNING, "%d line%s of the log could not be written")
        record.args = lost, "s" * (lost != 1)
        vars(record).update(event="lines_lost", lost=lost)
        # Not written, it counts once: for the record that it should have led in.
        written = self._file.write(self._layout(record).encode() + b"\n")
        if written:
            self._file.lost = 0
        return written

    def _start_afresh(self) -> None:
        """Forget in a forked child what its parent has to report."""
        pid = os.getpid()
        if pid != self._pid:
            self._pid = pid
            self._file.lost = 0
            self._floods.forget()


def _record(name: str, level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, message, None, None)


def _report(kind: Kind, held: int) -> logging.LogRecord:
    name, level, template = kind
    like = f" like {shortened(template, _PREFIX)!r}" if template else f" of {name}"
    record = _record(name, level, "… %d more%s held back")
    record.args = held, like
    vars(record).update(event="held_back", held_back=held, like=template)
    return record


@dataclass(slots=True)
class Flood:
    """One kind of record: how many may come now, and how many were held back."""

    allowance: float
    seen: float
    held: int = 0


class Floods:
    """Bounds the rate of each kind of record, by logger, level and message before its arguments.

    `BURST` at once, then `RATE` a second. What was held back is told at the next record of any kind, at
    most once every `REPORT_EVERY` seconds: no timer and no thread wakes for it.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing held back."""
        self._kinds: dict[Kind, Flood] = {}
        self._holding: dict[Kind, Flood] = {}
        self._next_report = 0.0
        self._next_tidying = 0.0

    def passes(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is written; count it where it is not."""
        message = record.msg
        kind = (record.name, record.levelno, message[:_PREFIX] if isinstance(message, str) else "")
        now = self._clock()
        flood = self._kinds.get(kind)
        if flood is None:
            kind, flood = self._new(kind, now)
        allowance = flood.allowance + (now - flood.seen) * RATE
        flood.seen = now
        if allowance >= 1.0:
            flood.allowance = (allowance if allowance < BURST else BURST) - 1.0
            return True
        flood.allowance = allowance
        flood.held += 1
        if not self._holding:
            self._next_report = now + REPORT_EVERY
        self._holding[kind] = flood
        return False

    def reports(self, now: bool = False) -> list[tuple[Kind, int]]:
        """Return the kinds with how many of each were held back, when it is time (or `now`) to say so."""
        if not self._holding or not (now or self._clock() >= self._next_report):
            return []
        held = [(kind, flood.held) for kind, flood in self._holding.items()]
        for flood in self._holding.values():
            flood.held = 0
        self._holding.clear()
        return held

    def _new(self, kind: Kind, now: float) -> tuple[Kind, Flood]:
        full_again = BURST / RATE  # seconds after which a quiet kind is as good as new
        if len(self._kinds) >= MOST_KINDS and now >= self._next_tidying:
            self._next_tidying = now + full_again
            self._kinds = {one: flood for one, flood in self._kinds.items() if now - flood.seen < full_again}
        if len(self._kinds) >= MOST_KINDS:
            kind = (kind[0], kind[1], "")
        return kind, self._kinds.setdefault(kind, Flood(BURST, now))
