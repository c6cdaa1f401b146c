"""From a file, a text or a table to a configuration: what cannot be read, overrides, variables, lines."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srvkit.config import loader
from srvkit.config.model import Choice
from srvkit.errors import ConfigError

GOOD = """\
[server.echo]
listen = "tcp://127.0.0.1:0"
handler = "echo"
"""


def problems_of(text: str, *overrides: str, **environ: str) -> list[str]:
    return list(map(str, loader.read_text(text, "srvkit.toml", overrides, environ)[1].listed()))


def config_of(text: str, *overrides: str, **environ: str):
    config, problems = loader.read_text(text, "srvkit.toml", overrides, environ)
    problems.raise_if_any()
    return config


def refusal(name: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        loader.read(name)
    assert caught.value.exit_status == 2
    return str(caught.value)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder the test runs in, so that messages name the file as the user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_read(here):
    Path("srvkit.toml").write_text(GOOD)
    config, problems = loader.read("srvkit.toml")
    problems.raise_if_any()
    assert config.server["echo"].handler == Choice("echo")
    assert config.path == Path.cwd() / "srvkit.toml"
    assert config.folder == Path.cwd()


def test_problems_name_the_file_as_the_user_did(here):
    Path("srvkit.toml").write_text(GOOD + "x = 1\n")
    _, problems = loader.read("./srvkit.toml")
    with pytest.raises(ConfigError, match=r"^\./srvkit\.toml:4: server\.echo\.x: unknown key, "):
        problems.raise_if_any()


class TestFilesThatCannotBeRead:
    def test_missing(self, here):
        assert refusal("srvkit.toml") == (
            f"srvkit.toml: there is no such file (looked for {here}/srvkit.toml)"
        )

    def test_directory(self, here):
        assert refusal(here) == f"{here}: is a directory, a file is expected"

    def test_a_pipe_that_nobody_writes_to_does_not_hang(self, here):
        os.mkfifo("pipe")
        assert refusal("pipe") == "pipe: is not a regular file"

    def test_a_pipe_that_takes_the_files_place_does_not_hang(self, here, monkeypatch):
        Path("file").write_text(GOOD)
        os.mkfifo("pipe")
        stat = os.stat

        def deceived(path, **options):
            return stat("file" if path == "pipe" else path, **options)

        monkeypatch.setattr(os, "stat", deceived)
        assert refusal("pipe") == "pipe: is not a regular file"

    def test_device(self):
        assert refusal("/dev/zero") == "/dev/zero: is not a regular file"

    def test_socket(self, here):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("sock")
            assert refusal("sock") == "sock: is not a regular file"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_no_permission(self, here):
        Path("srvkit.toml").write_text(GOOD)
        os.chmod("srvkit.toml", 0)
        assert refusal("srvkit.toml") == "srvkit.toml: cannot be read: Permission denied"

    def test_what_the_system_refuses_is_told_in_its_words(self, here):
        os.symlink("loop", "loop")
        assert refusal("loop") == "loop: cannot be read: Too many levels of symbolic links"

    def test_a_name_that_can_be_none(self):
        assert refusal("a\0b") == "'a\\x00b': is no name of a file"

    @pytest.mark.parametrize("size", [2**20 + 1, 10_000_000])
    def test_too_large(self, here, size):
        Path("srvkit.toml").write_bytes(b"#" * size)
        assert refusal("srvkit.toml") == "srvkit.toml: is larger than 1 MiB"

    def test_as_large_as_may_be(self, here):
        Path("srvkit.toml").write_text(GOOD + "#" * (2**20 - len(GOOD)))
        assert not loader.read("srvkit.toml")[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\xef\xbb\xbf" + GOOD.encode(),
            "1: starts with a byte order mark (UTF-8), plain UTF-8 is expected",
        ),
        (GOOD.encode("utf-16"), "1: starts with a byte order mark (UTF-16), plain UTF-8 is expected"),
        (b'a = 1\n\nb = "caf\xe9"\n', "3: byte 9 of the line is 0xe9, which is not UTF-8"),
        (GOOD.encode("utf-16-le"), "1:2: invalid initial character for a key part"),
        (b"a = \0", "1:5: invalid value"),
        (b"a = 1\rb = 2\n", "1:6: expected newline or end of document after a statement"),
        (b"a = 1\nb = = 2\n", "2:5: invalid value"),
        (b"a = [1,\n", "2:1: invalid value"),
        (b"[server.echo]\n\n[server.echo]\n", "3:13: the table 'server', 'echo' is declared a second time"),
        (b"a = 1\na = 2\n", "2:6: this key has a value already"),
        (b"a = 1\nb = " + b"[" * 3000 + b"]" * 3000 + b"\nc = 1\n", "2: nested too deeply"),
        (b"a = 1\n" + b"b." * 3000 + b"c = 1\nd = 1\n", "2: nested too deeply"),
        (b"a = [\n1,\n" + b"9" * 5000 + b"\n]\nb = 2\n", "3: a number has too many digits"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_place(here, content, message):
    Path("srvkit.toml").write_bytes(content)
    assert refusal("srvkit.toml") == f"srvkit.toml:{message}"


def test_a_secret_in_a_line_of_bad_syntax_is_not_shown(here):
    Path("srvkit.toml").write_text('password = "hunter2\n')
    assert "hunter2" not in refusal("srvkit.toml")


def test_carriage_returns_before_newlines_are_fine():
    assert problems_of(GOOD.replace("\n", "\r\n") + "x = 1\r\n")[0].startswith(
        "srvkit.toml:4: server.echo.x: "
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "[srvkit]\n", "server = {}"])
def test_a_file_without_a_server(text):
    assert problems_of(text) == [
        "srvkit.toml: there is no server; a table [server.NAME] with listen and handler makes one"
    ]


class TestVariables:
    def test_are_put_into_strings_everywhere(self):
        text = """
            [srvkit]
            plugins = ["${PLACE}/handlers", "$${HOME}", "${UNSET:-a}${EMPTY:-b}"]
            [server.echo]
            listen = "unix:${PLACE}/${NAME}.sock"
            handler = { name = "${NAME}", motd = ["hi ${NAME}"] }
        """
        config = config_of(text, PLACE="/srv", NAME="echo", EMPTY="")
        assert config.srvkit.plugins == ["/srv/handlers", "${HOME}", "ab"]
        assert config.server["echo"].listen == ("unix:/srv/echo.sock",)
        assert config.server["echo"].handler == Choice("echo", {"motd": ["hi echo"]})

    def test_alone_they_are_converted_to_the_keys_type(self):
        text = (
            GOOD
            + """
            [srvkit]
            plugins = "${PLUGINS}"
            drain_timeout = "${DRAIN}"
            [server.echo.limits]
            max_connections = "${COUNT}"
            idle_timeout = "${IDLE:-5m}"
            max_message = "${SIZE}"
            when_full = "${FULL}"
            [server.echo.socket]
            nodelay = "${NODELAY}"
            send_buffer = "${UNSET:-64KiB}"
            mode = "${MODE}"
            owner = "${OWNER}"
        """
        )
        environ = {"COUNT": "7", "DRAIN": "1.5", "SIZE": "1024", "FULL": "close", "NODELAY": "false"}
        config = config_of(text, **environ, MODE="0660", OWNER="0", PLUGINS='["a", "b"]')
        limits, options = config.server["echo"].limits, config.server["echo"].socket
        assert config.srvkit.plugins == ["a", "b"]
        assert config.srvkit.drain_timeout == 1.5
        assert (limits.max_connections, limits.idle_timeout) == (7, 300)
        assert (limits.max_message, limits.when_full) == (1024, "close")
        assert (options.nodelay, options.send_buffer, options.mode, options.owner) == (
            False,
            65536,
            "0660",
            "0",
        )

    def test_with_other_text_they_are_strings(self):
        text = GOOD + 'limits.max_connections = "${COUNT}0"\n'
        assert problems_of(text, COUNT="7") == [
            "srvkit.toml:4: server.echo.limits.max_connections: expected an integer, got a string"
        ]

    def test_each_one_that_is_unset_is_a_problem_and_the_only_one_of_its_key(self):
        text = """\
