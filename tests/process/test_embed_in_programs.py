"""Servers inside programs with a mind of their own, and forking ones, which get a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RunCode
from tests.process.embedded_handlers import TCP, ask

pytestmark = pytest.mark.usefixtures("nothing_is_left")
FORKING = """
import logging, os, socket, srvkit, threading
logging.basicConfig(format="%(message)s")

class Child(srvkit.MessageHandler):
    framing = srvkit.Lines()

    @classmethod
    def startup(cls, server):
        {startup}

    def handle_message(self, message):
        self.send(b"child" if os.getpid() != {pid} else b"parent")
        if message == b"endless":
            threading.Event().wait()

def ask(address, line):
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(30)
    sock.connect(address)
    sock.sendall(line + b"\\n")
    return sock, sock.recv(100)

def children():
    return open(f"/proc/self/task/{{os.getpid()}}/children").read().split()

"""


@pytest.mark.parametrize("address", [TCP, "unix:echo.sock"])
def test_a_forking_server_gets_a_process_and_ends_with_the_block(address, run_code, tmp_path):
    program = run_code(
        FORKING.format(startup="pass", pid="os.getppid()")
        + f"""
with srvkit.serve(Child, {address!r}, concurrency="forking") as server:
    print(len(children()), ask(server.address, b"hello")[1])
    again = server
print(children(), server.stop(), threading.active_count(), os.listdir("/proc/self/fd").__len__())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines()[0] == "1 b'child\\n'"
    assert program.log.splitlines()[1].startswith("[] True 1 ")
    assert not (tmp_path / "echo.sock").exists()


def test_an_endless_child_of_a_forking_server_is_cut(run_code: RunCode) -> None:
    program = run_code(
        FORKING.format(startup="pass", pid="os.getppid()")
        + f"""
server = srvkit.serve(Child, {TCP!r}, concurrency="forking")
sock, said = ask(server.address, b"endless")
print(server.stop(drain_timeout=0.05), sock.recv(100), children())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines()[-1] == "False b'' []"


def test_a_forking_servers_startup_that_raises_leaves_nothing(run_code: RunCode, tmp_path: Path) -> None:
    program = run_code(
        FORKING.format(startup="raise LookupError('no database')", pid=0)
        + """
before = os.listdir("/proc/self/fd")
try:
    srvkit.serve(Child, "unix:echo.sock", concurrency="forking")
except Exception as error:
    print(type(error).__name__, error)
print(children(), os.listdir("/proc/self/fd") == before, os.listdir())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines()[-2:] == [
        "StartError embedded: could not start: LookupError: no database",
        "[] True []",
    ]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_start_that_the_user_interrupts_leaves_no_process(at_once, run_code):
    interrupt = "pass" if at_once else "os.kill(os.getppid(), 2)"
    program = run_code(
        FORKING.format(startup=f"{interrupt}; threading.Event().wait()", pid=0)
        + f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
if {at_once}:
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), 2))
try:
    srvkit.serve(Child, {TCP!r}, concurrency="forking")
except KeyboardInterrupt:
    print("interrupted", children())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log == "interrupted []\n"


