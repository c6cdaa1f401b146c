"""`srvkit plugins` shows what there is to choose from, what it is good for and who brought it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from srvkit.cli import plugins
from srvkit.errors import ConfigError, PluginError

Run = Callable[..., list[str]]

PARROT = '''
    from dataclasses import dataclass
    from srvkit import MessageHandler, hookimpl

    class Parrot(MessageHandler):
        """Say it again.

        And more about it.
        """

        @dataclass
        class Options:
            voice: str
            times: int = 2

    @hookimpl
    def srvkit_handlers():
        return {"parrot": Parrot}

    @hookimpl
    def srvkit_error(error): ...
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "bird.py").write_text(dedent(PARROT))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "zoo":
            del sys.modules[name]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    parser = argparse.ArgumentParser()
    plugins.add_parser(parser.add_subparsers())

    def run(*words: str) -> list[str]:
        args = parser.parse_args(["plugins", *words])
        assert args.run(args) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return run


def test_the_handlers_of_the_configurations_plugins_are_shown_with_kind_options_and_source(folder, run):
    (folder / "other.toml").write_text('[srvkit]\nplugins = ["zoo"]\n')
    lines = run("other.toml")
    position = lines.index("parrot message zoo/bird.py Say it again.")
    assert lines[position + 1] == "options: voice (required), times = 2"
    position = lines.index("srvkit_error Watch an exception that a handler let escape.")
    assert lines[position + 1] == "implemented by: zoo/bird.py"


def test_the_configuration_of_the_current_folder_is_taken_by_itself(folder, run):
    (folder / "srvkit.toml").write_text('[srvkit]\nplugins = ["zoo"]\n')
    assert any(line.startswith("parrot ") for line in run())


def test_without_a_configuration_installed_plugins_are_shown(run):
    lines = run()
    assert not any(line.startswith("parrot ") for line in lines)
    assert lines[-1] == "note: there is no srvkit.toml here: these are the installed plugins only"


def test_models_are_shown_with_what_they_run(run):
    assert any(line.startswith("forking blocking, message srvkit") for line in run())


def test_models_are_shown_with_their_options(run):
    lines = run()
    position = next(index for index, line in enumerate(lines) if line.startswith("pool "))
    assert lines[position + 1] == "options: threads = 32"


def test_framings_are_shown_with_their_options(run):
    lines = run()
    position = next(index for index, line in enumerate(lines) if line.startswith("delimiter srvkit Messages"))
    assert lines[position + 1] == "options: delimiter (required), max_message"


def test_a_hook_that_nobody_implements_is_shown_too(run):
    lines = run()
    position = next(
        index for index, line in enumerate(lines) if line.startswith("srvkit_verify_request Refuse")
    )
    assert lines[position + 1].startswith("srvkit_connection_open Watch")


@pytest.mark.parametrize("columns", [80, 120])
def test_text_wraps_at_the_terminals_width_and_under_itself(columns, folder, terminal):
    (folder / "srvkit.toml").write_text('[srvkit]\nplugins = ["zoo"]\n')
    lines = terminal(columns, "plugins")
    assert "\x1b[1mHANDLERS\x1b[0m" in lines
    assert max(map(len, lines)) <= columns
    begin = next(index for index, line in enumerate(lines) if line.startswith("  time "))
    column = lines[begin].index("Tell")
    assert lines[begin + 1][:column].isspace() or columns > 80
    assert "00:00 UTC in four bytes" in " ".join(" ".join(lines[begin : begin + 3]).split())


def test_columns_are_aligned(run, folder, capsys):
    plugins.command(argparse.Namespace(config=None))
    out = capsys.readouterr().out.splitlines()
    table = out[out.index("CONCURRENCY MODELS") + 1 :][:3]
    column = table[0].index("from")
    table = [table[0], *(line for line in table if "options:" not in line)]
    assert len(table) == 3
    assert all(line[column - 1] == " " and line[column] != " " for line in table)


def test_a_name_that_replaces_another_is_noted(folder, run):
    bird = folder / "zoo" / "bird.py"
    bird.write_text(
        bird.read_text() + "\n\n@hookimpl\ndef srvkit_framings():\n    return {'lines': Parrot}\n"
    )
    (folder / "srvkit.toml").write_text(
        '[srvkit]\nplugins = ["zoo"]\n[server.a]\nlisten = "tcp://[::1]:1"\nhandler = "x"\n'
    )
    assert run()[-1] == "note: framing 'lines' of plugin zoo/bird.py is used instead of srvkit's own"


def test_plugins_are_shown_where_something_else_is_wrong_in_the_configuration(folder, run):
    (folder / "srvkit.toml").write_text('[srvkit]\nplugins = ["zoo"]\n[server.a]\ncolour = "red"\n')
    lines = run()
    assert any(line.startswith("parrot ") for line in lines)
    assert lines[-1] == "note: something is wrong in srvkit.toml: srvkit check srvkit.toml says what"


def test_a_blocked_plugin_is_not_shown(folder, run):
    (folder / "srvkit.toml").write_text('[srvkit]\nplugins = ["zoo"]\nblock = ["zoo/bird.py"]\n')
    assert not any(line.startswith("parrot ") for line in run())


def test_a_plugin_that_cannot_be_used_is_an_error(folder, run):
    (folder / "zoo" / "bird.py").write_text("import absent_module\n")
    (folder / "srvkit.toml").write_text('[srvkit]\nplugins = ["zoo"]\n')
    with pytest.raises(PluginError, match=r"plugin zoo/bird.py: cannot be imported: ModuleNotFoundError"):
        run()


def test_a_configuration_that_is_not_there_is_an_error(run):
    with pytest.raises(ConfigError, match=r"absent.toml: "):
        run("absent.toml")
