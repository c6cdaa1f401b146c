"""Who puts a server under load: load.c, compiled here, redis-benchmark, and wrk.

Each returns what it found as numbers: operations, and times in microseconds. Raises Failed when the
server did not do as it should.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from measure import pinned
from servers import HERE, Running

UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}
REDIS_TESTS = {"PING": "ping_mbulk", "PING, inline": "ping_inline", "SET": "set", "GET": "get"}
WRK_CLIENTS = 64
REDIS_CLIENTS = 50


class Failed(Exception):
    """A server did not answer as it should have."""


def compiler() -> str | None:
    """The C compiler: the variable CC, or what is installed."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_programs(folder: Path) -> None:
    """Compile the load generator and the C server into this folder."""
    cc = compiler()
    assert cc is not None
    for name in ("load", "epoll"):
        command = [cc, "-O2", "-Wall", "-Wextra", "-o", folder / name, HERE / f"{name}.c"]
        subprocess.run(command, check=True)


def _run(command: list[str], core: int) -> str:
    with pinned(core):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr.strip() or f"{Path(command[0]).name} ended with status {done.returncode}")
    return done.stdout


def load(
    programs: Path, server: Running, core: int, transport: str, clients: int, operations: int, *more: str
) -> dict[str, float]:
    """Run load.c; `more` is what it takes after the operations."""
    command = [str(programs / "load"), transport, server.host, server.port, str(clients), str(operations)]
    result: dict[str, float] = json.loads(_run([*command, *more], core))
    return result


@contextlib.contextmanager
def idle_connections(programs: Path, server: Running, core: int, count: int) -> Iterator[None]:
    """So many connections, each with one line behind it. Raises Failed if the server closes any."""
    command = [str(programs / "load"), "idle", server.host, server.port, str(count)]
    pipe = subprocess.PIPE
    with pinned(core):
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    with process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        if not process.stdout.readline():
            raise Failed(process.stderr.read().strip())
        try:
            yield
        finally:
            process.stdin.close()
            end = process.stdout.read()
    if closed := json.loads(end)["closed"]:
        raise Failed(f"{closed} idle connections were closed")


def redis_benchmark(
    server: Running, core: int, test: str, operations: int, pipeline: int
) -> dict[str, float]:
    """Run redis-benchmark with one of REDIS_TESTS."""
    command = ["redis-benchmark", "-h", server.host, "-p", server.port, "--csv", "-n", str(operations)]
    command += ["-c", str(REDIS_CLIENTS), "-P", str(pipeline), "-t", REDIS_TESTS[test]]
    rows = list(csv.DictReader(io.StringIO(_run(command, core))))
    if len(rows) != 1:
        raise Failed(f"redis-benchmark said nothing of {test}")
    row = rows[0]
    rate = float(row["rps"])
    return {
        "operations": operations,
        "seconds": operations / rate,
        "p50": float(row["p50_latency_ms"]) * 1e3,
        "p99": float(row["p99_latency_ms"]) * 1e3,
        "max": float(row["max_latency_ms"]) * 1e3,
    }


def wrk(server: Running, core: int, seconds: int) -> dict[str, float]:
    """Run wrk on the one page."""
    url = f"http://{server.host}:{server.port}/"
    report = _run(["wrk", "-t1", f"-c{WRK_CLIENTS}", f"-d{seconds}s", "--latency", url], core)
    errors = re.search(r"(Non-2xx.*|Socket errors.*)", report)
    requests = re.search(r"(\d+) requests in ([\d.]+)(\w+)", report)
    if errors or not requests or requests[1] == "0":
        raise Failed(errors[1] if errors else "wrk got no response")
    times = {
        label: float(n) * UNITS[u]
        for label, n, u in re.findall(r"^\s+(50|99)%\s+([\d.]+)(\w+)", report, re.M)
    }
    most = re.search(r"Latency\s+\S+\s+\S+\s+([\d.]+)(us|ms|s|m)", report)
    return {
        "operations": int(requests[1]),
        "seconds": float(requests[2]) * UNITS[requests[3]] / 1e6,
        "p50": times["50"],
        "p99": times["99"],
        "max": float(most[1]) * UNITS[most[2]] if most else 0.0,
    }
