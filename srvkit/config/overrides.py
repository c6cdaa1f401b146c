"""Overrides from the command line, `--set server.echo.workers=4`, put into the table that was read.

Knows which keys take a name or a table with a name; what else keys mean is checked later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srvkit.config import toml
from srvkit.config.problems import OVERRIDE, Problems
from srvkit.config.toml import Key

_NAMED = ("handler", "concurrency", "framing")  # keys of a server: "pool", or { name = "pool", … }


def override(data: dict[str, Any], overrides: Sequence[str], problems: Problems) -> dict[str, Any]:
    """Return the table with the overrides in it, in their order; `data` itself stays as it is."""
    for text in overrides:
        statement = toml.split_statement(text)
        if statement is None or "\n" in statement[1]:
            written = text.partition("=")[0].strip()
            reason = "is no key" if "=" in text else "has no value; write KEY=VALUE"
            problems.add((), f"{toml.literal(written)} {reason}", file=OVERRIDE)
            continue
        key, _, value = statement
        changed, obstacle = _with(data, key, toml.value_of(value.strip()))
        if obstacle:
            problems.add(key, f"{toml.dotted(obstacle)} is not a table", file=OVERRIDE)
            continue
        data = changed
        problems.source.overridden.add(key)
    return data


def _with(data: dict[str, Any], key: Key, value: Any) -> tuple[dict[str, Any], Key]:
    """Return a copy of the table with the key set, and what stands in its way: () if nothing does."""
    data = inner = dict(data)
    for depth, part in enumerate(map(str, key[:-1]), 1):
        child = inner.get(part, {})
        if isinstance(child, str) and depth == 3 and key[0] == "server" and part in _NAMED:
            child = {"name": child}
        if not isinstance(child, dict):
            return data, key[:depth]
        inner[part] = inner = dict(child)
    inner[str(key[-1])] = value
    return data, ()
