"""examples/backlog: one is served, the queue is full, the others knock."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

MODELS = ("serial",)


@pytest.mark.skipif(sys.platform != "linux", reason="ss, and its queue's length, are Linux's")
def test_the_queue_is_seen_full_and_everybody_is_served(run_example: Any, eventually: Any, tool: Any) -> None:
    tool("ss")
    counter = run_example()  # with the model of its file
    (port,) = counter.ports("counter")
    client = counter.client_that_stays(port)

    def queue() -> list[str]:
        command = ["ss", "-ltnH", f"sport = :{port}"]
        listening = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return listening.split()[1:3]

    eventually(lambda: queue() == ["5", "4"])
    client.wait_for("hears: your turn")
    assert len(re.findall("hears: your turn", client.log)) == 1
    client.say("\n")
    client.wait_for("^10 customers were served$")
    assert client.ended() == 0
    assert len(re.findall(r"is connected$", client.log, re.M)) == 10
    assert len(re.findall("hears: your turn", client.log)) == 10