[server.echo]
listen = ["tcp://${HOST}:1", "${OTHER}"]
handler = { name = "${NAME}", x = "${X}" }
framing = "${FRAMING}"
workers = "${WORKERS}"
"""
        assert problems_of(text) == [
            f"srvkit.toml:{place}: environment variable {name} is not set, and ${{{name}}} gives no default"
            for place, name in (
                ("2: server.echo.listen[0]", "HOST"),
                ("2: server.echo.listen[1]", "OTHER"),
                ("3: server.echo.handler.name", "NAME"),
                ("3: server.echo.handler.x", "X"),
                ("4: server.echo.framing", "FRAMING"),
                ("5: server.echo.workers", "WORKERS"),
            )
        ]

    @pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A", "x${A-b}"])
    def test_a_mark_without_a_variable(self, text):
        assert problems_of(GOOD + f'socket.owner = "{text}"\n', A="1") == [
            "srvkit.toml:4: server.echo.socket.owner: no variable after ${,"
            " write ${NAME} or ${NAME:-default}; $${ is a plain ${"
        ]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("limits.max_connections = '${V}'", "limits.max_connections: expected an integer, got ${V}"),
            ("socket.nodelay = '${V}'", "socket.nodelay: expected true or false, got ${V}"),
            ("limits.when_full = '${V}'", "limits.when_full: expected 'wait' or 'close', got '${V}'"),
            ("limits.when_full = 'x${V}'", "limits.when_full: expected 'wait' or 'close', got 'x${V}'"),
            (
                "limits.max_message = '${V}'",
                "limits.max_message: expected bytes or a size"
                ' like "512B", "64KiB", "1MiB", "1GiB", got \'${V}\'',
            ),
            (
                "concurrency = ['${V}']",
                'concurrency: expected a name or a table like { name = "..." }, got a list',
            ),
        ],
    )
    @pytest.mark.parametrize("secret", ["hunter2", "it's \"\\ \n odd"])
    def test_what_they_hold_is_never_shown(self, line, message, secret):
        assert problems_of(f"{GOOD}{line}\n", V=secret) == [f"srvkit.toml:4: server.echo.{message}"]

    def test_nor_where_it_is_out_of_bounds(self):
        text = GOOD + 'workers = "${V}"\nlimits.max_connections = "${W}"\nlimits.idle_timeout = "${V}"'
        assert problems_of(text, V="-4", W="0") == [
            'srvkit.toml:4: server.echo.workers: expected a number from 1 to 1024 or "auto", got ${V}',
            "srvkit.toml:5: server.echo.limits.max_connections: expected at least 1, got ${W}",
            "srvkit.toml:6: server.echo.limits.idle_timeout: expected a duration from 0s to 500h, got ${V}",
        ]

    def test_one_that_begins_like_another_is_hidden_as_a_whole(self):
        text = GOOD + "limits.when_full = '${A}-${B}'\n"
        message = problems_of(text, A="secret", B="secretive")[0]
        assert message.endswith("expected 'wait' or 'close', got '${A}-${B}'")

    def test_nor_in_what_others_say_about_the_key(self):
        text = GOOD.replace('"tcp://127.0.0.1:0"', '["${LISTEN}", "tcp://${HOST}:1"]')
        _, problems = loader.read_text(text, "srvkit.toml", (), {"LISTEN": "tpc://secret", "HOST": "a b"})
        problems.add(("server", "echo", "listen", 0), "'tpc://secret' is no address, 'tcp://...' would be")
        problems.add(("server", "echo", "listen", 1), "'tcp://a b:1' is no address")
        assert [problem.message for problem in problems.listed()] == [
            "'${LISTEN}' is no address, 'tcp://...' would be",
            "'tcp://${HOST}:1' is no address",
        ]


class TestOverrides:
    def test_replace_and_add_keys_with_toml_values_or_strings(self):
        config = config_of(
            GOOD,
            "server.echo.concurrency=forking",
            "server.echo.limits.max_connections = 5",
            "server.echo.listen=['tcp://[::1]:0', 'unix:x']",
            'server."b.c"={listen="udp://:1", handler="x"}',
            "server.echo.limits.max_connections=6",
            "srvkit.drain_timeout=5m",
            "server.echo.socket.owner=${WHO}",
            WHO="root",
        )
        echo = config.server["echo"]
        assert echo.concurrency == Choice("forking")
        assert echo.limits.max_connections == 6
        assert echo.listen == ("tcp://[::1]:0", "unix:x")
        assert echo.socket.owner == "root"
        assert config.server["b.c"].handler == Choice("x")
        assert config.srvkit.drain_timeout == 300

    def test_give_options_to_a_choice_that_is_a_name(self):
        text = GOOD + 'concurrency = "pool"\nframing = "lines"\n'
        names = ("handler", "concurrency", "framing")
        echo = config_of(text, *(f"server.echo.{name}.size=4" for name in names)).server["echo"]
        assert echo.handler == Choice("echo", {"size": 4})
        assert echo.concurrency == Choice("pool", {"size": 4})
        assert echo.framing == Choice("lines", {"size": 4})

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("server.echo.x", '"server.echo.x" has no value; write KEY=VALUE'),
            ("", '"" has no value; write KEY=VALUE'),
            ("a b=hunter2", '"a b" is no key'),
            ("=1", '"" is no key'),
            ("[server]\nx=1", '"[server]\\nx" is no key'),
            ("server.echo.listen.x=1", "server.echo.listen.x: server.echo.listen is not a table"),
            (
                "server.echo.handler.name.x=1",
                "server.echo.handler.name.x: server.echo.handler.name is not a table",
            ),
            (
                "srvkit.handler.x=1",
                "srvkit.handler: unknown key, the keys here are block, control, drain_timeout,"
                " generations, group, heartbeat_timeout, pid_file, plugins, ready_timeout,"
                " retire_timeout, user",
            ),
            ("server.echo.concurency=x", "server.echo.concurency: unknown key, did you mean 'concurrency'?"),
            (
                "server.echo.workers=1025",
                'server.echo.workers: expected a number from 1 to 1024 or "auto", got 1025',
            ),
            (
                "server.echo.limits={x=1}",
                "server.echo.limits.x: unknown key, the keys here are connect_rate, first_byte_timeout,"
                " idle_timeout, max_connections, max_message, max_per_client, max_requests, max_rss,"
                " request_timeout, when_full, write_timeout",
            ),
            ("server.b.handler=x", "server.b.listen: missing, this key is required"),
        ],
    )
    def test_their_problems_name_them(self, override, message):
        assert problems_of(GOOD, override) == [f"--set: {message}"]

    def test_only_the_choice_itself_may_become_a_table(self):
        text = GOOD + 'framing = { name = "x", framing = "y" }\n'
        assert problems_of(text, "server.echo.framing.framing.z=1") == [
            "--set: server.echo.framing.framing.z: server.echo.framing.framing is not a table"
        ]

    def test_a_replaced_line_of_the_file_is_not_blamed(self):
        text = GOOD + "limits = { x = 1 }\nconcurrency = 5\n"
        assert problems_of(text, "server.echo.limits={ x = 2 }", "server.echo.socket.y=1") == [
            'srvkit.toml:5: server.echo.concurrency: expected a name or a table like { name = "..." }, got 5',
            "--set: server.echo.limits.x: unknown key, the keys here are connect_rate, first_byte_timeout,"
            " idle_timeout, max_connections, max_message, max_per_client, max_requests, max_rss,"
            " request_timeout, when_full, write_timeout",
            "--set: server.echo.socket.y: unknown key, the keys here are"
            " backlog, group, keepalive, mode, nodelay, owner, receive_buffer, send_buffer",
        ]

    def test_leave_the_table_they_are_applied_to_alone(self):
        table = {"server": {"echo": {"listen": "tcp://:1", "handler": "echo"}}}
        config, problems = loader.from_table(
            table, ["server.echo.handler.x=1", "server.b.handler=x", "srvkit.block=[]"]
        )
        assert config.server["echo"].handler == Choice("echo", {"x": 1})
        assert table == {"server": {"echo": {"listen": "tcp://:1", "handler": "echo"}}}
        assert list(map(str, problems.listed())) == ["--set: server.b.listen: missing, this key is required"]


class TestTables:
    def test_problems_have_keys_without_a_file(self):
        table = {
            "server": {"echo": {"listen": ("tcp://:1", 5), "handler": "${HOME}", "framing": None, "x": 1}}
        }
        _, problems = loader.from_table(table)
        assert list(map(str, problems.listed())) == [
            "server.echo.x: unknown key, the keys here are"
            " access, concurrency, framing, handler, limits, listen, proxy, socket, tls, workers",
            "server.echo.listen[1]: expected a string, got an integer",
        ]

    def test_variables_are_left_alone_unless_there_is_an_environment(self):
        table = {"server": {"echo": {"listen": "tcp://:1", "handler": "${H}"}}}
        assert loader.from_table(table)[0].server["echo"].handler.name == "${H}"
        assert loader.from_table(table, (), {"H": "x"})[0].server["echo"].handler.name == "x"

    def test_a_table_without_end_is_a_problem(self):
        options: dict[str, object] = {"name": "echo"}
        options["again"] = options
        table = {"server": {"echo": {"listen": "tcp://:1", "handler": options}}}
        _, problems = loader.from_table(table)
        assert [problem.message for problem in problems.listed()] == ["nested too deeply"]


class TestPlaces:
    TEXT = """\
