"""The log as an operator, a log shipper and an attacker see it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import time
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from srvkit.config.model import Config, LoggingSettings, SrvkitSettings
from srvkit.fork import fork
from srvkit.process.logging import guard as loggers
from srvkit.process.logging import setup as logs
from srvkit.process.logging.file import LogFile
from srvkit.process.logging.setup import LogError, LogHandler, open_log, set_up

ECHO = '[server.echo]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo"\n'
TEXT_LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ (\S+)\[(\d+)\]: (.*)"


class Log:
    """A log of its own, in a file; `lines()` is what is in it, `at` what its clock shows."""

    def __init__(self, folder: Path, form: str = "text") -> None:
        self.path = folder / "log"
        self.path.write_bytes(b"")
        self.at = 1000.0
        self.file = LogFile.open(self.path)
        self.handler = LogHandler(self.file, form, "echo", clock=lambda: self.at)
        self.logger = logging.Logger("srvkit.server")
        self.logger.addHandler(self.handler)

    def lines(self) -> list[str]:
        return self.path.read_bytes().decode().split("\n")[:-1]

    def messages(self) -> list[str]:
        return [re.fullmatch(TEXT_LINE, line)[3] for line in self.lines()]

    def objects(self) -> list[dict]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def make_log(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(form="text"):
            log = Log(tmp_path, form)
            stack.callback(log.file.close)
            stack.callback(log.handler.close)
            return log

        yield make


@pytest.fixture
def own_logging():
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


# ---- text


def test_a_line_of_text_has_time_level_server_process_and_message(make_log):
    log = make_log()
    before = datetime.now() - timedelta(milliseconds=1)
    log.logger.warning("%s: it is %d", "echo", 5)
    (line,) = log.lines()
    who, pid, message = re.fullmatch(TEXT_LINE, line).groups()
    assert (who, int(pid), message) == ("echo", os.getpid(), "echo: it is 5")
    assert line[24:31] == "WARNING"
    assert before <= datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S.%f") <= datetime.now()


def test_a_traceback_follows_indented_and_cannot_be_taken_for_a_record(make_log):
    log = make_log()
    try:
        raise ValueError("bad\n2026-11-21 13:15:05.123 ERROR echo[1]: forged\x1b[2J")
    except ValueError:
        log.logger.exception("failed")
    first, *rest = log.lines()
    assert re.fullmatch(TEXT_LINE, first)[3] == "failed"
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    ValueError: bad", "    2026-11-21 13:15:05.123 ERROR echo[1]: forged\\x1b[2J"]
    assert all(line.startswith("    ") for line in rest)


def test_what_a_peer_sends_cannot_forge_a_line_or_drive_a_terminal(make_log):
    log = make_log()
    log.logger.info("hello %s", "a\r\nb\x1b]0;x\x07\x9b\x7f\u2028\u202e\ud800 ä✓")
    assert log.messages() == [r"hello a\r\nb\x1b]0;x\x07\x9b\x7f\u2028\u202e\ud800 ä✓"]


def test_a_message_that_does_not_fit_its_arguments_is_logged_all_the_same(make_log):
    class Bad:
        def __str__(self):
            raise RuntimeError("no")

        __repr__ = __str__

    log = make_log()
    log.logger.info("%d pieces", "many")
    log.logger.info("it is %s", Bad())
    log.logger.info("%s and %s", "one")
    first, second, third = log.messages()
    assert first.startswith("%d pieces % ('many',) (TypeError: ")
    assert second.startswith("it is %s % ") and "RuntimeError" in second
    assert third.startswith("%s and %s % ('one',) (TypeError: ")


def test_a_huge_message_is_shortened_in_the_middle(make_log):
    log = make_log()
    log.logger.info("%s", "a" * 10**6 + "z")
    (message,) = log.messages()
    assert len(message) < 10_000
    assert re.fullmatch(r"a+ \[\d+ characters left out\] a+z", message)


def test_an_error_that_cannot_be_shown_is_logged(make_log):
    class Unshown(Exception):
        def __str__(self):
            raise RuntimeError("no")

    for form in ("text", "json"):
        log = make_log(form)
        try:
            raise Unshown
        except Unshown:
            log.logger.exception("failed")
        assert "Unshown" in log.path.read_text()
        assert log.file.lost == 0


# ---- JSON


def test_a_line_of_json_is_an_object_with_the_documented_fields(make_log):
    log = make_log("json")
    log.logger.error(
        "%s: cut off", "echo", extra={"peer": "127.0.0.1:1", "event": "cut", "bytes_in": 5, "level": "x"}
    )
    (record,) = log.objects()
    moment = datetime.fromisoformat(record.pop("time"))
    assert moment.tzinfo is not None
    assert abs(moment.timestamp() - time.time()) < 60
    assert record == {
        "level": "error",
        "logger": "srvkit.server",
        "server": "echo",
        "worker": os.getpid(),
        "event": "cut",
        "peer": "127.0.0.1:1",
        "message": "echo: cut off",
        "bytes_in": 5,
    }
    assert re.match(r'\{"time": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", ', log.lines()[0])


def test_an_exception_in_json_is_type_message_and_stack(make_log):
    log = make_log("json")
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        log.logger.exception("failed")
    (record,) = log.objects()
    assert record["exception"]["type"] == "ValueError"
    assert record["exception"]["message"] == "bad\nthing"
    stack = record["exception"]["stack"].split("\n")
    assert (stack[0], stack[-2:]) == ("Traceback (most recent call last):", ["ValueError: bad", "thing"])


def test_controls_are_escaped_in_json_too(make_log):
    log = make_log("json")
    log.logger.info("%s", "\x7f\x9b\x1b\u2028")
    assert log.path.read_text().rstrip("\n").isprintable()
    assert log.objects()[0]["message"] == "\x7f\x9b\x1b\u2028"


def test_fields_that_json_cannot_write_are_written_as_text(make_log):
    circle: list = []
    circle.append(circle)
    log = make_log("json")
    log.logger.info(
        "x", extra={"data": b"\xff", "ratio": float("nan"), "circle": circle, "pair": {(1, 2): 3}}
    )
    (record,) = log.objects()
    assert {name: record[name] for name in ("data", "ratio", "circle", "pair")} == {
        "data": "b'\\xff'",
        "ratio": "nan",
        "circle": "[[...]]",
        "pair": "{(1, 2): 3}",
    }


@given(st.text(st.characters(), max_size=50), st.text(st.characters(), max_size=50))
def test_any_text_makes_one_line_of_printable_text_and_of_valid_json(tmp_path_factory, message, argument):
    folder = tmp_path_factory.getbasetemp() / f"any-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    for form in ("text", "json"):
        log = Log(folder, form)
        log.logger.info("%s", argument, extra={"peer": message})
        log.logger.info(message)
        log.logger.info(message, argument)
        log.file.close()
        assert len(log.lines()) == 3
        assert all(line.isprintable() and line.splitlines() == [line] for line in log.lines())
        assert log.file.lost == 0
        if form == "json":
            assert log.path.read_bytes().isascii()
            first, second, _ = log.objects()
            assert first["peer"] == message
            assert first["message"] == argument.rstrip("\n")
            assert second["message"] == message.rstrip("\n")


# ---- floods


def test_a_flood_of_one_kind_is_held_back_counted_and_told_once_a_second(make_log):
    log = make_log()
    for number in range(100):
        log.logger.error("%d is bad", number)
    assert log.messages() == [f"{number} is bad" for number in range(logs.BURST)]
    log.logger.info("something else")
    assert log.messages()[logs.BURST :] == ["something else"]  # and a second has not passed
    log.at += 1.0
    log.logger.info("something else")
    assert log.messages()[logs.BURST + 1 :] == ["… 80 more like '%d is bad' held back", "something else"]


def test_after_the_burst_a_kind_has_its_rate(make_log):
    log = make_log()
    for _ in range(600):  # a minute, ten times the rate
        log.at += 0.1
        for _ in range(10):
            log.logger.info("again")
    written = log.messages().count("again")
    assert abs(written - (logs.BURST + 60 * logs.RATE)) <= 2
    held = [int(found[1]) for found in re.finditer(r"… (\d+) more", "\n".join(log.messages()))]
    log.handler.flush()
    rest = re.findall(r"… (\d+) more", log.messages()[-1])
    assert written + sum(held) + sum(map(int, rest)) == 6000
    assert 55 <= len(held) <= 60


def test_a_long_silence_saves_up_no_more_than_the_burst(make_log):
    log = make_log()
    log.logger.info("again")
    log.at += 3600
    for _ in range(100):
        log.logger.info("again")
    assert log.messages().count("again") == 1 + logs.BURST


def test_one_kind_does_not_hold_back_another(make_log):
    log = make_log()
    for _ in range(100):
        log.logger.info("flood")
    log.logger.warning("flood")
    log.logger.info("other")
    assert len(log.lines()) == logs.BURST + 2


def test_errors_with_tracebacks_are_bounded_too(make_log):
    log = make_log()
    for _ in range(100):
        try:
            raise ValueError("bad")
        except ValueError:
            log.logger.exception("failed")
    assert log.path.read_text().count("Traceback") == logs.BURST


def test_messages_without_a_template_are_bounded_together_once_there_are_too_many(make_log):
    log = make_log()
    for number in range(20_000):
        log.logger.info(f"{number} is bad")
    assert len(log.lines()) <= logs.MOST_KINDS + logs.BURST
    log.handler.flush()
    assert log.messages()[-1] == f"… {20_000 - len(log.lines()) + 1} more of srvkit.server held back"


def test_kinds_that_have_been_quiet_make_room_for_others(make_log):
    log = make_log()
    for number in range(2 * logs.MOST_KINDS):
        log.logger.info(f"{number} is bad")
    log.at += 60
    before = len(log.lines())
    for number in range(logs.MOST_KINDS):
        log.logger.info(f"{number} is worse")
    assert sum(" is worse" in message for message in log.messages()[before:]) == logs.MOST_KINDS


@pytest.mark.parametrize("name", ["srvkit.process", "srvkit.connections"])
def test_what_is_rare_or_asked_for_is_never_held_back(make_log, name):
    log = make_log()
    log.logger.name = name
    for _ in range(1000):
        log.logger.info("again")
    assert len(log.lines()) == 1000


def test_in_json_what_was_held_back_is_a_number(make_log):
    log = make_log("json")
    for _ in range(30):
        log.logger.info("again")
    log.handler.close()
    last = log.objects()[-1]
    assert (last["event"], last["held_back"], last["like"]) == ("held_back", 10, "again")


def test_a_forked_child_does_not_tell_what_its_parent_held_back(make_log):
    log = make_log()
    for _ in range(30):
        log.logger.info("again")
    pid = fork()
    if pid == 0:
        log.at += 5
        log.logger.info("child")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert log.messages()[logs.BURST :] == ["child"]
    assert log.lines()[-1].split("[")[1].startswith(f"{pid}]")


# ---- what cannot be written


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_that_were_lost_are_told_once_it_works_again(make_log, form):
    log = make_log(form)
    log.file.replace(os.open("/dev/full", os.O_WRONLY))
    for _ in range(3):
        log.logger.info("lost")
    log.file.replace(os.open(log.path, os.O_WRONLY | os.O_APPEND))
    log.logger.info("written")
    log.logger.info("written")
    if form == "text":
        assert log.messages() == ["3 lines of the log could not be written", "written", "written"]
    else:
        first, *rest = log.objects()
        assert (first["event"], first["lost"]) == ("lines_lost", 3)
        assert [record["message"] for record in rest] == ["written", "written"]


# ---- setting it up


def config(tmp_path: Path, **settings) -> Config:
    return Config(SrvkitSettings(), {}, tmp_path / "srvkit.toml", LoggingSettings(**settings))


def test_the_file_is_relative_to_the_configuration(tmp_path):
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
    run_srvkit, client, tmp_path, eventually
):
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


def test_connections_are_not_logged_unless_asked_for(run_srvkit, client):
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


def test_a_configuration_that_its_plugins_refuse_leaves_no_log(run_srvkit, tmp_path):
    plugin = "raise RuntimeError('no')"
    program = run_srvkit(f'{ECHO}[logging]\nfile = "x.log"\n', plugin)
    assert program.ended() == 3
    assert "RuntimeError: no" in program.log
    assert not (tmp_path / "x.log").exists()


def test_what_python_would_print_of_its_own_is_in_the_log(run_srvkit):
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


def test_a_host_name_that_is_none_is_one_line(run_srvkit, client, tmp_path):
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
