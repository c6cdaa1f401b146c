"""Durations, sizes and modes as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srvkit.config import units


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0),
        (30, 30),
        (0.5, 0.5),
        ("250ms", 0.25),
        ("30s", 30),
        ("1.5s", 1.5),
        ("5m", 300),
        ("1h", 3600),
        ("0s", 0),
    ],
)
def test_durations(written, seconds):
    assert units.duration(written) == seconds
    assert isinstance(units.duration(written), float)


@pytest.mark.parametrize(
    "written", ["30", "", "s", "-5s", "5 parsecs", "5d", "1e3s", "٣s", math.inf, math.nan, True, [], 2**80]
)
def test_what_is_no_duration_says_what_is(written):
    with pytest.raises(
        ValueError, match=r'^expected seconds or a duration like "250ms", "30s", "5m", "1h", got '
    ):
        units.duration(written)


@pytest.mark.parametrize("written", [-1, -0.001, "501h", 10**12])
def test_durations_out_of_range(written):
    with pytest.raises(ValueError, match=r"^expected a duration from 0s to 500h, got "):
        units.duration(written)


@pytest.mark.parametrize(
    ("written", "count"),
    [(0, 0), (512, 512), ("0", 0), ("512B", 512), ("64KiB", 65536), ("1 MiB", 2**20), ("2GiB", 2**31)],
)
def test_sizes(written, count):
    assert units.size(written) == count


@pytest.mark.parametrize("written", ["64k", "64KB", "64kib", "1.5MiB", "-1B", "", 1.0, True, "9" * 20])
def test_what_is_no_size_says_what_is(written):
    with pytest.raises(
        ValueError, match=r'^expected bytes or a size like "512B", "64KiB", "1MiB", "1GiB", got '
    ):
        units.size(written)


@pytest.mark.parametrize("written", [-1, 2**63, pytest.param(16**5000, id="huge")])
def test_sizes_out_of_range(written):
    with pytest.raises(ValueError, match=r"^expected a size from 0 to 9223372036854775807 bytes, got "):
        units.size(written)


@pytest.mark.parametrize("written", ["0600", "660"])
def test_modes(written):
    assert units.file_mode(written) == written


@pytest.mark.parametrize("written", [600, 0o600, "0800", "rw", "", "04755", "7"])
def test_what_is_no_mode_says_what_is(written):
    with pytest.raises(ValueError, match=r'^expected permissions as an octal string like "0600", got '):
        units.file_mode(written)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (0.25, "250ms"), (1.5, "1.5s"), (60, "60s")])
def test_durations_are_written_as_they_are_read(seconds, text):
    assert units.duration_text(seconds) == text
    assert units.duration(text) == seconds


@given(st.integers(0, 2**40))
def test_sizes_are_written_as_they_are_read(count):
    assert units.size(units.size_text(count)) == count


def test_a_size_is_written_in_the_largest_unit():
    assert [units.size_text(count) for count in (0, 1000, 2048, 2**20, 3 * 2**30)] == [
        "0", "1000", "2KiB", "1MiB", "3GiB"
    ]  # fmt: skip
