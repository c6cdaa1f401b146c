"""What a worker has counted can be read by its supervisor, and outlives it."""

from __future__ import annotations

import gc
import mmap
import os
import threading
from collections.abc import Iterator
from time import monotonic

import pytest

from srvkit.fork import fork
from srvkit.process.memfd import unnamed_file
from srvkit.process.scoreboard import Board, ChildRows, Counts
from srvkit.protocol.outcomes import BAD_MESSAGE, CLOSED, EOF, ERROR, OUTCOMES, RESET


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.close()


def in_a_child(call) -> None:
    pid = fork()
    if pid == 0:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_new_board_has_nothing_on_it(board):
    counts = board.counts()
    assert counts.as_dict() == {
        "accepted": 0, "refused": 0, "errors": 0, "bytes_in": 0, "bytes_out": 0,
        "dropped": 0, "unanswered": 0, "outcomes": {},
    }  # fmt: skip
    assert (counts.open, counts.ended, counts.accepted, board.last_beat) == (0, 0, 0, 0)


def test_what_a_worker_counts_outlives_it(board):
    def work():
        for _ in range(4):
            board.accepted()
        board.refused()
        board.failed()
        board.ended(EOF, 10, 3)
        board.ended(RESET, 1, 2**40)
        board.handled(5, 50, 7, [ERROR, BAD_MESSAGE])
        board.dropped()
        board.unanswered()
        board.unanswered()

    in_a_child(work)
    counts = board.counts()
    assert counts.as_dict() == {
        "accepted": 9,
        "refused": 1,
        "errors": 1,
        "bytes_in": 61,
        "bytes_out": 10 + 2**40,
        "dropped": 1,
        "unanswered": 2,
        "outcomes": {CLOSED: 3, EOF: 1, RESET: 1, ERROR: 1, BAD_MESSAGE: 1},
    }
    assert (counts.accepted, counts.ended, counts.open) == (9, 7, 2)


def test_a_beat_is_a_moment_of_the_clock_that_all_processes_have(board):
    before = monotonic()
    in_a_child(board.beat)
    assert before - 0.001 <= board.last_beat <= monotonic()


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_outcome_has_its_own_count(board, outcome):
    board.ended(outcome, 0, 0)
    assert board.counts().as_dict()["outcomes"] == {outcome: 1}


def test_an_outcome_that_nobody_knows_is_not_lost(board):
    board.accepted()
    board.ended("a new one", 0, 0)
    assert board.counts().open == 0


def test_another_process_that_gets_the_descriptor_sees_the_same(board):
    board.accepted()
    again = Board(os.dup(board.fileno()))
    board.accepted()
    assert again.counts().accepted == 2
    again.close()
    assert board.counts().accepted == 2


def test_threads_do_not_take_each_others_counts_away(board):
    def end_many():
        for _ in range(2000):
            board.ended(CLOSED, 1, 2)
            board.failed()
            board.refused()

    threads = [threading.Thread(target=end_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert board.counts().as_dict() == {
        "accepted": 0, "refused": 8000, "errors": 8000, "bytes_in": 8000, "bytes_out": 16000,
        "dropped": 0, "unanswered": 0, "outcomes": {CLOSED: 8000},
    }  # fmt: skip


def test_counts_are_added_up_and_given_on_as_plain_numbers(board):
    board.accepted()
    board.accepted()
    board.ended(ERROR, 5, 6)
    total = Counts()
    total += board.counts()
    total += board.counts()
    assert total.as_dict() == {
        "accepted": 4, "refused": 0, "errors": 0, "bytes_in": 10, "bytes_out": 12,
        "dropped": 0, "unanswered": 0, "outcomes": {ERROR: 2},
    }  # fmt: skip
    again = Counts(total.cells())
    again += board.counts()
    assert (again.accepted, total.accepted) == (6, 4)


def test_a_closed_board_gives_its_memory_back():
    before = len(os.listdir("/proc/self/fd"))
    Board().close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_forked_child_leaves_its_account_to_its_parent():
    rows = ChildRows(2)
    row = rows.take()
    in_a_child(lambda: rows.write(row, EOF, 7, 2**40, 3))
    assert rows.give_back(row) == (EOF, 7, 2**40, 3)


def test_a_child_that_was_killed_has_left_nothing_even_where_another_had():
    rows = ChildRows(1)
    for outcome in (EOF, None, RESET):
        row = rows.take()
        if outcome is not None:
            rows.write(row, outcome, 1, 2)
        assert rows.give_back(row) == ((outcome, 1, 2, 0) if outcome else None)


def test_children_at_the_same_time_have_rows_of_their_own():
    rows = ChildRows(3)
    taken = [rows.take() for _ in range(3)]
    assert len(set(taken)) == 3
    for number, row in enumerate(taken):
        in_a_child(lambda number=number, row=row: rows.write(row, OUTCOMES[number], number, number))
    for number, row in enumerate(taken):
        assert rows.give_back(row) == (OUTCOMES[number], number, number, 0)


@pytest.mark.parametrize("inherited", [False, True])
def test_a_board_that_cannot_be_mapped_closes_what_it_has_opened_once(inherited, monkeypatch):
    closed = []
    monkeypatch.setattr("srvkit.process.scoreboard.close_one", lambda fd: (closed.append(fd), os.close(fd)))
    monkeypatch.setattr(mmap, "mmap", lambda *arguments: 1 / 0)
    fd = unnamed_file("board", 4096) if inherited else None
    with pytest.raises(ZeroDivisionError):
        Board(fd)
    gc.collect()
    assert len(closed) == (not inherited)
    if fd is not None:
        os.close(fd)


def test_a_board_is_closed_once_however_often_it_is_closed_and_dropped(monkeypatch):
    closed = []
    monkeypatch.setattr("srvkit.process.scoreboard.close_one", lambda fd: (closed.append(fd), os.close(fd)))
    board = Board()
    board.close()
    board.close()
    del board
    gc.collect()
    assert len(closed) == 1
