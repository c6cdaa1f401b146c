"""examples/thanks: text, no text, half a character and nothing are all taken as what they are."""

from __future__ import annotations

from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "gevent")


def test_each_piece_is_understood_and_thanked_for(model: str, run_example: Any) -> None:
    thanks = run_example(model)
    said = thanks.client(*thanks.ports("thanks")).splitlines()
    assert [line.rpartition(" -> ")[2] for line in said[:4]] == ["thank you!"] * 4
    assert said[4] == "connected, said nothing, and left"
    thanks.program.wait_for("the client has finished", times=2)
    pieces = [line.partition("received ")[2] for line in thanks.log.splitlines() if "received " in line]
    assert pieces == [
        "11 bytes: grüß dich",
        r"9 bytes: broken: \xff",
        "1 bytes: ",
        "1 bytes: ü",
    ]
