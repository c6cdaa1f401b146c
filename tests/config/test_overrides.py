"""What the environment and the command line put into a configuration: variables and overrides."""

from __future__ import annotations

import pytest

from srvkit.config import loader
from srvkit.config.model import Choice
from tests.config.loaded_text import GOOD, config_of, problems_of


class TestVariables:
    def test_are_put_into_strings_everywhere(self) -> None:
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

    def test_alone_they_are_converted_to_the_keys_type(self) -> None:
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

    def test_with_other_text_they_are_strings(self) -> None:
        text = GOOD + 'limits.max_connections = "${COUNT}0"\n'
        assert problems_of(text, COUNT="7") == [
            "srvkit.toml:4: server.echo.limits.max_connections: expected an integer, got a string"
        ]

    def test_each_one_that_is_unset_is_a_problem_and_the_only_one_of_its_key(self) -> None:
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

    def test_nor_where_it_is_out_of_bounds(self) -> None:
        text = GOOD + 'workers = "${V}"\nlimits.max_connections = "${W}"\nlimits.idle_timeout = "${V}"'
        assert problems_of(text, V="-4", W="0") == [
            'srvkit.toml:4: server.echo.workers: expected a number from 1 to 1024 or "auto", got ${V}',
            "srvkit.toml:5: server.echo.limits.max_connections: expected at least 1, got ${W}",
            "srvkit.toml:6: server.echo.limits.idle_timeout: expected a duration from 0s to 500h, got ${V}",
        ]

    def test_one_that_begins_like_another_is_hidden_as_a_whole(self) -> None:
        text = GOOD + "limits.when_full = '${A}-${B}'\n"
        message = problems_of(text, A="secret", B="secretive")[0]
        assert message.endswith("expected 'wait' or 'close', got '${A}-${B}'")

    def test_nor_in_what_others_say_about_the_key(self) -> None:
        text = GOOD.replace('"tcp://127.0.0.1:0"', '["${LISTEN}", "tcp://${HOST}:1"]')
        _, problems = loader.read_text(text, "srvkit.toml", (), {"LISTEN": "tpc://secret", "HOST": "a b"})
        problems.add(("server", "echo", "listen", 0), "'tpc://secret' is no address, 'tcp://...' would be")
        problems.add(("server", "echo", "listen", 1), "'tcp://a b:1' is no address")
        assert [problem.message for problem in problems.listed()] == [
            "'${LISTEN}' is no address, 'tcp://...' would be",
            "'tcp://${HOST}:1' is no address",
        ]


class TestOverrides:
    def test_replace_and_add_keys_with_toml_values_or_strings(self) -> None:
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

    def test_give_options_to_a_choice_that_is_a_name(self) -> None:
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

    def test_only_the_choice_itself_may_become_a_table(self) -> None:
        text = GOOD + 'framing = { name = "x", framing = "y" }\n'
        assert problems_of(text, "server.echo.framing.framing.z=1") == [
            "--set: server.echo.framing.framing.z: server.echo.framing.framing is not a table"
        ]

    def test_a_replaced_line_of_the_file_is_not_blamed(self) -> None:
        text = GOOD + "limits = { x = 1 }\nconcurrency = 5\n"
        assert problems_of(text, "server.echo.limits={ x = 2 }", "server.echo.socket.y=1") == [
            'srvkit.toml:5: server.echo.concurrency: expected a name or a table like { name = "..." }, got 5',
            "--set: server.echo.limits.x: unknown key, the keys here are connect_rate, first_byte_timeout,"
            " idle_timeout, max_connections, max_message, max_per_client, max_requests, max_rss,"
            " request_timeout, when_full, write_timeout",
            "--set: server.echo.socket.y: unknown key, the keys here are"
            " backlog, group, keepalive, mode, nodelay, owner, receive_buffer, send_buffer",
        ]

    def test_leave_the_table_they_are_applied_to_alone(self) -> None:
        table = {"server": {"echo": {"listen": "tcp://:1", "handler": "echo"}}}
        config, problems = loader.from_table(
            table, ["server.echo.handler.x=1", "server.b.handler=x", "srvkit.block=[]"]
        )
        assert config.server["echo"].handler == Choice("echo", {"x": 1})
        assert table == {"server": {"echo": {"listen": "tcp://:1", "handler": "echo"}}}
        assert list(map(str, problems.listed())) == ["--set: server.b.listen: missing, this key is required"]
