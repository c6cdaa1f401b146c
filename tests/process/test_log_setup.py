"""The log of a process and of the command: where it is, what comes into it, and what it costs nobody."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from srvkit.config.model import Config, LoggingSettings, SrvkitSettings
from srvkit.process.logging import guard as loggers
from srvkit.process.logging.setup import LogError, open_log, set_up
from tests.conftest import Connect, Eventually, RunSrvkit

ECHO = '[server.echo]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo"\n'
TEXT_LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ (\S+)\[(\d+)\]: (.*)"


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Put the process's logging back as it was: `set_up` is for processes that srvkit owns."""
    root, raising, unraisable = logging.getLogger(), logging.raiseExceptions, sys.unraisablehook
    connections = logging.getLogger("srvkit.connections")
    before, root.handlers, level, theirs = root.handlers, [], root.level, connections.level
    yield
    root.handlers = before
    root.setLevel(level)
    connections.setLevel(theirs)
    logging.captureWarnings(False)
    logging.raiseExceptions = raising
    sys.unraisablehook = unraisable
    loggers.let_go()


# ---- setting it up


def config(tmp_path: Path, **settings) -> Config:
    return Config(SrvkitSettings(), {}, tmp_path / "srvkit.toml", LoggingSettings(**settings))


def test_the_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    open_log(config(tmp_path, file="srvkit.log")).close()
    assert (tmp_path / "srvkit.log").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [("absent/x.log", "No such file or directory"), (".", "Is a directory"), ("a\0b", "null")],
)
def test_a_log_that_cannot_be_opened_is_an_error_of_one_line(tmp_path, name, why):
    with pytest.raises(LogError, match=f"cannot open the log {re.escape(name)}: .*{why}") as caught:
        open_log(config(tmp_path, file=name))
    assert caught.value.exit_status == 3


def test_every_record_goes_to_the_log_once_and_nowhere_else(tmp_path, own_logging, capfd):
    said = config(tmp_path, file="x.log", level="warning")
    file = open_log(said)
    logging.basicConfig()
    set_up(said.logging, file)
    set_up(said.logging, file, server="echo")
    logging.getLogger("some.plugin").info("not this")
    logging.getLogger("some.plugin").warning("this")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    lines = (tmp_path / "x.log").read_text().splitlines()
    assert [re.fullmatch(TEXT_LINE, line)[1] for line in lines] == ["echo", "echo"]
    assert lines[0].endswith(": this")
    assert "DeprecationWarning: old way" in lines[1]
    assert capfd.readouterr() == ("", "")
    file.close()


def test_connections_are_logged_whatever_the_level(tmp_path, own_logging):
    said = config(tmp_path, file="x.log", level="error", connections=True)
    file = open_log(said)
    set_up(said.logging, file)
    logging.getLogger("srvkit.connections").info("one")
    logging.getLogger("srvkit.server").warning("two")
    assert [line[-3:] for line in (tmp_path / "x.log").read_text().splitlines()] == ["one"]
    file.close()


