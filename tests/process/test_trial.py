"""A configuration that is tried out, as the supervisor sees it, without the child: what is told, and when."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from srvkit.config.loader import from_table
from srvkit.net.tls_context import Term
from srvkit.process.credential_store import keep
from srvkit.process.supervisor import trial
from srvkit.process.supervisor.trial import Refused, Trial

GOOD: dict[str, Any] = {
    "errors": [],
    "notes": ["a note"],
    "noted": 1.5,
    "terms": [{"place": ["server", "a"], "what": "", "begins": None, "ends": 2.5}],
    "one_process": ["a"],
    "makings": {},
}


class Channel:
    """One end of a channel; `heard` has a message come, `late` are those that wait to be read."""

    def __init__(self) -> None:
        self.heard: Any = None
        self.late: list[dict[str, Any]] = []
        self.is_closed = False

    def attach(self, loop: Any, heard: Any, ended: Any) -> None:
        self.heard = heard

    def read_the_rest(self) -> None:
        while self.late:
            self.heard(self.late.pop(0), [])

    def close(self) -> None:
        self.is_closed = True


class Shared:
    """A supervisor whose children do nothing by themselves."""

    def __init__(self) -> None:
        self.loop = self.children = self
        self.ended: Any = None
        self.signals: list[tuple[int, int]] = []
        self.waits: list[float] = []
        self.has_processes = True
        self.is_cancelled = False

    def fork(self, main: Any, ended: Any) -> int:
        if not self.has_processes:
            raise OSError("cannot fork a process")
        self.ended = ended
        return 77

    def call_later(self, seconds: float, callback: Any) -> Any:
        self.waits.append(seconds)
        return self

    def cancel(self) -> None:
        self.is_cancelled = True

    def signal(self, pid: int, number: int) -> None:
        self.signals.append((pid, number))


class Rig:
    """A trial, and all that it works with; `now` is the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.ours, self.theirs = Channel(), Channel()
        self.groups: list[int] = []
        self.shared = Shared()
        monkeypatch.setattr(trial, "open_channel", lambda: (self.ours, self.theirs))
        monkeypatch.setattr(trial, "end_group", self.groups.append)
        monkeypatch.setattr(trial, "monotonic", lambda: self.now)

    def begin(self) -> Trial:
        table = {"listen": "tcp://127.0.0.1:0", "handler": "echo"}
        config, problems = from_table({"srvkit": {"ready_timeout": "5s"}, "server": {"a": table}})
        shared: Any = self.shared
        return Trial(config, problems, {}, shared)

    def hear(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        self.ours.heard(message, descriptors or [])

    def end(self, status: int = 0) -> None:
        self.shared.ended(status)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def stored(text: str) -> tuple[dict[str, Any], list[int]]:
    """Return an answer with certificates in which this stands, and the descriptor that comes with it."""
    fd, places = keep({"a": {"cert.pem": text.encode()}, "b": {}})
    return GOOD | {"certificates": places}, [fd]


def test_the_answer_is_there_when_the_child_has_ended(rig: Rig) -> None:
    one = rig.begin()
    assert rig.theirs.is_closed and not rig.ours.is_closed
    assert rig.shared.waits == [5.0]
    rig.hear({"doing": "importing plugins"})
    rig.hear({"names": {"hosts": {"localhost": []}, "owners": {}}})
    rig.hear(GOOD)
    assert not one.is_over()
    rig.end()
    assert one.is_over()
    assert rig.groups == [77]  # what a plugin has forked ends with it
    answer = one.answer()
    assert answer.names["hosts"] == {"localhost": []}
    assert (answer.notes, answer.noted, answer.one_process) == (["a note"], 1.5, ["a"])
    assert [type(term) for term in answer.terms] == [Term]
    assert answer.terms[0].ends == 2.5


def test_what_the_child_has_said_last_is_read_when_it_has_ended(rig: Rig) -> None:
    one = rig.begin()
    rig.ours.late.append(GOOD)
    rig.end()
    assert one.answer().notes == ["a note"]


def test_only_the_first_word_counts(rig: Rig) -> None:
    """What comes later is said by a plugin that has found the descriptor."""
    one = rig.begin()
    for number in (1, 2):
        rig.hear({"names": {"hosts": {}, "owners": {"a": number}}})
    for message in (GOOD, GOOD | {"notes": ["another"]}, {"errors": ["no"], "status": 2}):
        rig.hear(message)
    rig.end()
    answer = one.answer()
    assert answer.names["owners"] == {"a": 1}
    assert answer.notes == ["a note"]


def test_what_is_wrong_is_told_with_its_status(rig: Rig) -> None:
    one = rig.begin()
    rig.hear({"errors": ["srvkit.toml:3: no", "nor this"], "status": 2})
    rig.end()
    with pytest.raises(Refused, match=r"^srvkit\.toml:3: no\nnor this$") as caught:
        one.answer()
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("status", "how"), [(78, "ended with status 78"), (-signal.SIGSEGV, "was killed by SIGSEGV")]
)
def test_a_child_that_dies_is_an_answer_too(status: int, how: str, rig: Rig) -> None:
    one = rig.begin()
    rig.hear({"doing": "importing plugins"})
    rig.end(status)
    with pytest.raises(Refused, match=f"^the process that tried the configuration out {how}$") as caught:
        one.answer()
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("doing", ["", "importing plugins"])
def test_one_that_takes_too_long_is_told_by_what_it_does(doing: str, rig: Rig) -> None:
    one = rig.begin()
    if doing:
        rig.hear({"doing": "reading"})
        rig.hear({"doing": doing})
    rig.now += 4.9
    assert not one.is_over()
    rig.now += 0.1
    assert one.is_over()
    with pytest.raises(Refused, match=f"within ready_timeout: still {doing or 'starting a process'}$"):
        one.answer()
    one.close()
    assert rig.shared.signals == [(77, signal.SIGKILL)]


