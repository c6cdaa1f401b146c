"""Every hook is documented, and tests of its own see it called; no hook is added without both."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from srvkit.plugins import hookspecs

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("srvkit_"))
FOLDER = Path(__file__).parent


def names_of_tests(hook: str) -> list[str]:
    """Return the names of the tests here that are about a hook: `test_hook_NAME`, or that with more."""
    name = f"test_hook_{hook.removeprefix('srvkit_')}"
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FOLDER.glob("test_*.py")]
    functions = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [one for one in functions if one == name or one.startswith(f"{name}_")]


def arguments_seen(hook: str) -> set[str]:
    """Return the arguments that plugins of the tests here take from a hook."""
    taken: set[str] = set()
    for file in FOLDER.glob("test_*hooks.py"):
        for arguments in re.findall(rf"def {hook}\(([^)]*)\)", file.read_text(encoding="utf-8")):
            taken |= {one.strip() for one in arguments.split(",") if one.strip()}
    return taken


def test_there_are_hooks() -> None:
    assert "srvkit_handlers" in HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_has_a_test(hook: str) -> None:
    assert f"test_hook_{hook.removeprefix('srvkit_')}" in names_of_tests(hook)


@pytest.mark.parametrize("hook", HOOKS)
def test_each_argument_of_a_hook_is_taken_by_a_test(hook: str) -> None:
    assert arguments_seen(hook) == set(inspect.signature(getattr(hookspecs, hook)).parameters)


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_a_specification_with_a_docstring(hook: str) -> None:
    spec = getattr(hookspecs, hook)
    assert spec.srvkit_spec, f"{hook} is not marked with @hookspec"
    title, *rest = (inspect.getdoc(spec) or "").splitlines()
    assert title.endswith(".")
    text = " ".join(rest)
    assert "Called" in text or "called" in text, "when, and in which process and thread?"
    assert "exception" in text or "error" in text, "what does an exception in it do?"