def test_our_loggers_stay_on_and_others_see_what_they_say(tmp_path, own_logging):
    said = config(tmp_path, file="x.log")
    file = open_log(said)
    set_up(said.logging, file)
    log = logging.getLogger("srvkit.server")

    class Seen(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    messages = []
    log.disabled = True
    root = logging.getLogger()
    root.handlers = [Seen()]
    root.setLevel("ERROR")
    factory = logging.getLogRecordFactory()
    logging.disable()
    logging.setLogRecordFactory(lambda *args: 1 / 0)
    try:
        log.debug("nothing")
        log.info("all %s", "is well")
        logging.getLogger("srvkit.server.deeper").error("not ours: it is off")
    finally:
        logging.disable(logging.NOTSET)
        logging.setLogRecordFactory(factory)
    assert messages == ["all is well"]
    assert [line.split(": ", 1)[1] for line in (tmp_path / "x.log").read_text().splitlines()] == messages
    file.close()


RECONFIGURED = """
import logging, logging.config
from srvkit import Lines, MessageHandler, hookimpl

def reconfigure():
    logging.config.dictConfig({"version": 1, "loggers": {"mine": {"level": "INFO"}}})
    logging.config.dictConfig({
        "version": 1,
        "handlers": {"nowhere": {"class": "logging.NullHandler"}},
        "root": {"level": "CRITICAL", "handlers": ["nowhere"]},
    })
    logging.basicConfig(force=True, level="CRITICAL", handlers=[logging.NullHandler()])
    logging.disable()
    logging.shutdown()
    logging.captureWarnings(False)

if WHEN == "import":
    reconfigure()

class Fail(MessageHandler):
    framing = Lines()

    @classmethod
    def startup(cls, server):
        if WHEN == "startup":
            reconfigure()

    def handle_message(self, message):
        if WHEN == "message":
            reconfigure()
        raise ValueError(f"a mistake in {message}")

@hookimpl
def srvkit_handlers():
    return {"fail": Fail}
"""


@pytest.mark.parametrize(
    ("when", "model"),
    [
        *((when, model) for when in ("import", "startup") for model in ("threading", "forking")),
        *(("message", m) for m in ("serial", "threading", "pool", "forking", "event", "asyncio", "gevent")),
    ],
)
def test_a_plugin_that_configures_logging_does_not_silence_srvkit(when, model, managed, available):
    available(model)
    servers = f'[server.a]\nlisten = "unix:a.sock"\nhandler = "fail"\nconcurrency = "{model}"\n'
    managed.write(f"[logging]\nconnections = true\n{servers}", f"WHEN = {when!r}\n{RECONFIGURED}")
    managed.begin()
    for line in (b"one", b"two"):
        assert managed.answer(line) == b""
    for line in ("one", "two"):
        managed.program.wait_for(f"ValueError: a mistake in b'{line}'$")
    managed.program.wait_for(" error after ", times=2)
    assert managed.program.end() == 0


# ---- the command


def test_run_writes_its_log_to_the_file_and_nothing_to_standard_error(
    run_srvkit: RunSrvkit, client: Connect, tmp_path: Path, eventually: Eventually
) -> None:
    program = run_srvkit('[logging]\nfile = "run.log"\nformat = "json"\nconnections = true\n' + ECHO)
    log = tmp_path / "run.log"
    eventually(lambda: log.exists() and "listening on" in log.read_text())
    address = re.search(r"listening on (\S+)\"", log.read_text())[1]
    with client(address) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        peer = "{}:{}".format(*sock.getsockname())
    eventually(lambda: '"connection"' in log.read_text())
    assert program.end() == 0
    assert program.log == ""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    (one,) = [record for record in records if record.get("event") == "connection"]
    assert one["peer"] == peer
    assert (one["bytes_in"], one["bytes_out"], one["outcome"]) == (5, 5, "eof")
    assert one["seconds"] >= 0
    assert one["logger"] == "srvkit.connections"
    assert one["message"].startswith(f"echo: {peer} eof after ")


@pytest.mark.parametrize("model", ["serial", "pool", "forking", "event", "asyncio", "gevent"])
def test_connections_are_logged_under_every_model(run_srvkit, client, model):
    if model == "gevent":
        pytest.importorskip("gevent")
    program = run_srvkit(f'[logging]\nconnections = true\n{ECHO}concurrency = "{model}"\n')
    with client(program.addresses("echo")[0]) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
    program.wait_for(r"INFO \S+: echo: 127.0.0.1:\d+ eof after \d+\.\d{3} s, 5 bytes in, 5 out$")
    assert program.end() == 0


def test_connections_are_not_logged_unless_asked_for(run_srvkit: RunSrvkit, client: Connect) -> None:
    program = run_srvkit(ECHO)
    with client(program.addresses("echo")[0]) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
    assert program.end() == 0
    assert "bytes in" not in program.log


@pytest.mark.parametrize("kind", ["unread", "closed", "full"])
def test_serving_goes_on_when_the_log_cannot_be_written(kind, tmp_path, client, eventually):
    """With more to log than a pipe holds, and nobody who reads it."""
    (tmp_path / "plugin.py").write_text(
        "import logging\nfrom srvkit import *\nclass Loud(MessageHandler):\n"
        "    def handle_message(self, message):\n"
        "        for number in range(40):\n"
        "            logging.getLogger('loud').error('%s', 'x' * 4000 + str(number))\n"
        "        return message\n"
        "@hookimpl\ndef srvkit_handlers():\n    return {'loud': Loud}\n"
    )
    (tmp_path / "srvkit.toml").write_text(
        '[srvkit]\nplugins = ["plugin.py"]\n[server.loud]\nlisten = "unix:l.sock"\nhandler = "loud"\n'
    )
    reading, stderr = (-1, os.open("/dev/full", os.O_WRONLY)) if kind == "full" else os.pipe()
    command = [sys.executable, "-m", "srvkit", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=stderr) as process:
        os.close(stderr)
        try:
            if kind == "closed":
                os.close(reading)
            eventually(lambda: process.poll() is not None or (tmp_path / "l.sock").exists())

            def connect():
                with contextlib.suppress(ConnectionRefusedError):
                    return client("unix:l.sock", tmp_path)

            connections = []
            eventually(lambda: connections.append(connect()) or connections[-1])
            sock = connections[-1]
            for _ in range(5):
                sock.sendall(b"hello")
                assert sock.recv(100) == b"hello"
            sock.close()
        finally:
            process.terminate()
        assert process.wait(30) == 0
    if kind == "unread":
        with open(reading, "rb") as pipe:
            assert b"Traceback" not in pipe.read()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            'level = "loud"',
            "srvkit.toml:2: logging.level: expected 'debug' or 'info' or 'warning' or 'error', got ",
        ),
        ('levle = "info"', "srvkit.toml:2: logging.levle: unknown key, did you mean 'level'?"),
        ('file = "absent/x"', "cannot open the log absent/x: No such file or directory"),
    ],
)
def test_a_wrong_setting_is_an_error_of_one_line(run_srvkit, line, problem):
    program = run_srvkit(f"[logging]\n{line}\n{ECHO}")
    assert program.ended() in (2, 3)
    assert program.log.startswith(f"srvkit: {problem}")
    assert len(program.log.splitlines()) == 1


