"""A worker whose loop has hung is replaced, with its stacks in the log; one that is slow is left alone."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable

import pytest

from tests.process.conftest import Available, Managed

TIMEOUT = 0.5
GENERAL = f'heartbeat_timeout = "{TIMEOUT * 1000:g}ms"\ndrain_timeout = "100ms"'
IN_LOOP = ["serial", "event", "asyncio", "gevent"]  # where a message handler has the loop's own thread
ASYNC = """
class Task(AsyncHandler):
    async def handle(self):
        async for line in self.reader:
            obey(line.strip())
            self.writer.write(b"%s %s %d\\n" % (line.strip(), VERSION, os.getpid()))

@hookimpl(specname="srvkit_handlers")
def more_handlers():
    return {"task": Task}
"""


@pytest.fixture
def serving(managed: Managed, talking: str, available: Available) -> Callable[..., Managed]:
    """`serving(model, handler)`: start it."""

    def begin(model, handler="talk", listen="tcp://127.0.0.1:0", more="", plugin=""):
        available(model)
        managed.write(server(model, handler, "a", listen) + more, talking + plugin, GENERAL)
        return managed.begin()

    return begin


def server(model, handler="talk", name="a", listen="tcp://127.0.0.1:0"):
    return f'[server.{name}]\nlisten = "{listen}"\nhandler = "{handler}"\nconcurrency = "{model}"\n'


def assert_replaced(managed, line, function="obey"):
    """Say a line; verify that the worker is ended, its stacks are logged, and another one serves."""
    (pid,) = managed.workers()
    pidfd = os.pidfd_open(pid)
    with managed.talk(line) as client:
        said = time.monotonic()
        assert select.select([pidfd], [], [], 30)[0]
        assert time.monotonic() - said < TIMEOUT + 2
        with contextlib.suppress(ConnectionResetError):
            assert client.read() == b""
    os.close(pidfd)
    log = managed.program
    log.wait_for(f"a: worker {pid} killed: no heartbeat for {TIMEOUT:g} seconds$")
    log.wait_for(f"a: worker {pid}: its stacks when it ended$")
    log.wait_for(f"a: worker {pid} was killed by SIGABRT$")
    stacks = log.log.partition(f"{pid}: its stacks when it ended")[2].partition("was killed by")[0]
    assert re.search(rf'plugin\.py", line \d+ in {function}$', stacks, re.MULTILINE), stacks
    answer = managed.answer(b"again")
    assert answer.startswith(b"again one ")
    assert int(answer.split()[-1]) != pid
    assert managed.program.end() == 0


def assert_left_alone(managed, exchange, names=("a",)):
    """Verify that no worker is ended for three heartbeats, while `exchange()` waits for them to pass."""
    before = [managed.workers(name) for name in names]
    began = time.monotonic()
    exchange(lambda: time.sleep(max(0.0, began + 3 * TIMEOUT - time.monotonic())))
    assert [managed.workers(name) for name in names] == before
    assert " killed: " not in managed.program.log


@pytest.mark.parametrize("line", [b"spin", b"sleep"])
@pytest.mark.parametrize("model", IN_LOOP)
def test_a_message_handler_that_hangs_in_the_loop(model, line, serving):
    assert_replaced(serving(model), line)


@pytest.mark.parametrize("line", [b"spin", b"sleep"])
def test_a_task_that_hangs_in_the_loop(line, serving):
    assert_replaced(serving("asyncio", "task", plugin=ASYNC), line)


def test_a_datagram_handler_that_hangs_in_the_loop(serving):
    managed = serving("event", listen="udp://127.0.0.1:0")
    (pid,) = managed.workers()
    with managed.connect() as sock:
        sock.send(b"spin")
        managed.program.wait_for(f"a: worker {pid} was killed by SIGABRT$")
    with managed.connect() as sock:
        sock.send(b"again")
        assert sock.recv(100).startswith(b"again one ")


@pytest.mark.parametrize(
    ("model", "handler"),
    [
        *((model, "talk") for model in (*IN_LOOP, "threading", "pool")),
        ("serial", "block"),
        ("threading", "block"),
        ("pool", "block"),
        ("gevent", "block"),
        ("asyncio", "task"),
    ],
)
def test_a_handler_that_keeps_the_interpreter_to_itself(model, handler, serving):
    assert_replaced(serving(model, handler, plugin=ASYNC), b"gil")


@pytest.mark.parametrize("line", [b"spin", b"sleep"])
@pytest.mark.parametrize("model", ["serial", "event"])
def test_all_stacks_are_there_where_a_fatal_signal_shows_one_thread(
    model, line, managed, talking, available, tmp_path
):
    """As on builds of Python without the interpreter's lock, which this one may be or not."""
    (tmp_path / "as_there.py").write_text(
        "import faulthandler, signal, sys\n"
        "from srvkit.process.supervisor import worker_pool\n"
        "from srvkit.process.worker import main as worker_main\n"
        "from srvkit.cli.main import main\n"
        "enable = faulthandler.enable\n"
        "faulthandler.enable = lambda file: enable(file, all_threads=False)\n"
        "worker_main.ASK_FOR_STACKS = worker_pool.ASK_FOR_STACKS = signal.SIGURG\n"
        "sys.argv[0] = 'srvkit'\n"
        "sys.exit(main())\n"
    )
    available(model)
    managed.write(server(model), talking, GENERAL)
    managed.program = managed.start("as_there.py", "run")
    managed.program.wait_for("listening on ")
    assert_replaced(managed, line)


