"""examples/unix-sockets: a stream and datagrams through files with permissions."""

from __future__ import annotations

from typing import Any

MODELS = ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")


def test_both_files_answer_and_are_gone_afterwards(model: str, run_example: Any) -> None:
    unix = run_example(model)
    assert unix.address("stream") and unix.address("datagrams")
    assert unix.client().splitlines() == [
        "srw-rw---- stream.sock",
        "srw------- datagrams.sock",
        "stream: 13 bytes",
        "datagram: 13 bytes",
    ]
    assert unix.program.end() == 0
    assert not list(unix.folder.glob("*.sock"))
