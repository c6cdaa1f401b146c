"""Nothing forks beside threads: a forking server says so, or has a process of its own."""

from __future__ import annotations

import os
import signal
import threading

import pytest

import srvkit
from tests.concurrency.forking_programs import BARE, COMPOSED, HANDLERS, ask, parent_of
from tests.conftest import Connect, RunCode, RunSrvkit


def test_a_plugin_that_starts_threads_when_imported_keeps_a_forking_server_from_starting(
    run_srvkit: RunSrvkit,
) -> None:
    program = run_srvkit(
        COMPOSED,
        HANDLERS + "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    )
    assert program.ended() == 3
    (line,) = program.log.splitlines()
    assert "a plugin started threads when it was imported" in line


@pytest.mark.parametrize("mode", [[], ["--single"]])
def test_a_thread_that_startup_leaves_keeps_it_from_starting(mode: list[str], run_srvkit: RunSrvkit) -> None:
    """It would be listening, and refuse every connection for as long as the thread lasts."""
    program = run_srvkit(
        COMPOSED,
        HANDLERS.replace(
            "class Stream(srvkit.StreamRequestHandler):",
            "class Stream(srvkit.StreamRequestHandler):\n"
            "    @classmethod\n"
            "    def startup(cls, server):\n"
            "        import threading, time\n"
            "        threading.Thread(target=time.sleep, args=(60,), name='pinging', daemon=True).start()\n",
        ),
        *mode,
    )
    assert program.ended() == 3
    assert "could not start: RuntimeError: not forking beside other threads (pinging)" in program.log
    assert "listening" not in program.log


def test_a_thread_that_appears_later_makes_it_refuse_connections(
    run_srvkit: RunSrvkit, client: Connect
) -> None:
    """Each of them is closed, and the log says why."""
    program = run_srvkit(
        COMPOSED,
        HANDLERS + "import threading, time\n"
        "@srvkit.hookimpl\n"
        "def srvkit_verify_request(request):\n"
        "    threading.Thread(target=time.sleep, args=(60,), name='surprise', daemon=True).start()\n",
    )
    with client(program.addresses("test")[0]) as sock:
        assert sock.recv(1) == b""
    program.wait_for(r"not forking beside other threads \(surprise\)")


def test_a_bare_class_forks_beside_threads(run_code: RunCode, client: Connect) -> None:
    """As in the standard library: whoever writes the program knows what it does."""
    program = run_code(
        BARE.replace(
            "# more",
            "import time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
        )
    )
    with client(program.addresses("test")[0]) as sock:
        assert ask(sock)


def test_embedding_a_forking_server_beside_threads_is_refused() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="beside")
    thread.start()
    try:
        with pytest.raises(srvkit.ConfigError, match=r"beside other threads \(.*beside.*\) is not safe"):
            srvkit.serve(srvkit.StreamRequestHandler, "tcp://127.0.0.1:0", concurrency="forking")
    finally:
        stop.set()
        thread.join()


def test_an_embedded_forking_server_runs_in_a_process_of_its_own(run_code: RunCode, client: Connect) -> None:
    program = run_code(
        HANDLERS + "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
        "with srvkit.serve(Stream, 'tcp://127.0.0.1:0', concurrency='forking') as server:\n"
        "    print(f' test: listening on tcp://127.0.0.1:{server.address[1]}')\n"
        "    signal.sigwait({signal.SIGUSR1})\n"
        "    print('all had finished:', server.stop(30))\n"
    )
    with client(program.addresses("test")[0]) as sock:
        child = ask(sock)["pid"]
        assert parent_of(parent_of(child)) == program.pid
    os.kill(program.pid, signal.SIGUSR1)
    assert program.ended() == 0
    program.wait_for("all had finished: True")
