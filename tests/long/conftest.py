"""What takes minutes: run it as `pytest -n 2 tests/long`. At the end it tells how much was tried."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for its modules that are no tests


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, value in report.user_properties:
                    terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {name}: {value}")


@pytest.fixture(autouse=True)
def long() -> None:
    """Take away the alarm of tests that should be short; what waits here has an end of its own."""
    faulthandler.cancel_dump_traceback_later()
