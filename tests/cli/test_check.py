"""`srvkit check` says everything that `run` would refuse, and shows each server as the class it is."""

from __future__ import annotations

import socket

import pytest

ECHO = '[server.echo]\nlisten = "tcp://127.0.0.1:7007"\nhandler = "echo"\n'

SMALL = """\
[srvkit]
plugins = ["plugin.py"]

[server.echo]
listen = "tcp://127.0.0.1:7007"
handler = { name = "parrot", times = 3 }
concurrency = { name = "pool", threads = 4 }
framing = { name = "delimiter", delimiter = ";" }
limits.max_message = "64KiB"

[server.time-2]
listen = ["udp://127.0.0.1:3737", "unixgram:time.sock"]
handler = "plain"
concurrency = "serial"
"""

PLUGIN = """\
from dataclasses import dataclass
from srvkit import BaseRequestHandler, MessageHandler, hookimpl

class Parrot(MessageHandler):
    @dataclass
    class Options:
        times: int = 1

    def handle_message(self, message):
        return [message] * self.options.times

class Plain(BaseRequestHandler):
    def handle(self):
        pass

@hookimpl
def srvkit_handlers():
    return {"parrot": Parrot, "plain": Plain}
"""

EXPLAINED = """\
class Parrot(plugin.Parrot):
    framing = Delimiter(b';', max_message=65536)
    options = Parrot.Options(times=3)

class EchoTCPServer(ThreadPoolMixIn, TCPServer):
    name = 'echo'
    limits = LimitSettings(max_connections=1024, when_full='wait', max_per_client=0, \
connect_rate=0, first_byte_timeout=10.0, \
idle_timeout=60.0, request_timeout=0.0, write_timeout=30.0, max_message=65536, max_requests=0, max_rss=0)
    log_errors = True
    contain_exit = True
    always_finish = True
    threads = 4
    request_queue_size = 2048
    connection_class = Connection
    daemon_threads = True
    block_on_close = False
    admission = (
        Capacity(max_connections=1024, when_full='wait'),
    )

# listens on tcp://127.0.0.1:7007; each connection goes to Parrot


class Time2UDPServer(UDPServer):
    name = 'time-2'
    limits = LimitSettings(max_connections=1024, when_full='wait', max_per_client=0, \
connect_rate=0, first_byte_timeout=10.0, \
idle_timeout=60.0, request_timeout=0.0, write_timeout=30.0, max_message=1048576, max_requests=0, max_rss=0)
    log_errors = True
    contain_exit = True
    always_finish = True
    max_packet_size = 65535
    drop_truncated = True
    reply_only_if_written = True
    admission = ()

# listens on udp://127.0.0.1:3737, unixgram:time.sock; each datagram goes to plugin.Plain
"""


def test_explain_writes_the_class_statements_of_the_file(srvkit, tmp_path):
    (tmp_path / "srvkit.toml").write_text(SMALL)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    done = srvkit("check", "--explain")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == EXPLAINED.replace("time.sock", f"{tmp_path}/time.sock")


def test_explain_shows_what_a_connection_passes_in_its_order(srvkit, tmp_path):
    (tmp_path / "srvkit.toml").write_text(
        ECHO
        + """
access = { allow = ["192.0.2.0/24"], deny = ["192.0.2.1"] }
proxy = { trusted = ["127.0.0.1"], header_timeout = "2s" }
limits = { max_connections = 5, when_full = "close", max_per_client = 2, connect_rate = 3 }
"""
    )
    explained = srvkit("check", "--explain").stdout
    stages = explained.partition("admission = (\n")[2].partition("    )\n")[0]
    assert [line.strip() for line in stages.splitlines()] == [
        "Capacity(max_connections=5, when_full='close'),",
        "TrustedProxies(allow=['127.0.0.1']),",
        "ProxyStage(header_timeout=2.0),",
        "Access(allow=['192.0.2.0/24'], deny=['192.0.2.1']),",
        "PerClient(max_per_client=2, connect_rate=3),",
    ]


def test_changing_one_word_changes_the_mixin_alone(srvkit, tmp_path):
    (tmp_path / "srvkit.toml").write_text(ECHO)

    def statement(model: str) -> str:
        explained = srvkit("check", "--explain", "--set", f"server.echo.concurrency={model}").stdout
        return next(line for line in explained.splitlines() if line.startswith("class EchoTCPServer"))

    assert [statement(model) for model in ("serial", "threading", "pool", "forking")] == [
        "class EchoTCPServer(TCPServer):",
        "class EchoTCPServer(ThreadingMixIn, TCPServer):",
        "class EchoTCPServer(ThreadPoolMixIn, TCPServer):",
        "class EchoTCPServer(ForkingMixIn, TCPServer):",
    ]


