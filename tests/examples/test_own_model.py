"""examples/own-model: a model from a plugin limits how many begin in a second."""

from __future__ import annotations

import re
from typing import Any

MODELS = ("rate-limited",)


def summary(said: str) -> tuple[int, float]:
    found = re.search(r"^(\d+) answers in ([\d.]+) s$", said, re.M)
    assert found, said
    return int(found[1]), float(found[2])


def test_answers_come_no_faster_than_allowed(model: str, run_example: Any) -> None:
    clock = run_example(model, "server.clock.concurrency.rate=10")
    answers, seconds = summary(clock.client("6", *clock.ports("clock")))
    assert answers == 6
    assert seconds >= 0.49  # the sixth has to wait for five tenths of a second; printed to the hundredth


def test_who_finds_too_many_waiting_is_refused(model: str, run_example: Any) -> None:
    clock = run_example(model, "server.clock.concurrency.most_waiting=2")
    said = clock.client("8", *clock.ports("clock"))
    answers, _ = summary(said)
    assert "refused" in said
    assert 1 <= answers < 8


def test_check_explains_it_like_any_model(run_example: Any) -> None:
    clock = run_example()
    explained = clock.srvkit("check", "--explain")
    assert "class ClockTCPServer(RateLimitedMixIn, TCPServer):" in explained
    assert "rate = 4.0" in explained


def test_the_class_statement_alone_does_the_same(run_example: Any) -> None:
    clock = run_example()
    alone = clock.client_that_stays("0", program="clock.py")
    port = alone.wait_for(r"listening on port (\d+)")[1]
    answers, seconds = summary(clock.client("4", port))
    assert answers == 4
    assert seconds >= 0.29
