"""Programs whose own suites use the standard library's servers lose none of their tests with srvkit's.

Each suite comes from the program's source archive, as it was published; it runs once as it is and once with
srvkit under the name `socketserver`. fakeredis' suite compares itself with a real redis-server. Some four
minutes, most of them spent in installing: `pytest -n 2 tests/long/test_suites_of_programs.py`.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
INSTEAD = 'import sys\nimport srvkit\nsys.modules["socketserver"] = srvkit\n'
PATIENCE = 900  # seconds for one suite, or to install what it needs

# A program, what its tests need besides, and those of them that meet servers.
SUITES: list[tuple[str, Sequence[str], Sequence[str]]] = [
    ("python-osc==1.10.2", [], ["pythonosc/test"]),
    ("mkdocs==1.6.1", ["babel"], ["mkdocs/tests/livereload_tests.py"]),
    (
        "werkzeug==3.1.9",
        ["pytest-timeout", "ephemeral-port-reserve", "cryptography"],
        ["tests/test_serving.py"],
    ),
    (
        "fakeredis==2.41.0",
        ["lupa", "valkey", "hypothesis", "pytest-mock", "pytest-asyncio"],
        ["test/test_tcp_server"],
    ),
]
REAL_REDIS = ("127.0.0.1", 6390)  # where fakeredis' suite expects one, to compare itself with


@pytest.fixture
def real_redis(tool: Callable[[str], None], eventually: Any, tmp_path: Path) -> Iterator[None]:
    tool("redis-server")
    command = ["redis-server", "--bind", REAL_REDIS[0], "--port", str(REAL_REDIS[1]), "--save", ""]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:

        def answers() -> bool:
            assert server.poll() is None
            with socket.socket() as sock:
                return sock.connect_ex(REAL_REDIS) == 0

        eventually(answers)
        yield
        server.terminate()


@pytest.mark.parametrize(("program", "needs", "tests"), SUITES, ids=[suite[0] for suite in SUITES])
def test_a_suite_loses_nothing(
    program: str,
    needs: Sequence[str],
    tests: Sequence[str],
    tmp_path: Path,
    request: Any,
    record_property: Any,
) -> None:
    if program.startswith("fakeredis"):
        request.getfixturevalue("real_redis")
    python = environment(tmp_path, program, *needs)
    source = unpacked(tmp_path, python, program)
    (tmp_path / "instead").mkdir()
    (tmp_path / "instead/sitecustomize.py").write_text(INSTEAD)
    before = passed(python, source, tests)
    after = passed(python, source, tests, PYTHONPATH=str(tmp_path / "instead"))
    record_property("passed", f"{len(after)} of {len(before)}")
    assert before
    assert before - after == set()


def environment(folder: Path, *packages: str) -> Path:
    """Make one with these packages and srvkit, installed as users have it; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    python = folder / "environment/bin/python"
    command = [python, "-m", "pip", "install", "-q", "pytest", *packages, str(ROOT)]
    subprocess.run(command, check=True, timeout=PATIENCE)
    return python


def unpacked(folder: Path, python: Path, program: str) -> Path:
    """Return the folder with the program's sources."""
    options = ["--no-deps", "--no-binary", program.partition("==")[0], "--dest", folder / "archive"]
    command = [python, "-m", "pip", "download", "-q", *options, program]
    subprocess.run(command, check=True, timeout=PATIENCE)
    (archive,) = (folder / "archive").iterdir()
    with tarfile.open(archive) as file:
        file.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return source


def passed(python: Path, source: Path, tests: Sequence[str], **environ: str) -> set[str]:
    """Run the tests; return the names of those that passed."""
    command = [python, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=source, env={**os.environ, **environ}, capture_output=True, text=True, timeout=PATIENCE
    )
    return set(re.findall(r"^PASSED (\S.*)$", done.stdout, re.MULTILINE))
