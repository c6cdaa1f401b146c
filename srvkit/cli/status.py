"""What `srvkit status` and `srvkit connections` show: an answer of a running srvkit, laid out for people.

Whatever is missing in an answer is shown as "-": the one that answers may be of another version.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

COLOURS = {"ready": "32", "running": "32", "starting": "33", "reloading": "33", "retiring": "33"}
COLOURS |= {"stopping": "33", "hung": "31", "failed": "31"}
_BOLD = "1"
_HEAD = ("PID", "STATE", "UP", "OPEN", "ACCEPTED", "RSS")

Table = dict[str, Any]


def status_lines(answer: Table, *, coloured: bool = False, now: float | None = None) -> list[str]:
    """Return the lines of `srvkit status`; `now` is the time of day, in seconds."""
    paint = _paint if coloured else _leave
    now = time.time() if now is None else now
    lines = list(_head(answer, now, paint))
    servers = answer.get("servers") or []
    rows = [_HEAD, *(row for server in servers for row in _rows(server, now))]
    widths = _widths(rows)  # the columns of all servers stand under each other
    for server in servers:
        lines += ["", *_server(server, now, paint, widths)]
    return lines


def connection_lines(answer: Table) -> list[str]:
    """Return the lines of `srvkit connections`: by server, the oldest first."""
    found = sorted(
        answer.get("connections") or (), key=lambda one: (str(one.get("server")), -(one.get("seconds") or 0))
    )
    if not found:
        return ["no connections"]
    head = ("ID", "SERVER", "WORKER", "PEER", "AGE", "IN", "OUT", "STATE")
    rows = [
        (
            *(plain(one.get(key, "-")) for key in ("id", "server", "worker", "peer")),
            duration(one.get("seconds")),
            size(one.get("bytes_in")),
            size(one.get("bytes_out")),
            plain(one.get("state", "-")),
        )
        for one in found
    ]
    widths = _widths([head, *rows])
    return ["  ".join(_aligned(row, widths, "<<><>>><")).rstrip() for row in (head, *rows)]


def plain(value: object) -> str:
    """Write a value so that a peer's name cannot command the terminal."""
    text = "-" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text
    )


def duration(seconds: float | None) -> str:
    """Write seconds in the two units that matter: 42 s, 12 min, 4 h 12 min, 3 d 4 h."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))  # the clock may have been set back
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{whole} s"


def size(count: float | None) -> str:
    """Write bytes in a unit that leaves at most four digits: 340 B, 1.2 KiB, 34 MiB."""
    if count is None:
        return "-"
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value >= 1000:
            value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 9.95 and unit != "B" else f"{value:.0f} {unit}"


def _head(answer: Table, now: float, paint: Any) -> Iterator[str]:
    state = plain(answer.get("state", "-"))
    since = duration(_age(answer.get("since"), now))
    yield (
        f"srvkit {plain(answer.get('version', '-'))} {paint(state, COLOURS.get(state))}, "
        f"pid {plain(answer.get('pid'))}, up {since}, generation {plain(answer.get('generation'))}"
    )
    yield plain(answer.get("config"))
    if last := answer.get("last_reload"):
        when = duration(_age(last.get("at"), now))
        if last.get("ok"):
            yield f"reloaded {when} ago"
        else:
            yield f"reload {paint('failed', COLOURS['failed'])} {when} ago:"
            yield from (f"  {plain(error)}" for error in last.get("errors") or ())


def _server(server: Table, now: float, paint: Any, widths: Sequence[int]) -> Iterator[str]:
    workers, counters = server.get("workers") or [], server.get("counters") or {}
    wanted = server.get("wanted") or len(workers)
    # One that is to be replaced serves beside who takes its place for a moment.
    ready = min(wanted, sum(one.get("state") == "ready" for one in workers))
    addresses = ", ".join(map(plain, server.get("addresses") or ()))
    yield f"{paint(plain(server.get('name')), _BOLD)}  {plain(server.get('model'))}  {addresses}"
    states = [COLOURS.get(str(one.get("state"))) for one in workers]
    for row, colour in zip((_HEAD, *_rows(server, now)), (None, *states, None), strict=True):
        cells = _aligned(row, widths, "><>>>>")
        cells[1] = paint(cells[1], colour)
        yield f"  {'  '.join(cells)}".rstrip()
    count = f"{ready} of {wanted} worker{'s' * (wanted != 1)} ready"
    if server.get("removed"):
        count = "removed; what is open is served to its end"
    seldom = (
        f"{word} {plain(counters[word])}"
        for word in ("restarts", "refused", "errors", "dropped", "unanswered", "overrun")
        if counters.get(word)
    )
    yield f"  {', '.join((count, *seldom))}"
    outcomes = (f"{plain(word)} {plain(n)}" for word, n in (counters.get("outcomes") or {}).items())
    ended = ", ".join(outcomes)
    traffic = f"in {size(counters.get('bytes_in'))}, out {size(counters.get('bytes_out'))}"
    yield f"  {traffic}" + f", ended: {ended}" * bool(ended)


def _rows(server: Table, now: float) -> Iterator[tuple[str, ...]]:
    for worker in server.get("workers") or ():
        yield _worker(worker, now)
    counters = server.get("counters") or {}
    yield "total", "", "", plain(counters.get("open")), plain(counters.get("accepted")), ""


def _worker(worker: Table, now: float) -> tuple[str, ...]:
    state = plain(worker.get("state", "-"))
    if state == "hung":
        state += f" for {duration(worker.get('beat_age'))}"
    return (
        plain(worker.get("pid")),
        state,
        duration(_age(worker.get("since"), now)),
        plain(worker.get("open")),
        plain(worker.get("accepted")),
        size(worker.get("rss")),
    )


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else now - since


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _aligned(row: Sequence[str], widths: Sequence[int], sides: str) -> list[str]:
    return [f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)]


def _paint(text: str, colour: str | None) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def _leave(text: str, colour: str | None) -> str:
    return text
