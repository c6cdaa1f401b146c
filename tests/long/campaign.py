"""Has each call of a supervisor fail once, and looks from outside at what becomes of it.

A scenario is gone through undisturbed while the calls that the supervisor makes are written down, each with
its stack; then once for each of them and each error that it may come back with. After each, the supervisor
must be as it was: alive, its servers answering, with the same descriptors and as many workers; and a reload
that nobody disturbs works.
"""

from __future__ import annotations

import ast
import contextlib
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import injector
from rig import MUTE, PATIENCE, Case, Rig, Unsound
from scenarios import SCENARIOS, Scenario

from srvkit.process.control_client import ControlError

MOST_LOST = 4  # descriptors, by one shortage of memory for several objects
MORE_THAN_THERE_ARE = 3_000_000  # objects made in a scenario
QUIET = 0.3  # seconds in which nothing more is expected to happen, where nobody says when it is over

# ---- the campaign


@dataclass
class Outcome:
    """What has come of it all."""

    sites: int = 0
    cases: int = 0
    missed: list[str] = field(default_factory=list)  # where the call was not made this time
    unsound: list[str] = field(default_factory=list)
    lost: int = 0  # descriptors that the interpreter itself did not close, for want of memory
    tracebacks: Counter[str] = field(default_factory=Counter)  # with context, as they should be

    def __str__(self) -> str:
        return (
            f"{self.sites} sites, {self.cases} cases, {len(self.missed)} not met, "
            f"{len(self.tracebacks)} with a traceback, {self.lost} descriptors lost, "
            f"{len(self.unsound)} unsound"
        )

    def verify(self) -> None:
        """Fail where anything was not sound, or where next to nothing was tried."""
        assert not self.unsound, f"{self}\n" + "\n".join(self.unsound)
        most = max(1, self.cases // 4)
        assert self.cases and len(self.missed) <= most, f"{self}\n" + "\n".join(self.missed)


def cases_of(recorded: list[tuple[str, int]]) -> list[Case]:
    """Return all cases: each site with each error; where it is passed again, once more with the first."""
    found = []
    for site, nth in recorded:
        errors = injector.errors_of(site)
        found += [Case(site, nth, error) for error in (errors if nth == 1 else errors[:1])]
    return found


Choose = Callable[[list[Case]], list[Case]]


def every(step: int, offset: int = 0) -> Choose:
    """Choose every so-manieth case."""
    return lambda cases: cases[offset::step]


def some(count: int) -> Choose:
    """Choose so many cases from all over a scenario."""
    return lambda cases: cases[len(cases) // count // 2 :: max(1, len(cases) // count)][:count]


class Rigs:
    """Has a rig that is well, a new one where the last one was not."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder = folder
        self._settings = settings
        self._count = 0
        self._rig: Rig | None = None

    def __enter__(self) -> Rigs:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def sound(self) -> Rig:
        if self._rig is None:
            self._count += 1
            self._rig = Rig(self._folder / str(self._count), **self._settings)
            self._rig.begin()
        return self._rig

    def fresh(self) -> Rig:
        """Return one that was not started yet."""
        self.discard()
        self._count += 1
        self._rig = Rig(self._folder / str(self._count), **self._settings)
        return self._rig

    def discard(self) -> None:
        if self._rig is not None:
            self._rig.close()
            self._rig = None


def record(scenario: Scenario, rigs: Rigs) -> list[tuple[str, int]]:
    """Go through it undisturbed; return the sites that it passes and that no other scenario is to try."""
    rig = rigs.sound()
    scenario.prepare(rig)
    rig.record()
    scenario.act(rig)
    rig.settle()
    time.sleep(QUIET)
    recorded = [
        one for one in rig.recorded() if scenario.asks or "process/supervisor/control_server.py" not in one[0]
    ]
    recorded = [one for one in recorded if scenario.only in one[0]]
    scenario.later(rig)
    rig.settle()
    if scenario.beyond is not None:
        known = set(record(scenario.beyond(), rigs))
        recorded = [one for one in recorded if one not in known]
    return recorded


def run(name: str, rigs: Rigs, choose: Choose) -> Outcome:
    """Go through a scenario with each of the chosen cases."""
    scenario = SCENARIOS[name]()
    recorded = record(scenario, rigs)
    outcome = Outcome(sites=len({site for site, _ in recorded}))
    for case in choose(cases_of(recorded)):
        outcome.cases += 1
        if not attempt(scenario, rigs, str(case), lambda rig, case=case: rig.arm(case), outcome):
            outcome.missed.append(str(case))
    return outcome


def attempt(
    scenario: Scenario, rigs: Rigs, name: str, disturb: Callable[[Rig], None], outcome: Outcome
) -> bool:
    """Disturb a scenario once; return whether anything has failed by that."""
    rig = rigs.sound()
    try:
        scenario.prepare(rig)
        rig.new_log()
        disturb(rig)
        try:
            scenario.act(rig)
        finally:
            rig.disarm()
        rig.settle()
        log = scenario.said + rig.new_log()
        rig.verify(log)
        if re.search(r" srvkit\[\d+\]: .*\n    Traceback", log):
            outcome.tracebacks[name] += 1
        scenario.later(rig)
        rig.settle()
    except (Unsound, OSError, ControlError) as error:
        outcome.unsound.append(f"{name}\n    {error}"[:6000])
        rigs.discard()
    return rig.fired


# ---- where the supervisor begins or ends


def run_starts(rigs: Rigs, choose: Choose) -> Outcome:
    """The same with a start: it works, or ends with one clear line, and leaves nothing."""
    return _run_ends(rigs, choose, start)


def run_stops(rigs: Rigs, choose: Choose) -> Outcome:
    """The same with a stop: it ends, and leaves nothing."""
    return _run_ends(rigs, choose, stop)


def _run_ends(rigs: Rigs, choose: Choose, act: Callable[[Rig, Callable[[], None], str], None]) -> Outcome:
    rig = rigs.fresh()
    act(rig, rig.record, "")
    recorded = [
        one
        for one in rig.recorded()
        if "process/supervisor/control_server.py" not in one[0] or "_accept" not in one[0]
    ]
    outcome = Outcome(sites=len({site for site, _ in recorded}))
    for case in choose(cases_of(recorded)):
        outcome.cases += 1
        if not attempt_end(rigs, act, str(case), lambda rig, case=case: rig.arm(case), outcome):
            outcome.missed.append(str(case))
    return outcome


def attempt_end(
    rigs: Rigs,
    act: Callable[[Rig, Callable[[], None], str], None],
    name: str,
    disturb: Callable[[Rig], None],
    outcome: Outcome,
) -> bool:
    """Disturb a start or a stop once; return whether anything has failed by that."""
    rig = rigs.fresh()
    try:
        act(rig, lambda: disturb(rig), name)
        log = rig.new_log()
        rig.verify(log)
        if re.search(r" srvkit\[\d+\]: .*\n    Traceback", log):
            outcome.tracebacks[name] += 1
    except (Unsound, OSError, ControlError) as error:
        outcome.unsound.append(f"{name}\n    {error}"[:6000])
    return rig.fired


def start(rig: Rig, disturb: Callable[[], None], name: str) -> None:
    """Start it, with something in its way, and stop it if it has started."""
    disturb()
    rig.launch()
    said = ""

    def is_over() -> bool:
        nonlocal said
        said += rig.new_log()
        return not rig.is_alive() or "datagram: listening on" in said + rig.errors() or silent_start()

    def silent_start() -> bool:
        """Tell whether it runs although the line that says so could not be written."""
        if time.monotonic() < deadline - PATIENCE + MUTE:
            return False
        with contextlib.suppress(ControlError):
            return bool(rig.status()["state"] == "running")
        return False

    deadline = time.monotonic() + PATIENCE
    while not is_over() and time.monotonic() < deadline:
        time.sleep(0.01)
    rig.disarm()
    if rig.is_alive():
        for address in addresses_of(rig, said + rig.errors()):
            rig.talk(address)
        rig.stop(name)
        return
    lines = rig.errors().splitlines()
    if rig.exit_status not in (1, 2, 3) or not [line for line in lines if line.startswith("srvkit: ")]:
        raise Unsound(f"no clear end: {rig.last_words()}")
    rig.expect_nothing_left(name)


def addresses_of(rig: Rig, said: str) -> list[str]:
    """Return where it serves, by its status or, where nobody can be asked, by what it has logged."""
    try:
        return [address for server in rig.status()["servers"] for address in server["addresses"]]
    except ControlError as error:
        if "datagram: listening on" not in said:
            raise Unsound(f"it does not serve: {error}; {said[-2000:]}") from None
    found = re.finditer(r"listening on (.+?)(, \d+ workers)?$", said, re.MULTILINE)
    return [address for line in found for address in line[1].split(", ")]


def stop(rig: Rig, disturb: Callable[[], None], name: str) -> None:
    """Stop it, with something in its way."""
    rig.launch()
    rig.settle()
    disturb()
    rig.stop(name)


# ---- shortages of other kinds


def run_without_memory(name: str, rigs: Rigs, count: int) -> Outcome:
    """Have the interpreter find no memory at so many moments of a scenario: for one object, or for some."""
    scenario = SCENARIOS[name]()
    rig = rigs.sound()
    scenario.prepare(rig)
    rig.starve(MORE_THAN_THERE_ARE, 1)
    scenario.act(rig)
    rig.disarm()
    rig.settle()
    total = rig.allocations()
    scenario.later(rig)
    outcome = Outcome(sites=total)
    for number in range(count):
        # The more of them the nearer to the beginning: later there is much that asks how it goes.
        first, length = int(total * (number / count) ** 2), (1, 1, 1, 8)[number % 4]
        outcome.cases += 1
        where = f"no memory for {length} objects from the {first}. of {total}"
        attempt(scenario, rigs, where, lambda rig, n=first, m=length: rig.starve(n, m), outcome)
        if length > 1 and outcome.unsound:
            # Then the interpreter has no memory to close what it drops, either: a file's end is a call by
            # name, and socketpair() keeps nobody's number. All else must hold.
            leak = re.search(r"\n    descriptors: more (\{.*\}), fewer \{\}$", outcome.unsound[-1])
            if leak and sum(counts := ast.literal_eval(leak[1]).values()) <= MOST_LOST:
                outcome.unsound.pop()
                outcome.lost += sum(counts)
    return outcome


def run_without_descriptors(name: str, rigs: Rigs, most: int) -> Outcome:
    """Leave so few descriptors free, from none to `most`, for a second in which the scenario begins."""
    scenario = SCENARIOS[name]()
    outcome = Outcome()
    for free in range(most + 1):
        outcome.cases += 1

        def exhaust(rig: Rig, free: int = free) -> None:
            pid = rig.pid
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (rig.lowest_free(free), limits[1]))

            def relieve() -> None:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

            timer = threading.Timer(1.0, relieve)
            rig.relieved = timer.join
            timer.start()

        attempt(scenario, rigs, f"{free} descriptors are free", exhaust, outcome)
    return outcome
