"""What the chapters of `srvkit docs` say is so: names, counts, and the calls that a message takes."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from srvkit.concurrency.loop_connection import State
from srvkit.config.model import settings_table
from srvkit.server.admission import Admission

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "srvkit"
CHAPTERS = {path.stem: path.read_text() for path in sorted((PACKAGE / "docs").glob("*.md"))}
MODELS = ("serial", "threading", "forking", "pool", "event", "asyncio", "gevent")
WIDEST = 99  # columns: a terminal of a hundred shows a line as a line
PATIENCE = 60  # seconds

Call = tuple[str, str]  # a module and a name in it


# ---- every chapter


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_can_be_read_on_any_terminal(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]*", name)
    lines = CHAPTERS[name].splitlines()
    assert re.match(r"# \S", lines[0])
    assert [line for line in lines if len(line) > WIDEST or line != line.rstrip()] == []
    assert CHAPTERS[name].isascii()
    for rows in re.findall(r"(?:^\|.*\n)+", CHAPTERS[name], re.M):
        bars = {tuple(at for at, sign in enumerate(row) if sign == "|") for row in rows.splitlines()}
        assert len(bars) == 1, rows
    assert CHAPTERS[name].endswith("\n")


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_path_that_is_named_exists(name: str) -> None:
    """A path of the package in backticks is `net/` or `net/peer.py`, or begins `net/peer.py:Peer`."""
    named = re.findall(r"`([a-z][\w/]*(?:/|\.py))(?::[\w.]+)?`", CHAPTERS[name])
    missing = [path for path in named if not (PACKAGE / path.removeprefix("srvkit/")).exists()]
    assert missing == []
    assert len(named) > 10


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_name_that_is_given_a_module_stands_in_it(name: str) -> None:
    named = [*re.findall(r"`([a-z][\w/]*\.py):([\w.]+)`", CHAPTERS[name])]
    named += [call for block in blocks(CHAPTERS[name]) for call in block if call[0].endswith(".py")]
    assert [(path, name) for path, name in named if name not in defined_in(path)] == []
    assert len(named) > 50


def blocks(text: str) -> Iterator[list[Call]]:
    """The calls of each fenced block: lines of a module, a name in it, and a few words."""
    for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S):
        lines = [
            re.match(r"([a-z_/]+\.py|the kernel|your handler) +([\w.]+)(?: {1,}|$)", line)
            for line in block.splitlines()
        ]
        assert all(lines), block
        yield [(found[1], found[2]) for found in lines if found]


@cache
def defined_in(path: str) -> set[str]:
    """What a module defines: functions, classes, methods and names that are assigned, each in full."""

    def names(node: ast.AST, before: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield before + child.name
            elif isinstance(child, ast.Assign):
                yield from (before + target.id for target in child.targets if isinstance(target, ast.Name))
            inner = f"{before}{child.name}." if isinstance(child, ast.ClassDef) else before
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from names(child, inner)

    return set(names(ast.parse((PACKAGE / path).read_text()), ""))


# ---- architecture


TEXT = CHAPTERS["architecture"]


def section(heading: str) -> str:
    """What stands below a heading, up to the next one that is as high."""
    level = re.search(rf"^(#+) {heading}$", TEXT, re.M)
    assert level, heading
    return re.split(rf"^#{{1,{len(level[1])}}} ", TEXT[level.end() :], flags=re.M)[0]


def table(heading: str) -> list[list[str]]:
    rows = re.findall(r"^\|(.*)\|$", section(heading), re.M)[2:]
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def words(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_floor_is_on_the_map() -> None:
    shown = {name.rstrip("/") for row in table("The floors") for name in words(row[0])}
    there = {
        path.name
        for path in PACKAGE.iterdir()
        if not path.name.startswith(("_", ".")) and (path.is_file() or [*path.glob("*.[pm][yd]")])
    }
    assert shown == there - {"docs", "py.typed", "pytest_plugin.py"}


def test_the_limits_of_a_connection_are_settings() -> None:
    keys = [one.key for one in settings_table()]
    of_servers = {key.partition("server.NAME.")[2].removeprefix("limits.") for key in keys}
    named = {name for row in table("The life of a connection") for name in words(row[2])}
    assert named - of_servers == {"heartbeat_timeout"}
    assert {name for name in of_servers if name.endswith("_timeout")} <= named


def test_a_reload_takes_as_many_calls_as_is_told() -> None:
    text = section("The third journey: a reload")
    calls = [call for block in blocks(text) for call in block]
    supervisors = {path for path, _ in calls if path.startswith("process/supervisor/")}
    told = f"These are {len(calls)} calls. In the supervisor they stand in {len(supervisors)} modules"
    assert told in " ".join(text.split())


def test_what_tells_the_state_of_a_connection_is_in_the_code() -> None:
    connection = importlib.import_module("srvkit.concurrency.message_connection").MessageConnection
    there = {slot for one in connection.__mro__ for slot in getattr(one, "__slots__", ())}
    there |= {*State.__members__, *vars(Admission(None, ())), "Lingering"}
    named = {name for row in table("The life of a connection") for name in words(row[3])}
    assert named <= there
    assert len(named) > 8


def test_the_glossary_is_in_order() -> None:
    terms = re.findall(r"^- \*\*(.+?)\*\*", section("Glossary"), re.M)
    assert terms == sorted(set(terms))
    assert len(terms) > 20
    for term in ("worker", "generation", "drain", "retire", "listener", "admission", "framing", "driver"):
        assert term in terms


# ---- a message, under each model


def journeys() -> dict[str, list[list[Call]]]:
    """What single threads call in a round of one message, by model; "coroutine" is an AsyncHandler's."""
    found: dict[str, list[list[Call]]] = {}
    models: list[str] = []
    parts = re.split(r"^(```\n.*?^```)$", section("One message, under each model"), flags=re.M | re.S)
    for text, block in zip(parts[::2], parts[1::2], strict=False):
        if begin := re.search(r"^Under (.*?)(?:\n\n|\Z)", text, re.M | re.S):
            named = words(begin[1])
            models = ["coroutine"] if "AsyncHandler" in named else [one for one in named if one in MODELS]
        for model in models:
            found.setdefault(model, []).extend(blocks(block))
    return found


