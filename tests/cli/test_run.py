"""`srvkit run` that cannot: one line for each problem, naming what, where and what to do; then a status."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from srvkit.plugins.builtin import srvkit_concurrency

MODELS = ", ".join(sorted(srvkit_concurrency()))
ECHO = '[server.echo]\nlisten = "tcp://127.0.0.1:0"\nhandler = "echo"\n'
UNIX = '[server.other]\nlisten = "unix:other.sock"\nhandler = "echo"\nconcurrency = "{}"\n'


def test_a_folder_without_a_configuration_is_named(refused, tmp_path):
    looked_for = tmp_path / "srvkit.toml"
    assert refused(2, "run") == [f"srvkit.toml: there is no such file (looked for {looked_for})"]


def test_a_configuration_that_is_a_folder_is_refused(refused, tmp_path):
    (tmp_path / "srvkit.toml").mkdir()
    assert refused(2, "run") == ["srvkit.toml: is a directory, a file is expected"]


def test_a_configuration_that_may_not_be_read_is_refused(refused, tmp_path):
    (tmp_path / "srvkit.toml").write_text(ECHO)
    (tmp_path / "srvkit.toml").chmod(0)
    if os.geteuid() != 0:
        assert refused(2, "run") == ["srvkit.toml: cannot be read: Permission denied"]
        return
    (tmp_path / "srvkit.toml").chmod(0o644)
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    assert refused(2, "run", "loop.toml") == ["loop.toml: cannot be read: Too many levels of symbolic links"]


def test_a_syntax_error_has_line_and_column(refused, tmp_path):
    (tmp_path / "srvkit.toml").write_text('[server.echo]\nlisten = "tcp://127.0.0.1:0\n')
    assert refused(2, "run") == ["srvkit.toml:2:28: illegal character '\\n'"]


def test_every_problem_of_a_file_is_reported_at_once_in_its_order(refused, tmp_path):
    (tmp_path / "my.toml").write_text(
        """\
[srvkit]
drain_timeout = "soon"
plugin = []

[server.echo]
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "127.0.0.1:80"]
handler = "ehco"
concurency = "forking"
workers = 0

[server.echo.limits]
max_connections = 0
idle_timeout = true

[server.echo.sockets]
backlog = 5

[server.fixed]
listen = "unix:fixed.sock"
handler = "echo"
concurrency = { name = "pool", treads = 4 }
framing = { name = "fixed-size", size = 100 }
limits.max_message = 99

[server.blocking]
listen = "udp://0.0.0.0:7007"
handler = "http.server:SimpleHTTPRequestHandler"
framing = "lines"

