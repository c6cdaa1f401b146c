"""Nothing ends the supervisor: a sample of tests/long/test_fault_injection.py, from all over it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "long"))

import campaign


@pytest.fixture
def rigs(tmp_path: Path) -> Callable[..., campaign.Rigs]:
    """`with rigs() as some:`, as they are needed."""
    return lambda **settings: campaign.Rigs(tmp_path, **settings)


def sample(cases: list[campaign.Case]) -> list[campaign.Case]:
    """Choose some from all over, and one from where a new installation takes over."""
    return campaign.some(4)(cases) + campaign.some(1)([case for case in cases if "_take_over" in case.site])


@pytest.mark.parametrize(
    "names", [("reload", "usr1", "ttin-ttou"), ("usr2", "killed-worker"), ("refused-reload", "questions")]
)
def test_a_call_that_fails_ends_nothing(names: tuple[str, ...], rigs: Callable[..., campaign.Rigs]) -> None:
    with rigs() as some:
        for name in names:
            campaign.run(name, some, sample).verify()


@pytest.mark.parametrize("go", [campaign.run_starts, campaign.run_stops])
def test_a_call_that_fails_at_the_start_or_the_end_leaves_nothing(
    go: Callable[..., campaign.Outcome], rigs: Callable[..., campaign.Rigs]
) -> None:
    with rigs() as some:
        go(some, campaign.some(3)).verify()
