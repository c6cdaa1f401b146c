"""More than a server can take at a moment: connections that wait for it, and datagrams that need not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket

from tests.conftest import Connect, RunSrvkit
from tests.server.conftest import Say, Under

PATIENCE = 30
TABLES = {"plain": ("",)}

PLUGIN = """
import threading, time
from srvkit import BaseRequestHandler, MessageHandler, hookimpl

lock = threading.Lock()
at_work = most = 0

def work():
    global at_work, most
    with lock:
        at_work += 1
        most = max(most, at_work)
    time.sleep(0.002)
    with lock:
        at_work -= 1
    return b"%d" % most

class Message(MessageHandler):
    def handle_message(self, message):
        return work()

class Blocking(BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(work(), self.client_address)

@hookimpl
def srvkit_handlers():
    return {"message": Message, "blocking": Blocking}
"""
FLOODED = """
[server.flooded]
listen = "udp://127.0.0.1:0"
handler = "{kind}"
concurrency = "{model}"
limits = {{ max_connections = 4 }}
"""


def test_who_connects_to_a_worker_that_is_stopped_waits_for_it(
    cell: str, under: Under, client: Connect, say: Say
) -> None:
    """The kernel holds the queue; nobody is lost, however long it takes."""
    program = under("plain")
    pid = program.worker(cell)
    with contextlib.ExitStack() as stack:
        os.kill(pid, signal.SIGSTOP)
        try:
            waiting = [client(program.address(cell)) for _ in range(200)]
            for number, sock in enumerate(waiting):
                stack.enter_context(sock)
                sock.sendall(b"%d\n" % number)
                sock.shutdown(socket.SHUT_WR)
        finally:
            os.kill(pid, signal.SIGCONT)
        for number, sock in enumerate(waiting):
            with sock.makefile("rb") as answers:
                assert answers.readline().strip() == b"%d" % number


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as sizes:
        return int(sizes.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_flood_of_datagrams_is_handled_four_at_a_time_and_the_rest_dropped(
    model: str, run_srvkit: RunSrvkit, client: Connect
) -> None:
    """From many ports, most of which are gone when the answer comes; memory stays as it is."""
    kind = "blocking" if model in ("serial", "threading", "pool", "gevent") else "message"
    program = run_srvkit(FLOODED.format(model=model, kind=kind), PLUGIN)
    (address,) = program.addresses("flooded")
    with open(f"/proc/{program.pid}/task/{program.pid}/children") as children:
        (worker,) = map(int, children.read().split())
    with client(address) as sock:
        sock.send(b"hello")
        sock.recv(100)
        before = resident(worker)
    for _ in range(30):
        with client(address) as sock:
            for _ in range(100):
                sock.send(bytes(1000))
    with client(address) as sock:
        sock.settimeout(0.5)
        for _ in range(PATIENCE * 2):  # what comes while the queue is full is lost, as datagrams may be
            with contextlib.suppress(TimeoutError):
                sock.send(b"still there?")
                most = int(sock.recv(100))
                break
        else:
            raise AssertionError(f"never answered:\n{program.log}")
    assert most <= (4 if model != "forking" else 1)  # each child counts for itself
    assert resident(worker) - before < 20 * 2**20
    assert program.end() == 0
    assert "Traceback" not in program.log
    assert len(re.findall("reply to .* lost", program.log)) < 200
