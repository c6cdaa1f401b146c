"""A start either succeeds as a whole or leaves nothing behind, and says which server or plugin is why."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading

import pytest

GOOD = '[server.good]\nlisten = "unix:good.sock"\nhandler = "hold"\nconcurrency = "{}"\n'
BOTH_MODES = pytest.mark.parametrize("mode", [["--single"], []], ids=["single", "supervised"])
BAD = '[server.bad]\nlisten = "unix:bad.sock"\nhandler = "bad"\nconcurrency = "{}"\n'


def bad(statement: str, where: str = "startup(cls, server)") -> str:
    return f"""
import os, signal, sys
class Bad(Hold):
    @classmethod
    def {where}:
        {statement}

@hookimpl(specname="srvkit_handlers")
def more():
    return {{"bad": Bad}}
"""


def whole(mode: list[str]) -> str:
    """Tell plugins which process to signal."""
    return "os.getpid()" if mode else "os.getppid()"


def hooked(statement: str, hook: str) -> str:
    return f"\nimport os, signal, sys\n@hookimpl\ndef {hook}():\n    {statement}\n"


@BOTH_MODES
@pytest.mark.parametrize(
    ("good", "model"),
    [("", "threading"), ("", "forking"), ("threading", "serial"), ("forking", "pool"), ("pool", "forking")],
)
@pytest.mark.parametrize("statement", ["raise RuntimeError('no database')", "sys.exit('no database')"])
def test_a_startup_that_raises_ends_everything(good, model, statement, mode, run, tmp_path):
    program = run((GOOD.format(good) if good else "") + BAD.format(model), bad(statement))
    assert program.ended() == 3
    name = "RuntimeError" if "raise" in statement else "SystemExit"
    errors = re.findall(r"ERROR \w+\[\d+\]: (.*)$", program.log, re.MULTILINE)
    assert errors[0] == f"bad: could not start: {name}: no database"
    if mode:
        assert errors[1:] in ([], ["bad: its process ended with status 3"])
    else:
        assert errors[1:] == []
        assert program.log.endswith(f"\nsrvkit: bad: could not start: {name}: no database\n")
    assert not list(tmp_path.glob("*.sock"))


def test_the_status_tells_the_worst_that_happened(run, say, tmp_path):
    late = "open('release').read(); raise RuntimeError('no database')"
    program = run(GOOD.format("threading") + BAD.format("serial"), bad(late), drain_timeout="50ms")
    say(program.addresses("good")[0], b"endless")
    (tmp_path / "release").write_text("now")
    assert program.ended() == 3
    assert "good: cut 1 connection that had not finished\n" in program.log


@BOTH_MODES
@pytest.mark.parametrize("model", ["threading", "forking"])
def test_an_exception_of_server_start_keeps_the_server_from_starting(model, run, tmp_path):
    program = run(GOOD.format(model), hooked("raise RuntimeError('no')", "srvkit_server_start"))
    assert program.ended() == 3
    assert "good: could not start: RuntimeError: no\n" in program.log
    assert "listening on" not in program.log
    assert not list(tmp_path.glob("*.sock"))


@BOTH_MODES
@pytest.mark.parametrize("servers", ["threading", "forking", "threading forking"])
def test_an_exception_of_worker_start_keeps_everything_from_starting(servers, run, tmp_path):
    tables = "".join(GOOD.replace("good", model).format(model) for model in servers.split())
    program = run(tables, hooked("raise RuntimeError('no')", "srvkit_worker_start"))
    assert program.ended() == 3
    assert "srvkit_worker_start of a plugin: could not start: RuntimeError: no\n" in program.log
    assert "listening on" not in program.log
    assert not list(tmp_path.glob("*.sock"))


def test_a_run_that_gives_up_waits_for_its_processes(run, tmp_path):
    plugin = """
import os
first = os.getpid()
@hookimpl
def srvkit_worker_start(worker):
    if os.getpid() == first:
        raise RuntimeError("no")
    open("release").read()
"""
    program = run(GOOD.format("threading") + BAD.format("forking"), bad("pass") + plugin)
    program.wait_for("could not start: RuntimeError: no$")
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(0.5)
    (tmp_path / "release").write_text("now")
    assert program.ended() == 3


@BOTH_MODES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("model", ["threading", "forking"])
@pytest.mark.parametrize("hook", ["srvkit_worker_start", "srvkit_server_start"])
def test_a_signal_during_the_start_stops_cleanly(hook, model, number, mode, run, tmp_path):
    program = run(GOOD.format(model), hooked(f"os.kill({whole(mode)}, {number})", hook))
    assert program.ended() == 0
    assert "Traceback" not in program.log
    assert not list(tmp_path.glob("*.sock"))


@BOTH_MODES
@pytest.mark.parametrize("servers", ["threading", "forking", "threading forking"])
def test_a_signal_between_binding_and_serving_stops_cleanly(servers, mode, run, tmp_path):
    plugin = f"""
import os, signal
from srvkit import ForkingMixIn, ThreadingMixIn

class Late:
    @classmethod
    def from_listeners(cls, *arguments):
        try:  # once: a second signal would mean "at once"
            os.mkdir("told")
        except FileExistsError:
            pass
        else:
            os.kill({whole(mode)}, signal.SIGTERM)
        return super().from_listeners(*arguments)

