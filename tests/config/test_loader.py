"""From a file or a text to a configuration: what cannot be read, and the lines of problems."""

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
from tests.config.loaded_text import GOOD, problems_of


def refusal(name: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        loader.read(name)
    assert caught.value.exit_status == 2
    return str(caught.value)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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

    def test_device(self) -> None:
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

    def test_a_name_that_can_be_none(self) -> None:
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


def test_carriage_returns_before_newlines_are_fine() -> None:
    assert problems_of(GOOD.replace("\n", "\r\n") + "x = 1\r\n")[0].startswith(
        "srvkit.toml:4: server.echo.x: "
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "[srvkit]\n", "server = {}"])
def test_a_file_without_a_server(text):
    assert problems_of(text) == [
        "srvkit.toml: there is no server; a table [server.NAME] with listen and handler makes one"
    ]


class TestTables:
    def test_problems_have_keys_without_a_file(self) -> None:
        table = {
            "server": {"echo": {"listen": ("tcp://:1", 5), "handler": "${HOME}", "framing": None, "x": 1}}
        }
        _, problems = loader.from_table(table)
        assert list(map(str, problems.listed())) == [
            "server.echo.x: unknown key, the keys here are"
            " access, concurrency, framing, handler, limits, listen, proxy, socket, tls, workers",
            "server.echo.listen[1]: expected a string, got an integer",
        ]

    def test_variables_are_left_alone_unless_there_is_an_environment(self) -> None:
        table = {"server": {"echo": {"listen": "tcp://:1", "handler": "${H}"}}}
        assert loader.from_table(table)[0].server["echo"].handler.name == "${H}"
        assert loader.from_table(table, (), {"H": "x"})[0].server["echo"].handler.name == "x"

    def test_a_table_without_end_is_a_problem(self) -> None:
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

    def test_problems_come_in_the_order_of_the_file_and_then_as_they_were_added(self) -> None:
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

    def test_messages_stay_on_one_line(self) -> None:
        _, problems = loader.read_text(self.TEXT, "srvkit.toml")
        problems.add(("server", "a"), "first\nsecond\r\n  third")
        assert str(problems.listed()[0]) == "srvkit.toml:1: server.a: first second third"

    def test_a_file_of_many_problems_lists_the_first_ones_and_counts_the_others(self) -> None:
        _, problems = loader.read_text(
            GOOD + "\n".join(f"k{number} = 1" for number in range(20_000)), "srvkit.toml"
        )
        listed = problems.listed()
        assert len(problems) == 20_000
        assert len(listed) == 501
        assert str(listed[499]).startswith("srvkit.toml:503: server.echo.k499: unknown key, ")
        assert str(listed[500]) == "srvkit.toml: and 19500 more problems"


def test_every_kind_of_problem_of_a_file_is_reported_at_once() -> None:
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
