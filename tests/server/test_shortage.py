"""What runs out: descriptors, memory for sockets, processes and threads; in every model, from outside."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Connect, Eventually, Tool
from tests.server.conftest import Say, Under

PATIENCE = 30
TABLES = {"plain": ('[sub.limits]\nfirst_byte_timeout = "20s"\n',)}


@pytest.fixture
def inject(tool: Tool) -> Iterator[Callable[..., None]]:
    """`inject(pids, "accept4", "error=ENFILE:when=1")`: have system calls of these processes fail."""
    tool("strace")
    with contextlib.ExitStack() as stack:

        def attach(pids: list[int], calls: str, what: str) -> None:
            who = [word for pid in pids for word in ("-p", str(pid))]
            trace = subprocess.Popen(
                ["strace", "-f", "-e", f"trace={calls}", "-e", f"inject={calls}:{what}", *who],
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
            )
            stack.callback(end, trace)
            assert trace.stderr is not None
            for _ in pids:
                line = trace.stderr.readline()
                if "attached" not in line:
                    pytest.skip(f"strace may not attach: {line}")

        yield attach


def end(trace: Any) -> None:
    trace.terminate()
    trace.communicate()


def descriptors(pid: int) -> set[int]:
    """Return those of a process, once it opens and closes none any more: a child may answer before that."""
    before: set[int] = set()
    while before != (now := {int(name) for name in os.listdir(f"/proc/{pid}/fd")}):
        before = now
        time.sleep(0.05)
    return now


def test_without_descriptors_it_waits_and_recovers(
    cell: str, under: Under, client: Connect, say: Say
) -> None:
    """Who is inside is served all the while, who waits is served when there are some again."""
    program = under("plain")
    pid = program.worker(cell)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        if not cell.startswith("serial"):
            inside = client(program.address(cell))
            assert say(inside, b"hello") == b"hello"
        taken = descriptors(pid)
        free = next(number for number in range(len(taken) + 1) if number not in taken)
        stack.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, limits)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
        waiting = [client(program.address(cell)) for _ in range(20)]
        program.program.wait_for(f"{cell}: cannot accept: .*Too many open files")
        if not cell.startswith("serial"):
            assert say(inside, b"still here") == b"still here"
    for sock in waiting:
        assert say(sock, b"hello") == b"hello"
        sock.close()
    assert program.worker(cell) == pid


@pytest.mark.parametrize("number", ["ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPERM", "EPROTO"])
def test_an_error_of_accept_passes(number: str, under: Under, client: Connect, say: Say, inject: Any) -> None:
    program = under("plain")
    pids = {cell: program.worker(cell) for cell in program.cells}
    inject(list(pids.values()), "accept4", f"error={number}:when=1..3")
    for cell in program.cells:
        with client(program.address(cell)) as sock:
            assert say(sock, b"hello") == b"hello", cell
    assert {cell: program.worker(cell) for cell in program.cells} == pids


@pytest.mark.parametrize(
    "cell",
    [
        "threading-message",
        "threading-blocking",
        "pool-message",
        "pool-blocking",
        "forking-message",
        "forking-blocking",
    ],
)
def test_where_none_can_be_started_one_client_is_lost_at_most(
    cell: str, under: Under, client: Connect, say: Say, inject: Any, eventually: Eventually
) -> None:
    """A thread or a process, that is; the worker goes on, and nothing of it stays behind."""
    program = under("plain")
    pid = program.worker(cell)
    inject([pid], "clone,clone3,fork,vfork", "error=EAGAIN:when=1")
    waiting = [client(program.address(cell)) for _ in range(3)]
    for sock in waiting:
        sock.sendall(b"hello\n")
    answers = []
    while waiting:  # who is answered makes room for who waits
        for sock in select.select(waiting, [], [], PATIENCE)[0] or pytest.fail("somebody waits for ever"):
            with contextlib.suppress(ConnectionError):
                answers.append(sock.recv(100))
            waiting.remove(sock)
            sock.close()
    assert answers.count(b"hello\n") >= 2
    eventually(lambda: program.server(cell)["counters"]["open"] == 0)
    assert program.worker(cell) == pid
    if answers.count(b"hello\n") < 3:
        assert re.search(f"{cell}: cannot accept: ", program.program.log)
