"""Children: how many, what they inherit, and who waits for them. Always in programs of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.concurrency.forking_programs import ANOTHER, BARE, COMPOSED, HANDLERS, ask, parent_of
from tests.conftest import Connect, Eventually, RunCode, RunSrvkit


@pytest.fixture(params=["bare", "alone", "beside others"])
def forking(request: pytest.FixtureRequest, run_srvkit: RunSrvkit, run_code: RunCode) -> Any:
    """A forking server of at most two children: of a bare class, or of `srvkit run`."""
    if request.param == "bare":
        return run_code(BARE)
    return run_srvkit(COMPOSED + (ANOTHER if request.param == "beside others" else ""), HANDLERS)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_each_connection_has_a_child_of_its_own(forking: Any, client: Connect) -> None:
    (address,) = forking.addresses("test")
    with client(address) as one, client(address) as other:
        pids = {ask(one)["pid"], ask(other)["pid"]}
        assert len(pids) == 2
        assert forking.pid not in pids
        assert len({parent_of(pid) for pid in pids}) == 1


def test_children_are_reaped_as_they_end(forking: Any, client: Connect, eventually: Eventually) -> None:
    """No zombie waits for the next request."""
    (address,) = forking.addresses("test")
    with client(address) as sock:
        server = parent_of(ask(sock)["pid"])
        assert len(children_of(server)) >= 1
        before = set(children_of(server))
    eventually(lambda: len(before & set(children_of(server))) < len(before))
    eventually(lambda: not [pid for pid in before if pid in children_of(server) and _is_zombie(pid)])


FAILING = {
    "every second": "count = iter(range(1000))\n"
    "def fail(pid, flags=0):\n"
    "    if next(count) % 2: raise OSError(24, 'Too many open files')\n"
    "    return real(pid, flags)\n",
    "all": "def fail(pid, flags=0): raise OSError(1, 'Operation not permitted')\n",
    "from now on": "del real\ndef fail(pid, flags=0): raise OSError(38, 'Function not implemented')\n",
}


@pytest.mark.parametrize("failing", FAILING)
@pytest.mark.parametrize("looped", [True, False], ids=["serve_forever", "handle_request"])
def test_children_are_reaped_where_the_kernel_does_not_announce_their_end(
    looped: bool, failing: str, run_code: RunCode, client: Connect, eventually: Eventually
) -> None:
    code = BARE.replace(
        "# more", f"real = os.pidfd_open\n{FAILING[failing]}os.pidfd_open = fail\nServer.max_children = 3\n"
    )
    if not looped:
        code = code.replace("server.serve_forever()", "while True: server.handle_request()")
    program = run_code(code)
    (address,) = program.addresses("test")
    for _ in range(2):
        socks = [client(address) for _ in range(3)]
        pids = [ask(sock)["pid"] for sock in socks]
        for sock in socks:
            sock.close()
        if looped:
            eventually(lambda pids=pids: not set(pids) & set(children_of(program.pid)))
    with client(address) as sock:
        assert ask(sock)
    if not looped:
        program.process.kill()


def test_single_and_embedded_servers_do_without_pidfd(run_code: RunCode, client: Connect) -> None:
    program = run_code(
        HANDLERS + "del os.pidfd_open\n"
        "for _ in range(2):\n"
        "    with srvkit.serve(Stream, 'tcp://127.0.0.1:0', concurrency='forking') as server:\n"
        "        print(' test: listening on tcp://%s:%d' % server.address)\n"
        "        input()\n"
        "    print('stopped')\n",
        stdin=subprocess.PIPE,
    )
    for count in (1, 2):
        program.wait_for("listening on", times=count)
        address = re.findall(r"listening on (\S+)", program.log)[-1]
        with client(address) as sock:
            assert ask(sock)
        program.say("\n")
        program.wait_for("stopped", times=count)
    assert program.ended() == 0


def _is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def sockets_with_an_address(links: list[str]) -> list[str]:
    """Return the sockets of listeners and clients, without the pairs that a process has for itself."""
    kept = {
        fields[column]
        for table, column, needed in (("tcp", 9, 10), ("udp", 9, 10), ("unix", 6, 8))
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if len(fields := line.split()) >= needed
    }
    return [link for link in links if link.startswith("socket:") and link[8:-1] in kept]


def test_a_child_has_no_socket_but_its_own(forking: Any, client: Connect) -> None:
    """Not the listening ones, not another child's, and nothing of the parent's loop."""
    (address,) = forking.addresses("test")
    with client(address) as one, client(address) as other:
        ask(one)
        found = ask(other)["fds"]
        assert len(sockets_with_an_address(found)) == 1
        assert not [link for link in found if "eventpoll" in link or "eventfd" in link]


@pytest.mark.parametrize("transport", ["udp://127.0.0.1:0", "unixgram:test.sock"])
def test_a_child_of_a_datagram_has_the_one_socket_to_answer_with(
    transport: str, run_srvkit: RunSrvkit, client: Connect
) -> None:
    config = COMPOSED.replace("tcp://127.0.0.1:0", transport).replace('"stream"', '"datagram"')
    program = run_srvkit(config + ANOTHER, HANDLERS)
    (address,) = program.addresses("test")
    with client(address, program.folder) as sock:
        sock.send(b"hello")
        found = json.loads(sock.recv(10_000))["fds"]
        assert len(sockets_with_an_address(found)) == 1


def test_at_max_children_further_clients_wait(forking: Any, client: Connect) -> None:
    """None is forked for them; who comes next is served when one has ended."""
    (address,) = forking.addresses("test")
    with client(address) as one, client(address) as two, client(address) as three:
        server = parent_of(ask(one)["pid"])
        ask(two)
        three.sendall(b"hello\n")
        busy = set(children_of(server))
        ask(one)
        assert set(children_of(server)) == busy
        one.close()
        with three.makefile("rb") as answers:
            assert json.loads(answers.readline())["pid"] not in busy


def test_a_full_server_still_shuts_down_at_once(run_code: RunCode, client: Connect) -> None:
    """It does not wait for a child in its accept path; `server_close` does that."""
    program = run_code(BARE)
    (address,) = program.addresses("test")
    with client(address) as one, client(address) as two:
        ask(one)
        ask(two)
        program.process.send_signal(signal.SIGTERM)
        program.wait_for("out of the loop")
        assert ask(one)["pid"]
        assert program.process.poll() is None
    assert program.ended() == 0


def test_children_of_the_program_itself_are_left_alone(run_code: RunCode, client: Connect) -> None:
    """Their status is there for whoever started them, although the server was full more than once."""
    program = run_code(
        BARE.replace(
            "# more",
            "mine = subprocess.Popen([sys.executable, '-c', 'raise SystemExit(7)'])\n"
            "before = lambda: os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)\n"
            "after = lambda: print('mine ended with', mine.wait())\n"
            "Server.max_children = 1\n",
        )
    )
    (address,) = program.addresses("test")
    for _ in range(4):
        with client(address) as sock:
            ask(sock)
    assert program.end() == 0
    program.wait_for("mine ended with 7")


@pytest.mark.parametrize("line", [b"fail\n", b"exit\n"])
def test_whatever_a_handler_raises_ends_its_child_alone(line: bytes, forking: Any, client: Connect) -> None:
    (address,) = forking.addresses("test")
    with client(address) as sock:
        sock.sendall(line)
        assert sock.recv(1) == b""
    with client(address) as sock:
        assert ask(sock)
    if line == b"fail\n":
        forking.wait_for("ValueError: a mistake")
    elif "srvkit.process" in forking.log:  # a bare server lets the child exit, and says nothing
        forking.wait_for("SystemExit: 3")


def test_what_a_program_has_printed_is_not_printed_by_its_children(
    run_code: RunCode, client: Connect
) -> None:
    program = run_code(
        BARE.replace(
            "# more",
            "sys.stdout = open(1, 'w', buffering=65536, closefd=False)\n"
            "before = lambda: (print('just once'), print('and this', file=sys.stderr))\n",
        ).replace('server_address[1]}")', 'server_address[1]}", file=sys.stderr)')
    )
    (address,) = program.addresses("test")
    for _ in range(3):
        with client(address) as sock:
            ask(sock)
    assert program.end() == 0
    assert program.log.count("just once") == 1


def test_a_fork_that_fails_costs_one_client_only(run_code: RunCode, client: Connect) -> None:
    """The server says so, waits a moment, and serves the next."""
    program = run_code(
        BARE.replace(
            "# more",
            "real = os.fork\n"
            "def fail():\n"
            "    os.fork = real\n"
            "    raise OSError(11, 'no more processes')\n"
            "os.fork = fail\n",
        )
    )
    (address,) = program.addresses("test")
    with client(address) as sock:
        assert sock.recv(1) == b""
    program.wait_for("cannot accept: .*no more processes; next try in 10 ms")
    with client(address) as sock:
        assert ask(sock)


def test_warnings_as_errors_lose_no_child_beside_threads(run_code: RunCode, client: Connect) -> None:
    """Python warns of such a fork, from 3.15 on after it: its parent must know the child all the same."""
    program = run_code(
        BARE.replace(
            "# more",
            "import warnings\n"
            "warnings.simplefilter('error')\n"
            "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
            "before = lambda: threading.Thread(target=tell_children, daemon=True).start()\n"
            "def tell_children():\n"
            "    for _ in sys.stdin:\n"
            "        print('children:', *sorted(server.active_children), flush=True)\n",
        ),
        stdin=subprocess.PIPE,
    )
    (address,) = program.addresses("test")
    with client(address) as one, client(address) as two:
        pids = sorted(ask(sock)["pid"] for sock in (one, two))
        program.say("\n")
        program.wait_for(f"^children: {pids[0]} {pids[1]}$")
    assert program.end() == 0
    assert "Warning" not in program.log and "Traceback" not in program.log


@pytest.mark.parametrize("config", [COMPOSED, COMPOSED + ANOTHER], ids=["alone", "beside others"])
@pytest.mark.parametrize("arguments", [(), ("--single",)], ids=["supervised", "single"])
def test_warnings_as_errors_lose_no_client_of_a_process_with_a_foreign_thread(
    run_srvkit: RunSrvkit, client: Connect, config: str, arguments: tuple[str, ...]
) -> None:
    """A thread that is not Python's, as libraries start them, counts where Python warns."""
    program = run_srvkit(
        config,
        HANDLERS + "import faulthandler, warnings\n"
        "warnings.simplefilter('error')\n"
        "faulthandler.dump_traceback_later(3600)\n",
        *arguments,
    )
    (address,) = program.addresses("test")
    for _ in range(3):  # one more than max_children
        with client(address) as sock:
            ask(sock)
    assert program.end() == 0
    assert "Warning" not in program.log and "Traceback" not in program.log