class LateThreading(Late, ThreadingMixIn): ...
class LateForking(Late, ForkingMixIn): ...

@hookimpl
def srvkit_concurrency():
    return {{"late-threading": LateThreading, "late-forking": LateForking}}
"""
    tables = "".join(GOOD.replace("good", model).format(f"late-{model}") for model in servers.split())
    program = run(tables, plugin)
    assert program.ended() == 0
    assert "Traceback" not in program.log
    assert not list(tmp_path.glob("*.sock"))


@BOTH_MODES
@pytest.mark.parametrize(("model", "hook"), [("threading", "srvkit_worker_start"), ("forking", "startup")])
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGQUIT,)])
def test_a_start_that_hangs_can_be_broken_off(model, hook, numbers, mode, run, tmp_path):
    hang = "os.write(2, b'hanging\\n'); threading.Event().wait()"
    plugin = bad(hang) if hook == "startup" else bad("pass") + hooked(hang, hook)
    program = run(BAD.format(model), plugin)
    program.wait_for("^hanging$")
    for number in numbers:
        program.process.send_signal(number)
    if mode:
        assert program.ended() == 3
        assert "interrupted by a signal" in program.log
    else:  # no client has lost anything
        assert program.ended() == 0
    assert "Traceback" not in program.log
    assert not list(tmp_path.glob("*.sock"))


@BOTH_MODES
@pytest.mark.parametrize("other", ["", BAD.format("forking")], ids=["one", "two"])
def test_term_at_any_moment_of_the_start_leaves_nothing_behind(other, run, tmp_path):
    for _ in range(5):
        program = run(GOOD.format("threading") + other, bad("pass"))
        threading.Event().wait(random.uniform(0, 0.3))  # any moment will do: that is the point
        assert program.end() in (0, -signal.SIGTERM)
        assert "Traceback" not in program.log
        assert not list(tmp_path.glob("*.sock"))


@BOTH_MODES
def test_a_second_start_refuses_and_leaves_the_first_alone(run, start, say, mode, tmp_path):
    first = run(GOOD.format("threading"))
    (address,) = first.addresses("good")
    with start("-m", "srvkit", "run", *mode, folder=tmp_path) as second:
        assert second.ended() == 3
        assert second.log == (
            f"srvkit: cannot listen on unix:{tmp_path / 'good.sock'}: another server is listening there\n"
            if mode
            else f"srvkit: this configuration is running already (pid {first.pid})\n"
        )
    assert (tmp_path / "good.sock").is_socket()
    say(address, b"hello")
    assert first.end() == 0


@BOTH_MODES
def test_a_thread_at_import_forbids_forking(run, tmp_path):
    plugin = """
import time
threading.Thread(target=time.sleep, args=(60,), daemon=True, name="mining").start()
"""
    program = run(GOOD.format("forking"), plugin)
    assert program.ended() == 3
    assert program.log == (
        "srvkit: a plugin started threads when it was imported (mining), and forking beside threads is not "
        "safe: start them where a connection is handled, or choose another concurrency\n"
    )
    assert not list(tmp_path.glob("*.sock"))


def test_check_refuses_such_a_thread_too(run, start, tmp_path):
    plugin = (
        "import time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True, name='mining').start()\n"
    )
    assert run(GOOD.format("forking"), plugin).ended() == 3
    with start("-m", "srvkit", "check", folder=tmp_path) as check:
        assert check.ended() == 3
        assert "a plugin started threads when it was imported (mining)" in check.log


@pytest.mark.parametrize(
    ("mode", "left", "cannot"),
    [
        (["--single"], 2, "cannot listen on unix:good.sock"),
        (["--single"], 3, "cannot run"),
        (["--single"], 4, "cannot run"),
        (["--single"], 5, "cannot run"),
        ([], 0, "good: cannot run"),
        ([], 1, "good: cannot run"),
        ([], 2, "good: cannot run"),
        ([], 3, "good: cannot run"),
    ],
)
def test_a_system_that_has_no_descriptors_left_is_an_error_of_one_line(left, cannot, run, tmp_path):
    plugin = f"""
import os, resource
lowest = os.dup(0)
os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + {left}, lowest + {left}))
"""
    program = run(GOOD.format("threading"), plugin)
    assert program.ended() == 3
    assert program.log.replace(f"{tmp_path}/", "") == f"srvkit: {cannot}: Too many open files\n"
    assert not list(tmp_path.glob("*.sock"))


@BOTH_MODES
def test_closed_standard_files_are_no_obstacle(tmp_path, run, say, eventually):
    servers = GOOD.format("threading") + GOOD.replace("good", "forks").format("forking")
    program = run(servers, preexec_fn=lambda: [os.close(fd) for fd in range(3)])

    def answers(name: str) -> bool:
        assert program.process.poll() is None
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            say(f"unix:{name}.sock", b"hello")
            return True
        return False

    for name in ("good", "forks"):
        eventually(answers, name)  # there is no log that would say when
    # No socket got their numbers: what somebody prints must not go to a client.
    assert {os.readlink(f"/proc/{program.pid}/fd/{fd}") for fd in range(3)} == {os.devnull}
    assert program.end() == 0
    assert not list(tmp_path.glob("*.sock"))