@pytest.mark.parametrize("mode", [(), ("--single",)], ids=["supervised", "single"])
@pytest.mark.parametrize("wrong", ['levle = "info"', "[server.other]"])
def test_a_refused_configuration_leaves_no_log(run_srvkit, tmp_path, wrong, mode):
    program = run_srvkit(f'[logging]\nfile = "x.log"\n{wrong}\n{ECHO}', "", *mode)
    assert program.ended() == 2
    assert not (tmp_path / "x.log").exists()


def test_a_configuration_that_its_plugins_refuse_leaves_no_log(run_srvkit: RunSrvkit, tmp_path: Path) -> None:
    plugin = "raise RuntimeError('no')"
    program = run_srvkit(f'{ECHO}[logging]\nfile = "x.log"\n', plugin)
    assert program.ended() == 3
    assert "RuntimeError: no" in program.log
    assert not (tmp_path / "x.log").exists()


def test_what_python_would_print_of_its_own_is_in_the_log(run_srvkit: RunSrvkit) -> None:
    """An exception that can be raised nowhere; with its traceback, in one record."""
    plugin = """
from srvkit import hookimpl

class Broken:
    def __del__(self):
        raise ValueError("in the end")

@hookimpl
def srvkit_server_start(server):
    Broken()
"""
    program = run_srvkit(ECHO, plugin)
    assert program.addresses("echo")
    program.wait_for(r"ERROR \S+: [Ee]xception ignored \w.*__del__.*$")
    program.wait_for(r"^    ValueError: in the end$")


def test_a_host_name_that_is_none_is_one_line(run_srvkit: RunSrvkit, client: Connect, tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    program = run_srvkit(f'{ECHO}tls.cert = "cert.pem"\n')
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(back, there, server_hostname="aaaa.example").do_handshake()
    with client(program.addresses("echo")[0]) as sock:
        sock.sendall(there.read().replace(b"aaaa.example", b"\xff\xfe\xfd\xfc.example"))
        while sock.recv(100):
            pass
    program.wait_for(r"INFO .* ended: bad-tls: invalid host name in SNI$")
    assert "Traceback" not in program.log and "ERROR" not in program.log
