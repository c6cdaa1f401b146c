"""What tests of configurations share: what is made of a text, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from srvkit.config import loader
from srvkit.config.compose import Plan, compose
from srvkit.plugins.manager import Offer, Plugins, make_manager
from tests.config.composed_handlers import HANDLERS

Wrong = Callable[[str], list[str]]


class Composed(Protocol):
    def __call__(self, text: str, path: Path | None = None) -> list[Plan]: ...


@pytest.fixture
def plugins() -> Plugins:
    """The models that every machine has, and the handlers of every kind."""
    made = make_manager()
    made.models = {name: made.models[name] for name in ("forking", "pool", "serial", "threading")}
    made.handlers = {name: Offer(name, thing, "the test") for name, thing in HANDLERS.items()}
    return made


@pytest.fixture
def composed(plugins: Plugins) -> Composed:
    """Compose the plans of a text in which nothing is wrong."""

    def composed(text: str, path: Path | None = None) -> list[Plan]:
        config, problems = loader.read_text(text, "x.toml", path=path)
        plans = compose(config, plugins, problems)
        problems.raise_if_any()
        return plans

    return composed


@pytest.fixture
def wrong(plugins: Plugins) -> Wrong:
    """What is wrong with a text, as it is printed."""

    def wrong(text: str) -> list[str]:
        config, problems = loader.read_text(text, "x.toml")
        compose(config, plugins, problems)
        return [str(problem) for problem in problems.listed()]

    return wrong