def test_a_stop_that_the_user_interrupts_leaves_no_process(run_code: RunCode) -> None:
    program = run_code(
        FORKING.format(startup="pass", pid=0)
        + f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
server = srvkit.serve(Child, {TCP!r}, concurrency="forking")
drain = server._process.drain
server._process.drain = lambda: (drain(), os.kill(os.getpid(), signal.SIGINT))
try:
    server.stop()
except KeyboardInterrupt:
    print("interrupted", children(), server.stop())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log == "interrupted [] True\n"


def test_a_forking_server_ends_with_a_program_that_is_killed(run_code: RunCode) -> None:
    program = run_code(
        FORKING.format(startup="pass", pid=0)
        + f"""
import signal
server = srvkit.serve(Child, {TCP!r}, concurrency="forking")
print(server.address[1], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert program.ended() == -9
    # The log ends when the last process that could write to it has: the server's is gone.
    with pytest.raises(ConnectionRefusedError):
        ask(("127.0.0.1", int(program.log)))


def test_a_library_installs_no_signal_handlers_and_no_log_handlers(run_code: RunCode) -> None:
    program = run_code(
        """
import logging, signal, srvkit
def dispositions():
    return [signal.getsignal(number) for number in signal.valid_signals()], logging.root.handlers[:]
before = dispositions()
with srvkit.serve("echo", "tcp://127.0.0.1:0"):
    assert dispositions() == before
assert dispositions() == before
"""
    )
    assert program.ended() == 0, program.log
    assert program.log == ""


# ---- programs with a mind of their own

CHILDREN_OF_ITS_OWN = {
    "a handler": "signal.signal(signal.SIGCHLD, lambda *_: None)",
    "a handler that reaps all": "signal.signal(signal.SIGCHLD, reap)",
    "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "a thread that reaps all": "late = threading.Thread(target=reap_on, daemon=True)",
    "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "handlers for everything": (
        "[signal.signal(n, lambda *_: None) for n in signal.valid_signals() - {9, 19}]; "
        "pair = socket.socketpair(); pair[1].setblocking(False); signal.set_wakeup_fd(pair[1].fileno())"
    ),
}
THREE_CLIENTS = """
import asyncio, os, signal, socket, sys, threading, srvkit

class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()
    def handle_message(self, message):
        return message

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

def reap_on():
    while True:
        reap()

late = None

def three(server):
    for _ in range(3):
        with socket.create_connection(server.address, 30) as client:
            client.sendall(b"hi\\n")
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as file:
                print(file.read().decode().strip())
    print(server.stop(20))
"""


@pytest.mark.parametrize("how", CHILDREN_OF_ITS_OWN)
def test_a_forking_server_serves_on_whatever_the_program_does_about_its_children(how, run_code):
    program = run_code(
        THREE_CLIENTS
        + f"""
{CHILDREN_OF_ITS_OWN[how]}
server = srvkit.serve(Echo, {TCP!r}, concurrency="forking")
if late is not None:
    late.start()
three(server)
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines() == ["hi", "hi", "hi", "True"]


def test_a_forking_server_serves_on_beside_a_loop_that_hears_of_children(run_code: RunCode) -> None:
    program = run_code(
        THREE_CLIENTS
        + f"""
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap)
    three(srvkit.serve(Echo, {TCP!r}, concurrency="forking"))
asyncio.run(main())
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines() == ["hi", "hi", "hi", "True"]


def test_signals_that_are_meant_for_the_program_do_not_stop_its_server(run_code: RunCode) -> None:
    program = run_code(
        THREE_CLIENTS
        + f"""
signal.signal(signal.SIGUSR1, lambda *_: None)
server = srvkit.serve(Echo, {TCP!r}, concurrency="forking")
with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
    pid = int(file.read())
for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGALRM, signal.SIGCHLD):
    os.kill(pid, number)
three(server)
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines() == ["hi", "hi", "hi", "True"]


@pytest.mark.parametrize("reaped", ["", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"])
def test_a_stop_that_cuts_says_so_whoever_hears_of_the_end(reaped, run_code):
    program = run_code(
        THREE_CLIENTS
        + f"""
{reaped}
class Endless(Echo):
    def handle_message(self, message):
        self.send(b"holding")
        threading.Event().wait()
server = srvkit.serve(Endless, {TCP!r}, concurrency="forking")
with socket.create_connection(server.address, 30) as client:
    client.sendall(b"x\\n")
    print(client.recv(100).decode().strip())
    print(server.stop(0))
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines()[-1] == "False"


@pytest.mark.parametrize("model", ["serial", "threading", "forking"])
def test_a_program_may_go_elsewhere(model, run_code, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    program = run_code(
        THREE_CLIENTS
        + f"""
server = srvkit.serve(Echo, "unix:a.sock", concurrency={model!r})
os.chdir("elsewhere")
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(30)
    client.connect(server.address)
    client.sendall(b"hi\\n")
    print(client.recv(100).decode().strip())
print(server.stop(20))
"""
    )
    assert program.ended() == 0, program.log
    assert program.log.splitlines() == ["hi", "True"]
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
