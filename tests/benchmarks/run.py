"""Measure srvkit against its peers, side by side in one run: `python tests/benchmarks/run.py`.

Each round starts every server of a workload afresh, one after the other, in turning order: the server
pinned to one core, the load generator (load.c, compiled here) to another. What counts is the CPU time
of the server process, user and system, per operation: it does not depend on the load generator. The
figures are medians over the rounds; a ratio is to the first server of the workload in the same round,
with the lowest and the highest of the rounds in brackets. Linux, a C compiler and two cores are needed, nothing else. What other
programs do on the two cores disturbs the figures: such a measurement is taken again, a few times.

A workload is a row of WORKLOADS, a server a function in servers.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WARM_UP = 0.1  # of the operations, before the counting begins
QUIET = 0.04  # of the two cores' time that other programs may take
ATTEMPTS = 8  # to measure without being disturbed


@dataclass(frozen=True)
class Workload:
    """One row of the comparison; `load` are the arguments that load.c takes after OPERATIONS."""

    name: str
    servers: tuple[str, ...]  # of servers.py; the first is what the others are compared with
    operations: int
    goals: dict[str, str] = field(default_factory=dict)
    transport: str = "tcp"
    clients: int = 64
    load: tuple[str, ...] = ("64",)


CONNECT = "connect, echo a line, close"
UDP = "UDP echo"

WORKLOADS = [
    Workload(
        CONNECT,
        ("socketserver threading, StreamRequestHandler", "srvkit threading, StreamRequestHandler"),
        operations=8_000,
        goals={"srvkit threading, StreamRequestHandler": "≤ 0.40"},
    ),
    Workload(
        CONNECT,
        (
            "socketserver threading, BaseRequestHandler",
            "srvkit threading, BaseRequestHandler",
            "srvkit threading, MessageHandler",
        ),
        operations=8_000,
        goals={
            "srvkit threading, BaseRequestHandler": "≤ 0.33",
            "srvkit threading, MessageHandler": "≤ 0.33",
        },
    ),
    *(
        Workload(
            UDP,
            (f"socketserver threading, UDP, {handler}", f"srvkit threading, UDP, {handler}"),
            operations=8_000,
            goals={f"srvkit threading, UDP, {handler}": "≤ 0.20"},
            transport="udp",
        )
        for handler in ("BaseRequestHandler", "DatagramRequestHandler")
    ),
]


@dataclass(frozen=True)
class Measurement:
    cpu: float  # microseconds of server CPU per operation
    rate: float  # operations per second
    p50: float  # microseconds
    p99: float
    lost: int
    others: float  # share of the two cores' time that went to other programs


def compile_load(folder: Path) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        sys.exit("a C compiler is needed for the load generator: install one, or name it in CC")
    program = folder / "load"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, HERE / "load.c"], check=True)
    return program


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started in here runs on this core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_time(pid: int) -> float:
    """Seconds of CPU a process has used, its ended threads and its reaped children included."""
    clock = (~pid << 3) | 2  # Linux: the clock of another process, in nanoseconds
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(clock) + children


def busy_time(cores: list[int]) -> float:
    """Seconds that anything at all, a hypervisor's other guests included, has spent on these cores."""
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    idle = {4, 5}  # columns: idle, waiting for a disk
    ticks = [
        sum(int(value) for column, value in enumerate(line[:9]) if column and column not in idle)
        for line in lines
        if line[0] in {f"cpu{core}" for core in cores}
    ]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def settled_cpu_time(pid: int) -> float:
    """The same, once the server has nothing left to do."""
    used = cpu_time(pid)
    while True:
        time.sleep(0.1)
        before, used = used, cpu_time(pid)
        if used - before < 0.0005:
            return used


