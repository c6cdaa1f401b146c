"""Memory without a name is had in one way or another, and what cannot be had is said."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest

from srvkit.process import memfd as unnamed
from srvkit.process.scoreboard import Board

FORBIDDEN = """
import errno, os, runpy

def refuse(*_):
    raise OSError({number}, os.strerror({number}))

os.memfd_create = refuse
runpy.run_module("srvkit", run_name="__main__", alter_sys=True)
"""
SERVER = '[server.a]\nlisten = "tcp://127.0.0.1:0"\nhandler = "talk"\n'


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_system_that_does_not_permit_memfd_create_is_served_all_the_same(number, managed):
    """As systemd's SystemCallFilter and sandboxes have it."""
    managed.write(SERVER)
    managed.program = managed.start("-c", FORBIDDEN.format(number=number), "run")
    managed.program.wait_for("listening on ")
    managed.reload()
    assert managed.answer().startswith(b"hello ")
    assert managed.server()["counters"]["accepted"] == 1
    assert managed.program.end() == 0


def test_a_temporary_file_has_no_name_and_holds_what_is_written(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(unnamed, "SHARED_MEMORY", str(tmp_path))
    board = Board()
    board.accepted()
    again = Board(os.dup(board.fileno()))
    assert list(tmp_path.iterdir()) == []
    assert again.counts().accepted == 1
    again.close()
    board.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_what_ran_out_is_said_and_nothing_stays_open(number, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with pytest.raises(OSError, match=f"no shared memory: {os.strerror(number)}") as raised:
        Board()
    assert raised.value.errno == number
    assert before == (os.listdir("/proc/self/fd") if before else [])


def test_no_room_for_a_file_is_known_before_it_is_written_to(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        Board()
