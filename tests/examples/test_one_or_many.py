"""examples/one-or-many: one word decides how many are served at once."""

from __future__ import annotations

import re
from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")
MANY = ("threading", "pool", "forking")


def test_the_timeline_shows_how_many_were_served_at_once(model: str, run_example: Any) -> None:
    seconds = 1.0 if model in MANY else 0.1
    slow = run_example(model, f"server.slow.handler.seconds={seconds}")
    said = slow.client(*slow.ports("slow"))
    bars = re.findall(r"^\|([.# ]{48})\| in \d+/\d+$", said, re.M)
    assert len(bars) == 4 and all("#" in bar for bar in bars)
    at_once = int(re.findall(r"at most (\d) at once", said)[0])
    if model in MANY:
        assert at_once > 1
    else:
        assert at_once == 1
