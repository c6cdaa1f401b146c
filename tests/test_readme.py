"""The README is true: its tables are those of the code, its links lead somewhere, its figures are measured.

`SRVKIT_WRITE_README=1 pytest tests/test_readme.py` writes the generated parts anew. That its blocks run
is for test_readme_blocks.py to see.
"""

from __future__ import annotations

import os
import pydoc
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import srvkit
from srvkit.cli import main
from srvkit.config.model import settings_table
from srvkit.net.peer import Peer
from srvkit.plugins.manager import HOOKS, make_manager
from srvkit.process.signals import HANDLED
from srvkit.protocol.outcomes import OUTCOMES
from srvkit.server.blocking_handler import AsyncHandler, BaseRequestHandler, MessageHandler, kind_of

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXT = README.read_text()
NONE = "\N{EN DASH}"
RESULTS = (ROOT / "tests" / "benchmarks" / "results.md").read_text()


def section(heading: str) -> str:
    return re.split(r"^## ", re.split(rf"^## {heading}$", TEXT, flags=re.M)[1], flags=re.M)[0]


def table(heading: str, first: str = "") -> list[list[str]]:
    """The rows of a table below a heading: of the one whose first column has this title, or the first."""
    for found in re.findall(r"(?:^\|.*\n)+", section(heading), re.M):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found.splitlines()]
        if not first or rows[0][0] == first:
            return rows[2:]
    raise AssertionError(f"no table {first!r} below {heading!r}")


def settings_rows() -> str:
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for setting in settings_table():
        default = "required" if setting.required else f"`{setting.default}`" if setting.default else ""
        cells = (f"`{setting.key}`", setting.type, default, setting.doc)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def measured(workload: str, server: str) -> str:
    """The CPU time of a server in the table of every figure; a dash where it was not measured."""
    found = re.search(rf"^\| {re.escape(workload)} \| {re.escape(server)} \| ([\d.]+) \|", RESULTS, re.M)
    if found is None:
        return NONE
    return f"{float(found[1]):,.0f}" if float(found[1]) >= 100 else f"{float(found[1]):.1f}"


def memory(server: str) -> str:
    found = re.search(rf"^\| {re.escape(server)} \| ([\d.]+) KB \|", RESULTS, re.M)
    return NONE if found is None else f"{float(found[1]):.1f} KB"


