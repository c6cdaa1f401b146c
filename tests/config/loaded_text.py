"""A text that is loaded as a file would be: what comes of it, or what is wrong with it."""

from __future__ import annotations

from srvkit.config import loader

GOOD = """\
[server.echo]
listen = "tcp://127.0.0.1:0"
handler = "echo"
"""


def problems_of(text: str, *overrides: str, **environ: str) -> list[str]:
    return list(map(str, loader.read_text(text, "srvkit.toml", overrides, environ)[1].listed()))


def config_of(text: str, *overrides: str, **environ: str):
    config, problems = loader.read_text(text, "srvkit.toml", overrides, environ)
    problems.raise_if_any()
    return config
