"""The benchmark runs from one end to the other, and what it writes is whole. Nothing here judges speed."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Tool

HERE = Path(__file__).resolve().parent
NAMES = ["C epoll", "srvkit threading", "asyncio streams"]


@pytest.fixture
def run(tool: Tool, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run(*arguments)`: a tiny run of the benchmark that writes into a README of its own."""
    tool("cc")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two cores are needed")
    (tmp_path / "tests" / "benchmarks").mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\nafter\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        sizes = ("--rounds", "1", "--scale", "0.01", "--attempts", "1", "--write", str(readme))
        command = [sys.executable, str(HERE / "run.py"), *sizes, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return run


def test_a_workload_is_measured_reported_and_written(run, tmp_path):
    """Every echo is compared by the load generator; each server that was asked for has its figures."""
    done = run("--workload", "pipelined", "--only", *NAMES)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert f"| pipelined lines, 16 per write | {name} | " in done.stdout, done.stderr
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- benchmark -->\n")
    assert text.endswith("<!-- end of benchmark -->\nafter\n")
    assert "old" not in text
    assert "| pipelined lines, 16 per write | " in text
    picture = xml.etree.ElementTree.parse(tmp_path / "tests/benchmarks/results.svg")
    written = " ".join(element.text or "" for element in picture.iter())
    assert all(name in written for name in NAMES)


def test_a_server_that_cannot_be_measured_is_left_out_with_a_note(run, monkeypatch, tmp_path):
    """A package that is missing costs its row, not the run."""
    (tmp_path / "uvloop.py").write_text("raise ModuleNotFoundError(name='uvloop')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run("--workload", "pipelined", "--only", "C epoll", "uvloop streams")
    assert done.returncode == 0, done.stderr
    assert "Left out: uvloop streams: uvloop is not installed." in done.stdout
    assert "| pipelined lines, 16 per write | C epoll | " in done.stdout