def test_one_that_is_over_is_not_killed(rig: Rig) -> None:
    one = rig.begin()
    rig.end()
    for _ in range(2):
        one.close()
    assert rig.shared.signals == []
    assert rig.ours.is_closed and rig.shared.is_cancelled


def test_without_a_process_nothing_stays(rig: Rig) -> None:
    rig.shared.has_processes = False
    with pytest.raises(OSError, match="cannot fork"):
        rig.begin()
    assert rig.ours.is_closed and rig.theirs.is_closed and rig.shared.is_cancelled


# Certificates


def test_certificates_are_kept_for_whoever_takes_them(rig: Rig) -> None:
    before = open_files()
    one = rig.begin()
    rig.hear(*stored("secret"))
    rig.end()
    taken = one.answer().credentials.pop("a")
    one.close()
    assert taken.read() == {"cert.pem": b"secret"}
    taken.close()
    assert open_files() <= before


def test_certificates_for_which_there_was_no_descriptor_are_no_answer(rig: Rig) -> None:
    before = open_files()
    one = rig.begin()
    message, descriptors = stored("secret")
    os.close(*descriptors)
    rig.hear(message)
    rig.end()
    with pytest.raises(OSError, match="Too many open files"):
        one.answer()
    one.close()
    assert open_files() <= before


def test_a_descriptor_that_nobody_asked_for_is_closed(rig: Rig) -> None:
    before = open_files()
    one = rig.begin()
    rig.hear({"doing": "something else"}, list(os.pipe()))
    assert open_files() <= before
    one.close()


def test_certificates_that_come_behind_the_answer_do_not_count(rig: Rig) -> None:
    before = open_files()
    one = rig.begin()
    rig.hear(*stored("secret"))
    rig.hear({"doing": "something else"}, list(os.pipe()))
    rig.hear(*stored("another"))
    rig.end()
    taken = one.answer().credentials.pop("a")
    assert taken.read() == {"cert.pem": b"secret"}
    taken.close()
    one.close()
    assert open_files() <= before
