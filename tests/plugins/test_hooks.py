"""Each hook is called when, where and with what its specification says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from srvkit.plugins.manager import Plugins, make_manager


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Plugins]]:
    """Make a manager with one plugin of the configuration, written from its source."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def plugin(source: str) -> Plugins:
        file = tmp_path / "hooked_plugin.py"
        file.write_text("from srvkit.plugins.hookspecs import hookimpl\n" + dedent(source))
        sys.modules.pop("hooked_plugin", None)
        return make_manager([file.name], folder=tmp_path)

    yield plugin
    sys.modules.pop("hooked_plugin", None)


OFFER = """
class Mine: ...

calls = []

@hookimpl
def {hook}():
    calls.append(Mine)
    return {{"mine": Mine}}
"""


def test_hook_handlers(plugin):
    plugins = plugin(OFFER.format(hook="srvkit_handlers"))
    assert plugins.handlers["mine"].thing is sys.modules["hooked_plugin"].Mine
    assert len(sys.modules["hooked_plugin"].calls) == 1


def test_hook_concurrency(plugin):
    plugins = plugin(OFFER.format(hook="srvkit_concurrency"))
    assert plugins.models["mine"].thing is sys.modules["hooked_plugin"].Mine
    assert len(sys.modules["hooked_plugin"].calls) == 1


def test_hook_framings(plugin):
    plugins = plugin(OFFER.format(hook="srvkit_framings"))
    assert plugins.framings["mine"].thing is sys.modules["hooked_plugin"].Mine
    assert len(sys.modules["hooked_plugin"].calls) == 1
