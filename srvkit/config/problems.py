"""What is wrong in a configuration, all of it, with the place of each problem.

Knows where values came from (a file's text, `--set`, the environment), not what they mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from srvkit.config import toml
from srvkit.config.toml import Key
from srvkit.errors import ConfigError, Problem

OVERRIDE = "--set"  # stands where a file's name would

_MOST = 500  # problems that are listed; a hostile file has room for a hundred thousand


@dataclass
class Source:
    """Where the values of one configuration came from; without a name there is no file."""

    name: str = ""  # the file, as the user named it
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)  # as read, with the overrides in it
    overridden: set[Key] = field(default_factory=set)
    whole: dict[Key, str] = field(default_factory=dict)  # "${NAME}", where a value is exactly that
    variables: dict[Key, dict[str, str]] = field(default_factory=dict)  # what the environment gave
    broken: set[Key] = field(default_factory=set)  # values that were a problem already when read

    @cached_property
    def lines(self) -> dict[Key, int]:
        return toml.key_lines(self.text)

    def place(self, key: Key) -> tuple[str, int]:
        """Return the file and line of a key, or of the nearest table around it."""
        around = [key[:length] for length in range(len(key), 0, -1)]
        if any(part in self.overridden for part in around):
            return OVERRIDE, 0
        for part in around:
            if part in self.lines:
                return self.name, self.lines[part]
            if any(override[: len(part)] == part for override in self.overridden):
                return OVERRIDE, 0
        return self.name, 0

    def trimmed(self, key: Key) -> Key:
        """Leave out the position where one value was written in place of a list."""
        if not key or not isinstance(key[-1], int):
            return key
        value: Any = self.data
        for part in key[:-1]:
            value = value.get(part) if isinstance(value, dict) else None
        return key[:-1] if isinstance(value, str) else key

    def redacted(self, key: Key, message: str) -> str:
        """Put ${NAME} in place of what the environment gave for this key, or for anything inside it."""
        names: dict[str, str] = {}
        for place, values in self.variables.items():
            if place[: len(key)] == key or key[: len(place)] == place:
                for name, value in values.items():
                    names |= dict.fromkeys((value, repr(value)[1:-1], toml.literal(value)[1:-1]), name)
        # A short value, "1", is replaced only where it stands alone: not inside "1024".
        forms = [
            re.escape(value) if len(value) > 3 else rf"(?<!\w){re.escape(value)}(?!\w)"
            for value in sorted(names, key=len, reverse=True)
        ]
        return re.sub("|".join(forms), lambda match: f"${{{names[match[0]]}}}", message) if forms else message


class Problems:
    """Collects everything that is wrong in one configuration."""

    def __init__(self, source: Source | None = None) -> None:
        self.source = source or Source()
        self._found: list[tuple[Key, str, str, int]] = []
        self._unlisted = 0

    def __len__(self) -> int:
        return len(self._found) + self._unlisted

    @property
    def full(self) -> bool:
        """Whether further problems are counted only: no need to look for good words."""
        return len(self._found) >= _MOST

    def add(self, key: Key, message: str, file: str = "", status: int = 2) -> None:
        """Note a problem at a key, () for the file as a whole; `file` where it is not the source's own.

        `status` is what a command ends with that has no other: 3 where the file is right and what it asks
        for is broken.

        What the environment gave for the key is replaced by ${NAME} wherever the message quotes it
        in full.
        """
        if self.full:
            self._unlisted += 1
            return
        message = " ".join(self.source.redacted(key, message).split())
        self._found.append((self.source.trimmed(key), message, file, status))

    def take(self, other: Problems) -> None:
        """Add what another collection has found in the same source."""
        for found in other._found:
            self.add(*found)

    def listed(self) -> list[Problem]:
        """Return the problems in the order of the file, then those that have no line, then overrides."""
        listed = []
        for key, message, name, status in self._found:
            file, line = (name, 0) if name else self.source.place(key)
            listed.append(Problem(message, toml.dotted(key), file, line, status=status))
        listed.sort(key=lambda problem: (problem.file == OVERRIDE, not problem.line, problem.line))
        if self._unlisted:
            listed.append(Problem(f"and {self._unlisted} more problems", file=self.source.name))
        return listed

    def raise_if_any(self) -> None:
        """Raise a `ConfigError` with everything that was found."""
        if self:
            raise ConfigError(self.listed())
