"""How a server is measured: started afresh, warmed up, put under load, and again if others disturbed it.

In each round every server of a workload takes its turn, in an order that turns with the rounds. What
counts is the median over the rounds; ratios are of two servers of the same round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import clients
from clients import Failed
from measure import Disturbance, Measurement, rss, settled_cpu_time
from servers import SERVERS, Absent, Running, serving
from workloads import Workload

WARM_UP = 0.1  # of the operations, before the counting begins
QUIET = 0.04  # of the two cores' time that other programs may take
WRK_SECONDS = 2


@dataclass
class Bench:
    """What a run of the benchmark has at its disposal."""

    programs: Path  # the folder of the compiled ones
    server_core: int
    load_core: int
    attempts: int  # to measure without being disturbed
    scale: float = 1.0  # of the operations
    patience: float = float("inf")  # the moment from which on everything is measured just once
    notes: dict[str, str] = field(default_factory=dict)  # which servers were left out, and why

    @property
    def cores(self) -> list[int]:
        return [self.server_core, self.load_core]

    def rounds(self, workload: Workload, servers: list[str], count: int) -> list[dict[str, Measurement]]:
        """Measure all servers so many times; one that cannot be measured is noted and left out."""
        servers, results = list(servers), []
        for turn in range(max(count, workload.rounds)):
            if turn and time.monotonic() > self.patience:
                break
            shift = turn % len(servers) if servers else 0
            measured = {}
            for name in servers[shift:] + servers[:shift]:
                try:
                    measured[name] = self.measure(workload, name)
                except (Absent, Failed) as problem:
                    servers.remove(name)
                    if name in self.notes:
                        continue
                    note = f"{name}: {problem}"
                    if isinstance(problem, Failed):
                        note = f"{name}, {workload.name}: {problem}"
                    self.notes[name if isinstance(problem, Absent) else note] = note
                    print(f"left out: {note}", file=sys.stderr)
            results.append(measured)
            figures = ", ".join(f"{name} {m.cpu:.1f}" for name, m in measured.items())
            print(f"{workload.name}, round {turn + 1}: {figures}", file=sys.stderr, flush=True)
        return results

    def measure(self, workload: Workload, name: str) -> Measurement:
        """Measure until nobody else was busy meanwhile; after some attempts the least disturbed counts."""
        if name in self.notes:
            raise Absent(self.notes[name])
        attempts: list[Measurement] = []
        while len(attempts) < self.attempts:
            attempts.append(self._measure_once(workload, name))
            if attempts[-1].others <= QUIET or time.monotonic() > self.patience:
                break
        return min(attempts, key=lambda m: m.others)

    def _measure_once(self, workload: Workload, name: str) -> Measurement:
        operations = int(workload.operations * self.scale / SERVERS[name].slow)
        operations = max(1, operations // workload.batch) * workload.batch
        with serving(name, self.server_core, self.programs) as server:
            if workload.client == "idle":
                return self._among_idle(workload, server, operations)
            warm_up = max(1, int(operations * WARM_UP) // workload.batch) * workload.batch
            self._load(workload, server, max(warm_up, min(workload.clients, operations)))
            return self._loaded(server, lambda: self._load(workload, server, operations))

    def _load(self, workload: Workload, server: Running, operations: int) -> dict[str, float]:
        if workload.client == "redis":
            test, pipeline = workload.load
            return clients.redis_benchmark(server, self.load_core, test, operations, int(pipeline))
        if workload.client == "wrk":
            return clients.wrk(server, self.load_core, WRK_SECONDS if self.scale >= 1 else 1)
        operations -= operations % workload.batch
        settings = (workload.transport, workload.clients, operations, *workload.load)
        return clients.load(self.programs, server, self.load_core, *settings)

    def _loaded(self, server: Running, load: Callable[[], dict[str, float]]) -> Measurement:
        before = settled_cpu_time(server.pid)
        disturbance = Disturbance(server.pid, self.cores)
        result = load()
        others = disturbance.share()
        used = settled_cpu_time(server.pid) - before
        return Measurement(
            cpu=used / result["operations"] * 1e6,
            rate=result["operations"] / result["seconds"],
            p50=result["p50"],
            p99=result["p99"],
            max=result["max"],
            rss=rss(server.pid),
            lost=int(result.get("lost", 0)),
            others=others,
        )

    def _among_idle(self, workload: Workload, server: Running, operations: int) -> Measurement:
        """The active connections first alone, then among the idle ones."""

        def load() -> dict[str, float]:
            return self._load(workload, server, operations)

        self._load(workload, server, max(workload.clients, int(operations * WARM_UP)))
        alone = self._loaded(server, load)
        before = rss(server.pid)
        with clients.idle_connections(self.programs, server, self.load_core, workload.idle):
            settled_cpu_time(server.pid)
            held = rss(server.pid)
            among = self._loaded(server, load)
        return Measurement(
            **{
                **{name: getattr(among, name) for name in ("cpu", "rate", "p50", "p99", "max", "lost")},
                "rss": held,
                "others": max(alone.others, among.others),
                "p99_alone": alone.p99,
                "per_connection": max(0, held - before) / workload.idle,
            }
        )
