"""What a well-behaved client feels while others stall and dribble: `python tests/benchmarks/siege.py`.

For each model a server with TLS, 200 clients that connect and send half a greeting or none, and 200 that
send one byte of a line now and then. The round trips of one client are timed alone and amid these; it
opens a connection for each hundredth of them. Ratios count, the machine decides the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import trustme

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ("threading", "pool", "event", "asyncio", "gevent")
STALLED = DRIBBLING = 200
ROUNDS, TRIPS = 5, 2000
CONFIG = """
[server.echo]
listen = "tcp://127.0.0.1:{port}"
handler = "echo"
concurrency = "{model}"
limits = {{ first_byte_timeout = "60s", request_timeout = "60s" }}

[server.echo.tls]
cert = "server.pem"
handshake_timeout = "60s"
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(model: str, folder: Path) -> Iterator[int]:
    port = free_port()
    (folder / "srvkit.toml").write_text(CONFIG.format(port=port, model=model))
    command = [sys.executable, "-m", "srvkit", "run", "srvkit.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def siege(port: int, client: ssl.SSLContext) -> Iterator[None]:
    """Lay it, in a thread of a process that does little else."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.wrap_bio(back, there, server_hostname="localhost").do_handshake()
    hello = there.read()
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(STALLED)]
        for index, sock in enumerate(stalled):
            if index % 2:
                sock.sendall(hello[: len(hello) // 2])
        dribblers = [stack.enter_context(secure(port, client)) for _ in range(DRIBBLING)]

        def dribble() -> None:
            while not over.wait(0.001):
                sock = dribblers.pop(0)
                dribblers.append(sock)
                sock.sendall(b"x")

        thread = threading.Thread(target=dribble)
        thread.start()
        stack.callback(thread.join)
        stack.callback(over.set)
        yield


def secure(port: int, client: ssl.SSLContext) -> ssl.SSLSocket:
    return client.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")


def p99(port: int, client: ssl.SSLContext) -> tuple[float, float]:
    """Return the 99th percentile of round trips, and of connections with their handshakes, in ms."""
    trips, connections = [], []
    for _ in range(TRIPS // 100):
        begin = time.perf_counter()
        with secure(port, client) as sock:
            sock.sendall(b"hello\n")
            assert sock.recv(100) == b"hello\n"
            connections.append(time.perf_counter() - begin)
            for _ in range(100):
                begin = time.perf_counter()
                sock.sendall(b"hello\n")
                assert sock.recv(100) == b"hello\n"
                trips.append(time.perf_counter() - begin)
    return sorted(trips)[-len(trips) // 100] * 1000, sorted(connections)[-1] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)} (default: all)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = trustme.CA()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        client = ssl.create_default_context()
        authority.configure_trust(client)
        print(f"{'model':10} {'p99 alone':>10} {'amid':>8} {'ratio':>6}   {'connect alone':>14} {'amid':>8}")
        for model in args.models or MODELS:
            alone, amid = [], []
            with serving(model, folder) as port:
                for _ in range(ROUNDS):
                    alone.append(p99(port, client))
                    with siege(port, client):
                        amid.append(p99(port, client))
            middle = ROUNDS // 2
            trips = sorted(one[0] for one in alone)[middle], sorted(one[0] for one in amid)[middle]
            opens = sorted(one[1] for one in alone)[middle], sorted(one[1] for one in amid)[middle]
            print(
                f"{model:10} {trips[0]:10.3f} {trips[1]:8.3f} {trips[1] / trips[0]:6.2f}   "
                f"{opens[0]:14.1f} {opens[1]:8.1f}"
            )


if __name__ == "__main__":
    main()
