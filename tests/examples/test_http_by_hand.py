"""examples/http-by-hand: a typed request, to a handler of one's own and to the standard library's."""

from __future__ import annotations

import subprocess
from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "gevent")


def test_the_typed_request_is_answered_by_both(model: str, run_example: Any) -> None:
    http = run_example(model)
    by_hand, files = http.client(*http.ports("by-hand", "files")).split("---- port ")[1:]
    head, body = by_hand.split("\n\n", 1)
    assert "HTTP/1.0 200 OK" in head
    assert "GET /index.html HTTP/1.0" in body and "X-Mood: curious" in body
    assert "HTTP/1.0 200 OK" in files and "<title>It works</title>" in files


def test_curl_is_answered_by_both(run_example: Any, tool: Any) -> None:
    tool("curl")
    http = run_example()
    for port, expected in zip(http.ports("by-hand", "files"), ("GET / HTTP/1.1", "It works"), strict=True):
        command = ["curl", "-sS", "--noproxy", "*", "-i", f"http://127.0.0.1:{port}/"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "200 OK" in said and expected in said
