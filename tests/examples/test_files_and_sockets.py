"""examples/files-and-sockets: lines go both ways through buffered files."""

from __future__ import annotations

from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "gevent")


def test_numbers_are_added(model: str, run_example: Any) -> None:
    total = run_example(model)
    said = total.client("1", "2", "three", "4", "--port", *total.ports("total"))
    assert said.splitlines() == ["+ 1 = 1", "+ 2 = 3", "+ three = not a number, still 3", "+ 4 = 7"]


def test_what_is_not_flushed_stays_at_home(run_example: Any, start: Any) -> None:
    """The README's experiment: without the flush both wait, until a limit ends it."""
    total = run_example("threading", "server.total.limits.idle_timeout=0.1")
    plugin = total.folder / "total.py"
    lines = plugin.read_text().splitlines(keepends=True)
    plugin.write_text("".join(line for line in lines if "flush()" not in line))
    total.ports("total")
    total.srvkit("reload")
    total.client("1", "2", "--port", *total.ports("total"))
    total.program.wait_for("ended: idle-timeout")
