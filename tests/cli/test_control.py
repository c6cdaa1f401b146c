"""`srvkit status`, `reload`, `stop`, `connections` and `kill`, over a supervisor that only says its lines."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srvkit.cli.status import connection_lines, duration, plain, size, status_lines
from srvkit.config.model import SrvkitSettings
from srvkit.process.runtime_paths import control_path

PATIENCE = 30
CONFIG = '[srvkit]\ncontrol = "c.sock"\n[server.echo]\nlisten = "tcp://127.0.0.1:7007"\nhandler = "echo"\n'
NOW = 1_800_000_000.0

STATUS = {
    "pid": 4711,
    "version": "0.1.0",
    "config": "/srv/echo/srvkit.toml",
    "since": NOW - 3 * 86400 - 4 * 3600,
    "state": "running",
    "generation": 3,
    "last_reload": {"at": NOW - 130, "ok": False, "errors": ["srvkit.toml:12: server.echo.x: unknown key"]},
    "servers": [
        {
            "name": "echo",
            "model": "event",
            "addresses": ["tcp://127.0.0.1:7007", "unix:/srv/echo/echo.sock"],
            "workers": [
                {"pid": 4712, "state": "ready", "since": NOW - 7000, "open": 12, "accepted": 123456}
                | {"beat_age": 0.4, "rss": 34 * 2**20},
                {"pid": 4713, "state": "hung", "since": NOW - 70000, "open": 1, "accepted": 1234}
                | {"beat_age": 31, "rss": 3 * 2**20},
            ],
            "counters": {"accepted": 200000, "open": 13, "refused": 3, "errors": 1, "dropped": 0}
            | {
                "bytes_in": 12345678,
                "bytes_out": 345678901234,
                "restarts": 2,
                "outcomes": {"closed": 123450},
            },
        },
        {
            "name": "daytime",
            "model": "serial",
            "addresses": ["udp://[::]:13"],
            "workers": [{"pid": 114714, "state": "starting", "since": NOW, "open": 0, "accepted": 0}],
            "counters": {},
        },
    ],
}
SHOWN = """\
srvkit 0.1.0 running, pid 4711, up 3 d 4 h, generation 3
/srv/echo/srvkit.toml
reload failed 2 min ago:
  srvkit.toml:12: server.echo.x: unknown key

echo  event  tcp://127.0.0.1:7007, unix:/srv/echo/echo.sock
     PID  STATE                   UP  OPEN  ACCEPTED      RSS
    4712  ready           1 h 56 min    12    123456   34 MiB
    4713  hung for 31 s  19 h 26 min     1      1234  3.0 MiB
   total                                13    200000
  1 of 2 workers ready, restarts 2, refused 3, errors 1
  in 12 MiB, out 322 GiB, ended: closed 123450

daytime  serial  udp://[::]:13
     PID  STATE                   UP  OPEN  ACCEPTED      RSS
  114714  starting               0 s     0         0        -
   total                                 -         -
  0 of 1 worker ready
  in -, out -
