"""`srvkit explain` finds settings by the end of their key, and says what else could be meant."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from srvkit.cli import explain
from srvkit.config import model, schema, toml
from srvkit.config.loader import from_table
from srvkit.config.model import SettingDoc, settings_table
from srvkit.contracts import setting
from srvkit.errors import ConfigError

Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    explain.add_parser(parser.add_subparsers())

    def run(*words: str) -> list[str]:
        args = parser.parse_args(["explain", *words])
        assert args.run(args) == 0
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize(
    "key",
    [
        "idle_timeout",
        "limits.idle_timeout",
        "server.NAME.limits.idle_timeout",
        "server.x.limits.idle_timeout",
    ],
)
def test_a_setting_is_found_by_any_end_of_its_key(key, run):
    assert run(key) == [
        "server.NAME.limits.idle_timeout",
        "  how long a connection may say nothing later on",
        "",
        '  type     duration: seconds, or "250ms", "30s", "5m", "1h"',
        '  default  "60s"',
        "  bounds   at least 0s, at most 500h",
        "  example  [server.echo.limits]",
        '           idle_timeout = "60s"',
    ]


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("listen", ["default  none: it is required", 'listen = "tcp://127.0.0.1:7007"']),
        ("framing", ["default  none", 'framing = "lines"']),
        ("workers", ["bounds   at least 1, at most 1024"]),
        ("max_message", ["bounds   at least 1", 'type     size: bytes, or "512B", "64KiB", "1MiB", "1GiB"']),
        ("level", ['type     "debug" or "info" or "warning" or "error"', "example  [logging]"]),
        ("heartbeat_timeout", ["bounds   at least 100ms, at most 500h"]),
    ],
)
def test_what_is_known_of_a_setting_is_told(key, lines, run):
    told = [line.strip() for line in run(key)]
    assert not set(lines) - set(told)


def test_every_setting_has_an_example_that_may_be_written_as_it_stands(run):
    for one in settings_table():
        lines = run(one.key)
        begin = next(index for index, line in enumerate(lines) if line.startswith("  example"))
        data = toml.parse("\n".join(line.removeprefix("  example") for line in lines[begin:]))
        server = {"listen": "unix:x", "handler": "x"} | data.get("server", {}).get("echo", {})
        if "tls" in server:  # the others that are required there
            server["tls"] = {"cert": "x"} | server["tls"]
            server["tls"]["sni"] = [
                {"names": ["x"], "cert": "x"} | one for one in server["tls"].get("sni", [])
            ]
        _, problems = from_table(data | {"server": {"echo": server}})
        assert not problems.listed(), lines


def test_a_table_is_listed(run):
    lines = run("socket")
    assert [line.split()[0] for line in lines] == [
        one.key for one in settings_table() if ".socket." in one.key
    ]
    assert run("server.echo.socket") == lines


def test_without_a_key_all_are_listed(run):
    assert [line.split()[0] for line in run()] == [one.key for one in settings_table()]
    assert any(line.startswith("server.NAME.listen ") and " required " in line for line in run())


def test_an_end_of_several_keys_is_refused_with_all_of_them(run, refused):
    message = "group is the end of several keys:\n  srvkit.group\n  server.NAME.socket.group"
    with pytest.raises(ConfigError) as caught:
        run("group")
    assert str(caught.value) == message
    assert refused(2, "explain", "group") == message.splitlines()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("idle_timeot", ", did you mean 'idle_timeout'?"),
        ("limit.idle_timeout", ", did you mean 'limits.idle_timeout'?"),
        ("ecko", ", did you mean 'echo'?"),
        ("qqqq", "; srvkit explain lists them all"),
    ],
)
def test_what_is_unknown_is_refused_with_what_may_be_meant(key, hint, run):
    with pytest.raises(ConfigError) as caught:
        run(key)
    assert str(caught.value) == f"there is no setting {key!r}{hint}"


def test_a_model_is_explained_by_its_name_or_an_option(run):
    lines = run("pool")
    assert lines[0] == "concurrency pool"
    assert "  options  threads = 32: requests handled at once" in lines
    assert lines[-1] == '  example  concurrency = { name = "pool", threads = 32 }'
    assert run("concurrency.threads") == run("threads") == lines


def test_a_framing_and_a_handler_are_explained(run):
    assert run("delimiter")[-1] == '  example  framing = { name = "delimiter", delimiter = "…" }'
    lines = run("echo")
    assert lines[0] == "handler echo"
    assert lines[-2:] == ["  options  none", '  example  handler = "echo"']


def test_a_handler_of_one_process_is_explained_as_one(run, tmp_path):
    (tmp_path / "own.py").write_text(
        "from srvkit import *\nclass Own(MessageHandler):\n    'My own.'\n    one_process = True\n"
        "@hookimpl\ndef srvkit_handlers():\n    return {'own': Own}\n"
    )
    (tmp_path / "other.toml").write_text('[srvkit]\nplugins = ["own.py"]\n')
    lines = run("own", "--config", "other.toml")
    assert "  runs in  one process: workers = 1, not under a model that forks" in lines
    assert not any("runs in" in line for line in run("echo"))


def test_plugins_of_another_configuration_are_known(run, tmp_path):
    (tmp_path / "own.py").write_text(
        "from srvkit import *\nclass Own(MessageHandler):\n    'My own.'\n"
        "@hookimpl\ndef srvkit_handlers():\n    return {'own': Own}\n"
    )
    (tmp_path / "other.toml").write_text('[srvkit]\nplugins = ["own.py"]\n')
    assert run("own", "--config", "other.toml")[:2] == ["handler own", "  My own."]
    with pytest.raises(ConfigError, match="there is no setting 'own'"):
        run("own")


@dataclass(frozen=True)
class Sni:
    cert: str = setting("", "its file")


def test_keys_of_lists_of_tables(run, monkeypatch):
    docs = [SettingDoc("server.NAME.sni[].cert", "string", '""', "its file")]
    monkeypatch.setattr(model, "settings_table", lambda: docs)
    monkeypatch.setitem(schema.TABLES, "server", Sni)
    assert run("sni.cert")[-2:] == ["  example  [[server.echo.sni]]", '           cert = ""']
    assert run("server.a.sni[0].cert") == run("cert")


def test_a_terminal_gets_lines_of_its_width(terminal):
    lines = terminal(80, "explain", "listen")
    assert lines[0] == "\x1b[1mserver.NAME.listen\x1b[0m"
    assert max(map(len, lines)) <= 80
