"""How many CPUs there are for srvkit: what the scheduler and the control groups allow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from srvkit.config import cpus


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`quota({"": "max 100000", "a/b": "50000 100000"})`: the number, with 8 CPUs and these quotas."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def number(quotas: dict[str, str], own: str = "0::/a/b\n") -> int:
        for group, text in quotas.items():
            folder = tmp_path / "cgroup" / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.max").write_text(f"{text}\n")
        (tmp_path / "own").write_text(own)
        return cpus.usable_cpus(tmp_path / "cgroup", tmp_path / "own")

    return number


@pytest.mark.parametrize(
    ("quotas", "number"),
    [
        ({}, 8),
        ({"a/b": "max 100000"}, 8),
        ({"a/b": "200000 100000"}, 2),
        ({"a/b": "150000 100000"}, 2),
        ({"a/b": "1000 100000"}, 1),
        ({"a/b": "1600000 100000"}, 8),
        ({"a": "300000 100000", "a/b": "max 100000"}, 3),
        ({"": "400000 100000", "a": "300000 100000", "a/b": "500000 100000"}, 3),
        ({"other": "100000 100000"}, 8),
        ({"a/b": "nonsense"}, 8),
        ({"a/b": "0 0 0", "a": "200000 100000"}, 2),
    ],
)
def test_the_narrowest_quota_of_all_groups_around_counts_as_whole_cpus(quotas, number, quota):
    assert quota(quotas) == number


def test_a_group_outside_those_that_are_seen_leaves_the_affinity(quota):
    assert quota({}, own="0::/../../elsewhere\n") == 8


def test_lists_of_groups_that_cannot_be_read_leave_the_affinity(quota, tmp_path):
    assert quota({"a/b": "100000 100000"}, own="nonsense\n") == 8
    (tmp_path / "own").unlink()
    assert cpus.usable_cpus(tmp_path / "cgroup", tmp_path / "own") == 8


def test_here_there_is_at_least_one():
    assert 1 <= cpus.usable_cpus() <= (os.cpu_count() or 1)
