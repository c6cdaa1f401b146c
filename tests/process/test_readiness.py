"""Ready means serving: a model that cannot serve is refused with one line, and announced by nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TABLE = '[server.a]\nlisten = "unix:a.sock"\nhandler = "echo"\nconcurrency = {}\n'
GOOD = TABLE.format('"event"')
BREAKS = {
    "ImportError": 'raise ImportError("libev.so.4: cannot open shared object file")',
    "ValueError": 'raise ValueError("greenlet size changed")',
    "SystemError": 'raise SystemError("initialization failed")',
    "SystemExit": "raise SystemExit(7)",
}
MODELS = {
    "gevent": ('"gevent"', "'gevent' needs the package gevent, which cannot be imported: "),
    "uvloop": (
        '{ name = "asyncio", loop = "uvloop" }',
        "'uvloop' needs the package uvloop, which cannot be imported: ",
    ),
}
OWN_MODEL = """
from srvkit import EventMixIn, hookimpl

class Broken(EventMixIn):
    {}

@hookimpl
def srvkit_concurrency():
    return {{"broken": Broken}}
"""
IN_THE_LOOP = {
    "make_loop": "def make_loop(self): raise RuntimeError('no loop')",
    "loop_begins": "def loop_begins(self, loop): raise RuntimeError('no loop')",
    "watch": "def loop_begins(self, loop): loop._poll.close()",
}


@pytest.fixture
def breaks(tmp_path: Path) -> Callable[[str, str], None]:
    """`breaks(package, code)`: a package of this name that cannot be imported, in front of the real one."""

    def write(package: str, code: str) -> None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(code)

    return write


def test_it_is_that_of_the_configurations_folder(breaks, start, available, tmp_path):
    available("gevent")
    (tmp_path / "elsewhere").mkdir()
    breaks("gevent", BREAKS["ValueError"])
    (tmp_path / "srvkit.toml").write_text(TABLE.format('"gevent"'))
    for command in ("check", "run"):
        with start("-m", "srvkit", command, "../srvkit.toml", folder=tmp_path / "elsewhere") as program:
            assert program.ended() == 3
        assert "cannot be imported: ValueError: greenlet size changed" in program.log


@pytest.mark.parametrize("package", MODELS)
@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("command", [["check"], ["run"], ["run", "--single"]], ids=" ".join)
def test_a_model_whose_package_is_broken_is_refused(command, kind, package, breaks, start, tmp_path):
    concurrency, complaint = MODELS[package]
    breaks(package, BREAKS[kind])
    (tmp_path / "srvkit.toml").write_text(TABLE.format(concurrency))
    with start("-m", "srvkit", *command, folder=tmp_path) as program:
        assert program.ended() == 3
    assert "Traceback" not in program.log and "listening" not in program.log
    (line,) = program.log.splitlines()
    assert line.startswith("srvkit: srvkit.toml:4: server.a.concurrency") and f"{complaint}{kind}" in line


def test_serve_without_a_file_says_the_same(breaks, start, tmp_path):
    breaks("gevent", BREAKS["ValueError"])
    words = ("serve", "echo", "unix:a.sock", "--concurrency", "gevent")
    with start("-m", "srvkit", *words, folder=tmp_path) as program:
        assert program.ended() == 3
    (line,) = program.log.splitlines()
    assert line.endswith("cannot be imported: ValueError: greenlet size changed")


def test_a_file_that_is_wrong_besides_ends_with_2(breaks, start, tmp_path):
    breaks("gevent", BREAKS["ValueError"])
    (tmp_path / "srvkit.toml").write_text(TABLE.format('"gevent"') + "framin = 1\n")
    with start("-m", "srvkit", "check", folder=tmp_path) as program:
        assert program.ended() == 2
    assert len(program.log.splitlines()) == 2


def test_a_reload_to_it_changes_nothing(managed, breaks):
    managed.write(GOOD)
    managed.begin()
    before = managed.workers()
    breaks("gevent", BREAKS["ImportError"])
    managed.write(TABLE.format('"gevent"'))
    answer = managed.ask(do="reload")
    assert not answer["ok"] and answer["errors"][0].endswith("cannot open shared object file")
    assert managed.workers() == before
    assert managed.answer(b"hi") == b"hi\n"


def test_where_any_loop_will_do_a_broken_uvloop_is_a_note(managed, breaks):
    breaks("uvloop", BREAKS["ValueError"])
    managed.write(TABLE.format('"asyncio"'))
    checked = managed.command("check")
    note = "uvloop cannot be imported, asyncio's own loop takes its place: ValueError: greenlet size changed"
    assert checked.returncode == 0 and f"note: server.a: {note}\n" in checked.stdout
    managed.begin()
    assert managed.answer(b"hi") == b"hi\n"
    assert note in managed.program.log


@pytest.mark.parametrize("model", ["gevent", "asyncio"])
def test_a_loop_that_cannot_be_made_is_found_before_anything_serves(model, start, available, tmp_path):
    available(model)
    spoilt = {
        "gevent": "import gevent\ndef get_hub(*_): raise SystemError('no hub')\n"
        "import srvkit.concurrency.gevent.hub as hub, srvkit.concurrency.gevent.sockets as cooperation\n"
        "hub.get_hub = cooperation.get_hub = get_hub\n",
        "asyncio": "import asyncio\ndef no_loop(*_): raise SystemError('no hub')\n"
        "asyncio.SelectorEventLoop = no_loop\n",
    }
    (tmp_path / "_spoil.py").write_text(spoilt[model])
    (tmp_path / "plugin.py").write_text(
        "import _spoil\nfrom srvkit import hookimpl\n@hookimpl\ndef srvkit_handlers(): return {}\n"
    )
    loop = '{ name = "asyncio", loop = "asyncio" }' if model == "asyncio" else '"gevent"'
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["plugin.py"]\n' + TABLE.format(loop))
    for command in ("check", "run"):
        with start("-m", "srvkit", command, folder=tmp_path) as program:
            assert program.ended() == 3
        (line,) = program.log.splitlines()
        assert line.endswith(f"server.a.concurrency: {model!r} cannot run here: SystemError: no hub")


@pytest.mark.parametrize("single", [[], ["--single"]], ids=["supervised", "single"])
@pytest.mark.parametrize("step", IN_THE_LOOP)
def test_a_model_of_somebody_elses_is_ready_when_its_loop_runs(step, single, start, tmp_path):
    (tmp_path / "plugin.py").write_text(OWN_MODEL.format(IN_THE_LOOP[step]))
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["plugin.py"]\n' + TABLE.format('"broken"'))
    with start("-m", "srvkit", "run", *single, folder=tmp_path) as program:
        assert program.ended() == 3
    assert "a: could not start: " in program.log
    assert "listening" not in program.log and "broke" not in program.log


def test_a_reload_to_a_loop_that_does_not_run_keeps_what_serves(managed):
    managed.write(GOOD, OWN_MODEL.format(IN_THE_LOOP["loop_begins"]))
    managed.begin()
    before = managed.workers()
    managed.write(TABLE.format('"broken"'), OWN_MODEL.format(IN_THE_LOOP["loop_begins"]))
    answer = managed.ask(do="reload")
    assert answer == {"ok": False, "errors": ["a: could not start: RuntimeError: no loop"]}
    assert managed.workers() == before
    assert managed.answer(b"hi") == b"hi\n"
