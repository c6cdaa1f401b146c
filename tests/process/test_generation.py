"""Configurations that follow each other, without any process: whose workers serve, retire, and end."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from srvkit.config.loader import from_table
from srvkit.process.scoreboard import Counts
from srvkit.process.supervisor.changes import ADDED, KEPT, REPLACED
from srvkit.process.supervisor.generation import Generation, Generations

LOG = SimpleNamespace(log=SimpleNamespace(file=SimpleNamespace(fileno=lambda: 5)))


class Pool:
    """Workers of a server, of which it is only known how many there are; notes what they are told."""

    def __init__(self, name: str, generation: int, workers: int = 1) -> None:
        self.name = name
        self.generation = generation
        self.workers = list(range(workers))
        self.order: dict[str, Any] | None = None
        self.on_trial = True
        self.waiting: list[Any] = []
        self.still_listening: set[int] = set()
        self.before, self.lost, self.restarts = Counts(), 0, 0
        self.cut_short = False
        self.told: list[Any] = []
        self.broken = False

    def __repr__(self) -> str:
        return f"{self.name}{self.generation}"

    def _note(self, *what: Any) -> None:
        self.told.append(what if len(what) > 1 else what[0])
        if self.broken:
            raise OSError("as wished")

    @property
    def is_retiring(self) -> bool:
        return self.order is not None and self.order["do"] == "retire"

    def retire(self, shared: list[int]) -> None:
        self.order = {"do": "retire"}
        self._note("retire", shared)

    def stop(self, timeout: float) -> None:
        self.order = {"do": "stop"}
        self._note("stop", timeout)

    def cut(self) -> None:
        self.order = {"do": "cut"}
        self._note("cut")

    def let_begin(self) -> None:
        self._note("begin")

    def settle(self) -> None:
        self._note("settle")

    def start_respawning(self) -> None:
        self.on_trial = False
        self._note("respawn")

    def broadcast(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self._note(message["do"], descriptors)

    def close_in_child(self, keep: Any) -> None:
        self._note("close in child")


class Listener:
    def __init__(self, number: int) -> None:
        self.number = number
        self.is_closed = False

    def close_in_child(self) -> None:
        self.is_closed = True


class Sockets(list[Listener]):
    """Listening sockets of a configuration; the last so many are new."""

    def __init__(self, *numbers: int, new: int = 0) -> None:
        super().__init__(Listener(number) for number in numbers)
        self.added = self[len(self) - new :]
        self.is_given_up = False

    def give_up(self) -> None:
        self.is_given_up = True


def generation(
    number: int, sockets: Sockets, pools: dict[str, tuple[Pool, str]], more: dict[str, Any] | None = None
) -> Generation:
    """Make one of `{"a": (its workers, what became of the server)}`."""
    table = {name: {"listen": "tcp://127.0.0.1:0", "handler": "echo"} for name in pools}
    config, _ = from_table({"srvkit": more or {}, "server": table})
    made: Any = sockets
    workers: Any = {name: pool for name, (pool, _) in pools.items()}
    changes = {name: {"change": change} for name, (_, change) in pools.items()}
    return Generation(number, config, made, workers=workers, changes=changes)


@pytest.fixture
def all_of_them() -> Generations:
    """One in force, with the servers a and b."""
    shared: Any = LOG
    made = Generations(shared)
    made.coming = generation(
        1, Sockets(1, 2, new=2), {"a": (Pool("a", 1), ADDED), "b": (Pool("b", 1, 2), ADDED)}
    )
    made.put_in_force()
    return made


def next_one(them: Generations, *, more: dict[str, Any] | None = None) -> Generation:
    """Have one come that keeps a, replaces b, and adds c."""
    assert them.current is not None
    number = them.current.number + 1
    kept: Any = them.current.workers["a"]
    them.coming = generation(
        number,
        Sockets(1, 2, 2 + number, new=1),
        {
            "a": (kept, KEPT),
            "b": (Pool("b", number), REPLACED),
            "c": (Pool("c", number), ADDED),
        },
        more,
    )
    return them.coming


def names(them: Generations) -> list[str]:
    return [repr(pool) for pool in them.pools()]


def told(*pools: Any) -> list[Any]:
    return [list(pool.told) for pool in pools]


# From one to the next


def test_the_workers_of_all_are_known_and_none_twice(all_of_them: Generations) -> None:
    assert names(all_of_them) == ["a1", "b1"]
    coming = next_one(all_of_them)
    assert names(all_of_them) == ["a1", "b1", "b2", "c2"]
    assert [repr(pool) for pool in coming.started] == ["b2", "c2"]
    assert [one.number for one in all_of_them.listeners()] == [1, 2, 4]
    all_of_them.put_in_force()
    assert names(all_of_them) == ["a1", "b2", "c2", "b1"]
    assert [repr(pool) for pool in all_of_them.old] == ["b1"]
    assert (all_of_them.current, all_of_them.coming) == (coming, None)
    assert [one.number for one in all_of_them.listeners()] == [1, 2, 4]


def test_one_that_is_given_up_leaves_the_other_in_force(all_of_them: Generations) -> None:
    before, failed = all_of_them.current, next_one(all_of_them)
    sockets: Any = failed.sockets
    all_of_them.give_up()
    assert (all_of_them.current, all_of_them.coming) == (before, None)
    assert told(*failed.started) == [["cut"], ["cut"]]
    assert told(failed.workers["a"]) == [[]]  # it serves on
    assert sockets.is_given_up
    assert [repr(pool) for pool in all_of_them.old] == ["b2", "c2"]  # until they have ended
    all_of_them.give_up()
    assert told(*failed.started) == [["cut"], ["cut"]]


def test_workers_that_cannot_be_cut_keep_no_other_from_it(
    all_of_them: Generations, caplog: pytest.LogCaptureFixture
) -> None:
    failed = next_one(all_of_them)
    first: Any = failed.started[0]
    sockets: Any = failed.sockets
    first.broken = True
    all_of_them.give_up()
    assert told(*failed.started) == [["cut"], ["cut"]]
    assert sockets.is_given_up
    assert "b: ending its new workers: OSError: as wished" in caplog.text


def test_who_was_replaced_retires_and_leaves_the_sockets_to_others(all_of_them: Generations) -> None:
    made = next_one(all_of_them)
    all_of_them.put_in_force()
    (old,) = all_of_them.old
    old.still_listening.add(7)
    for _ in range(2):  # the second time it knows
        all_of_them.retire_old(made)
        assert told(old, *made.workers.values()) == [[("retire", [1, 2, 4])], [], [], []]
    assert all_of_them.still_listens
    old.still_listening.clear()
    assert not all_of_them.still_listens


@pytest.mark.parametrize(
    ("kept", "stopped"), [(0, ["b1", "b2", "b3"]), (1, ["b1", "b2"]), (2, ["b1"]), (3, [])]
)
def test_more_generations_than_so_many_are_stopped(
    kept: int, stopped: list[str], all_of_them: Generations
) -> None:
    for _ in range(3):
        made = next_one(all_of_them, more={"generations": kept, "drain_timeout": "3s"})
        all_of_them.put_in_force()
        all_of_them.retire_old(made)
    old: list[Any] = list(all_of_them.old)
    assert [repr(pool) for pool in old] == ["b1", "b2", "c2", "b3", "c3"]
    late = [pool for pool in old if ("stop", 3.0) in pool.told]
    assert [repr(pool) for pool in late if pool.name == "b"] == stopped
    before = told(*late)
    all_of_them.retire_old(made)
    assert told(*late) == before


# What is due


def test_who_has_ended_leaves_its_counters_to_the_next(all_of_them: Generations) -> None:
    made = next_one(all_of_them)
    all_of_them.put_in_force()
    old: Any = all_of_them.old[0]
    heir = made.workers["b"]
    old.lost, old.restarts, old.cut_short = 2, 3, True
    heir.lost = 10
    all_of_them.go_on()
    assert (all_of_them.old, heir.lost) == ([old], 10)  # it has workers yet
    old.workers.clear()
    all_of_them.go_on()
    assert (all_of_them.old, heir.lost, heir.restarts) == ([], 12, 3)
    assert all_of_them.cut_short
    all_of_them.go_on()
    assert heir.lost == 12


def test_who_has_nobody_to_leave_them_to_is_forgotten(all_of_them: Generations) -> None:
    gone: Any = Pool("removed", 1, 0)
    all_of_them.old.append(gone)
    all_of_them.go_on()
    assert all_of_them.old == [] and not all_of_them.cut_short


def test_who_waits_begins_when_none_of_the_same_server_is_left(all_of_them: Generations) -> None:
    made = next_one(all_of_them)
    all_of_them.put_in_force()
    waiting: Any = made.workers["b"]
    old: Any = all_of_them.old[0]
    waiting.waiting.append(1)
    all_of_them.go_on()
    assert waiting.told == []
    old.workers.clear()
    all_of_them.go_on()
    assert waiting.told == ["begin"]


def test_all_are_told_of_the_log_and_to_stop(all_of_them: Generations) -> None:
    next_one(all_of_them)
    pools: list[Any] = list(all_of_them.pools())
    all_of_them.pass_on_log()
    all_of_them.stop(2.0)
    all_of_them.cut()
    assert all_of_them.is_stopping
    assert told(*pools) == [[("log", [5]), ("stop", 2.0), "cut"]] * 4


def test_a_child_closes_what_is_not_for_it(all_of_them: Generations) -> None:
    next_one(all_of_them)
    sockets: list[Any] = list(all_of_them.listeners())
    all_of_them.close_in_child([sockets[1]])
    assert [one.is_closed for one in sockets] == [True, False, True]
    assert told(*all_of_them.pools()) == [["close in child"]] * 4


# Where something has raised on the way


def test_what_is_wanted_comes_about_although_it_failed_before(
    all_of_them: Generations, caplog: pytest.LogCaptureFixture
) -> None:
    """Of those that were replaced, some were told and some were not; one never got ready."""
    made = next_one(all_of_them)
    all_of_them.put_in_force()
    untold, trial, retiring = Pool("x", 1), Pool("y", 1), Pool("z", 1)
    untold.on_trial = False
    retiring.order = {"do": "retire"}
    olds: Any = [untold, trial, retiring]
    all_of_them.old[:] = olds
    first: Any = made.workers["a"]
    first.broken, first.on_trial = True, False
    all_of_them.settle()
    assert told(untold, trial, retiring) == [[("retire", [1, 2, 4])], ["cut"], ["settle"]]
    assert told(*made.workers.values()) == [["settle"], ["respawn", "settle"], ["respawn", "settle"]]
    assert "a: OSError: as wished" in caplog.text


def test_who_stops_replaces_nobody(all_of_them: Generations) -> None:
    all_of_them.stop(1.0)
    all_of_them.settle()
    assert told(*all_of_them.pools()) == [[("stop", 1.0), "settle"]] * 2


def test_before_the_first_there_is_nothing_to_do(caplog: pytest.LogCaptureFixture) -> None:
    shared: Any = LOG
    none = Generations(shared)
    none.settle()
    none.go_on()
    none.give_up()
    none.start_respawning()
    none.stop(1.0)
    assert list(none.pools()) == list(none.listeners()) == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
