"""The interpreter's own test suites, with srvkit in the place of `socketserver`.

Each suite runs twice, side by side, on the interpreter at hand: once with the standard library, once
with srvkit. Whatever passes with the standard library passes with srvkit. What fails or is skipped
with both is not looked at.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = os.environ.get("SRVKIT_REQUIRE_TOOLS") == "1"

SUITES = ["test_socketserver", "test_httpservers", "test_xmlrpc", "test_wsgiref", "test_logging"]

# Tests that wait for the clock alone (a minute of them) are left to machines with patience.
RESOURCES = ["network", "walltime"] if REQUIRED else ["network"]

NEVER_WITH_A_REPLACEMENT = {
    # Collects what has `__module__ == "socketserver"` and compares it with `__all__`: true of one module
    # only. tests/test_drop_in.py compares the public names instead.
    "test.test_socketserver.MiscTestCase.test_all",
    # From 3.15 on the module's version, 0.4 for ever, is deprecated; srvkit's is srvkit's own.
    "test.test_socketserver.TestModule.test_deprecated__version__",
}

ATTEMPTS = 3  # the interpreter's suites have flaky tests of their own: a loss counts when it repeats
HUNG = 120  # seconds for one test
SUITE_TIMEOUT = 900  # seconds for one process

# argv: what stands in for socketserver; the suite; resources; the report; ids (none: all of them).
# The report gets a line the moment a test has passed, so that a crash or a hang loses only the rest.
RUNNER = """
import faulthandler, json, sys, unittest

replacement, suite, resources, report, *wanted = sys.argv[1:]
if replacement != "socketserver":
    sys.modules["socketserver"] = __import__(replacement)
from test import support

support.use_resources = resources.split(",")

def flatten(tests):
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        elif not wanted or test.id() in wanted:
            yield test

class Result(unittest.TextTestResult):
    def startTest(self, test):
        super().startTest(test)
        support.environment_altered = False
        faulthandler.dump_traceback_later(HUNG, exit=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.succeeded = test

    def stopTest(self, test):
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        if support.environment_altered:
            print(test.id(), "left threads or children behind", file=sys.stderr)
        elif getattr(self, "succeeded", None) is test:
            with open(report, "a") as lines:
                lines.write(json.dumps(test.id()) + chr(10))

tests = unittest.defaultTestLoader.loadTestsFromName("test." + suite)
if wanted:
    tests = unittest.TestSuite(flatten(tests))
unittest.TextTestRunner(resultclass=Result).run(tests)
""".replace("HUNG", str(HUNG))


class Run:
    """One suite in a process of its own; `passed()` are the ids of the tests that passed."""

    def __init__(self, replacement: str, suite: str, folder: Path, wanted: set[str]) -> None:
        folder.mkdir()
        self.report = folder / "passed"
        self.report.touch()
        self.output = folder / "output"
        arguments = [replacement, suite, ",".join(RESOURCES), str(self.report), *sorted(wanted)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUNNER, *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def passed(self) -> set[str]:
        try:
            self.process.wait(SUITE_TIMEOUT)
        finally:
            self.process.kill()
            self.process.wait()
        return {json.loads(line) for line in self.report.read_text().splitlines()}


def run_both(suite: str, folder: Path, wanted: set[str]) -> tuple[set[str], set[str], str]:
    folder.mkdir()
    original = Run("socketserver", suite, folder / "o", wanted)
    try:
        ours = Run("srvkit", suite, folder / "s", wanted)
        return original.passed(), ours.passed(), ours.output.read_text(errors="replace")
    finally:
        original.process.kill()
        original.process.wait()


@pytest.mark.parametrize("suite", SUITES)
def test_srvkit_loses_nothing_of_the_interpreters_suite(suite: str, tmp_path: Path) -> None:
    """What passes with the standard library's socketserver passes with srvkit in its place."""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(f"test.{suite}") is None:
        reason = f"this interpreter comes without test.{suite}"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)

    original, ours, output = run_both(suite, tmp_path / "1", set())
    assert original, "the suite itself does not run here"
    lost = original - ours
    stale = NEVER_WITH_A_REPLACEMENT & ours
    assert not stale, f"pass by now, so they are no exceptions any more: {sorted(stale)}"
    lost -= NEVER_WITH_A_REPLACEMENT
    for attempt in range(2, ATTEMPTS + 1):
        if lost:
            original, ours, output = run_both(suite, tmp_path / str(attempt), lost)
            lost = (lost & original) - ours
    assert not lost, "lost with srvkit:\n  " + "\n  ".join(sorted(lost)) + "\n\n" + output[-20_000:]
