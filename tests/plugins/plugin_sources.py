"""Sources of plugins, and what is said of one that is refused."""

from __future__ import annotations

from textwrap import dedent

import pytest

from srvkit.errors import PluginError
from tests.plugins.conftest import Make


def offering(name: str, hook: str = "srvkit_handlers") -> str:
    return dedent(f"""
        class Thing:
            class Inner: ...
        @hookimpl
        def {hook}():
            return {{{name!r}: Thing}}
    """)


def installed_offering(name: str) -> str:
    return "from srvkit.plugins.hookspecs import hookimpl\n" + offering(name)


def refused(make: Make, *plugins: str, **more: object) -> str:
    with pytest.raises(PluginError) as caught:
        make(*plugins, **more)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"plugin {caught.value.plugin}: ")
    return message
