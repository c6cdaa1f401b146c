"""`srvkit new` writes a handler that is served and tested at once, and never over anything."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from srvkit.cli import new
from srvkit.cli.templates import KINDS
from srvkit.errors import ConfigError
from srvkit.plugins.manager import make_manager

New = Callable[..., int]
ROOT = Path(__file__).resolve().parents[2]
# What a handler of the kind does with what it gets, and a fault to put in its place.
BROKEN = {
    "message": ("return message", "return b'other'"),
    "stream": ("write(line)", "write(b'other')"),
    "datagram": ("write(self.rfile.read())", "write(b'other')"),
    "async": ("write(line)", "write(b'other')"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> New:
    parser = argparse.ArgumentParser()
    new.add_parser(parser.add_subparsers())

    def run(*words: str) -> int:
        args = parser.parse_args(["new", *words])
        return args.run(args)

    return run


def files_below(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_handler_its_test_and_its_table_are_written(folder, run, capsys):
    assert run("answering-machine") == 0
    assert set(files_below(folder)) == {
        "handlers/answering_machine.py",
        "tests/test_answering_machine.py",
        "srvkit.toml",
    }
    config = tomllib.loads((folder / "srvkit.toml").read_text())
    assert config["srvkit"] == {"plugins": ["handlers"]}
    assert config["server"]["answering_machine"]["handler"] == "answering_machine"
    out = capsys.readouterr().out
    assert "srvkit run srvkit.toml" in out
    assert "nc 127.0.0.1 7007" in out
    assert "to do" not in out


def test_the_handler_is_offered_under_its_name(folder, run):
    run("answering-machine")
    offer = make_manager(["handlers"], folder=folder).handlers["answering_machine"]
    assert offer.cls.__name__ == "AnsweringMachine"


def test_the_written_tests_pass_and_fail_with_a_broken_handler(folder, run):
    for kind in BROKEN:
        run(f"answering-{kind}", "--kind", kind)
    passed = run_pytest()
    assert passed.returncode == 0, passed.stdout
    for kind, (whole, broken) in BROKEN.items():
        handler = folder / "handlers" / f"answering_{kind}.py"
        handler.write_text(handler.read_text().replace(whole, broken))
    failed = run_pytest()
    for kind in BROKEN:
        assert f"FAILED tests/test_answering_{kind}.py" in failed.stdout
    assert " passed" not in failed.stdout


def test_names_that_the_templates_or_the_standard_library_use_are_no_obstacle(folder, run):
    for name in ("lines", "message_handler", "time", "path", "testimony", "None", "exception", "match"):
        run(name)
    run("stream-request-handler", "--kind", "stream")
    run("select", "--kind", "datagram")
    run("async-handler", "--kind", "async")
    assert "class LinesHandler(MessageHandler):" in (folder / "handlers" / "lines.py").read_text()
    assert "class NoneHandler(MessageHandler):" in (folder / "handlers" / "none.py").read_text()
    assert_good_style()
    passed = run_pytest()
    assert passed.returncode == 0, passed.stdout


def run_pytest():
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_what_is_written_is_checked_and_in_good_style(folder, run, srvkit):
    for kind in new.KINDS:
        run(f"my-{kind}", "--kind", kind)
    assert srvkit("check").stdout == "srvkit.toml: 4 servers, nothing wrong\n"
    assert_good_style()


def assert_good_style() -> None:
    for settings in (["--isolated"], ["--config", str(ROOT / "pyproject.toml")]):
        for command in (["check"], ["format", "--check"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, "--no-cache", *settings, "."],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kind", "listen", "model", "talk"),
    [
        ("message", "tcp://127.0.0.1:7007", "threading", "nc 127.0.0.1 7007"),
        ("stream", "tcp://127.0.0.1:7007", "threading", "nc 127.0.0.1 7007"),
        ("datagram", "udp://127.0.0.1:7007", "serial", "nc -u 127.0.0.1 7007"),
        ("async", "tcp://127.0.0.1:7007", "asyncio", "nc 127.0.0.1 7007"),
    ],
)
def test_the_table_fits_the_kind(kind, listen, model, talk, folder, run, capsys):
    run("first", "--kind", kind)
    table = tomllib.loads((folder / "srvkit.toml").read_text())["server"]["first"]
    assert table == {"listen": listen, "handler": "first", "concurrency": model}
    assert f"talk      {talk} " in capsys.readouterr().out


def test_the_kinds_of_the_command_line_are_those_of_the_templates():
    assert list(new.KINDS) == list(KINDS)


def test_a_second_handler_gets_a_table_and_a_port_of_its_own(folder, run):
    run("first")
    run("second")
    servers = tomllib.loads((folder / "srvkit.toml").read_text())["server"]
    assert servers["first"]["listen"] == "tcp://127.0.0.1:7007"
    assert servers["second"]["listen"] == "tcp://127.0.0.1:7008"


def test_a_configuration_is_appended_to(folder, run, capsys):
    before = '[srvkit]\nplugins = ["./handlers/"] # mine\n\n[server.a]\nlisten = "tcp://127.0.0.1:1"'
    (folder / "srvkit.toml").write_text(before)
    assert run("first") == 0
    text = (folder / "srvkit.toml").read_text()
    assert text.startswith(before + "\n\n[server.first]\n")
    assert "to do" not in capsys.readouterr().out


@pytest.mark.parametrize("general", ['[srvkit]\nplugins = ["others"]\n', "[srvkit]\nblock = []\n"])
def test_where_the_folder_is_not_among_the_plugins_what_to_add_is_said(general, folder, run, capsys):
    (folder / "srvkit.toml").write_text(general)
    assert run("first") == 0
    assert 'add "handlers" to plugins of [srvkit] in srvkit.toml' in capsys.readouterr().out
    assert (folder / "srvkit.toml").read_text().startswith(general)


@pytest.mark.parametrize("existing", ["handlers/first.py", "tests/test_first.py"])
def test_a_file_that_exists_is_not_overwritten(existing, folder, run):
    (folder / existing).parent.mkdir()
    (folder / existing).write_text("mine\n")
    with pytest.raises(
        ConfigError, match=f"^{existing} exists already: srvkit new overwrites nothing$"
    ) as caught:
        run("first")
    assert caught.value.exit_status == 2
    assert files_below(folder) == {existing: "mine\n"}


def test_a_table_that_exists_is_not_overwritten(folder, run):
    (folder / "srvkit.toml").write_text("[server.first]\n")
    with pytest.raises(ConfigError, match=r"^srvkit.toml: server.first: exists already"):
        run("first")
    assert files_below(folder) == {"srvkit.toml": "[server.first]\n"}


@pytest.mark.parametrize("text", ["server = {}\n", "server = 7\n"])
def test_a_configuration_that_takes_no_more_tables_is_left_alone(text, folder, run):
    (folder / "srvkit.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"^srvkit.toml: a table \[server.first\] cannot be appended: "):
        run("first")
    assert files_below(folder) == {"srvkit.toml": text}


def test_a_configuration_that_is_no_toml_is_left_alone(folder, run):
    (folder / "srvkit.toml").write_text("[srvkit\n")
    with pytest.raises(ConfigError, match=r"^srvkit.toml:1"):
        run("first")
    assert files_below(folder) == {"srvkit.toml": "[srvkit\n"}


@pytest.mark.parametrize(
    "name", ["", "7up", "a b", "../up", "a.b", "_mine", "class", "é", "test_it", "conftest", "-"]
)
def test_a_name_that_cannot_be_a_plugins_is_refused(name, folder):
    with pytest.raises(ConfigError, match="cannot be a handler's name"):
        new.command(argparse.Namespace(name=name, kind="message"))
    assert files_below(folder) == {}
