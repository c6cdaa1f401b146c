"""examples/sticky-packets: two sends are one message or two, by the framing alone."""

from __future__ import annotations

import re
from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")


def test_only_framed_messages_keep_apart(model: str, run_example: Any) -> None:
    sticky = run_example(model)
    said = sticky.client(*sticky.ports("raw", "lines", "delimiter", "length-prefix"))
    readme = (sticky.folder / "README.md").read_text()
    assert said in re.findall(r"^```text\n(.*?)^```$", readme, re.M | re.S)