def test_the_table_counts_what_the_lists_show() -> None:
    counted = {}
    for cell, calls, modules in table("One message, under each model"):
        named = ["coroutine"] if "AsyncHandler" in cell else words(cell)
        counted |= {name: (int(calls), int(modules)) for name in named}
    shown = {}
    for model, lists in journeys().items():
        calls_of = [call for one in lists for call in one]
        shown[model] = len(calls_of), len({module for module, _ in calls_of if module.endswith(".py")})
    assert counted == shown
    assert set(shown) == {*MODELS, "coroutine"}


@pytest.mark.parametrize("model", [*MODELS, "coroutine"])
def test_a_message_takes_the_calls_that_are_listed(model: str, tmp_path: Path) -> None:
    if model == "gevent":
        pytest.importorskip("gevent")
    program = ROOT / "tests" / "traced_calls.py"
    done = subprocess.run(
        [sys.executable, str(program), model, "rounds"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    rounds = [
        [[(module, name) for module, name in thread] for thread in one]
        for one in json.loads((tmp_path / "rounds").read_text())
    ]
    listed = sorted(map(rotated, journeys()[model]))
    # Other rounds have a timer in them, or what is made on first use.
    assert listed in [sorted(map(rotated, one)) for one in rounds], "\n\n".join(
        "\n".join(f"{module}  {name}" for module, name in thread) for thread in rounds[len(rounds) // 2]
    )


def rotated(calls: list[Call]) -> list[Call]:
    """The same round, from a beginning that is the same for all of its rotations."""
    return min(calls[start:] + calls[:start] for start in range(len(calls)))
