"""How long srvkit's own commands take to start."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from goals import Outcome
from measure import pinned
from servers import ROOT

READY = b"listening on"
CONFIG = '[server.echo]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo"\nconcurrency = "{}"\n'


def starts(times: int, core: int) -> list[Outcome]:
    """Measure from the start of the process to what it is started for, several times each."""
    with tempfile.TemporaryDirectory() as name, pinned(core):
        folder = Path(name)
        outcomes = [_outcome("`srvkit --help`", 120, [_help(folder) for _ in range(times)])]
        for model in ("threading", "event", "asyncio"):
            (folder / "srvkit.toml").write_text(CONFIG.format(model))
            values = [_ready(folder) for _ in range(times)]
            outcomes.append(_outcome(f"`srvkit run` to ready, `{model}`", 300, values))
    return outcomes


def _outcome(text: str, most: int, seconds: list[float]) -> Outcome:
    if any(value < 0 for value in seconds):
        return Outcome(text, f"≤ {most} ms", "", None, "it does not start")
    values = [value * 1e3 for value in seconds]
    median = statistics.median(values)
    measured = f"{median:.0f} ms [{min(values):.0f}, {max(values):.0f}]"
    return Outcome(text, f"≤ {most} ms", measured, median <= most)


def _command(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "srvkit", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _help(folder: Path) -> float:
    began = time.monotonic()
    with _command(folder, "--help") as process:
        process.communicate()
        return time.monotonic() - began if process.returncode == 0 else -1.0


def _ready(folder: Path) -> float:
    began = time.monotonic()
    with _command(folder, "run") as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if READY in line:
                    return time.monotonic() - began
            return -1.0
        finally:
            process.terminate()
