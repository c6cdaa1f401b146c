"""The stages that a connection passes before it is handled: their order, and what each of them decides."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import srvkit
from srvkit.contracts import Stage
from srvkit.server.admission import Admission

PACKAGE = f"{Path(srvkit.__file__).parent}{os.sep}"
HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"


class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message: bytes) -> bytes:
        return b"%s %s" % (message, self.client_address[0].encode())


class Record:
    """What a connection shows of itself, without a socket."""

    number = 0
    since = 0.0
    client_address = ("192.0.2.9", 1)
    driver = None
    is_admitted = False
    outcome = ""
    at_work = 0.0


class Server:
    """Writes down which of its steps are called."""

    name = "test"
    _srvkit_hears_requests = True

    def __init__(self, *stages: Stage) -> None:
        self.steps: list[str] = []
        self.held_up = False
        self._srvkit_admission = Admission(self, stages)

    def _srvkit_name(self) -> str:
        return self.name

    def _is_held_up(self) -> bool:
        return self.held_up

    def request_admitted(self, record: Any) -> None:
        self.steps.append("admitted")

    def admit_request(self, record: Any, client_address: Any) -> None:
        self.steps.append("handled")

    def refuse_request(self, record: Any) -> None:
        self.steps.append("refused")

    def shutdown_request(self, record: Any) -> None:
        self.steps.append("ended")

    def handle_error(self, record: Any, client_address: Any) -> None:
        self.steps.append("error")


class Deciding(Stage):
    def __init__(self, why: Any = None) -> None:
        self.why = why

    def admit(self, server: Any, record: Any) -> str | None:
        server.steps.append("asked")
        if isinstance(self.why, Exception):
            raise self.why
        return self.why  # type: ignore[no-any-return]


class Waiting(Stage):
    """Waits until the test takes the connection on."""

    waits = True

    def begin(self, admission: Any, record: Any) -> None:
        admission._server.steps.append("waits")


def taken(*stages: Stage) -> tuple[Server, Record]:
    server, record = Server(*stages), Record()
    server._srvkit_admission.begin(record, ("192.0.2.9", 1))
    return server, record


@pytest.mark.parametrize(
    ("stages", "steps"),
    [
        ([], ["admitted", "handled"]),
        ([Deciding(), Deciding()], ["asked", "asked", "admitted", "handled"]),
        ([Deciding("no"), Deciding()], ["asked", "refused"]),
        ([Deciding(ValueError("broken")), Deciding()], ["asked", "error", "refused"]),
        ([Deciding(), Waiting(), Deciding()], ["asked", "admitted", "waits"]),
    ],
)
def test_stages_are_passed_one_after_the_other(stages: list[Stage], steps: list[str]) -> None:
    assert taken(*stages)[0].steps == steps


def test_a_connection_that_was_waited_for_goes_on_with_the_stage_behind() -> None:
    """It counts as accepted from the wait on, so that a refusal after it is an end."""
    first, second = Waiting(), Waiting()
    server, record = taken(first, Deciding(), second, Deciding("no"))
    server._srvkit_admission.go_on(record, first)
    assert server.steps == ["admitted", "waits", "asked", "waits"]
    server._srvkit_admission.go_on(record, second)
    assert server.steps[4:] == ["asked", "ended"]
    assert record.outcome == "refused"


def test_who_has_waited_waits_for_the_model_too() -> None:
    stage = Waiting()
    server, record = taken(stage)
    server.held_up = True
    server._srvkit_admission.go_on(record, stage)
    server._srvkit_admission.take_parked()
    assert server.steps == ["admitted", "waits"]
    server.held_up = False
    server._srvkit_admission.take_parked()
    assert server.steps == ["admitted", "waits", "handled"]


def test_requests_are_registered_by_number_until_they_end() -> None:
    server = Server()
    records = [Record(), Record()]
    for record in records:
        server._srvkit_admission.begin(record, ("192.0.2.9", 1))
    registry = server._srvkit_admission.registry
    assert [record.number for record in records] == [1, 2]
    assert registry.records() == records
    server._srvkit_admission.release(records[0])
    server._srvkit_admission.release(records[0])  # twice does no harm
    assert (registry.get(1), registry.get(2)) == (None, records[1])


# ---- as the chapter on the architecture tells it


def calls_until_handled(settings: dict[str, Any], said: bytes, plugins: list[str]) -> list[tuple[str, str]]:
    """Return what a connection calls from the moment the loop takes it until the model has it."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            calls.append((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    threading.setprofile(note)
    try:
        with (
            srvkit.serve(Echo, "tcp://127.0.0.1:0", concurrency="event", plugins=plugins, **settings) as one,
            socket.create_connection(one.address) as peer,
        ):
            peer.sendall(said + b"hello\n")
            assert peer.recv(100).startswith(b"hello ")
    finally:
        threading.setprofile(None)
    names = [name for _, name in calls]
    first = names.index("BaseServer._handle_request_noblock")
    return calls[first : names.index("BaseServer.process_request", first)]


def test_a_connection_passes_the_stages_in_the_order_that_is_told(tmp_path: Path) -> None:
    """Asked for, each is passed once; without them the way is short."""
    (tmp_path / "hooks.py").write_text(
        "import srvkit\n\n@srvkit.hookimpl\ndef srvkit_verify_request(client_address):\n    return True\n"
    )
    settings = {
        "proxy": {"trusted": ["127.0.0.1"]},
        "access": {"allow": ["192.0.2.0/24"]},
        "limits": {"max_per_client": 2},
    }
    calls = calls_until_handled(settings, HEADER, [str(tmp_path / "hooks.py")])
    stages = [name for _, name in calls if name.endswith((".admit", "Stage.begin"))]
    assert stages == [
        "Capacity.admit",
        "TrustedProxies.admit",
        "ProxyStage.begin",
        "Access.admit",
        "PerClient.admit",
        "VerifyHook.admit",
    ]
    short = calls_until_handled({}, b"", [])
    assert [name for _, name in short if name.endswith((".admit", ".begin"))] == [
        "Admission.begin",
        "Capacity.admit",
    ]
    told = " ".join((Path(srvkit.__file__).parent / "docs" / "architecture.md").read_text().split())
    modules = {module for module, _ in short}
    assert f"it takes {len(short)} calls in {len(modules)} modules" in told
