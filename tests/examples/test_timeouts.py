"""examples/timeouts: each bad client is ended by the limit that is meant for it."""

from __future__ import annotations

import re
from typing import Any

import pytest

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")
LOOPS = ("event", "asyncio")  # cannot run a handler that does its own reading
SHORTER = ("first_byte_timeout=1", "idle_timeout=1.2", "request_timeout=3", "write_timeout=0.5")


@pytest.mark.parametrize("server", ["messages", "blocking"])
def test_the_log_names_the_limit_that_the_readme_names(server: str, model: str, run_example: Any) -> None:
    if server == "blocking" and model in LOOPS:
        return
    settings = [f"server.{server}.limits.{setting}" for setting in SHORTER]
    timeouts = run_example(model, *settings, servers=(server,))
    readme = (timeouts.folder / "README.md").read_text()
    expected = dict(re.findall(r"^\| `(\w+)` .*`ended: ([\w-]+)` \|$", readme, re.M))
    clients = {
        behaviour: timeouts.client_that_stays(behaviour, *timeouts.ports(server)) for behaviour in expected
    }
    assert set(clients) == {"silent", "dribble", "deaf", "idle"}
    for behaviour, client in clients.items():
        peer = re.escape(client.wait_for(r"^I am (.*)$")[1])
        timeouts.program.wait_for(rf" {server}: {peer} ended: {expected[behaviour]}\b")
        if behaviour == "deaf":
            client.say("\n")
            client.wait_for(r"^only \d+ bytes of the page$")
        client.wait_for(r"^the server has hung up after \d+\.\d s$")
        assert client.ended() == 0