[server.a]
listen = "x"

handler = "y"
[server.b]
handler = { name = "y",
  o = 1,
}
listen = [
  "x",
  "y",
]
"""

    @pytest.mark.parametrize(
        ("key", "place"),
        [
            ((), "srvkit.toml: "),
            (("server", "a"), "srvkit.toml:1: server.a: "),
            (("server", "a", "limits", "idle_timeout"), "srvkit.toml:1: server.a.limits.idle_timeout: "),
            (("server", "a", "listen"), "srvkit.toml:2: server.a.listen: "),
            (("server", "a", "listen", 0), "srvkit.toml:2: server.a.listen: "),
            (("server", "b", "handler", "o"), "srvkit.toml:7: server.b.handler.o: "),
            (("server", "b", "listen", 1), "srvkit.toml:11: server.b.listen[1]: "),
            (("server", "b", "listen", 7), "srvkit.toml:9: server.b.listen[7]: "),
            (("other",), "srvkit.toml: other: "),
        ],
    )
    def test_a_problem_stands_where_its_key_or_the_table_around_it_stands(self, key, place):
        _, problems = loader.read_text(self.TEXT, "srvkit.toml")
        problems.add(key, "wrong")
        assert list(map(str, problems.listed())) == [f"{place}wrong"]

    def test_problems_come_in_the_order_of_the_file_and_then_as_they_were_added(self):
        _, problems = loader.read_text(self.TEXT, "srvkit.toml", ["server.a.workers=1"])
        for key in (
            ("server", "a", "workers"),
            (),
            ("server", "b"),
            ("server", "a", "handler"),
            ("server", "b", "x"),
        ):
            problems.add(key, f"at {len(key)}")
        with pytest.raises(ConfigError) as caught:
            problems.raise_if_any()
        assert [(problem.file, problem.line, problem.key) for problem in caught.value.problems] == [
            ("srvkit.toml", 4, "server.a.handler"),
            ("srvkit.toml", 5, "server.b"),
            ("srvkit.toml", 5, "server.b.x"),
            ("srvkit.toml", 0, ""),
            ("--set", 0, "server.a.workers"),
        ]

    def test_messages_stay_on_one_line(self):
        _, problems = loader.read_text(self.TEXT, "srvkit.toml")
        problems.add(("server", "a"), "first\nsecond\r\n  third")
        assert str(problems.listed()[0]) == "srvkit.toml:1: server.a: first second third"

    def test_a_file_of_many_problems_lists_the_first_ones_and_counts_the_others(self):
        _, problems = loader.read_text(
            GOOD + "\n".join(f"k{number} = 1" for number in range(20_000)), "srvkit.toml"
        )
        listed = problems.listed()
        assert len(problems) == 20_000
        assert len(listed) == 501
        assert str(listed[499]).startswith("srvkit.toml:503: server.echo.k499: unknown key, ")
        assert str(listed[500]) == "srvkit.toml: and 19500 more problems"


def test_every_kind_of_problem_of_a_file_is_reported_at_once():
    text = """\
