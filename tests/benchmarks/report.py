"""What the measurements say, in Markdown: the goals, the comparison, every figure; and into the README."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import plot
from goals import Outcome, Rounds
from servers import LIMIT, PEER, ROOT, SERVERS, SRVKIT
from workloads import WORKLOADS

Results = dict[str, Rounds]

BEGIN, END = "<!-- benchmark -->", "<!-- end of benchmark -->"
README = ROOT / "README.md"
PICTURE = "tests/benchmarks/results.svg"  # from the README's folder
DETAILS = "tests/benchmarks/results.md"


def median(rounds: Rounds, server: str, figure: str = "cpu") -> float:
    """The median of a figure over the rounds."""
    return statistics.median(getattr(m[server], figure) for m in rounds if server in m)


def ratio(rounds: Rounds, server: str, to: str) -> float:
    """The median of the ratios of CPU time, each of one round."""
    return statistics.median(m[server].cpu / m[to].cpu for m in rounds if server in m and to in m)


def servers(rounds: Rounds) -> list[str]:
    """Those that were measured in every round, the cheapest first."""
    named = {name for measured in rounds for name in measured}
    complete = [name for name in named if all(name in measured for measured in rounds)]
    return sorted(complete, key=lambda name: median(rounds, name))


def family(rounds: Rounds, kind: str) -> list[str]:
    """Those of srvkit, or the peers, the cheapest first."""
    return [name for name in servers(rounds) if SERVERS[name].family == kind]


def active(results: Results) -> Results:
    """The workloads in which CPU time counts: not those of idle connections."""
    return {name: rounds for name, rounds in results.items() if not WORKLOADS[name].idle}


def best(rounds: Rounds, kind: str) -> str | None:
    """The cheapest server of srvkit, or of the peers, that cuts messages."""
    for name in family(rounds, kind):
        if SERVERS[name].framed:
            return name
    return None


def limit(rounds: Rounds) -> str | None:
    """The C server of a workload, where there is one."""
    return best(rounds, LIMIT)


def goals(outcomes: list[Outcome]) -> Iterator[str]:
    yield "| | goal | measured | met |"
    yield "|---|---|---|---|"
    for row in outcomes:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        yield f"| {row.text} | {row.goal} | {row.measured} | {met}{': ' * bool(row.why)}{row.why} |"


def against_peers(results: Results) -> Iterator[str]:
    """The best model of srvkit beside the best peer, workload by workload, and where it is not ahead."""
    yield "| | C | srvkit | to C | best Python peer | to that peer |"
    yield "|---|--:|--:|--:|--:|--:|"
    behind, compared = [], False
    for workload, rounds in active(results).items():
        ours, peer, floor = best(rounds, SRVKIT), best(rounds, PEER), limit(rounds)
        if ours is None:
            continue
        cells = [
            f"{median(rounds, floor):.1f}" if floor else "",
            f"{_short(ours)} {median(rounds, ours):.1f}",
            f"{ratio(rounds, ours, floor):.2f}" if floor else "",
            f"{peer} {median(rounds, peer):.1f}" if peer else "",
            f"**{ratio(rounds, ours, peer):.2f}**" if peer else "",
        ]
        yield f"| {workload} | {' | '.join(cells)} |"
        rivals = {name: ratio(rounds, ours, name) for name in family(rounds, PEER)}
        ahead = [f"{name} ({share:.2f})" for name, share in rivals.items() if share > 1]
        compared = compared or bool(rivals)
        if ahead:
            why = WORKLOADS[workload].why
            behind.append(f"- {workload}: {', '.join(ahead)}. {why}{'.' * bool(why)}".rstrip())
    yield ""
    if behind:
        yield "Where another server in Python needs less than every model of srvkit, and by what factor:"
        yield ""
        yield from behind
    elif compared:
        yield "srvkit is ahead of every other server in Python on every row."


def every_figure(results: Results) -> Iterator[str]:
    yield "| workload | server | CPU | to C | to the best peer | ops/s | p50 | p99 | max | RSS | lost |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for workload, rounds in results.items():
        for name in servers(rounds):
            cells = [f"{median(rounds, name):.2f}"]
            for other in (limit(rounds), best(rounds, PEER)):
                cells.append(f"{ratio(rounds, name, other):.2f}" if other else "")
            cells.append(f"{median(rounds, name, 'rate'):,.0f}")
            cells += [f"{median(rounds, name, figure):,.0f}" for figure in ("p50", "p99", "max")]
            cells.append(f"{median(rounds, name, 'rss') / 2**20:.1f} MB")
            cells.append(str(sum(measured[name].lost for measured in rounds)))
            yield f"| {workload} | {name} | {' | '.join(cells)} |"


def idle(results: Results) -> Iterator[str]:
    """What idle connections cost, where they were measured."""
    for workload, rounds in results.items():
        named = [name for name in servers(rounds) if median(rounds, name, "per_connection")]
        if not named:
            continue
        yield f"| {workload} | memory of each | p99 of an active one | alone |"
        yield "|---|--:|--:|--:|"
        for name in sorted(named, key=lambda name: median(rounds, name, "per_connection")):
            memory = median(rounds, name, "per_connection") / 1024
            p99, alone = (median(rounds, name, figure) for figure in ("p99", "p99_alone"))
            yield f"| {name} | {memory:.2f} KB | {p99:.0f} µs | {alone:.0f} µs |"
        yield ""
        if why := WORKLOADS[workload].why:
            yield f"{why}.\n"


def everything(header: str, results: Results, outcomes: list[Outcome], notes: list[str]) -> str:
    """The whole report."""
    lines = [f"{header}. CPU is the server's per operation, all times in µs.", ""]
    for part in (goals(outcomes), against_peers(results), idle(results), every_figure(results)):
        lines += [*part, ""]
    return "\n".join([*lines, *notes]).rstrip() + "\n"


def for_readme(header: str, results: Results, outcomes: list[Outcome], notes: list[str]) -> str:
    """What the README shows."""
    lines = [
        f"CPU time of the server per operation in µs, in one run, under the same load ({header}).",
        f"Latencies, throughput and memory of each are in [{DETAILS}]({DETAILS}).",
        "",
        f"![CPU time of the servers per operation]({PICTURE})",
        "",
        *goals(outcomes),
        "",
        "The cheapest model of srvkit beside the cheapest other server in Python that does the same:",
        "",
        *against_peers(results),
        "",
        *idle(results),
        *notes,
    ]
    return "\n".join(lines).rstrip()


def put_into(text: str, block: str) -> str:
    """The README with this between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the README has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def write(readme: Path, header: str, results: Results, outcomes: list[Outcome], notes: list[str]) -> None:
    """Write this README's part, the picture, and the page of all figures, which belong to it."""
    text = put_into(readme.read_text(), for_readme(header, results, outcomes, notes))
    picture = plot.draw(
        {name: bars(rounds) for name, rounds in active(results).items() if WORKLOADS[name].drawn}
    )
    (readme.parent / PICTURE).write_text(picture)
    details = everything(header, results, outcomes, notes)
    (readme.parent / DETAILS).write_text(f"# The benchmark, every figure\n\n{details}")
    readme.write_text(text)


def bars(rounds: Rounds) -> list[plot.Bar]:
    """What the picture shows of a workload."""
    return [plot.Bar(name, SERVERS[name].family, median(rounds, name)) for name in servers(rounds)]


def _short(server: str) -> str:
    return f"`{server.removeprefix('srvkit ').partition(',')[0]}`"
