"""The map of the examples is complete, and each README says what is true of its folder."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if (path / "README.md").exists())


def name(path: Path) -> str:
    return path.name


def models_under_test(example: Path) -> tuple[str, ...]:
    """What the tests of an example run under: MODELS, which conftest.py makes the parameters of."""
    module = Path(__file__).with_name(f"test_{example.name.replace('-', '_')}.py")
    for statement in ast.parse(module.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "MODELS":
            found: tuple[str, ...] = ast.literal_eval(statement.value)
            return found
    raise AssertionError(f"{module} has no MODELS")


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_the_readme_names_the_models_that_are_tested(example: Path) -> None:
    promise = re.search(r"^Runs under: ([^.(]*)", (example / "README.md").read_text(), re.M)
    assert promise
    assert sorted(re.findall(r"`([\w-]+)`", promise[1])) == sorted(models_under_test(example))


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_the_readme_has_its_parts(example: Path) -> None:
    text = (example / "README.md").read_text()
    assert text.startswith(f"# {example.name}\n\n**The problem.** ")
    assert "\n**What srvkit does.** " in text
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S))
    assert re.search(r"^srvkit run\b", commands, re.M)
    for program in example.glob("client*.py"):
        assert f"python {program.name}" in commands
    for linked in re.findall(r"\]\(([^)]+)\)", text):
        assert (example / linked).exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_the_configuration_is_valid_as_it_stands(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "srvkit", "check"], cwd=example, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_two_examples_want_the_same_port() -> None:
    wanted: Counter[str] = Counter()
    for example in EXAMPLES:
        for server in tomllib.loads((example / "srvkit.toml").read_text())["server"].values():
            listen = [server["listen"]] if isinstance(server["listen"], str) else server["listen"]
            wanted.update(re.sub("//.*:", ":", address) for address in listen if "//" in address)
    assert max(wanted.values()) == 1, wanted


def test_the_map_names_every_example_once() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    named = re.findall(r"^\| \[([\w-]+)\]\(\1/\) \|", text, re.M)
    assert sorted(named) == [example.name for example in EXAMPLES]
    folders = {path.name for path in (ROOT / "examples").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(named)
