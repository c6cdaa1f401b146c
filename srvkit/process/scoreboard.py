"""What a worker writes and its supervisor reads: a beat and counters, in memory that both have.

Each worker has a board of its own, made before it is forked. It is a file without a name, so that the
counters survive the worker, and so that an executed successor of the supervisor can map it again.
"""

from __future__ import annotations

import mmap
import threading
from time import monotonic

from srvkit.net.closing import close_one
from srvkit.process.memfd import unnamed_file
from srvkit.protocol.outcomes import CLOSED, OUTCOMES

BEAT, ACCEPTED, REFUSED, ERRORS, BYTES_IN, BYTES_OUT, DROPPED, UNANSWERED, FIRST_OUTCOME = range(9)
_CELLS = FIRST_OUTCOME + len(OUTCOMES)
_SIZE = _CELLS * 8
_PLACE = {outcome: FIRST_OUTCOME + index for index, outcome in enumerate(OUTCOMES)}


class Counts:
    """What was counted: of one worker, or the sum of several that have ended."""

    def __init__(self, cells: list[int] | None = None) -> None:
        self._cells = cells or [0] * _CELLS

    def __iadd__(self, other: Counts) -> Counts:
        self._cells = [one + another for one, another in zip(self._cells, other._cells, strict=True)]
        return self

    @property
    def ended(self) -> int:
        """How many connections or datagrams have had their end."""
        return sum(self._cells[FIRST_OUTCOME:])

    @property
    def open(self) -> int:
        """How many have not; of workers that live."""
        return max(0, self._cells[ACCEPTED] - self.ended)

    @property
    def accepted(self) -> int:
        return self._cells[ACCEPTED]

    def as_dict(self) -> dict[str, object]:
        """Return the counters by name, as the status shows them."""
        cells = self._cells
        return {
            "accepted": cells[ACCEPTED],
            "refused": cells[REFUSED],
            "errors": cells[ERRORS],
            "bytes_in": cells[BYTES_IN],
            "bytes_out": cells[BYTES_OUT],
            "dropped": cells[DROPPED],
            "unanswered": cells[UNANSWERED],
            "outcomes": {outcome: cells[_PLACE[outcome]] for outcome in OUTCOMES if cells[_PLACE[outcome]]},
        }

    def cells(self) -> list[int]:
        """Return plain numbers, to be given to the constructor once more."""
        return list(self._cells)


class Board:
    """The board of one worker; `fileno()` is its memory, which `Board(fd)` maps again.

    Only the worker writes, and where several threads do, one after the other.
    """

    _fd = -1

    def __init__(self, fd: int | None = None) -> None:
        opened = unnamed_file("board", _SIZE) if fd is None else fd
        try:
            self._memory = mmap.mmap(opened, _SIZE)
            self._cells = memoryview(self._memory).cast("q")
            self._writing = threading.Lock()
            self._fd = opened
        except BaseException:
            if fd is None:
                close_one(opened)
            raise

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Unmap and close; the counts can no longer be read. May be called again, where that has raised."""
        self._cells.release()
        self._memory.close()
        if self._fd >= 0:
            close_one(self._fd)
            self._fd = -1

    def __del__(self) -> None:  # as its mapping does: there may be no memory to note that it is to be closed
        if self._fd >= 0:
            close_one(self._fd)

    # ---- the worker's side

    def beat(self) -> None:
        """Show that the loop comes round."""
        self._cells[BEAT] = int(monotonic() * 1000)

    def accepted(self) -> None:
        """Count a request that is about to be handled; from one thread only."""
        self._cells[ACCEPTED] += 1

    def refused(self) -> None:
        """Count a request that is not handled."""
        with self._writing:
            self._cells[REFUSED] += 1

    def failed(self) -> None:
        """Count an exception of a handler."""
        with self._writing:
            self._cells[ERRORS] += 1

    def ended(self, outcome: str, bytes_in: int, bytes_out: int) -> None:
        """Count the end of a request that was handled."""
        with self._writing:
            cells = self._cells
            cells[_PLACE.get(outcome, FIRST_OUTCOME)] += 1
            cells[BYTES_IN] += bytes_in
            cells[BYTES_OUT] += bytes_out

    def handled(self, count: int, bytes_in: int, bytes_out: int, unusual: list[str]) -> None:
        """Count datagrams that were handled at once, and outcomes of some; in the loop's thread."""
        with self._writing:
            cells = self._cells
            cells[ACCEPTED] += count
            cells[_PLACE[CLOSED]] += count - len(unusual)
            for outcome in unusual:
                cells[_PLACE.get(outcome, FIRST_OUTCOME)] += 1
            cells[BYTES_IN] += bytes_in
            cells[BYTES_OUT] += bytes_out

    def dropped(self) -> None:
        """Count a datagram that was no message, or too long."""
        with self._writing:
            self._cells[DROPPED] += 1

    def unanswered(self) -> None:
        """Count a reply that its client could not be given."""
        with self._writing:
            self._cells[UNANSWERED] += 1

    # ---- the supervisor's side

    @property
    def last_beat(self) -> float:
        """When the loop came round last, on the monotonic clock; 0 before the first time."""
        return self._cells[BEAT] / 1000

    def counts(self) -> Counts:
        return Counts(self._cells.tolist())


class ChildRows:
    """Accounts of forked children: each writes its own row, its parent reads it at the end."""

    _WIDTH = 5  # whether it was written, the outcome, bytes in, bytes out, replies that nobody got

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, max(1, count) * self._WIDTH * 8)
        self._cells = memoryview(self._memory).cast("q")
        self._free = list(range(count))

    def take(self) -> int:
        """Return the number of a clean row; there are as many as there may be children."""
        row = self._free.pop()
        self._cells[row * self._WIDTH] = 0
        return row

    def write(self, row: int, outcome: str, bytes_in: int, bytes_out: int, unanswered: int = 0) -> None:
        """Leave the account; in the child."""
        start = row * self._WIDTH
        number = OUTCOMES.index(outcome) if outcome in OUTCOMES else 0
        for offset, value in enumerate((number, bytes_in, bytes_out, unanswered), 1):
            self._cells[start + offset] = value
        self._cells[start] = 1

    def give_back(self, row: int) -> tuple[str, int, int, int] | None:
        """Return what the child has left, None where it came to no end of its own."""
        start = row * self._WIDTH
        written, number, *counts = self._cells[start : start + self._WIDTH].tolist()
        bytes_in, bytes_out, unanswered = counts
        self._free.append(row)
        return (OUTCOMES[number], bytes_in, bytes_out, unanswered) if written else None
