"""Nothing ends the supervisor: each call that it makes fails once, with each error that the call may have.

Some 25 minutes on two cores: `pytest -n 2 tests/long/test_fault_injection.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import campaign
import injector
import pytest

SHARES = {"start": 6, "stop": 3, "reload": 6, "usr2": 4}  # in how many parts the longest ones come
ALL = [
    (name, number)
    for name in ("usr2", "start", "reload", "stop", *sorted(set(campaign.SCENARIOS) - {"usr2", "reload"}))
    for number in range(SHARES.get(name, 1))
]
ENDS = {"start": campaign.run_starts, "stop": campaign.run_stops}


@pytest.fixture
def rigs(tmp_path: Path, request: Any) -> Iterator[Callable[[str], campaign.Rigs]]:
    """`rigs("reload")`: what this scenario needs, all ended with the test."""
    made: list[campaign.Rigs] = []

    def make(name: str) -> campaign.Rigs:
        scenario = campaign.SCENARIOS.get(name)
        made.append(campaign.Rigs(tmp_path, **(scenario.settings if scenario is not None else {})))
        return made[-1]

    yield make
    for one in made:
        one.discard()


@pytest.mark.parametrize(("name", "number"), ALL)
def test_a_call_that_fails_ends_nothing(
    name: str, number: int, rigs: Callable[[str], campaign.Rigs], record_property: Callable[..., None]
) -> None:
    go = ENDS.get(name, functools.partial(campaign.run, name))
    outcome = go(rigs(name), campaign.every(SHARES.get(name, 1), number))
    record_property("calls", str(outcome))
    outcome.verify()


@pytest.mark.parametrize("name", ["reload", "refused-reload", "usr1", "usr2", "killed-worker", "ttin-ttou"])
def test_a_process_without_descriptors_goes_on(
    name: str, rigs: Callable[[str], campaign.Rigs], record_property: Callable[..., None]
) -> None:
    outcome = campaign.run_without_descriptors(name, rigs(name), 16)
    record_property("descriptors", str(outcome))
    outcome.verify()


@pytest.mark.skipif(injector._testcapi is None, reason="this Python has no _testcapi")
@pytest.mark.parametrize(
    "name",
    ["reload", "asked-reload", "refused-reload", "usr1", "usr2", "killed-worker", "ttin-ttou", "questions"],
)
def test_an_interpreter_without_memory_goes_on(
    name: str, rigs: Callable[[str], campaign.Rigs], record_property: Callable[..., None]
) -> None:
    outcome = campaign.run_without_memory(name, rigs(name), 40)
    record_property("memory", str(outcome))
    outcome.verify()
