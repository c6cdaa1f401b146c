"""Measure srvkit against its peers, side by side in one run: `python tests/benchmarks/run.py`.

Each round starts every server of a workload afresh, one after the other, in turning order: the server
pinned to one core, the load generator (load.c, compiled here) to another. What counts is the CPU time
of the server, user and system, per operation: it does not depend on the load generator. The figures are
medians over the rounds; a ratio is of two servers in the same round. What other programs do on the two
cores disturbs the figures: such a measurement is taken again, a few times. Linux, a C compiler and two
cores are needed; peers that are not installed (`pip install --group benchmark`), redis-benchmark and
wrk are left out with a note.

workloads.py says what is measured, servers.py how each server is started, goals.py what is to be reached.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import clients
import report
from goals import GOALS, judge
from rounds import QUIET, Bench
from starts import starts
from workloads import WORKLOADS

ROUNDS, QUICK_ROUNDS = 7, 3
QUICK_PATIENCE = 90  # seconds after which a quick run measures everything just once
TOOLS = {"redis": "redis-benchmark", "wrk": "wrk"}


def main() -> None:
    options = parse()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the server, one for the load")
    if clients.compiler() is None:
        sys.exit("a C compiler is needed for the load generator: install one, or name it in CC")
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    results: report.Results = {}
    with tempfile.TemporaryDirectory() as folder:
        clients.compile_programs(Path(folder))
        bench = Bench(Path(folder), cores[0], cores[1], attempts=8)
        bench.scale = options.scale or (0.25 if options.quick else 1.0)
        if options.quick:
            bench.attempts, bench.patience = 2, time.monotonic() + QUICK_PATIENCE
        bench.attempts = options.attempts or bench.attempts
        for workload in WORKLOADS.values():
            servers = workload.quick if options.quick and not options.only else workload.servers
            chosen = [name for name in servers if wanted(name, options.only)]
            if not chosen or not wanted(workload.name, options.workload):
                continue
            tool = TOOLS.get(workload.client)
            if tool and shutil.which(tool) is None:
                bench.notes[tool] = f"{tool} is not installed"
                continue
            results[workload.name] = bench.rounds(workload, chosen, rounds)
    outcomes = [judge(goal, results[goal.workload]) for goal in GOALS if goal.workload in results]
    if not options.only and not options.workload:
        outcomes += starts(5 if options.quick else 11, cores[0])
    publish(options, results, outcomes, bench)


def wanted(name: str, texts: list[str] | None) -> bool:
    return texts is None or any(text in name for text in texts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything; within 3 minutes")
    parser.add_argument(
        "--rounds", type=int, help=f"rounds for each workload ({ROUNDS}; quick: {QUICK_ROUNDS})"
    )
    parser.add_argument("--attempts", type=int, help="at an undisturbed measurement (8; quick: 2)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="servers with one of these in their name")
    parser.add_argument("--workload", nargs="+", metavar="TEXT", help="workloads, likewise")
    parser.add_argument("--scale", type=float, help="this share of the operations (1; quick: 0.25)")
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=report.README,
        metavar="README",
        help="put tables and picture into the README (that of the project)",
    )
    return parser.parse_args()


def publish(
    options: argparse.Namespace,
    results: report.Results,
    outcomes: list[report.Outcome],
    bench: Bench,
) -> None:
    measured = [m for rows in results.values() for each in rows for m in each.values()]
    disturbed = sum(m.others > QUIET for m in measured)
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    counts = sorted({len(rows) for rows in results.values()})
    rounds = " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:]))))
    header = f"{machine}, medians of {rounds} rounds"
    notes = [f"Left out: {note}." for note in bench.notes.values()]
    if disturbed:
        notes.append(f"{disturbed} of {len(measured)} measurements were disturbed by other programs.")
    print(report.everything(header, results, outcomes, notes))
    if options.write:
        report.write(options.write, header, results, outcomes, notes)


if __name__ == "__main__":
    main()
