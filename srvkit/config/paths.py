"""Which file a name means: made absolute once, by the names that people use, with the links left in.

A deployment turns a link, `current` say, and means that whoever goes by that name is to follow it.
"""

from __future__ import annotations

import os
from pathlib import Path

MOST_LINKS = 40  # as the kernel has it


def current_folder() -> Path:
    """Return the current folder by the name by which it was entered ($PWD), if that holds still.

    Never raises: where the folder was removed, it is the last name that is known.
    """
    named = os.environ.get("PWD", "")
    try:
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return Path(named)
    except OSError:
        pass
    try:
        return Path.cwd()
    except OSError:
        return Path(named if os.path.isabs(named) else os.curdir)


def absolute(path: Path | str) -> Path:
    """Return the name of a file from the root on; links in it are not resolved."""
    return Path(without_dots(current_folder() / path))


def names_of(path: Path | str) -> list[Path]:
    """Return all names of a file from the one that is given to what it is: one link followed each time."""
    names = [os.fspath(absolute(path))]
    for _ in range(MOST_LINKS):
        following = _first_link_followed(names[-1])
        if following is None or following in names:
            break
        names.append(following)
    return [Path(name) for name in names]


def _first_link_followed(path: str) -> str | None:
    parts = Path(path).parts
    for count in range(1, len(parts) + 1):
        prefix = os.path.join(*parts[:count])
        try:
            target = os.readlink(prefix)
        except OSError:
            continue
        return without_dots(os.path.join(os.path.dirname(prefix), target, *parts[count:]))
    return None


def without_dots(path: str | Path) -> str:
    """Return the path without `.` and `..`; behind a link `..` is not the folder in front of the link."""
    parts = Path(path).parts
    if ".." not in parts:
        return os.path.join(*parts)
    last = len(parts) - parts[::-1].index("..")
    return os.path.join(os.path.realpath(os.path.join(*parts[:last])), *parts[last:])
