"""examples/echo: every byte comes back, and the connection is seen from all sides."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")


def test_lines_come_back(model: str, run_example: Any) -> None:
    echo = run_example(model)
    said = echo.client(*echo.ports("echo"), said="one\nzwölf\n" + "x" * 100_000 + "\n").splitlines()
    assert said[1:] == ["echo: one", "echo: zwölf", "echo: " + "x" * 100_000]


def test_a_connection_is_seen_by_srvkit_ss_and_lsof(run_example: Any, tool: Any) -> None:
    """The commands of the README, while a client is connected."""
    tool("ss")
    tool("lsof")
    echo = run_example()
    (port,) = echo.ports("echo")
    client = echo.client_that_stays(port)
    client.say("hello\n")
    client.wait_for("^echo: hello$")
    mine = client.wait_for(r"my end of the connection is (\S+)")[1]
    assert mine in echo.srvkit("connections")
    readme = (echo.folder / "README.md").read_text().replace("7102", port)
    shown = {
        command.split()[0]: subprocess.run(
            shlex.split(command, comments=True), capture_output=True, text=True, check=True
        ).stdout
        for command in re.findall(r"^(?:ss|lsof) .*$", readme, re.M)
    }
    # Others may have had this port before, and their ends still be listed.
    states = [line.split()[0] for line in shown["ss"].splitlines()[1:] if mine in line or "LISTEN" in line]
    assert sorted(states) == ["ESTAB", "ESTAB", "LISTEN"]
    files = [line.split() for line in shown["lsof"].splitlines()[1:]]
    listening = {fields[1] for fields in files if fields[-1] == "(LISTEN)"}
    talking = {fields[1] for fields in files if fields[-1] == "(ESTABLISHED)" and mine in fields[-2]}
    worker = listening - {str(echo.program.pid)}
    assert len(listening) == 2 and talking == worker | {str(client.pid)}