def test_children_that_hang_are_their_own_affair(serving):
    managed = serving("forking")

    def exchange(three_heartbeats):
        with managed.talk(b"spin"), managed.talk(b"sleep"), managed.talk(b"gil"):
            three_heartbeats()
            assert managed.answer().startswith(b"hello ")

    assert_left_alone(managed, exchange)


def test_slow_handlers_that_have_a_thread_or_a_child_or_their_own_way_of_reading(managed, talking):
    cells = [(model, handler) for model in ("threading", "pool", "forking") for handler in ("talk", "block")]
    cells.append(("serial", "block"))
    names = [f"{model}-{handler}" for model, handler in cells]
    managed.write(
        "".join(server(*cell, name) for cell, name in zip(cells, names, strict=True)), talking, GENERAL
    )
    managed.begin()
    gate = managed.gate("release")

    def exchange(three_heartbeats):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(managed.talk(b"hold", managed.address(name))) for name in names]
            for client in clients:
                assert client.readline() == b"holding\n"
            three_heartbeats()
            gate.open()
            for client in clients:
                assert client.readline().startswith(b"hold one ")

    assert_left_alone(managed, exchange, names)


@pytest.mark.parametrize("model", IN_LOOP)
def test_connections_that_are_silent(model, managed, talking, available):
    available(model)
    sent = [b"", b"begun", b"whole\n", b"whole\nbegun"]
    names = [f"number-{number}" for number in range(len(sent))]
    managed.write("".join(server(model, name=name) for name in names), talking, GENERAL)
    managed.begin()

    def exchange(three_heartbeats):
        with contextlib.ExitStack() as stack:
            clients = []
            for name, data in zip(names, sent, strict=True):
                sock = stack.enter_context(managed.connect(managed.address(name)))
                sock.sendall(data)
                file = stack.enter_context(sock.makefile("rb"))
                if b"\n" in data:
                    assert file.readline().startswith(b"whole ")
                clients.append((sock, file))
            three_heartbeats()
            for sock, file in clients:
                sock.sendall(b"more\n")
                assert b"more one " in file.readline()

    assert_left_alone(managed, exchange, names)


def test_a_peer_that_does_not_read(serving):
    plugin = 'Talk.handle_message = lambda self, message: b"x" * 30_000_000\n'
    managed = serving("serial", plugin=plugin)

    def exchange(three_heartbeats):
        with managed.talk() as client:
            three_heartbeats()
            assert len(client.readline()) == 30_000_001

    assert_left_alone(managed, exchange)


def test_an_idle_worker_and_one_that_never_had_a_client(serving):
    assert_left_alone(serving("event"), lambda three_heartbeats: three_heartbeats())


def test_a_busy_worker(serving, load):
    managed = serving("serial")
    address = managed.address()

    def exchange(three_heartbeats):
        with load(lambda: managed.connect(address)) as it:
            three_heartbeats()
        it.verify()

    assert_left_alone(managed, exchange)


@pytest.mark.parametrize("model", ["event", "forking"])
def test_a_stopped_worker_is_replaced(model, serving):
    managed = serving(model)
    (pid,) = managed.workers()
    os.kill(pid, signal.SIGSTOP)
    managed.program.wait_for(f"a: worker {pid} killed: no heartbeat")
    managed.program.wait_for(f"a: worker {pid} was killed by SIGKILL$")
    answer = managed.answer()
    assert int(answer.split()[-1]) != pid
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("who", ["the supervisor", "everybody"])
def test_a_stopped_supervisor_judges_nobody(who, serving):
    managed = serving("event", more="workers = 2")
    before = managed.workers()
    stopped = [managed.program.pid] if who == "the supervisor" else [managed.program.pid, *before]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3 * TIMEOUT + 1)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    time.sleep(2 * TIMEOUT)
    assert managed.workers() == before
    assert " killed: " not in managed.program.log
    assert managed.answer().startswith(b"hello ")


def test_only_the_worker_that_hangs_is_ended(serving):
    managed = serving("event", more="workers = 3")
    before = managed.workers()
    with managed.talk(b"spin"):
        managed.program.wait_for("was killed by SIGABRT$")
    (ended,) = re.findall(r"worker (\d+) was killed", managed.program.log)
    managed.answer()
    assert set(before) - set(managed.workers()) == {int(ended)}


def test_a_shorter_timeout_holds_after_a_reload(managed, talking):
    servers = '[server.a]\nlisten = "tcp://127.0.0.1:0"\nhandler = "talk"\nconcurrency = "event"\n'
    managed.write(servers)
    managed.begin()
    managed.write(servers, talking, GENERAL)
    managed.reload()
    assert_replaced(managed, b"sleep")


def test_a_handler_that_hangs_while_another_connection_waits_to_be_let_in(serving, managed):
    """The other one, whose PROXY header is to come, is no sign of life."""
    serving("serial", more='[server.a.proxy]\ntrusted = ["127.0.0.1"]\nheader_timeout = "30s"\n')
    (pid,) = managed.workers()
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    with managed.connect() as silent, managed.connect() as one:
        silent.sendall(header[:5])
        one.sendall(header + b"hello\n")
        assert one.recv(100).startswith(b"hello ")
        one.sendall(b"sleep\n")
        managed.program.wait_for(f"a: worker {pid} killed: no heartbeat for {TIMEOUT:g} seconds$")
    with managed.connect() as again:
        again.sendall(header + b"again\n")
        assert again.recv(100).startswith(b"again ")
    assert managed.program.end() == 0