@contextlib.contextmanager
def serving(name: str, core: int) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A server in a process of its own, and its address."""
    with pinned(core):
        server = subprocess.Popen(
            [sys.executable, HERE / "servers.py", name],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()
        if not address:
            sys.exit(f"the server did not start: {name}")
        yield server, address
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def generate(load: Path, workload: Workload, address: list[str], count: int, core: int) -> dict[str, float]:
    """Run the load generator; its figures."""
    command = [load, workload.transport, *address, str(workload.clients), str(count), *workload.load]
    with pinned(core):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the load generator ended with status {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure_once(workload: Workload, name: str, operations: int, load: Path, cores: list[int]) -> Measurement:
    batch = int(workload.load[1]) if len(workload.load) > 1 else 1
    with serving(name, cores[0]) as (server, address):
        generate(load, workload, address, max(1, int(operations * WARM_UP) // batch) * batch, cores[1])
        before = settled_cpu_time(server.pid)
        began, busy, own = time.monotonic(), busy_time(cores), os.times()
        result = generate(load, workload, address, operations, cores[1])
        ended, busy_after, own_after = time.monotonic(), busy_time(cores), os.times()
        used = settled_cpu_time(server.pid) - before
    ours = used + sum(own_after[:4]) - sum(own[:4])
    return Measurement(
        cpu=used / operations * 1e6,
        rate=operations / result["seconds"],
        p50=result["p50"],
        p99=result["p99"],
        lost=int(result["lost"]),
        others=max(0.0, busy_after - busy - ours) / (2 * (ended - began)),
    )


def measure(workload: Workload, name: str, operations: int, load: Path, cores: list[int]) -> Measurement:
    """Measure until nobody else was busy meanwhile; after some attempts, the least disturbed one counts."""
    attempts = []
    for _ in range(ATTEMPTS):
        attempts.append(measure_once(workload, name, operations, load, cores))
        if attempts[-1].others <= QUIET:
            return attempts[-1]
    return min(attempts, key=lambda m: m.others)


def rows(workload: Workload, rounds: list[dict[str, Measurement]]) -> Iterator[str]:
    baseline = workload.servers[0]
    for name in workload.servers:
        results = [r[name] for r in rounds]
        cpu = statistics.median(m.cpu for m in results)
        each = [r[name].cpu / r[baseline].cpu for r in rounds]
        ratio = f"{statistics.median(each):.2f} [{min(each):.2f}, {max(each):.2f}]" if name != baseline else "1"
        rate = statistics.median(m.rate for m in results)
        p50 = statistics.median(m.p50 for m in results)
        p99 = statistics.median(m.p99 for m in results)
        lost = sum(m.lost for m in results)
        goal = workload.goals.get(name, "")
        figures = f"{cpu:.1f} | {ratio} | {goal} | {rate:,.0f} | {p50:.0f} | {p99:.0f} | {lost}"
        yield f"| {workload.name} | {name} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds and a quarter of the operations")
    parser.add_argument("--rounds", type=int, help="rounds for each workload (11; quick: 3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="servers whose name contains this")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 11)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the server, one for the load")

    table = []
    disturbed = 0
    with tempfile.TemporaryDirectory() as folder:
        load = compile_load(Path(folder))
        for workload in WORKLOADS:
            servers = [name for name in workload.servers if options.only in name]
            if not servers:
                continue
            chosen = Workload(**{**vars(workload), "servers": tuple(servers)})
            operations = workload.operations // (4 if options.quick else 1)
            results = []
            for turn in range(rounds):
                shift = turn % len(servers)
                order = servers[shift:] + servers[:shift]
                results.append({n: measure(workload, n, operations, load, cores) for n in order})
                cpu = ", ".join(f"{name} {m.cpu:.1f}" for name, m in results[-1].items())
                print(f"{workload.name}, round {turn + 1}: {cpu}", file=sys.stderr)
            disturbed += sum(m.others > QUIET for each in results for m in each.values())
            table += rows(chosen, results)

    machine = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    print(f"{machine}; {rounds} rounds, medians; CPU is that of the server per operation; all times in µs\n")
    print("| workload | server | CPU | ratio | goal | ops/s | p50 | p99 | lost |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    print("\n".join(table))
    if disturbed:
        print(f"\n{disturbed} of these measurements were disturbed by other programs: do not trust them.")


if __name__ == "__main__":
    main()