"""
CONNECTIONS = [
    {
        "id": "4712-13",
        "server": "echo",
        "worker": 4712,
        "peer": "127.0.0.1:5",
        "seconds": 1.5,
        "state": "idle",
    }
    | {"bytes_in": 1234, "bytes_out": 99},
    {"id": "4713-9", "server": "day", "worker": 4713, "peer": "[::1]:5", "seconds": 0, "state": "active"}
    | {"bytes_in": 0, "bytes_out": 0},
    {"id": "4712-4", "server": "echo", "worker": 4712, "peer": "unnamed", "seconds": 20000, "state": "active"}
    | {"bytes_in": 1234567, "bytes_out": 0},
]


class Fake:
    """Answers every request with the same; `requests` are those that came."""

    def __init__(self, path: Path, answer: Any, keep: bool = False) -> None:
        self.requests: list[Any] = []
        self.answered = threading.Event()
        self.let_go = threading.Event()
        self._answer, self._keep = answer, keep
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock = self._socket.accept()[0]
            except OSError:
                return
            with sock, sock.makefile("rb") as lines:
                self.requests.append(json.loads(lines.readline()))
                sock.sendall(json.dumps(self._answer).encode() + b"\n")
                self.answered.set()
                if self._keep:
                    assert self.let_go.wait(PATIENCE)

    def close(self) -> None:
        self.let_go.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._socket.close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., Fake]]:
    """`fake(answer)`: a supervisor of the srvkit.toml in this folder."""
    fakes: list[Fake] = []

    def make(answer: Any, path: Path = tmp_path / "c.sock", **how: Any) -> Fake:
        (tmp_path / "srvkit.toml").write_text(CONFIG)
        fakes.append(Fake(path, answer, **how))
        return fakes[-1]

    yield make
    for one in fakes:
        one.close()


def test_the_status_is_laid_out_for_people():
    assert status_lines(STATUS, now=NOW) == SHOWN.splitlines()
    assert max(map(len, SHOWN.splitlines())) <= 80


def test_the_status_has_colours_where_they_are_wanted():
    text = "\n".join(status_lines(STATUS, coloured=True, now=NOW))
    assert "\x1b[31mhung for 31 s\x1b[0m" in text
    assert "\x1b[32mready        \x1b[0m" in text
    assert re.sub(r"\x1b\[\d+m", "", text) == SHOWN.rstrip("\n")


def test_a_reload_that_went_well_is_one_line():
    lines = status_lines(STATUS | {"last_reload": {"at": NOW - 5, "ok": True, "errors": []}}, now=NOW)
    assert lines[2:4] == ["reloaded 5 s ago", ""]


def test_an_answer_of_another_version_is_shown_as_far_as_it_goes():
    assert status_lines({}, now=NOW)[0] == "srvkit - -, pid -, up -, generation -"
    bare = {"servers": [{"name": "x", "workers": [{"pid": 1}]}], "last_reload": {}}
    assert any(line.split()[:2] == ["1", "-"] for line in status_lines(bare, now=NOW))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (15120, "4 h 12 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (10240, "10 KiB"),
        (2**40, "1.0 TiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_sizes_are_short(count, text):
    assert size(count) == text


def test_what_a_peer_is_called_does_not_reach_the_terminal_as_it_is():
    assert plain("\x1b[2J\udc80\nä") == r"\x1b[2J\udc80\nä"
    (_, line) = connection_lines({"connections": [CONNECTIONS[0] | {"peer": "@\x1b[31m"}]})
    assert line.isprintable()


def test_status_asks_and_prints(fake, srvkit):
    it = fake(STATUS)
    done = srvkit("status")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("srvkit 0.1.0 running, pid 4711, up ")
    assert lines[5] == SHOWN.splitlines()[5]
    assert len(lines) == len(SHOWN.splitlines())
    assert it.requests == [{"do": "status"}]


def test_json_is_the_answer_as_it_came(fake, srvkit):
    fake(STATUS)
    done = srvkit("status", "--json")
    assert json.loads(done.stdout) == STATUS
    assert done.stdout.count("\n") == 1


def test_json_of_an_error_is_printed_and_told_by_the_status(fake, srvkit):
    fake({"error": "not permitted"})
    done = srvkit("status", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, {"error": "not permitted"})


@pytest.mark.parametrize("words", [["status"], ["connections"], ["reload"], ["stop"], ["kill", "1-1"]])
def test_an_error_is_one_line(words, fake, refused):
    fake({"error": "not permitted"})
    assert refused(1, *words) == ["not permitted"]


def test_who_runs_an_older_version_is_told_so_in_one_line(fake, refused):
    fake({"error": "unknown request 'kill'", "version": "0.0.9", "pid": 4711})
    (line,) = refused(1, "kill", "1-1")
    assert line == (
        "srvkit 0.0.9 runs there and does not know 'kill', which this command needs: "
        "let this version take its place, by kill -USR2 4711 or a restart"
    )


def test_a_terminal_has_colours_unless_told_otherwise(fake, tmp_path):
    fake(STATUS)

    def shown(**environ: str) -> bytes:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "srvkit", "status"],
            cwd=tmp_path,
            env=os.environ | {"TERM": "xterm", "NO_COLOR": ""} | environ,
            stdout=theirs,
        ) as command:
            os.close(theirs)
            output = b""
            while True:
                try:
                    output += os.read(ours, 65536)
                except OSError:  # Linux says so at the end
                    break
            assert command.wait(PATIENCE) == 0
        os.close(ours)
        assert b"echo" in output
        return output

    assert b"\x1b[32mready" in shown()
    assert b"\x1b" not in shown(NO_COLOR="1")
    assert b"\x1b" not in shown(TERM="dumb")


def test_connections_are_sorted_and_silent_workers_named(fake, srvkit):
    it = fake({"connections": CONNECTIONS, "silent": [4799]})
    done = srvkit("connections")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "ID       SERVER  WORKER  PEER                AGE       IN   OUT  STATE",
        "4713-9   day       4713  [::1]:5             0 s      0 B   0 B  active",
        "4712-4   echo      4712  unnamed      5 h 33 min  1.2 MiB   0 B  active",
        "4712-13  echo      4712  127.0.0.1:5         1 s  1.2 KiB  99 B  idle",
    ]
    assert done.stderr == "srvkit: worker 4799 does not answer, its connections are missing\n"
    assert it.requests == [{"do": "connections"}]


def test_no_connections(fake, srvkit):
    fake({"connections": [], "silent": []})
    done = srvkit("connections")
    assert (done.stdout, done.stderr) == ("no connections\n", "")


def test_kill_names_the_connection(fake, srvkit, tmp_path):
    it = fake({"killed": True})
    done = srvkit("kill", "4712-13", str(tmp_path / "srvkit.toml"), folder=tmp_path.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert it.requests == [{"do": "kill", "id": "4712-13"}]


def test_a_reload_says_what_it_did(fake, srvkit):
    it = fake({"ok": True, "generation": 4, "seconds": 0.8421})
    done = srvkit("reload", "--timeout", "20s")
    assert (done.returncode, done.stdout, done.stderr) == (0, "reloaded, generation 4, in 0.84 s\n", "")
    assert it.requests == [{"do": "reload"}]


def test_a_reload_that_was_refused_says_everything_that_is_wrong(fake, refused):
    fake({"ok": False, "errors": ["srvkit.toml:1: one", "srvkit.toml:2: two"]})
    assert refused(1, "reload") == ["srvkit.toml:1: one", "srvkit.toml:2: two"]


def test_a_reload_may_be_waited_for_only_so_long(tmp_path, refused):
    (tmp_path / "srvkit.toml").write_text(CONFIG)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "c.sock"))
        mute.listen()
        (line,) = refused(1, "reload", "--timeout", "0.2")
    assert line == f"srvkit does not answer within 0.2 s ({tmp_path}/c.sock)"


def test_stop_returns_when_srvkit_has_ended(fake, tmp_path):
    it = fake({"ok": True}, keep=True)
    with subprocess.Popen([sys.executable, "-m", "srvkit", "stop"], cwd=tmp_path) as command:
        assert it.answered.wait(PATIENCE)
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(0.1)
        it.let_go.set()
        assert command.wait(PATIENCE) == 0
    assert it.requests == [{"do": "stop"}]


def test_an_interrupt_ends_only_the_waiting(fake, tmp_path):
    it = fake({"ok": True}, keep=True)
    with subprocess.Popen(
        [sys.executable, "-m", "srvkit", "stop"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as command:
        assert it.answered.wait(PATIENCE)
        command.send_signal(signal.SIGINT)
        assert command.wait(PATIENCE) == 130
        assert command.stderr is not None and command.stderr.read() == b""


def test_where_nothing_runs_the_status_is_three(tmp_path, refused):
    (tmp_path / "srvkit.toml").write_text(CONFIG)
    for words in (["status"], ["stop"], ["reload"], ["connections"], ["kill", "1"]):
        assert refused(3, *words) == [
            f"srvkit is not running with this configuration (no control socket at {tmp_path}/c.sock)"
        ]


def test_a_configuration_that_is_wrong_only_elsewhere_still_says_where(fake, srvkit, tmp_path):
    fake({"ok": True, "generation": 1})
    (tmp_path / "srvkit.toml").write_text(CONFIG.replace("listen", "lissen") + "[srv]\n")
    assert srvkit("reload").returncode == 0


@pytest.mark.parametrize("text", ["[srvkit\n", None, "", "\xff"])
def test_a_broken_file_does_not_hide_a_socket_at_its_default_place(text, fake, srvkit, tmp_path):
    path = control_path(SrvkitSettings(), tmp_path / "srvkit.toml")
    assert path is not None
    it = fake({"killed": True}, path)
    try:
        if text is None:
            (tmp_path / "srvkit.toml").unlink()
        else:
            (tmp_path / "srvkit.toml").write_text(text, "latin-1")
        assert srvkit("kill", "1").returncode == 0
    finally:
        path.unlink()
    assert it.requests


def test_a_broken_file_is_named_where_nobody_is_found(tmp_path, refused):
    (tmp_path / "srvkit.toml").write_text("[srvkit\n")
    first, second = refused(3, "status")
    assert first.startswith("srvkit is not running with this configuration (no control socket at /")
    assert second.startswith("its control socket may be elsewhere: srvkit.toml:1:")


def test_the_wrong_folder_is_named_and_no_socket(tmp_path, refused):
    (tmp_path / "srvkit.toml").unlink(missing_ok=True)
    place = tmp_path / "srvkit.toml"
    for word in ("status", "reload", "stop"):
        (line,) = refused(3, word)
        assert line == (
            f"srvkit.toml: there is no such file (looked for {place}), and no srvkit runs with it"
        )
    place.mkdir()
    (line,) = refused(3, "status")
    assert line == "srvkit.toml: is a directory, a file is expected, and no srvkit runs with it"


def test_the_help_of_the_commands_says_what_they_do(srvkit):
    for word in ("status", "reload", "stop", "connections", "kill"):
        done = srvkit(word, "--help")
        assert done.returncode == 0
        assert f"usage: srvkit {word}" in done.stdout
        assert "the configuration (default: srvkit.toml)" in done.stdout
