"""Every hook is documented and has a test of its own; no hook is added without both."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from srvkit.plugins import hookspecs

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("srvkit_"))


def functions_below(folder: Path) -> set[str]:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in folder.glob("**/test_*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_are_hooks():
    assert "srvkit_handlers" in HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_has_a_test(hook):
    assert f"test_hook_{hook.removeprefix('srvkit_')}" in functions_below(Path(__file__).parent)


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_a_specification_with_a_docstring(hook):
    spec = getattr(hookspecs, hook)
    assert spec.srvkit_spec, f"{hook} is not marked with @hookspec"
    title, *rest = (inspect.getdoc(spec) or "").splitlines()
    assert title.endswith(".")
    text = " ".join(rest)
    assert "Called" in text or "called" in text, "when, and in which process and thread?"
    assert "exception" in text or "error" in text, "what does an exception in it do?"
