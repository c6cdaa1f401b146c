"""Where log lines go: a write never waits, never raises, and counts what it could not write."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from srvkit.fork import fork
from srvkit.process.logging.file import LogFile

LINE = b"x" * 99 + b"\n"
AS_STANDARD_ERROR = """
import os, sys
from srvkit.process.logging.file import LogFile
before = os.get_blocking(2)
log = LogFile.open()
for _ in range(5000):
    log.write(b"x" * 99 + b"\\n")
assert os.get_blocking(2) == before == True
assert log.fileno() > 2 and not os.get_inheritable(log.fileno())
print(log.lost)
"""


@pytest.fixture
def opened() -> Iterator[Callable[[Path], LogFile]]:
    """`opened(path)`: a LogFile, closed with the test."""
    with contextlib.ExitStack() as stack:

        def opened(path):
            file = LogFile.open(path)
            stack.callback(file.close)
            return file

        yield opened


def lost_by(stderr) -> int:
    """How many of 5000 lines a process with this standard error has lost; it must end at once."""
    command = [sys.executable, "-c", AS_STANDARD_ERROR]
    done = subprocess.run(command, stderr=stderr, stdout=subprocess.PIPE, timeout=60, check=True)
    return int(done.stdout)


def test_lines_are_appended_to_a_file_that_others_may_not_read(opened, tmp_path):
    (tmp_path / "old").write_bytes(b"before\n")
    assert opened(tmp_path / "old").write(LINE)
    assert (tmp_path / "old").read_bytes() == b"before\n" + LINE
    umask = os.umask(0)
    try:
        opened(tmp_path / "new")
    finally:
        os.umask(umask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_a_name_that_cannot_be_opened_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # that nobody reads: opening it must not wait for a reader
    for name in ("absent/log", ".", "pipe"):
        with pytest.raises(OSError, match=name):
            LogFile.open(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose")
def test_root_follows_a_link_only_if_it_is_roots_own(opened, tmp_path):
    (tmp_path / "precious").touch()
    (tmp_path / "log").symlink_to("precious")
    assert opened(tmp_path / "log").write(LINE)
    os.lchown(tmp_path / "log", 65534, 65534)
    with pytest.raises(OSError, match="log"):
        LogFile.open(tmp_path / "log")


def test_a_full_disk_loses_lines_and_counts_them(opened):
    file = opened(Path("/dev/full"))
    assert [file.write(LINE) for _ in range(3)] == [False] * 3
    assert file.lost == 3


def test_a_pipe_that_nobody_reads_loses_lines_without_waiting():
    reading, writing = os.pipe()
    lost = lost_by(writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        arrived = pipe.read().split(b"\n")
    whole = [line for line in arrived if line == LINE[:-1]]
    assert len(whole) == 5000 - lost
    assert 0 < lost < 5000


def test_a_closed_pipe_loses_everything_and_kills_nobody():
    reading, writing = os.pipe()
    os.close(reading)
    assert lost_by(writing) == 5000
    os.close(writing)


def test_a_pipe_that_closes_later_loses_the_rest(opened, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    file = opened(tmp_path / "pipe")
    assert file.write(LINE)
    assert os.read(reading, 1000) == LINE
    os.close(reading)
    assert not file.write(LINE)


def test_a_socket_that_nobody_reads_loses_lines_without_waiting():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert 0 < lost_by(theirs.fileno()) < 5000


def test_a_terminal_that_nobody_reads_loses_lines_without_waiting():
    ours, theirs = os.openpty()
    try:
        attributes = termios.tcgetattr(theirs)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        assert 0 < lost_by(theirs) < 5000
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_pipe_that_cannot_be_opened_again_does_not_wait_either(monkeypatch):
    reading, writing = os.pipe()
    file = LogFile(os.dup(writing))
    assert os.get_blocking(file.fileno())
    written = 0
    while file.write(LINE) and written < 10_000:
        written += 1
    assert 0 < written < 10_000
    os.read(reading, 65536)
    assert file.write(LINE)
    file.close()
    os.close(reading)
    os.close(writing)


def test_a_line_that_was_torn_does_not_run_into_the_next(opened, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    file = opened(tmp_path / "pipe")
    long = b"y" * 3 * fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ) + b"\n"
    assert not file.write(long)
    received = os.read(reading, len(long))
    while select.select([reading], [], [], 0)[0]:
        received += os.read(reading, len(long))
    assert long.startswith(received)
    assert file.write(LINE)
    assert os.read(reading, 1000) == b"\n" + LINE
    assert file.lost == 1
    os.close(reading)


def test_after_a_rename_reopening_makes_a_new_file_under_the_same_descriptor(opened, tmp_path):
    file = opened(tmp_path / "log")
    number = file.fileno()
    file.write(b"1\n")
    os.rename(tmp_path / "log", tmp_path / "log.1")
    file.write(b"2\n")
    assert file.reopen()
    file.write(b"3\n")
    assert (tmp_path / "log.1").read_bytes() == b"1\n2\n"
    assert (tmp_path / "log").read_bytes() == b"3\n"
    assert file.fileno() == number
    assert not os.get_inheritable(number)


def test_a_file_that_cannot_be_reopened_stays_and_says_so(opened, tmp_path, caplog):
    (tmp_path / "logs").mkdir()
    file = opened(tmp_path / "logs" / "log")
    os.rename(tmp_path / "logs", tmp_path / "gone")
    assert not file.reopen()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    name = tmp_path / "logs" / "log"
    assert (
        record.getMessage() == f"cannot reopen the log {name}: No such file or directory; keeping the old one"
    )
    assert file.write(LINE)
    assert (tmp_path / "gone" / "log").read_bytes() == LINE


def test_a_relative_name_is_reopened_where_it_was(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = opened(Path("log"))
    os.rename("log", "log.1")
    monkeypatch.chdir("/")
    assert file.reopen()
    assert (tmp_path / "log").exists()


def test_standard_error_stays_when_it_is_reopened():
    file = LogFile.open()
    before = os.fstat(file.fileno())
    assert file.reopen()
    assert os.path.samestat(os.fstat(file.fileno()), before)
    file.close()


def test_no_line_is_lost_or_split_while_the_descriptor_is_replaced(opened, tmp_path):
    """As a worker does whose threads log while it is handed a new file."""
    file = opened(tmp_path / "0")
    begun, replaced = threading.Event(), threading.Event()
    written = [0]

    def write() -> None:
        while not replaced.is_set():
            file.write(b"%08d\n" % written[0])
            written[0] += 1
            begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    for number in range(1, 50):
        file.replace(os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    replaced.set()
    writer.join()
    lines = b"".join((tmp_path / str(number)).read_bytes() for number in range(50)).split(b"\n")
    assert lines == [b"%08d" % number for number in range(written[0])] + [b""]


def test_lines_of_several_processes_do_not_mix(opened, tmp_path):
    file = opened(tmp_path / "log")
    children = []
    for letter in b"abc":
        pid = fork()
        if pid == 0:
            for _ in range(2000):
                file.write(bytes([letter]) * 500 + b"\n")
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    lines = (tmp_path / "log").read_bytes().split(b"\n")
    assert sorted(lines) == [b""] + [bytes([letter]) * 500 for letter in b"abc" for _ in range(2000)]


def test_a_closed_log_writes_to_nobody(tmp_path):
    file = LogFile.open(tmp_path / "log")
    file.close()
    with open(tmp_path / "other", "wb", buffering=0):  # gets the number of the one that was closed
        assert not file.write(LINE)
    assert (tmp_path / "other").read_bytes() == b""
    file.close()
