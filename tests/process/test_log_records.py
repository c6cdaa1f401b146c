"""A line of the log as an operator, a log shipper and an attacker see it, and floods of them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srvkit.fork import fork
from srvkit.process.logging import setup as logs
from srvkit.process.logging.file import LogFile
from srvkit.process.logging.setup import LogHandler

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
def make_log(tmp_path: Path) -> Iterator[Callable[..., Log]]:
    with contextlib.ExitStack() as stack:

        def make(form="text"):
            log = Log(tmp_path, form)
            stack.callback(log.file.close)
            stack.callback(log.handler.close)
            return log

        yield make


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