def figures_rows() -> str:
    shown = {f"`{model}`": f"srvkit {model}" for model in make_manager().models}
    shown = {name: shown[name] for name in models() if name in shown}
    shown["`asyncio`, `AsyncHandler`"] = "srvkit asyncio, AsyncHandler"
    shown["`socketserver`, `ThreadingMixIn`"] = "socketserver threading"
    shown["`socketserver`, `ForkingMixIn`"] = "socketserver forking"
    rows = [
        "| | a line, on 64 connections | connect, a line, close | a datagram | an idle connection |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, server in shown.items():
        cells = [
            name,
            measured("line echo, 64 connections", server),
            measured("connect, echo a line, close", server),
            measured("UDP echo", f"{server}, UDP"),
            memory(server),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def models() -> list[str]:
    return [row[0].partition(" (")[0] for row in table("Concurrency", "`concurrency`")]


@pytest.mark.parametrize(("name", "rows"), [("settings", settings_rows), ("figures", figures_rows)])
def test_what_is_generated_is_up_to_date(name: str, rows: Callable[[], str]) -> None:
    text = README.read_text()  # not TEXT, which does not have what was written just now
    begin, end = rf"<!-- {name}: [^\n]* -->\n", f"<!-- end of {name} -->"
    found = re.search(rf"({begin})(.*?)({re.escape(end)})", text, re.S)
    assert found, name
    if os.environ.get("SRVKIT_WRITE_README"):
        README.write_text(f"{text[: found.end(1)]}\n{rows()}\n\n{text[found.start(3) :]}")
    else:
        assert found[2].strip() == rows()


def test_half_the_cpu_time_is_what_was_measured() -> None:
    assert "A short connection in a thread\n  costs half the CPU time or less" in TEXT
    ratios = re.findall(r"^\| drop-in, threading, connect[^|]*\|[^|]*\| ([\d.]+) ", RESULTS, re.M)
    assert ratios
    assert all(float(ratio) <= 0.5 for ratio in ratios)


def test_the_tables_name_every_model_framing_and_handler() -> None:
    plugins = make_manager()
    assert {name.strip("`") for name in models()} == set(plugins.models)
    assert {row[0].strip("`") for row in table("Framing")} == set(plugins.framings)
    for name in plugins.handlers:
        assert f"`{name}`" in section("Plugins")
    for row in table("Concurrency", "`concurrency`"):
        for option, default in re.findall(r"`(\w+) = ([^`]+)`", row[0]):
            model = plugins.models[row[0].split("`")[1]].cls
            assert str(getattr(model.Options, option)) == default.strip('"')


def test_what_each_model_runs_is_what_it_says_of_itself() -> None:
    heads = re.findall(r"`(\w+)`", re.search(r"^\| runs \|.*$", TEXT, re.M)[0])  # type: ignore[index]
    kinds = [kind_of(handler) for handler in (MessageHandler, BaseRequestHandler, AsyncHandler)]
    for kind, row in zip(kinds, table("Concurrency", "runs"), strict=True):
        for name, cell in zip(heads, row[1:], strict=True):
            assert (cell == "yes") == (kind in make_manager().models[name].cls.handler_kinds), (kind, name)


def test_the_classes_of_the_tables_are_public() -> None:
    for row in table("Handlers", "base class"):
        assert row[0].strip("`") in srvkit.__all__
    for row in table("Framing"):
        assert eval(row[1].strip("`"), vars(srvkit).copy()).feed(b"") == []


def test_what_a_peer_has_is_in_the_table() -> None:
    has = {name for name in vars(Peer) if not name.startswith("_")} | {"address"}
    assert [row[0].strip("`") for row in table("Handlers", "`self.peer`")] == sorted(
        has, key=["address", "socket_address", "credentials", "tls", "certificate", "proxy"].index
    )


def test_the_hooks_are_those_of_the_code() -> None:
    named = {}
    for row in table("Plugins"):
        for name, other, arguments in re.findall(r"`(srvkit_\w+)(?:/(\w+))?\((.*?)\)`", row[0]):
            named[name] = arguments
            if other:
                named[re.sub(r"_[a-z]+$", f"_{other}", name)] = arguments
    assert set(named) == set(HOOKS)
    plugins = make_manager()
    for name, arguments in named.items():
        specification = getattr(plugins.pm.hook, name).spec
        assert arguments.split(", ") == (list(specification.argnames) or [""])


def test_every_outcome_has_its_setting_and_its_default() -> None:
    rows = table("Limits", "outcome")
    assert sorted(row[0].strip("`") for row in rows) == sorted(OUTCOMES)
    defaults = {one.key.removeprefix("server.NAME."): one.default for one in settings_table()}
    for _, _, key, default in rows:
        assert (f"`{defaults[key.strip('`')]}`" if key else "") == default


def test_a_bad_client_is_told_of_under_every_model() -> None:
    named = {name for row in table("Limits", "model") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == set(make_manager().models)


def usage(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "srvkit", *command, "--help"], capture_output=True, text=True, check=True
    ).stdout


def test_the_commands_are_those_of_the_command_line() -> None:
    shown = [re.match(r"`srvkit (\w+)", row[0])[1] for row in table("Commands", "command")]  # type: ignore[index]
    assert sorted(shown) == sorted(re.findall(r"^    (\w+) ", usage(), re.M))


@pytest.mark.parametrize("row", table("Commands", "command"), ids=lambda row: row[0].split()[1].strip("`"))
def test_the_arguments_of_a_command_are_those_it_takes(row: list[str]) -> None:
    name, *arguments = re.findall(r"(?<!\[)--?\w+|\w+", row[0].removeprefix("`srvkit "))
    help_text = usage(name)
    options = re.findall(r"--\w+", row[0])
    assert all(option in help_text for option in options), options
    for argument in arguments:
        if argument.isupper() and argument not in ("KEY", "VALUE", "MODEL", "N", "SECONDS", "DIR", "KIND"):
            assert argument in help_text or (name == "completion" and "{bash,zsh,fish}" in help_text)


def test_the_exit_statuses_are_those_of_the_command_line() -> None:
    said = " ".join(main.STATUSES.split()).removeprefix("exit statuses: ")
    assert "; ".join(map(" ".join, table("Commands", "exit status"))) == said


def test_the_signals_are_those_that_the_supervisor_handles() -> None:
    shown = [name for row in table("Processes") for name in row[0].split(", ")]
    handled = {number.name.removeprefix("SIG") for number in HANDLED if number != signal.SIGCHLD}
    assert sorted(shown) == sorted(handled)


def test_the_counters_of_datagrams_are_those_of_the_status() -> None:
    status = (ROOT / "srvkit" / "cli" / "status.py").read_text()
    for row in table("Datagrams"):
        assert f'"{row[0].strip("`")}"' in status


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S), re.M)
    anchors = {"#" + heading.lower().replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    for link in links:
        assert link in anchors or (not link.startswith("#") and (ROOT / link).exists()), link
    contents = re.findall(r"\]\((#[^)]+)\) ?(?:·|$)", TEXT.split("\n## ")[0], re.M)
    assert contents == ["#" + heading.lower().replace(" ", "-") for heading in headings[1:]]


def test_every_path_that_is_named_exists() -> None:
    for path in re.findall(r"`((?:srvkit|tests|examples|handlers)/[\w/.]*)`", section("Change something")):
        assert (ROOT / path).exists(), path


def test_help_tells_of_every_public_name() -> None:
    text = pydoc.plain(pydoc.render_doc(srvkit))
    for name in srvkit.__all__:
        assert re.search(rf"^    (class )?{name}\(|^    {name} = ", text, re.M), (
            f"{name} is not in help(srvkit)"
        )
        found = getattr(srvkit, name)
        assert vars(found)["__doc__"] if isinstance(found, type) else found.__doc__, name