def test_all_is_well_in_one_line(srvkit, tmp_path):
    (tmp_path / "srvkit.toml").write_text(ECHO)
    done = srvkit("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "srvkit.toml: 1 server, nothing wrong\n", "")


def test_what_is_wrong_is_what_run_says(refused, tmp_path):
    (tmp_path / "bad.toml").write_text(ECHO.replace("echo", "ehco") + "workers = 0\n")
    assert refused(2, "check", "bad.toml") == refused(2, "run", "bad.toml")


def test_nothing_is_opened(srvkit, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "srvkit.toml").write_text(
            ECHO.replace("7007", str(port)) + '[server.x]\nlisten = "unix:missing/x.sock"\nhandler = "echo"\n'
        )
        assert srvkit("check").returncode == 0


def test_a_descriptor_that_is_no_socket_is_a_problem(refused, tmp_path):
    (tmp_path / "srvkit.toml").write_text(ECHO.replace("tcp://127.0.0.1:7007", "fd:99"))
    assert refused(2, "check") == [
        "srvkit.toml:2: server.echo.listen: fd:99 is no socket: Bad file descriptor"
    ]


def test_a_file_without_a_server_is_an_error(refused, tmp_path):
    (tmp_path / "srvkit.toml").write_text("[srvkit]\n")
    assert refused(2, "check") == [
        "srvkit.toml: there is no server; a table [server.NAME] with listen and handler makes one"
    ]


def test_variables_of_the_environment_are_used_and_never_shown(refused, srvkit, tmp_path, monkeypatch):
    (tmp_path / "srvkit.toml").write_text(
        ECHO.replace("echo", "${HANDLER}", 2).replace("${HANDLER}", "echo", 1)
    )
    monkeypatch.setenv("HANDLER", "echo")
    assert srvkit("check").returncode == 0
    monkeypatch.setenv("HANDLER", "secret-word")
    (line,) = refused(2, "check")
    assert line.startswith("srvkit.toml:3: server.echo.handler: unknown handler '${HANDLER}' (known are ")


@pytest.mark.parametrize("command", ["check", "plugins"])
@pytest.mark.parametrize(
    "code",
    [
        "import threading; threading.Thread(target=threading.Event().wait).start()\n"
        "import atexit; atexit.register(threading.Event().wait)",
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import sys; sys.stdout = sys.stderr = None",
        "import os; os.close(1); os.close(2)",
    ],
)
def test_whatever_plugins_do_a_command_says_what_it_found_and_ends(srvkit, tmp_path, code, command):
    (tmp_path / "srvkit.toml").write_text(SMALL)
    (tmp_path / "plugin.py").write_text(f"{PLUGIN}\n{code}\n")
    fine, wanted = srvkit(command), "2 servers, nothing wrong" if command == "check" else "parrot"
    assert (fine.returncode, fine.stderr) == (0, "")
    assert wanted in fine.stdout
    (tmp_path / "plugin.py").write_text(f"{PLUGIN}\n{code}\n1 / 0\n")
    wrong = srvkit(command)
    assert (wrong.returncode, wrong.stdout) == (3, "")
    assert "ZeroDivisionError" in wrong.stderr


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_handler_of_one_process_is_refused_with_line_key_and_advice(command, refused, tmp_path):
    (tmp_path / "plugin.py").write_text(
        "from srvkit import *\nclass Room(MessageHandler):\n    one_process = True\n"
        "    def handle_message(self, message): ...\n"
        "@hookimpl\ndef srvkit_handlers():\n    return {'room': Room}\n"
    )
    (tmp_path / "srvkit.toml").write_text(
        '[srvkit]\nplugins = ["plugin.py"]\n[server.room]\nlisten = "tcp://127.0.0.1:0"\n'
        'handler = "room"\nworkers = 4\nconcurrency = "forking"\n'
    )
    said = "\n".join(refused(2, command, "srvkit.toml"))
    asks = "cannot run Room, whose one_process asks for a single process"
    assert f"srvkit.toml:6: server.room.workers: 4 workers {asks}; write workers = 1" in said
    assert f"srvkit.toml:7: server.room.concurrency: 'forking' {asks}: this model forks one for" in said
