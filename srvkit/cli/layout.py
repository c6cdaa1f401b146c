"""Text for people at a terminal: columns whose last one wraps, headings, and where neither is wanted.

What is printed into a pipe is neither wrapped nor painted, so that `grep` finds whole lines.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

NARROWEST = 24  # columns for the text that wraps; less than that is no reading


def terminal_width() -> int | None:
    """Return the columns of the terminal that is written to; None where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wants_colours() -> bool:
    """Tell whether standard output is a terminal that is to be painted on (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def heading(text: str) -> str:
    """Return a heading, bold where that can be seen."""
    return f"\x1b[1m{text}\x1b[0m" if wants_colours() else text


def table(rows: Sequence[Sequence[str]], width: int | None, indent: str = "  ") -> Iterator[str]:
    """Yield the lines of a table; its last column wraps at `width`, under itself."""
    sizes = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for row in rows:
        cells = (cell.ljust(size) for cell, size in zip(row, sizes, strict=False))
        yield from wrapped(row[-1], width, indent + "".join(f"{cell}  " for cell in cells))


def wrapped(text: str, width: int | None, before: str = "") -> Iterable[str]:
    """Return the lines of a text that begins after `before`, its further lines below its first word."""
    if width is None or len(before) + len(text) <= width:
        return [(before + text).rstrip()]
    room = max(width - len(before), NARROWEST)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    first, *others = lines or [""]
    return [(before + first).rstrip(), *(" " * len(before) + line for line in others)]
