"""What a handler starts is an ordinary process, and does not touch the worker that it comes from."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import pytest

from tests.process.conftest import Available, Managed

LIBRARYS_OWN = 1 << 31 | 1 << 32  # signals 32 and 33 of the C library: as whoever runs the tests has them
PATIENCE = 30  # seconds before something counts as hung
MODELS = ["serial", "threading", "pool", "forking", "event", "asyncio", "gevent"]

STARTER = """
import multiprocessing, os, signal, subprocess, sys, time
from srvkit import Lines, MessageHandler, hookimpl

def dispositions():
    status = subprocess.run(["cat", "/proc/self/status"], stdout=subprocess.PIPE, text=True).stdout
    masks = dict(line.split(":") for line in status.splitlines() if line.startswith("Sig"))
    return " ".join(masks[name].strip() for name in ("SigIgn", "SigBlk")).encode()

AT_IMPORT = dispositions()

def lost_by_a_fork():
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(30)]
    pid = os.fork()
    if pid == 0:
        lost = 0
        for fd in opened:
            try:
                os.fstat(fd)
            except OSError:
                lost += 1
        os._exit(lost)
    _, status = os.waitpid(pid, 0)
    for fd in opened:
        os.close(fd)
    return os.waitstatus_to_exitcode(status)

FORKED = multiprocessing.get_context("fork")

class Start(MessageHandler):
    framing = Lines()

    @classmethod
    def startup(cls, server):
        cls.at_startup = dispositions()

    def handle_message(self, message):
        return getattr(self, message.decode())()

    def dispositions(self):
        return b" ".join((AT_IMPORT, self.at_startup, dispositions()))

    def fork(self):
        return b"%d" % lost_by_a_fork()

    def fork_twice(self):
        process = FORKED.Process(target=lambda: sys.exit(lost_by_a_fork()))
        process.start()
        process.join()
        return b"%d" % process.exitcode

    def terminate(self):
        process = FORKED.Process(target=time.sleep, args=(1000,))
        process.start()
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(process.pid, number)
        process.join()
        return b"%d" % process.exitcode

    def stay(self):
        pid = os.fork()
        if pid == 0:
            os.close(0), os.close(1), os.close(2)
            while True:
                time.sleep(1000)
        return b"%d" % pid

@hookimpl
def srvkit_handlers():
    return {"start": Start}
"""


@pytest.fixture
def starting(managed: Managed, available: Available) -> Callable[..., Managed]:
    """`starting(model)`: a srvkit whose handler starts processes."""

    def begin(model: str, **settings):
        available(model)
        managed.write(
            f'[server.a]\nlisten = "tcp://127.0.0.1:0"\nhandler = "start"\nconcurrency = "{model}"\n', STARTER
        )
        return managed.begin(**settings)

    return begin


@pytest.mark.parametrize("model", MODELS)
def test_a_program_that_is_started_ignores_no_signal(model, starting):
    def spoil():  # as for a job that a shell has put into the background
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)

    masks = starting(model, preexec_fn=spoil).answer(b"dispositions").split()
    assert {int(mask, 16) & ~LIBRARYS_OWN for mask in masks} == {0}


@pytest.mark.parametrize("model", MODELS)
def test_what_forks_twice_loses_no_descriptor(model, starting):
    managed = starting(model)
    assert managed.answer(b"fork") == b"0\n"
    assert managed.answer(b"fork_twice") == b"0\n"
    assert managed.program.end() == 0
    assert "ignored in" not in managed.program.log


@pytest.mark.parametrize("model", MODELS)
def test_a_forked_process_ends_by_a_signal_and_its_worker_does_not_hear_of_it(model, starting):
    managed = starting(model)
    before = managed.workers()
    assert -int(managed.answer(b"terminate")) in (signal.SIGUSR1, signal.SIGTERM)
    assert managed.answer(b"fork") == b"0\n"
    assert managed.workers() == before
    assert "will be replaced" not in managed.program.log


@pytest.mark.parametrize("model", MODELS)
def test_a_forked_process_that_stays_keeps_no_port(model, starting):
    managed = starting(model)
    address = managed.address()
    pid = int(managed.answer(b"stay"))
    try:
        managed.program.process.terminate()  # and not end(): the log goes on, with who stays
        assert managed.program.process.wait(PATIENCE) == 0
        with pytest.raises(ConnectionRefusedError):
            managed.connect(address)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
