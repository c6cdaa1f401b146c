"""Which limit is next, by a clock that is only numbers."""

from __future__ import annotations

from typing import Any

import pytest

from srvkit.protocol.timeouts import next_timeout
from srvkit.server.limits import LimitSettings


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"heard": False}, (10, "first-byte-timeout")),
        ({"heard": True}, (60, "idle-timeout")),
        ({"heard": True, "quiet": 20}, (40, "idle-timeout")),
        ({"heard": True, "quiet": 70}, (-10, "idle-timeout")),
        ({"heard": True, "unsent": True, "quiet": 5}, (15, "write-timeout")),
        ({"heard": False, "unsent": True}, (20, "write-timeout")),
        ({"heard": True, "message": 0}, (30, "request-timeout")),
        ({"heard": True, "message": 29, "quiet": 1}, (1, "request-timeout")),
        ({"heard": True, "message": 29, "quiet": 59.5}, (0.5, "idle-timeout")),
        ({"heard": False, "message": 1}, (10, "first-byte-timeout")),
    ],
)
def test_the_nearest_limit_counts(state: dict[str, Any], expected: tuple[float, str]) -> None:
    limits = LimitSettings(first_byte_timeout=10, idle_timeout=60, request_timeout=30, write_timeout=20)
    assert next_timeout(limits, **state) == expected


@pytest.mark.parametrize(
    "state", [{"heard": False}, {"heard": True, "message": 5}, {"heard": True, "unsent": True}]
)
def test_zero_is_for_ever(state: dict[str, Any]) -> None:
    limits = LimitSettings(first_byte_timeout=0, idle_timeout=0, request_timeout=0, write_timeout=0)
    assert next_timeout(limits, **state)[0] is None


def test_a_message_is_bounded_where_nothing_else_is() -> None:
    limits = LimitSettings(first_byte_timeout=0, idle_timeout=0, request_timeout=3, write_timeout=0)
    assert next_timeout(limits, heard=True, message=1) == (2, "request-timeout")