[server.next]
handler = "discard"
"""
    )
    assert refused(2, "run", "my.toml") == [
        "my.toml:2: srvkit.drain_timeout: expected seconds or a duration like "
        """"250ms", "30s", "5m", "1h", got 'soon'""",
        "my.toml:3: srvkit.plugin: unknown key, did you mean 'plugins'?",
        "my.toml:6: server.echo.listen[2]: '127.0.0.1:80' is no address; known are tcp://HOST:PORT, "
        "udp://HOST:PORT, unix:PATH or unix:@NAME, unixgram:PATH or unixgram:@NAME, fd:N, systemd:NAME",
        "my.toml:6: server.echo.listen: one server listens either for streams (tcp, unix) or for datagrams "
        "(udp, unixgram): make two tables",
        "my.toml:7: server.echo.handler: unknown handler 'ehco', did you mean 'echo'? "
        "(known are chargen, daytime, discard, echo, shout, time)",
        "my.toml:8: server.echo.concurency: unknown key, did you mean 'concurrency'?",
        'my.toml:9: server.echo.workers: expected a number from 1 to 1024 or "auto", got 0',
        "my.toml:12: server.echo.limits.max_connections: expected at least 1, got 0",
        "my.toml:13: server.echo.limits.idle_timeout: expected seconds or a duration like "
        '"250ms", "30s", "5m", "1h", got a boolean',
        "my.toml:15: server.echo.sockets: unknown key, did you mean 'socket'?",
        "my.toml:21: server.fixed.concurrency.treads: unknown option 'treads', did you mean 'threads'?",
        "my.toml:23: server.fixed.limits.max_message: size = 100 does not fit max_message = 99",
        "my.toml:27: server.blocking.handler: SimpleHTTPRequestHandler handles streams (tcp://, unix:), "
        "not udp://0.0.0.0:7007",
        "my.toml:28: server.blocking.framing: framing is for message handlers; "
        "SimpleHTTPRequestHandler does its own input and output",
        "my.toml:30: server.next.listen: missing, this key is required",
    ]


def test_an_override_is_checked_like_the_file(refused, tmp_path):
    (tmp_path / "srvkit.toml").write_text(ECHO)
    words = ("--set", "server.echo.concurrency=treading", "--set", "server.echo.limits.max_message=big")
    assert refused(2, "run", *words) == [
        "--set: server.echo.limits.max_message: expected bytes or a size like "
        """"512B", "64KiB", "1MiB", "1GiB", got 'big'""",
        "--set: server.echo.concurrency: unknown concurrency model 'treading', did you mean 'threading'? "
        f"(known are {MODELS})",
    ]


def test_an_override_takes_effect(tmp_path, start):
    (tmp_path / "srvkit.toml").write_text(ECHO)
    words = ("--set", "server.echo.listen=unix:over.sock", "--set", "server.echo.concurrency=serial")
    with start("-m", "srvkit", "run", *words, folder=tmp_path) as program:
        assert program.addresses("echo") == [f"unix:{tmp_path}/over.sock"]
        assert program.end() == 0


@pytest.mark.parametrize("model", ["threading", "forking"])
@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_a_port_in_use_is_named_and_nothing_else_stays_bound(scheme, model, refused, tmp_path):
    kind = socket.SOCK_STREAM if scheme == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if scheme == "tcp":
            taken.listen()
        address = f"{scheme}://127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "srvkit.toml").write_text(UNIX.format(model) + ECHO.replace("tcp://127.0.0.1:0", address))
        assert refused(3, "run") == [
            f"cannot listen on {address}: the address is in use; is another server running?"
        ]
    assert not list(tmp_path.glob("*.sock"))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://192.0.2.1:0", "this machine has no such address"),
        ("tcp://no-such-host.invalid:0", r"the host name cannot be resolved \(.*\)"),
        ("unix:missing/echo.sock", "the folder {folder}/missing does not exist"),
        ("unix:file", "a file that is no socket stands there; it was left untouched"),
        ("unix:file/echo.sock", "Not a directory"),
    ],
)
def test_an_address_that_cannot_be_had_is_named_with_the_reason(address, reason, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "srvkit.toml").write_text(
        UNIX.format("threading") + ECHO.replace("tcp://127.0.0.1:0", address)
    )
    (line,) = refused(3, "run")
    address = address.replace("unix:", f"unix:{tmp_path}/")
    reason = reason.format(folder=tmp_path)
    assert re.fullmatch(f"cannot listen on {re.escape(address)}: {reason}", line)
    assert (tmp_path / "file").read_text() == "precious"
    assert not list(tmp_path.glob("*.sock"))


def test_a_privileged_port_needs_rights(refused, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may")
    (tmp_path / "srvkit.toml").write_text(ECHO.replace(":0", ":7"))
    assert refused(3, "run") == [
        "cannot listen on tcp://127.0.0.1:7: permission denied; ports below 1024 and other users' "
        "folders need "
        "more rights"
    ]


def test_a_path_that_is_too_long_for_a_socket_is_a_problem_of_the_file(refused, tmp_path):
    path = "long/" * 30 + "echo" * 25
    (tmp_path / "srvkit.toml").write_text(ECHO.replace("tcp://127.0.0.1:0", f"unix:{path}"))
    (line,) = refused(2, "run")
    assert line.startswith("srvkit.toml:2: server.echo.listen: ")
    assert re.search(
        r"is longer than the 107 bytes a socket address holds, and the file's name alone is longer than \d+$",
        line,
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import absent", "cannot be imported: ModuleNotFoundError: No module named 'absent' ({file}:1)"),
        ("x = 1\nx.y", "cannot be imported: AttributeError: 'int' object has no attribute 'y' ({file}:2)"),
        ("def f(:\n", "cannot be imported: SyntaxError: invalid syntax ({file}:1)"),
        ("import sys\nsys.exit(0)", "cannot be imported: SystemExit: 0 ({file}:2)"),
        (
            "from srvkit import hookimpl\n@hookimpl\ndef srvkit_handler(): ...",
            "unknown hook 'srvkit_handler', did you mean 'srvkit_handlers'? ({file}:2)",
        ),
        ("def srvkit_handlers(): ...", "srvkit_handlers is not marked with @hookimpl ({file}:1)"),
        (
            "from srvkit import hookimpl\n@hookimpl\ndef srvkit_configure(config): 1 / 0",
            "srvkit_configure failed: ZeroDivisionError: division by zero ({file}:3)",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named_with_file_and_line(source, message, refused, tmp_path):
    (tmp_path / "handlers").mkdir()
    file = tmp_path / "handlers" / "bad.py"
    file.write_text(source)
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["handlers"]\n' + ECHO)
    assert refused(3, "run") == [f"plugin handlers/bad.py: {message.format(file=file)}"]


def test_two_plugins_that_offer_one_name_are_both_named(refused, tmp_path):
    (tmp_path / "handlers").mkdir()
    for name in ("one", "two"):
        (tmp_path / "handlers" / f"{name}.py").write_text(
            "from srvkit import *\n@hookimpl\ndef srvkit_handlers():\n    return {'x': MessageHandler}\n"
        )
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["handlers"]\n' + ECHO)
    (line,) = refused(3, "run")
    assert re.fullmatch(
        "plugin handlers/(one|two).py: offers handler 'x', and so does plugin handlers/(one|two).py: "
        "block or rename one of them",
        line,
    )


def test_a_problem_of_the_file_does_not_hide_one_of_a_plugin(refused, tmp_path):
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["absent"]\nblok = []\n' + ECHO)
    assert refused(2, "run") == [
        f"srvkit.toml:2: srvkit.plugins: plugin absent: there is no folder {tmp_path}/absent, and no module "
        "'absent' to import",
        "srvkit.toml:3: srvkit.blok: unknown key, did you mean 'block'?",
    ]


def test_paths_are_relative_to_the_configuration_and_its_folder_leads_the_import_path(
    tmp_path, start, client
):
    site = tmp_path / "site"
    (site / "plug").mkdir(parents=True)
    (site / "run").mkdir()
    (site / "wording.py").write_text('WORD = b"from the site"\n')
    (tmp_path / "wording.py").write_text('WORD = b"from elsewhere"\n')
    (site / "plug" / "word.py").write_text(
        "import wording\nfrom srvkit import *\nclass Word(MessageHandler):\n"
        "    def connected(self):\n        return wording.WORD\n"
        "@hookimpl\ndef srvkit_handlers():\n    return {'word': Word}\n"
    )
    (site / "my.toml").write_text(
        '[srvkit]\nplugins = ["plug"]\n[server.word]\nlisten = "unix:run/word.sock"\nhandler = "word"\n'
    )
    with start("-m", "srvkit", "run", "site/my.toml", folder=tmp_path) as program:
        program.addresses("word")
        with client("unix:site/run/word.sock", tmp_path) as sock:
            assert sock.recv(100) == b"from the site"
        assert program.end() == 0
    assert not list(Path(site, "run").iterdir())


def test_the_line_that_says_ready_has_the_address_with_its_port(tmp_path, start, client):
    (tmp_path / "srvkit.toml").write_text(ECHO)
    with start("-m", "srvkit", "run", folder=tmp_path) as program:
        (address,) = program.addresses("echo")
        assert re.fullmatch(r"tcp://127\.0\.0\.1:[1-9]\d+", address)
        with client(address) as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"
        assert program.end() == 0
        assert len(program.log.splitlines()) == 2


def test_an_inherited_socket_is_told_with_its_address(tmp_path, start, client):
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*given.getsockname())
        (tmp_path / "srvkit.toml").write_text(ECHO.replace("tcp://127.0.0.1:0", f"fd:{given.fileno()}"))
        with start("-m", "srvkit", "run", folder=tmp_path, pass_fds=[given.fileno()]) as program:
            assert program.addresses("echo") == [f"fd:{given.fileno()} ({address})"]
            with client(f"tcp://{address}") as sock:
                sock.sendall(b"hello")
                assert sock.recv(100) == b"hello"
            assert program.end() == 0


def test_a_handler_that_replaces_an_installed_one_is_noted(tmp_path, start):
    (tmp_path / "mine.py").write_text(
        "from srvkit import *\n@hookimpl\ndef srvkit_handlers():\n    return {'echo': MessageHandler}\n"
    )
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["mine.py"]\n' + ECHO)
    with start("-m", "srvkit", "run", folder=tmp_path) as program:
        program.addresses("echo")
        assert program.end() == 0
        assert "handler 'echo' of plugin mine.py is used instead of the installed one" in program.log
