"""Options that are made of a table: the instance, or what is wrong with it."""

from __future__ import annotations

import enum
from typing import (
    Any,
)

from srvkit.config.convert import convert_options
from srvkit.config.problems import Problems

KEY = ("server", "echo", "handler")


def convert(declared, **table: Any):
    """Return the instance and the problems as text, without the key they all begin with."""
    problems = Problems()
    made = convert_options(declared, table, KEY, problems)
    return made, [str(problem).removeprefix("server.echo.handler") for problem in problems.listed()]


def problems_of(declared, **table: Any) -> list[str]:
    made, problems = convert(declared, **table)
    assert made is None
    return problems


class Color(enum.Enum):
    RED = "red"
    RAW = b"raw"
    NINE = 9
