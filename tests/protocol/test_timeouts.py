"""Which limit is next, by a clock that is only numbers."""

from __future__ import annotations

from typing import Any

import pytest

from srvkit.protocol.timeouts import next_timeout
from srvkit.server.limits import LimitSettings


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"heard": False, "reading": 0}, (10, "first-byte-timeout")),
        ({"heard": True, "reading": 0}, (60, "idle-timeout")),
        ({"heard": True, "reading": 20}, (40, "idle-timeout")),
        ({"heard": True, "reading": 70}, (-10, "idle-timeout")),
        ({"heard": True, "writing": 5}, (15, "write-timeout")),
        ({"heard": False, "writing": 0}, (20, "write-timeout")),
        ({"heard": True, "reading": 0, "message": 0}, (30, "request-timeout")),
        ({"heard": True, "reading": 1, "message": 29}, (1, "request-timeout")),
        ({"heard": True, "reading": 59.5, "message": 29}, (0.5, "idle-timeout")),
        ({"heard": False, "reading": 0, "message": 1}, (10, "first-byte-timeout")),
        ({"heard": True, "reading": 50, "writing": 5}, (10, "idle-timeout")),
        ({"heard": True, "reading": 0, "writing": 5}, (15, "write-timeout")),
        ({"heard": True}, (None, "idle-timeout")),
    ],
)
def test_the_nearest_limit_counts(state: dict[str, Any], expected: tuple[float, str]) -> None:
    limits = LimitSettings(first_byte_timeout=10, idle_timeout=60, request_timeout=30, write_timeout=20)
    assert next_timeout(limits, **state) == expected


@pytest.mark.parametrize(
    "state",
    [
        {"heard": False, "reading": 0},
        {"heard": True, "reading": 0, "message": 5},
        {"heard": True, "writing": 0},
    ],
)
def test_zero_is_for_ever(state: dict[str, Any]) -> None:
    limits = LimitSettings(first_byte_timeout=0, idle_timeout=0, request_timeout=0, write_timeout=0)
    assert next_timeout(limits, **state)[0] is None


def test_a_message_is_bounded_where_nothing_else_is() -> None:
    limits = LimitSettings(first_byte_timeout=0, idle_timeout=0, request_timeout=3, write_timeout=0)
    assert next_timeout(limits, heard=True, message=1) == (2, "request-timeout")