[srvkit]
owner = "srv"
drain_timeout = "soon"
[server.echo]
listen = "tcp://${HOST}:7007"
handler = "echo"
concurency = "pool"
workers = true
[server.echo.limits]
max_connections = 0
[server.other]
"""
    assert problems_of(text, "x", "server.echo.tsl.cert=a") == [
        "srvkit.toml:2: srvkit.owner: unknown key, the keys here are block, control, drain_timeout,"
        " generations, group, heartbeat_timeout, pid_file, plugins, ready_timeout, retire_timeout, user",
        'srvkit.toml:3: srvkit.drain_timeout: expected seconds or a duration like "250ms", "30s", "5m", "1h",'
        " got 'soon'",
        "srvkit.toml:5: server.echo.listen: environment variable HOST is not set,"
        " and ${HOST} gives no default",
        "srvkit.toml:7: server.echo.concurency: unknown key, did you mean 'concurrency'?",
        'srvkit.toml:8: server.echo.workers: expected a number from 1 to 1024 or "auto", got a boolean',
        "srvkit.toml:10: server.echo.limits.max_connections: expected at least 1, got 0",
        "srvkit.toml:11: server.other.listen: missing, this key is required",
        "srvkit.toml:11: server.other.handler: missing, this key is required",
        '--set: "x" has no value; write KEY=VALUE',
        "--set: server.echo.tsl: unknown key, did you mean 'tls'?",
    ]


PIECES = [
    *(
        "[",
        "]",
        "[[",
        "{",
        "}",
        "=",
        ".",
        ",",
        "#",
        '"',
        "'",
        '"""',
        "\n",
        "\r",
        " ",
        "\\",
        "\0",
        "${",
        "${A}",
    ),
    *("server", "srvkit", "echo", "listen", "handler", "limits", "name"),
    *("1", "-", "inf", "true", "1979-05-27", "0x"),
]


@given(
    st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)),
    st.lists(
        st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=8).map("".join)),
        max_size=3,
    ),
)
def test_any_text_and_any_overrides_give_a_configuration_or_a_config_error(text, overrides):
    try:
        _, problems = loader.read_text(text, "srvkit.toml", overrides, {"A": "1"})
        problems.raise_if_any()
    except ConfigError as error:
        lines = str(error).split("\n")
        if len(lines) != len(error.problems):
            pytest.fail(f"problems of more than one line: {lines}")


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.none(), st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["name", "x"]), inner)
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["listen", "handler", "concurrency", "workers", "framing", "limits", "socket", "idle_timeout"]
)


@given(st.dictionaries(KEYS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES))))
def test_any_values_give_a_configuration_or_problems(server):
    config, problems = loader.from_table({"server": {"echo": server}})
    assert problems or config.server["echo"].listen