def test_handle_request_waits_for_room_and_leaves_nobody_behind(run_code: RunCode, client: Connect) -> None:
    program = run_code(
        BARE.replace("# more", "Server.max_children = 1").replace(
            "server.serve_forever()", "[server.handle_request() for _ in range(3)]"
        )
        + "mine = open(f'/proc/self/task/{os.getpid()}/children').read()\n"
        "print('children:', server.active_children, mine)\n"
    )
    (address,) = program.addresses("test")
    with client(address) as one, client(address) as two, client(address) as three:
        ask(one)
        one.close()
        ask(two)
        two.close()
        ask(three)
    assert program.ended() == 0
    program.wait_for(r"^children: set\(\) $")


def test_a_signal_in_the_first_moment_of_a_child_is_the_childs(run_code: RunCode, client: Connect) -> None:
    """Until a child has handlers of its own, the parent's must not answer in it: the parent would stop."""
    program = run_code(
        HANDLERS + "import signal, sys\n"
        "from srvkit.server.base import BaseServer\n"
        "leave = BaseServer.close_in_child\n"
        "def early(self, request):\n"
        "    BaseServer.close_in_child = leave\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    leave(self, request)\n"
        "BaseServer.close_in_child = early\n"
        "open('plugin.py', 'w').write('from __main__ import srvkit_handlers')\n"
        f"open('srvkit.toml', 'w').write('''[srvkit]\\nplugins = ['plugin.py']\\n{COMPOSED}''')\n"
        "from srvkit.cli.main import main\n"
        "sys.exit(main(['run']))\n"
    )
    (address,) = program.addresses("test")
    with client(address) as sock:
        assert ask(sock)
    with client(address) as sock:
        assert ask(sock)
    assert "stopping" not in program.log
