"""Servers of one file run side by side; each forking one has a process, which never outlives the run."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

THREADING = '[server.a]\nlisten = "tcp://127.0.0.1:0"\nhandler = "hold"\n'
FORKING = '[server.b]\nlisten = "unix:b.sock"\nhandler = "hold"\nconcurrency = "forking"\n'
SECOND = FORKING.replace("b.sock", "c.sock").replace("server.b", "server.c")
EVERY_KIND = (
    THREADING
    + FORKING
    + '[server.c]\nlisten = "udp://127.0.0.1:0"\nhandler = "hold"\nconcurrency = "serial"\n'
    + '[server.d]\nlisten = "unixgram:d.sock"\nhandler = "hold"\nconcurrency = "pool"\n'
    + '[server.e]\nlisten = ["tcp://127.0.0.1:0", "unix:e.sock"]\nhandler = "hold"\nconcurrency = "pool"\n'
)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_servers_of_every_transport_and_model_answer_from_one_command(run, say, client, tmp_path, offspring):
    program = run(EVERY_KIND)
    for name, count in (("a", 1), ("b", 1), ("e", 2)):
        addresses = program.addresses(name)
        assert len(addresses) == count
        for address in addresses:
            say(address, b"hello")
    for name in ("c", "d"):
        with client(program.addresses(name)[0], tmp_path) as sock:
            sock.send(b"hello\n")
            assert sock.recv(100) == b"done\n"
    assert {path.name for path in tmp_path.glob("*.sock")} == {"b.sock", "d.sock", "e.sock"}
    assert program.end() == 0
    assert not list(tmp_path.glob("*.sock"))


def test_the_forking_servers_process_ends_with_the_run(run, offspring):
    program = run(THREADING + FORKING)
    program.wait_for("listening on", times=2)
    ended = offspring(program.pid, 1)
    assert program.end() == 0
    ended()


def test_a_request_of_the_forking_servers_child_is_finished(run, say, tmp_path):
    program = run(THREADING + FORKING)
    program.addresses("a")
    file = say(program.addresses("b")[0], b"hold")
    program.process.terminate()
    program.wait_for("SIGTERM: stopping$")
    (tmp_path / "release").write_text("now")
    assert file.readline() == b"done\n"
    assert program.ended() == 0


def test_an_endless_request_of_the_forking_servers_child_is_cut_at_the_deadline(run, say, offspring):
    program = run(THREADING + FORKING, drain_timeout="50ms")
    program.addresses("a")
    file = say(program.addresses("b")[0], b"endless")
    ended = offspring(program.pid, 2)
    assert program.end() == 1
    assert file.readline() == b""
    assert "b: cut 1 connection that had not finished\n" in program.log
    assert "b: its process ended with status 1\n" in program.log
    ended()


@pytest.mark.parametrize("servers", [THREADING + FORKING, FORKING + SECOND], ids=["one", "two"])
def test_death_of_the_run_ends_the_others_at_once(servers, run, say, offspring):
    program = run(servers)
    program.wait_for("listening on", times=2)
    file = say(program.addresses("b")[0], b"endless")
    ended = offspring(program.pid, servers.count("forking") + 1)
    assert program.end(signal.SIGKILL) == -signal.SIGKILL
    ended()
    assert file.readline() == b""


def test_death_of_the_forking_servers_process_ends_the_run_loudly(run, say, offspring, tmp_path):
    program = run(THREADING + FORKING)
    program.addresses("a")
    file = say(program.addresses("b")[0], b"endless")
    ended = offspring(program.pid, 2)
    (child,) = children(program.pid)
    os.kill(child, signal.SIGKILL)
    assert program.ended() == 1
    assert re.search("ERROR .*b: its process was killed by SIGKILL$", program.log, re.MULTILINE)
    assert re.search("b: has ended, so a must stop too$", program.log, re.MULTILINE)
    ended()
    assert file.readline() == b""
    assert not list(tmp_path.glob("*.sock"))


def test_the_forking_servers_process_has_no_other_servers_socket(run, say, tmp_path):
    program = run(THREADING + FORKING + SECOND)
    program.wait_for("listening on", times=3)
    pids = children(program.pid)
    assert len(pids) == 2
    bound = {
        line.split()[6]: line for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
    }
    for pid in pids:
        inodes = re.findall(
            r"socket:\[(\d+)\]", " ".join(map(os.readlink, Path(f"/proc/{pid}/fd").iterdir()))
        )
        assert len([inode for inode in inodes if bound.get(inode, "").endswith(".sock")]) == 1


def test_a_sole_forking_server_needs_no_further_process(run, offspring):
    program = run(FORKING)
    program.addresses("b")
    offspring(program.pid, 0)
    assert program.end() == 0
