"""Settings: what they are, their defaults, and every way in which a value can be wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from srvkit.config.loader import read_text
from srvkit.config.model import (
    Choice,
    Config,
    LoggingSettings,
    ServerSettings,
    SettingDoc,
    SrvkitSettings,
    convert,
    settings_table,
)
from srvkit.config.problems import Problems
from srvkit.net.access import AccessSettings
from srvkit.net.listener import SocketSettings
from srvkit.net.tls_context import SniSettings, TlsSettings
from srvkit.protocol.proxy_header import ProxySettings
from srvkit.server.limits import LimitSettings

GOOD = '[server.echo]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo"\n'


def only_problem(text: str) -> str:
    _, problems = read_text(text, "srvkit.toml", (), {})
    (problem,) = problems.listed()
    return str(problem)


def test_defaults():
    problems = Problems()
    config = convert({"server": {"echo": {"listen": "x", "handler": "y"}}}, problems, Path("srvkit.toml"))
    assert not problems
    assert config == Config(
        srvkit=SrvkitSettings(plugins=[], block=[], drain_timeout=30.0),
        server={
            "echo": ServerSettings(
                listen=("x",),
                handler=Choice("y"),
                concurrency=Choice("threading"),
                workers=1,
                framing=None,
                limits=LimitSettings(
                    max_connections=1024,
                    when_full="wait",
                    max_per_client=0,
                    connect_rate=0,
                    first_byte_timeout=10.0,
                    idle_timeout=60.0,
                    request_timeout=0.0,
                    write_timeout=30.0,
                    max_message=2**20,
                ),
                access=AccessSettings(allow=[], deny=[]),
                tls=None,
                proxy=None,
                socket=SocketSettings(
                    backlog=2048,
                    nodelay=True,
                    keepalive=True,
                    receive_buffer=0,
                    send_buffer=0,
                    mode="0600",
                    owner="",
                    group="",
                ),
            )
        },
        path=Path("srvkit.toml"),
    )


def test_every_key_is_read():
    text = """
        [srvkit]
        plugins = ["handlers"]
        block = ["bad"]
        user = "srv"
        group = "www"
        drain_timeout = "1m"
        retire_timeout = "2h"
        generations = 3
        ready_timeout = 2
        heartbeat_timeout = "3s"
        control = "run/c.sock"
        pid_file = "run/x.pid"
        [logging]
        level = "debug"
        format = "json"
        file = "x.log"
        connections = true
        [server.echo-2_x]
        listen = ["tcp://127.0.0.1:0", "unix:x"]
        handler = { name = "echo", motd = "hello" }
        concurrency = { name = "pool", threads = 32 }
        workers = 1
        framing = { name = "length-prefix", size = 4 }
        [server.echo-2_x.limits]
        max_connections = 2
        when_full = "close"
        max_per_client = 3
        connect_rate = 4
        first_byte_timeout = 1
        idle_timeout = "250ms"
        request_timeout = 1.5
        write_timeout = "0s"
        max_message = "64KiB"
        [server.echo-2_x.access]
        allow = ["10.0.0.0/8"]
        deny = ["uid:0"]
        [server.echo-2_x.tls]
        cert = "cert.pem"
        key = "key.pem"
        client_ca = "ca.pem"
        min_version = "1.3"
        alpn = ["x"]
        begin = "handler"
        handshake_timeout = "3s"
        [[server.echo-2_x.tls.sni]]
        names = ["a.example"]
        cert = "a.pem"
        key = "a.key"
        [server.echo-2_x.proxy]
        trusted = ["127.0.0.1"]
        header_timeout = 4
        [server.echo-2_x.socket]
        backlog = 1
        nodelay = false
        keepalive = false
        receive_buffer = "1MiB"
        send_buffer = 4096
        mode = "0660"
        owner = "srv"
        group = "www"
    """
    config, problems = read_text(text)
    problems.raise_if_any()
    assert config.srvkit == SrvkitSettings(
        ["handlers"], ["bad"], "srv", "www", 60, 7200, 3, 2, 3, control="run/c.sock", pid_file="run/x.pid"
    )
    assert config.logging == LoggingSettings("debug", "json", "x.log", True)
    assert config.server["echo-2_x"] == ServerSettings(
        ("tcp://127.0.0.1:0", "unix:x"),
        Choice("echo", {"motd": "hello"}),
        Choice("pool", {"threads": 32}),
        1,
        Choice("length-prefix", {"size": 4}),
        LimitSettings(2, "close", 3, 4, 1.0, 0.25, 1.5, 0.0, 65536),
        AccessSettings(["10.0.0.0/8"], ["uid:0"]),
        TlsSettings(
            "cert.pem",
            "key.pem",
            [SniSettings(["a.example"], "a.pem", "a.key")],
            "ca.pem",
            "1.3",
            ["x"],
            "handler",
            3.0,
        ),
        ProxySettings(["127.0.0.1"], 4.0),
        SocketSettings(1, False, False, 2**20, 4096, "0660", "srv", "www"),
    )


WORKERS = 'workers: expected a number from 1 to 1024 or "auto"'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("workers = '1'", f"{WORKERS}, got '1'"),
        ("workers = 'Auto'", f"{WORKERS}, got 'Auto'"),
        ("workers = true", f"{WORKERS}, got a boolean"),
        ("workers = 1.0", f"{WORKERS}, got 1.0"),
        ("workers = 0", f"{WORKERS}, got 0"),
        ("workers = -1", f"{WORKERS}, got -1"),
        ("workers = 1025", f"{WORKERS}, got 1025"),
        ("concurrency = ''", "concurrency: expected a name or a table like { name = \"...\" }, got ''"),
        ("concurrency = 4", 'concurrency: expected a name or a table like { name = "..." }, got 4'),
        ("concurrency = { threads = 4 }", 'concurrency: expected a table with a name, { name = "...", ... }'),
        ("framing = { name = 4 }", 'framing: expected a table with a name, { name = "...", ... }'),
        ("limits = 4", "limits: expected a table, got an integer"),
        ("limits.max_connections = 0", "limits.max_connections: expected at least 1, got 0"),
        (
            "limits.max_connections = 1979-05-27",
            "limits.max_connections: expected an integer, got a date or time",
        ),
        ("limits.when_full = 'drop'", "limits.when_full: expected 'wait' or 'close', got 'drop'"),
        ("limits.when_full = true", "limits.when_full: expected 'wait' or 'close', got a boolean"),
        ("limits.idle_timeout = -1", "limits.idle_timeout: expected a duration from 0s to 500h, got -1"),
        (
            "limits.idle_timeout = inf",
            'limits.idle_timeout: expected seconds or a duration like "250ms", "30s", "5m", "1h", got inf',
        ),
        (
            "limits.idle_timeout = nan",
            'limits.idle_timeout: expected seconds or a duration like "250ms", "30s", "5m", "1h", got nan',
        ),
        (
            "limits.idle_timeout = true",
            'limits.idle_timeout: expected seconds or a duration like "250ms", "30s", "5m", "1h",'
            " got a boolean",
        ),
        ("limits.max_message = 0", "limits.max_message: expected at least 1, got 0"),
        (
            "limits.max_message = '1MB'",
            'limits.max_message: expected bytes or a size like "512B", "64KiB", "1MiB", "1GiB", got \'1MB\'',
        ),
        (
            "limits.max_conections = 1",
            "limits.max_conections: unknown key, did you mean 'max_connections'?",
        ),
        ("limits.backlog = 1", "limits.backlog: unknown key, did you mean 'server.echo.socket.backlog'?"),
        ("idle_timeout = 1", "idle_timeout: unknown key, did you mean 'server.echo.limits.idle_timeout'?"),
        ("socket.backlog = 0", "socket.backlog: expected at least 1, got 0"),
        ("socket.backlog = 3_000_000_000", "socket.backlog: expected at most 2147483647, got 3000000000"),
        ("socket.nodelay = 1", "socket.nodelay: expected true or false, got an integer"),
        ("socket.mode = 0o600", 'socket.mode: expected permissions as an octal string like "0600", got 384'),
        (
            "socket.mode = '0888'",
            "socket.mode: expected permissions as an octal string like \"0600\", got '0888'",
        ),
        ("socket.owner = 0", "socket.owner: expected a string, got an integer"),
        (
            "tsl = 'x'",
            "tsl: unknown key, did you mean 'tls'?",
        ),
    ],
)
def test_a_wrong_value_of_a_server(line, message):
    assert only_problem(GOOD + line) == f"srvkit.toml:4: server.echo.{message}"


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("[]", "listen: expected at least one, got an empty list"),
        ("5", "listen: expected a string or a list of strings, got an integer"),
        ("['x', ['y']]", "listen[1]: expected a string, got a list"),
    ],
)
def test_a_wrong_listen(listen, message):
    assert (
        only_problem(f"[server.echo]\nhandler = 'x'\nlisten = {listen}")
        == f"srvkit.toml:3: server.echo.{message}"
    )


def test_a_misspelt_required_key_is_not_missing_as_well():
    text = '[server.echo]\nlisten = "x"\nhandlr = "y"\n'
    assert only_problem(text) == "srvkit.toml:3: server.echo.handlr: unknown key, did you mean 'handler'?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plugins = 'x'", "srvkit.plugins: expected a list, got a string"),
        ("plugins = ['a', 1]", "srvkit.plugins[1]: expected a string, got an integer"),
        ("plugin = []", "srvkit.plugin: unknown key, did you mean 'plugins'?"),
        (
            "owner = ''",
            "srvkit.owner: unknown key, the keys here are block, control, drain_timeout,"
            " generations, group, heartbeat_timeout, pid_file, plugins, ready_timeout, retire_timeout, user",
        ),
        ("[tracing]", "tracing: unknown key, the keys here are logging, server, srvkit"),
        ("[servers.x]", "servers: unknown key, did you mean 'server'?"),
        ("[limits]", "limits: unknown key, did you mean 'server.NAME.limits'?"),
    ],
)
def test_a_wrong_key_elsewhere(line, message):
    assert only_problem(f"{GOOD}[srvkit]\n{line}") == f"srvkit.toml:5: {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("levle = 'info'", "levle: unknown key, did you mean 'level'?"),
        ("colour = true", "colour: unknown key, the keys here are connections, file, format, level"),
        ("level = 'loud'", "level: expected 'debug' or 'info' or 'warning' or 'error', got 'loud'"),
        ("connections = 1", "connections: expected true or false, got an integer"),
    ],
)
def test_a_wrong_key_or_value_of_the_log(line, message):
    assert only_problem(f"{GOOD}[logging]\n{line}") == f"srvkit.toml:5: logging.{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server = 1", "srvkit.toml:1: server: expected tables [server.NAME], got an integer"),
        ("[[server]]", "srvkit.toml:1: server: expected tables [server.NAME], got a list"),
        (
            "[server]\nlisten = 'x'",
            "srvkit.toml:2: server.listen: expected a table [server.NAME], got a string",
        ),
        (f"srvkit = 1\n{GOOD}", "srvkit.toml:1: srvkit: expected a table, got an integer"),
    ],
)
def test_a_wrong_table(text, message):
    assert only_problem(text) == message


@pytest.mark.parametrize("name", ["a b", "", "größe", "a/b", "a\\n"])
def test_a_wrong_name_of_a_server(name):
    problem = only_problem(f'[server."{name}"]\nlisten = "x"\nhandler = "y"\n')
    assert problem == (
        f'srvkit.toml:1: server."{name}": the name of a server consists of letters, digits,'
        " '_', '-' and '.'"
    )


def test_a_wrong_value_leaves_the_default_and_the_rest_as_written():
    config, problems = read_text(GOOD + "limits = { max_connections = 0, idle_timeout = 5 }\nworkers = -7\n")
    assert len(problems) == 2
    assert config.server["echo"].limits == LimitSettings(idle_timeout=5.0)
    assert config.server["echo"].workers == 1


def test_a_server_without_an_address_or_handler_is_left_out_and_the_others_stay():
    config, problems = read_text(GOOD + "[server.b]\nhandler = 'x'\nlimits.max_message = 'x'\n")
    assert list(config.server) == ["echo"]
    assert len(problems) == 2


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SrvkitSettings().drain_timeout = 1  # type: ignore[misc]


class TestDocumentation:
    def test_every_setting_has_its_type_default_and_one_line(self):
        table = settings_table()
        assert len({one.key for one in table}) == len(table)
        for one in table:
            assert one.doc.strip(), one.key
            assert "\n" not in one.doc
            assert one.type, one.key
            assert bool(one.default) != (one.required or one.key == "server.NAME.framing"), one.key

    def test_it_has_every_field_of_every_settings_class(self):
        classes = (
            SrvkitSettings, LoggingSettings, ServerSettings, LimitSettings, AccessSettings, TlsSettings,
            SniSettings, ProxySettings, SocketSettings,
        )  # fmt: skip
        fields = [field.name for declared in classes for field in dataclasses.fields(declared)]
        assert sorted(one.key.split(".")[-1] for one in settings_table()) == sorted(
            name for name in fields if name not in ("limits", "access", "tls", "proxy", "socket")
        )

    def test_what_it_says(self):
        table = {one.key: one for one in settings_table()}
        assert table["server.NAME.limits.idle_timeout"] == SettingDoc(
            "server.NAME.limits.idle_timeout",
            "duration",
            '"60s"',
            dict(_docs(LimitSettings))["idle_timeout"],
        )
        assert (table["server.NAME.handler"].type, table["server.NAME.handler"].required) == (
            "name or table",
            True,
        )
        shown = {
            "srvkit.plugins": "[]",
            "server.NAME.concurrency": '"threading"',
            "server.NAME.limits.when_full": '"wait"',
            "server.NAME.limits.max_message": '"1MiB"',
            "server.NAME.socket.nodelay": "true",
            "server.NAME.socket.mode": '"0600"',
            "server.NAME.socket.send_buffer": "0",
        }
        assert {key: table[key].default for key in shown} == shown

    def test_its_defaults_written_into_a_file_are_the_defaults(self):
        lines = [
            f"{one.key.replace('NAME', 'echo')} = {one.default}"
            for one in settings_table()
            if one.default and not one.key.startswith(("server.NAME.tls", "server.NAME.proxy"))
        ]
        text = "\n".join([*lines, 'server.echo.listen = "x"', 'server.echo.handler = "y"'])
        config, problems = read_text(text)
        problems.raise_if_any()
        assert config.server["echo"] == ServerSettings(("x",), Choice("y"))
        assert config.srvkit == SrvkitSettings()


def _docs(declared):
    return ((field.name, field.metadata["doc"]) for field in dataclasses.fields(declared))


@pytest.mark.parametrize(("written", "count"), [("1", 1), ("4", 4), ("1024", 1024), ('"auto"', 0)])
def test_the_number_of_workers_or_auto(written, count):
    config, problems = read_text(f"{GOOD}workers = {written}\n")
    assert not problems
    assert config.server["echo"].workers == count
