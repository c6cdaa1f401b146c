"""examples/from-socketserver: a program of the standard library, moved by one import, then served."""

from __future__ import annotations

import difflib
from typing import Any

import pytest

MODELS = ("serial", "threading", "pool", "forking", "gevent")
REVERSED = ["stressed -> desserts", "drawer -> reward", "level -> level"]


def test_it_is_served_without_a_change(model: str, run_example: Any) -> None:
    served = run_example(model)
    assert served.client(*served.ports("reverse")).splitlines() == REVERSED


def test_so_is_the_program_that_knows_nothing_of_srvkit(run_example: Any) -> None:
    served = run_example("", "server.reverse.handler=before:Reverse")
    assert served.client(*served.ports("reverse")).splitlines() == REVERSED


@pytest.mark.parametrize("program", ["before.py", "after.py"])
def test_both_programs_run_by_themselves(program: str, run_example: Any) -> None:
    served = run_example()
    alone = served.client_that_stays("0", program=program)
    port = alone.wait_for(r"listening on port (\d+)")[1]
    assert served.client(port).splitlines() == REVERSED


def test_one_import_is_the_difference(run_example: Any) -> None:
    folder = run_example().folder
    before, after = ((folder / name).read_text().splitlines() for name in ("before.py", "after.py"))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    assert changed == ["- import socketserver", "+ import srvkit as socketserver"]
