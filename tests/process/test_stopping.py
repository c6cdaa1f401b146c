"""A stop loses no request that ends in time, ends every other one, and says so by its status."""

from __future__ import annotations

import contextlib
import re
import signal

import pytest

MODELS = ["serial", "threading", "pool", "forking"]
BOTH_MODES = pytest.mark.parametrize("mode", [["--single"], []], ids=["single", "supervised"])
SINGLE = pytest.mark.parametrize("mode", [["--single"]], ids=["single"])


def server(model: str, name: str = "a", listen: str = "tcp://127.0.0.1:0") -> str:
    return f'[server.{name}]\nlisten = "{listen}"\nhandler = "hold"\nconcurrency = "{model}"\n'


@BOTH_MODES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("model", ["threading", "forking"])
def test_a_signal_ends_an_idle_server_cleanly(model, number, run):
    program = run(server(model))
    program.addresses("a")
    assert program.end(number) == 0
    assert f"{number.name}: stopping" in program.log
    assert "Traceback" not in program.log


@SINGLE
@pytest.mark.parametrize("model", ["threading", "forking"])
def test_the_end_of_its_terminal_ends_a_server_without_a_supervisor(model, run, tmp_path):
    program = run(server(model, listen="unix:a.sock"))
    program.addresses("a")
    assert program.end(signal.SIGHUP) == 0
    assert "SIGHUP: stopping" in program.log
    assert not (tmp_path / "a.sock").exists()


@SINGLE
def test_and_does_not_where_it_was_started_to_outlive_it(run, say):
    settings = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    program = run(server("threading"), **settings)
    (address,) = program.addresses("a")
    program.process.send_signal(signal.SIGHUP)
    say(address, b"hello").close()
    assert program.end() == 0
    assert "SIGHUP" not in program.log


@BOTH_MODES
@pytest.mark.parametrize("model", MODELS)
def test_a_request_at_hand_is_answered_before_the_end(model, run, say, tmp_path):
    program = run(server(model))
    (address,) = program.addresses("a")
    file = say(address, b"hold")
    program.process.terminate()
    program.wait_for("SIGTERM: stopping$")
    (tmp_path / "release").write_text("now")
    assert file.readline() == b"done\n"
    assert file.readline() == b""
    assert program.ended() == 0


@BOTH_MODES
@pytest.mark.parametrize("model", MODELS)
def test_a_connection_that_is_idle_between_messages_does_not_delay_the_stop(model, run, say):
    program = run(server(model))
    (address,) = program.addresses("a")
    file = say(address, b"hello")
    assert program.end() == 0
    assert file.readline() == b""


@BOTH_MODES
@pytest.mark.parametrize("model", MODELS)
def test_an_endless_request_is_cut_at_the_deadline(model, run, say):
    program = run(server(model), drain_timeout="50ms")
    (address,) = program.addresses("a")
    file = say(address, b"endless")
    assert program.end() == 1
    assert file.readline() == b""
    assert "a: cut 1 connection that had not finished\n" in program.log


@BOTH_MODES
@pytest.mark.parametrize("model", ["threading", "forking"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_does_not_wait_for_the_deadline(model, number, run, say):
    program = run(server(model))
    (address,) = program.addresses("a")
    say(address, b"endless")
    program.process.terminate()
    program.wait_for("SIGTERM: stopping$")
    assert program.end(number) == 1
    assert f"{number.name}: stopping at once\n" in program.log
    assert "a: cut 1 connection that had not finished\n" in program.log


@BOTH_MODES
@pytest.mark.parametrize("model", ["threading", "forking"])
def test_quit_cuts_at_once(model, run, say):
    program = run(server(model))
    (address,) = program.addresses("a")
    say(address, b"endless")
    assert program.end(signal.SIGQUIT) == 1
    assert "SIGQUIT: stopping at once\n" in program.log


def test_what_the_stop_did_stands_in_the_log_without_a_traceback(run, say):
    program = run(server("threading"), drain_timeout="50ms")
    (address,) = program.addresses("a")
    say(address, b"endless")
    say(address, b"endless")
    program.end()
    said = [line.split(": ", 1)[1] for line in program.log.splitlines()]
    assert said[1:] == [
        "SIGTERM: stopping",
        "a: cut 2 connections that had not finished",
        "a: did not stop in time, abandoned",
    ]


def test_no_new_connection_is_taken_while_requests_finish(run, say, client, tmp_path):
    program = run(server("threading"))
    (address,) = program.addresses("a")
    file = say(address, b"hold")
    program.process.terminate()
    program.wait_for("SIGTERM: stopping$")
    with contextlib.suppress(ConnectionError):  # the door closes a moment after the line in the log
        while True:
            client(address).close()
    (tmp_path / "release").write_text("now")
    assert file.readline() == b"done\n"
    assert program.ended() == 0


def test_the_stop_works_where_signals_were_ignored_at_the_start(run):
    program = run(server("threading"), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    program.addresses("a")
    assert program.end(signal.SIGINT) == 0


def test_a_thread_of_a_plugin_that_keeps_the_process_is_named(run):
    plugin = """
def work():
    with open("release") as pipe:
        pipe.read()

class Busy(Hold):
    @classmethod
    def startup(cls, server):
        threading.Thread(target=work, name="mining", daemon=False).start()

@hookimpl(specname="srvkit_handlers")
def more():
    return {"busy": Busy}
"""
    program = run(server("threading").replace("hold", "busy"), plugin)
    program.addresses("a")
    program.process.terminate()
    program.wait_for("stopped; the process ends when these threads of a plugin do: mining$")
    assert program.end() == -signal.SIGTERM  # nothing is left to lose


def test_files_of_unix_sockets_are_gone_after_the_stop(run, tmp_path):
    program = run(server("threading", "a", "unix:a.sock") + server("forking", "b", "unixgram:b.sock"))
    program.addresses("a")
    program.addresses("b")
    assert {path.name for path in tmp_path.glob("*.sock")} == {"a.sock", "b.sock"}
    assert program.end() == 0
    assert not list(tmp_path.glob("*.sock"))


def test_a_server_that_ends_by_itself_ends_the_others(run, say):
    plugin = """
class Ender(Hold):
    def handle_message(self, message):
        self.server.stop_serving()
        return b"done"

@hookimpl(specname="srvkit_handlers")
def more():
    return {"ender": Ender}
"""
    program = run(server("threading", "a").replace("hold", "ender") + server("threading", "b"), plugin)
    program.addresses("b")
    say(program.addresses("a")[0], b"hello")
    assert program.ended() == 0
    assert re.search("a: has ended, so b must stop too$", program.log, re.MULTILINE)
