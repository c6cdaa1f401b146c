"""examples/half-close: the answer comes after the client's end."""

from __future__ import annotations

import hashlib
from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "gevent")


def test_the_answer_covers_all_that_was_said(model: str, run_example: Any) -> None:
    checksum = run_example(model)
    for text in ("", "hello\n", "x" * 300_000):
        said = checksum.client(*checksum.ports("checksum"), said=text)
        assert said.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_without_the_half_close_a_limit_ends_the_wait(run_example: Any) -> None:
    checksum = run_example("threading", "server.checksum.limits.idle_timeout=0.1")
    client = checksum.folder / "client.py"
    lines = client.read_text().splitlines(keepends=True)
    client.write_text("".join(line for line in lines if "SHUT_WR" not in line))
    assert checksum.client(*checksum.ports("checksum"), said="hello") == "no answer\n"
    checksum.program.wait_for("ended: idle-timeout")
