"""`from srvkit.pytest_plugin import converse, srvkit_models`: the public name of `srvkit.testing.plugin`.

PYTEST_DONT_REWRITE, so that `pytest_plugins` may name what a conftest.py has imported already.
"""

from __future__ import annotations

from srvkit.testing.plugin import LiveServer, Servers, converse, srvkit_models

__all__ = ["LiveServer", "Servers", "converse", "srvkit_models"]
