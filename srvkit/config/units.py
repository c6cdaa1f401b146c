"""Durations, sizes and file modes: from what people write to numbers, and back.

Knows nothing of keys or files: what is wrong is a `ValueError` that says what is accepted.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

LONGEST = 500 * 3600.0  # seconds; poll(2) takes milliseconds in 31 bits, which is 596 hours

MOST_WORKERS = 1024

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h)")
SIZE = re.compile(r"([0-9]{1,15}) ?(B|KiB|MiB|GiB|)")
MODE = re.compile(r"0?[0-7]{3}")
_KINDS = {str: "a string", bool: "a boolean", int: "an integer", float: "a number"}


def kind(value: Any) -> str:
    """Name the kind of a TOML value: "a string", "a table"."""
    for known, name in _KINDS.items():
        if type(value) is known:
            return name
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "a date or time" if isinstance(value, (datetime.date, datetime.time)) else type(value).__name__


def shown(value: Any) -> str:
    """Show a short value as it is, anything else by its kind."""
    short = type(value) is float or (type(value) is int and abs(value) < 2**63)
    short = short or (type(value) is str and len(value) <= 60)
    return repr(value) if short else kind(value)


def duration(value: Any) -> float:
    """Return seconds from a number of seconds or "250ms", "30s", "5m", "1h"; never negative or endless."""
    seconds = math.nan
    if isinstance(value, str):
        if match := DURATION.fullmatch(value):
            seconds = float(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < 2**63 else math.nan
    if 0 <= seconds <= LONGEST:
        return seconds
    if math.isfinite(seconds):
        raise ValueError(f"expected a duration from 0s to {LONGEST / 3600:g}h, got {shown(value)}")
    raise ValueError(f'expected seconds or a duration like "250ms", "30s", "5m", "1h", got {shown(value)}')


def size(value: Any) -> int:
    """Return bytes from a number of bytes or "512B", "64KiB", "1MiB", "1GiB"; never negative."""
    if isinstance(value, str) and (match := SIZE.fullmatch(value)):
        return int(match[1]) * _BYTES[match[2]]
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < 2**63:
            return value
        raise ValueError(f"expected a size from 0 to {2**63 - 1} bytes, got {shown(value)}")
    raise ValueError(f'expected bytes or a size like "512B", "64KiB", "1MiB", "1GiB", got {shown(value)}')


def worker_count(value: Any) -> int:
    """Return a number of processes from 1 on, or 0 for "auto"."""
    if value == "auto":
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_WORKERS:
        return value
    raise ValueError(f'expected a number from 1 to {MOST_WORKERS} or "auto", got {shown(value)}')


def file_mode(value: Any) -> str:
    """Return permissions in octal digits; a TOML integer 600 would be decimal, and is refused."""
    if isinstance(value, str) and MODE.fullmatch(value):
        return value
    raise ValueError(f'expected permissions as an octal string like "0600", got {shown(value)}')


def duration_text(seconds: float) -> str:
    """Write seconds the way `duration` reads them."""
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:g}h"
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:g}s"


def size_text(count: int) -> str:
    """Write bytes in the largest unit that needs no fraction."""
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % _BYTES[unit] == 0:
            return f"{count // _BYTES[unit]}{unit}"
    return str(count)
