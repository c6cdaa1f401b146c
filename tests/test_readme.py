"""The README is true: its blocks run, its tables are those of the code.

`SRVKIT_WRITE_README=1 pytest tests/test_readme.py` writes the generated parts anew.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srvkit.config.loader import read_text
from srvkit.config.model import settings_table
from srvkit.plugins.manager import HOOKS, make_manager

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXT = README.read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


def table(heading: str) -> str:
    """The first table below a heading."""
    section = re.split(rf"^#+ {heading}$", TEXT, flags=re.M)[1]
    found = re.search(r"(^\|.*\n)+", section, re.M)
    assert found, heading
    return found[0]


def settings_rows() -> str:
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for setting in settings_table():
        default = "required" if setting.required else f"`{setting.default}`" if setting.default else ""
        cells = (f"`{setting.key}`", setting.type, default, setting.doc)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def test_the_settings_are_those_of_the_code() -> None:
    begin, end = "compared by the tests -->\n", "<!-- end of settings -->"
    before, rest = TEXT.split(begin)
    shown, after = rest.split(end, 1)
    if os.environ.get("SRVKIT_WRITE_README"):
        README.write_text(f"{before}{begin}\n{settings_rows()}\n\n{end}{after}")
    else:
        assert shown.strip() == settings_rows()


def test_the_tables_name_every_model_framing_handler_and_hook() -> None:
    plugins = make_manager()
    models = re.findall(r"^\| `(\w+)`", table("Concurrency"), re.M)
    assert set(models) - {"concurrency"} == set(plugins.models)
    framings = re.findall(r"^\| `([\w-]+)`", table("Framing"), re.M)
    assert set(framings) - {"framing"} == set(plugins.framings)
    hooks = re.findall(r"`(srvkit_\w+)(?:/(\w+))?\(", table("Plugins"))
    named = {name for name, _ in hooks} | {
        re.sub(r"_[a-z]+$", f"_{other}", name) for name, other in hooks if other
    }
    assert named == set(HOOKS)
    for name in plugins.handlers:
        assert f"`{name}`" in TEXT


def test_the_commands_are_those_of_the_command_line() -> None:
    shown = re.findall(r"^\| `srvkit (\w+)", table("Commands"), re.M)
    usage = subprocess.run(
        [sys.executable, "-m", "srvkit", "--help"], capture_output=True, text=True, check=True
    ).stdout
    listed = re.findall(r"^    (\w+) ", usage, re.M)
    assert sorted(shown) == sorted(listed)


@pytest.mark.parametrize("block", blocks("python"), ids=range(len(blocks("python"))))
def test_the_python_blocks_run(block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_toml_blocks_are_valid() -> None:
    assert blocks("toml")
    for block in blocks("toml"):
        _, problems = read_text(block)
        assert not problems.listed()


def test_the_handler_of_the_readme_is_served_as_it_says(tmp_path: Path, run_srvkit: Any, client: Any) -> None:
    """The story of "Your own server in two minutes", with the files and the conversation printed there."""
    plugin = next(block for block in blocks("python") if "# handlers/shout.py" in block)
    config = next(block for block in blocks("toml") if "server.shout" in block)
    conversation = next(block for block in blocks("console") if "srvkit run srvkit.toml" in block)
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers" / "shout.py").write_text(plugin)
    program = run_srvkit(config.replace(":7009", ":0"))
    said = re.search(r"printf '(.*?)'", conversation)
    assert said
    with client(program.addresses("shout")[0]) as sock, sock.makefile("rb") as replies:
        sock.sendall(said[1].encode().decode("unicode_escape").encode())
        sock.shutdown(socket.SHUT_WR)
        assert replies.read().decode().splitlines() == conversation.splitlines()[2:]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if "venv .venv" in line]
    assert [command for command in commands if "pytest" in command and "--group test" in command]
    assert [command for command in commands if command.endswith("srvkit run srvkit.toml")]
    assert "grep -m1 'pip install --editable' README.md" in (ROOT / ".ci" / "run").read_text()
