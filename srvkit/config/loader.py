"""Read a configuration: a file, a text, or a table, with overrides and the environment.

A configuration is hostile input: only regular files of a bounded size are read, once. What
prevents reading is a `ConfigError` at once; everything else is collected, so that who builds on the
result can add to it before all of it is reported.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srvkit.config import toml
from srvkit.config.environment import expand
from srvkit.config.model import Config, convert
from srvkit.config.overrides import override
from srvkit.config.paths import absolute
from srvkit.config.problems import Problems, Source
from srvkit.errors import ConfigError, Problem
from srvkit.net.closing import close_one

LARGEST = 2**20  # bytes of a file

_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read(
    path: Path | str,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    *,
    name: str = "",
) -> tuple[Config, Problems]:
    """Return what a file says and what is wrong with it; `name` is what messages call it.

    Raises `ConfigError` for a file that cannot be read or is not TOML. It never waits: a pipe or a
    device is refused.
    """
    file = os.fspath(path)
    name = name or file
    return read_text(_decoded(_contents(file, name), name), name, overrides, environ, path=absolute(path))


def read_text(
    text: str,
    name: str = "<string>",
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    *,
    path: Path | None = None,
) -> tuple[Config, Problems]:
    """Return what a text says and what is wrong with it, as `read` does for a file called `name`."""
    data = _parsed(text, name)
    return _converted(Source(name, text), data, overrides, environ, path)


def from_table(
    data: dict[str, Any],
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    path: Path | None = None,
    folder: Path | None = None,
) -> tuple[Config, Problems]:
    """Return what a table says, shaped like a parsed file; problems name keys without file or line.

    Variables in strings stay as they are unless an environment is given. Relative paths begin in `folder`,
    by default where the file is, or would be.
    """
    return _converted(Source(), data, overrides, environ, path, folder)


def _converted(
    source: Source,
    data: dict[str, Any],
    overrides: Sequence[str],
    environ: Mapping[str, str] | None,
    path: Path | None,
    folder: Path | None = None,
) -> tuple[Config, Problems]:
    problems = Problems(source)
    source.data = override(data, overrides, problems)
    return convert(expand(source.data, environ, problems), problems, path, folder), problems


def _contents(file: str, name: str) -> bytes:
    try:
        _refuse_unless_regular(os.stat(file), name)
        # Without O_NONBLOCK a pipe put in the file's place meanwhile would hold the open for ever.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            opened = open(descriptor, "rb")  # noqa: SIM115 - it is closed below, or was never opened
        except BaseException:
            close_one(descriptor)
            raise
        with opened:
            _refuse_unless_regular(os.fstat(descriptor), name)
            content = opened.read(LARGEST + 1)
    except FileNotFoundError:
        raise _unreadable(name, f"there is no such file (looked for {absolute(file)})") from None
    except OSError as error:
        raise _unreadable(name, f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise _unreadable(repr(name), "is no name of a file") from None
    if len(content) > LARGEST:
        raise _unreadable(name, f"is larger than {LARGEST // 2**20} MiB")
    return content


def _refuse_unless_regular(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _unreadable(name, "is a directory, a file is expected")
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(name, "is not a regular file")


def _decoded(content: bytes, name: str) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise _unreadable(name, f"starts with a byte order mark ({encoding}), plain UTF-8 is expected", 1)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        wrong = f"byte {column} of the line is 0x{content[error.start]:02x}, which is not UTF-8"
        raise _unreadable(name, wrong, line) from None


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        return toml.parse(text)
    except toml.SyntaxProblem as error:
        raise _unreadable(name, _in_words(error.msg), error.lineno, error.colno) from None
    except RecursionError:
        raise _unreadable(name, "nested too deeply", _first_line_with(RecursionError, text)) from None
    except ValueError:
        raise _unreadable(name, "a number has too many digits", _first_line_with(ValueError, text)) from None


def _first_line_with(kind: type[Exception], text: str) -> int:
    """Return the line that makes the parser give up: a text that ends before it fails otherwise, or not."""
    lines = text.split("\n")
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            toml.parse("\n".join(lines[:middle]))
        except toml.SyntaxProblem:
            low = middle
        except kind:
            high = middle
        else:
            low = middle
    return high


def _in_words(message: str) -> str:
    if declared := re.fullmatch(r"Cannot declare \((.*?),?\) twice", message):
        return f"the table {declared[1]} is declared a second time"
    if message == "Cannot overwrite a value":
        return "this key has a value already"
    return message[:1].lower() + message[1:]


def _unreadable(name: str, message: str, line: int = 0, column: int = 0) -> ConfigError:
    return ConfigError([Problem(message, file=name, line=line, column=column)])
