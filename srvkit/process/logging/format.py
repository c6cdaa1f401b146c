"""A log record as a line: for people, or as JSON for programs.

What came from a peer cannot forge a line: whatever is not printable is escaped, and the lines of a
traceback are indented. This module knows nothing of files or rates.
"""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

LONGEST_MESSAGE = 8 * 1024  # characters; of what is longer the middle is left out
LONGEST_TRACEBACK = 64 * 1024

Layout = Callable[[logging.LogRecord], str]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_USUAL = len(vars(logging.makeLogRecord({})))
_FIRST = ("event", "peer")  # of the fields given by `extra`


class Clock:
    """Writes the time of records; what is the same for a whole second is made once in it."""

    def __init__(self, form: str) -> None:
        self._form = form  # of strftime, with {} for the milliseconds
        self._last: tuple[int, str] = (-1, "")

    def text(self, record: logging.LogRecord) -> str:
        """Return the local time of a record."""
        second = int(record.created)
        last, text = self._last
        if second != last:
            text = time.strftime(self._form, time.localtime(second))
            self._last = second, text
        return text.replace("{}", f"{min(int(record.msecs), 999):03d}")


def text_layout(server: str) -> Layout:
    """Return how to write a record for people: `2026-11-21 13:15:05.123 INFO echo[4711]: message`."""
    clock = Clock("%Y-%m-%d %H:%M:%S.{}")

    def layout(record: logging.LogRecord) -> str:
        pid = record.process or os.getpid()
        line = f"{clock.text(record)} {record.levelname} {server}[{pid}]: {printable(message_of(record))}"
        stack = _stack_of(record)
        if stack:
            line += "".join(f"\n    {printable(part)}" for part in stack.rstrip("\n").split("\n"))
        return line

    return layout


def json_layout(server: str) -> Layout:
    """Return how to write a record as one JSON object: time, level, logger, server, worker, message, ...

    Fields given by `extra` follow, those that JSON has no way to write as their `repr`; none replaces a
    field of srvkit's own. The time is RFC 3339.
    """
    clock = Clock("%Y-%m-%dT%H:%M:%S.{}%z")

    def layout(record: logging.LogRecord) -> str:
        moment = clock.text(record)
        fields: dict[str, Any] = {
            "time": f"{moment[:-2]}:{moment[-2:]}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "server": server,
            "worker": record.process or os.getpid(),
        }
        given = vars(record)
        for name in _FIRST:
            if name in given:
                fields[name] = given[name]
        fields["message"] = message_of(record)
        if len(given) > _USUAL:
            fields |= {name: given[name] for name in given if name not in _STANDARD and name not in fields}
        stack = _stack_of(record)
        if stack:
            fields |= _exception(record, stack)
        return _as_json(fields)

    return layout


def message_of(record: logging.LogRecord) -> str:
    """Return the message, also where the arguments do not fit it."""
    try:
        text = record.getMessage()
    except Exception as error:
        text = f"{_shown(record.msg)} % {_shown(record.args)} ({type(error).__name__}: {_shown(error)})"
    return shortened(text.rstrip("\n"), LONGEST_MESSAGE)


def printable(text: str) -> str:
    """Escape what is not printable, line ends and terminal controls above all, as Python writes it."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def shortened(text: str, longest: int) -> str:
    """Leave out the middle of a text that is too long, and say how much that is."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


def _stack_of(record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[1] is not None:
        try:
            parts.append("".join(traceback.format_exception(record.exc_info[1])))
        except Exception as error:  # of an exception that cannot even be shown
            parts.append(f"{type(record.exc_info[1]).__name__} (no traceback: {_shown(error)})\n")
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    return shortened("\n".join(part.rstrip("\n") for part in parts), LONGEST_TRACEBACK)


def _exception(record: logging.LogRecord, stack: str) -> dict[str, Any]:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return {"stack": stack}
    words = shortened(_text(str, error), LONGEST_MESSAGE)
    return {"exception": {"type": type(error).__qualname__, "message": words, "stack": stack}}


def _text(how: Callable[[Any], str], thing: object) -> str:
    try:
        return how(thing)
    except Exception:
        return f"<{type(thing).__name__} that cannot be shown>"


def _shown(thing: object) -> str:
    return shortened(_text(str if isinstance(thing, (str, BaseException)) else repr, thing), LONGEST_MESSAGE)


# ASCII alone: no terminal control, line separator or lone surrogate gets through as itself.
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, default=_shown, separators=(", ", ": ")).encode


def _as_json(fields: Mapping[str, Any]) -> str:
    try:
        line = _encode(fields)
    except Exception:  # NaN, a circle, keys that are no strings
        line = _encode({name: _plain(value) for name, value in fields.items()})
    return line.replace("\x7f", "\\u007f")  # DEL is ASCII, and a control


def _plain(value: Any) -> Any:
    try:
        _encode(value)
    except Exception:
        return _shown(value)
    return value
