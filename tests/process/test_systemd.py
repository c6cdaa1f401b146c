"""Sockets that systemd passes are served and left as they were; systemd hears what goes on."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srvkit.errors import ListenError
from srvkit.process.systemd import Notifier, receive

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30  # seconds before something counts as hung

# What systemd does before it starts a program: descriptors from 3 on, and three variables.
PASS = """
import fcntl, os, sys
names, numbers, *command = sys.argv[1:]
fds = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 100) for number in numbers.split(",")]
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}
os.execv(sys.executable, [sys.executable, *command])
"""
EXEC = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def opened() -> Iterator[Callable[..., socket.socket]]:
    """`opened(address, kind)`: a socket as systemd has it, bound, and listening where it is of streams."""
    sockets: list[socket.socket] = []

    def opened(address: Any = ("127.0.0.1", 0), kind: int = socket.SOCK_STREAM) -> socket.socket:
        sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX, kind)
        sockets.append(sock)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen()
        sock.settimeout(PATIENCE)
        return sock

    yield opened
    for sock in sockets:
        sock.close()


@pytest.fixture
def activated(tmp_path: Path, start: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`activated(config, {"a": [socket]})`: `srvkit run`, started as systemd does with these sockets."""
    with contextlib.ExitStack() as stack:

        def activated(
            config: str, passed: list[tuple[str, socket.socket]], *words: str, plugin: str = ""
        ) -> Any:
            if plugin:
                (tmp_path / "plugin.py").write_text(plugin)
                config = f'[srvkit]\nplugins = ["plugin.py"]\n{config}'
            (tmp_path / "srvkit.toml").write_text(config)
            fds = [sock.fileno() for _, sock in passed]
            names = ":".join(name for name, _ in passed)
            command = ("-c", PASS, names, ",".join(map(str, fds)), "-m", "srvkit", "run", *words)
            return stack.enter_context(start(*command, folder=tmp_path, pass_fds=fds))

        yield activated


MODES = pytest.mark.parametrize("mode", [(), ("--single",)], ids=["supervised", "single"])


def server(name: str, *listen: str, concurrency: str = "threading") -> str:
    return (
        f"[server.{name}]\nlisten = {list(listen)}\nhandler = 'echo'\nconcurrency = '{concurrency}'\n"
        "limits.idle_timeout = '20s'\n"
    )


def echo(client: Callable[..., socket.socket], sock: socket.socket) -> None:
    scheme = {
        (socket.AF_INET, socket.SOCK_STREAM): "tcp://127.0.0.1:{}",
        (socket.AF_INET, socket.SOCK_DGRAM): "udp://127.0.0.1:{}",
        (socket.AF_UNIX, socket.SOCK_STREAM): "unix:{}",
        (socket.AF_UNIX, socket.SOCK_DGRAM): "unixgram:{}",
    }[sock.family, socket.SocketKind(sock.type)]
    name = sock.getsockname()
    with client(scheme.format(name[1] if isinstance(name, tuple) else name)) as peer:
        peer.sendall(b"hello\n")
        assert peer.recv(100) == b"hello\n"


@MODES
def test_every_socket_of_a_name_is_served_by_the_server_that_names_it(
    activated: Any, opened: Any, client: Any, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    """Of any family and kind, two of one name, beside an address of srvkit's own."""
    tcp, unix = opened(), opened(str(tmp_path / "a.sock"))
    udp, unixgram = opened(kind=socket.SOCK_DGRAM), opened(str(tmp_path / "b.sock"), socket.SOCK_DGRAM)
    program = activated(
        server("s", "systemd:web", "unix:own.sock") + server("d", "systemd:dns.socket"),
        [("web", tcp), ("dns.socket", udp), ("web", unix), ("dns.socket", unixgram), ("unused", opened())],
        *mode,
    )
    first, second, own = program.addresses("s")
    assert first == f"systemd:web (127.0.0.1:{tcp.getsockname()[1]})"
    assert second == f"systemd:web ({tmp_path}/a.sock)"
    assert own.endswith("own.sock")
    assert len(program.addresses("d")) == 2
    for sock in (tcp, unix, udp, unixgram):
        echo(client, sock)
    assert program.end() == 0


@pytest.mark.parametrize("concurrency", ["threading", "event", "asyncio", "forking"])
def test_a_socket_is_left_open_and_its_file_in_place(
    activated: Any, opened: Any, client: Any, tmp_path: Path, concurrency: str
) -> None:
    """Who connects after the stop waits in the queue for the next start, as systemd has it."""
    sock = opened(str(tmp_path / "a.sock"))
    program = activated(server("s", "systemd:a", concurrency=concurrency), [("a", sock)])
    program.addresses("s")
    echo(client, sock)
    assert program.end() == 0
    client(f"unix:{tmp_path}/a.sock").sendall(b"x")
    connection, _ = sock.accept()
    with connection:
        assert connection.recv(1) == b"x"


def test_programs_started_from_here_get_neither_descriptors_nor_variables(
    activated: Any, opened: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody")
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    plugin = (
        "import os\n"
        "from srvkit import hookimpl\n"
        "@hookimpl\n"
        "def srvkit_configure(config): pass\n"
        "print('inherit', [fd for fd in (3, 4) if os.get_inheritable(fd)])\n"
        "print('variables', [n for n in os.environ if n.startswith(('LISTEN_', 'NOTIFY_', 'WATCHDOG_'))])\n"
    )
    program = activated(server("s", "systemd:a"), [("a", opened()), ("unused", opened())], plugin=plugin)
    program.wait_for(r"^inherit \[\]$")
    program.wait_for(r"^variables \[\]$")


def test_a_name_that_was_not_passed_is_an_error_that_names_the_others(activated: Any, opened: Any) -> None:
    program = activated(server("s", "systemd:web"), [("wev", opened()), ("dns", opened())])
    assert program.ended() == 3
    expected = "cannot listen on systemd:web: no socket of this name was passed, but dns, wev"
    assert expected in program.log


def test_sockets_meant_for_another_process_are_not_touched(
    run_srvkit: Any, opened: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    program = run_srvkit(server("s", "systemd:web"))
    assert program.ended() == 3
    assert "systemd:web: no sockets were passed to this process" in program.log


def test_a_connection_in_place_of_a_listening_socket_is_refused(activated: Any, opened: Any) -> None:
    """That is what Accept=yes in a socket unit passes."""
    with socket.create_connection(opened().getsockname()) as connection:
        program = activated(server("s", "systemd:connection"), [("connection", connection)])
        assert program.ended() == 3
    assert "its socket unit needs Accept=no" in program.log


def test_one_name_for_both_kinds_is_an_error_of_the_configuration(activated: Any, opened: Any) -> None:
    passed = [("a", opened()), ("a", opened(kind=socket.SOCK_DGRAM))]
    program = activated(server("s", "systemd:a"), passed)
    assert program.ended() == 2
    assert "server.s.listen[0]: systemd:a: both stream and datagram" in program.log


def test_what_is_no_socket_is_kept_and_not_served(activated: Any, opened: Any, tmp_path: Path) -> None:
    with (tmp_path / "stored").open("w") as stored:
        program = activated(server("s", "systemd:stored"), [("stored", stored), ("a", opened())])  # type: ignore[list-item]
        assert program.ended() == 3
    assert "systemd:stored: what was passed by this name is no socket" in program.log


def test_a_configuration_is_checked_without_its_sockets(tmp_path: Path, start: Any) -> None:
    """Of whatever kind they will be: here of datagrams."""
    handler = "[server.a]\nlisten = 'systemd:a'\nhandler = 'socketserver:DatagramRequestHandler'\n"
    (tmp_path / "srvkit.toml").write_text(handler)
    with start("-m", "srvkit", "check", folder=tmp_path) as program:
        assert program.ended() == 0, program.log
    assert "note: a: systemd:a is there under systemd only" in program.log


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LISTEN_FDS": "x"}, "LISTEN_FDS=x: a number of descriptors is expected"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, "LISTEN_FDS=2: LISTEN_FDNAMES=a has 1 names"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(variables: dict[str, str], message: str) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), **variables}
    with pytest.raises(ListenError, match=re.escape(message)):
        receive(environ)
    assert environ == {}


def test_a_descriptor_that_is_not_there_is_refused(run_code: Any) -> None:
    program = run_code(
        "import os\nfrom srvkit.process.systemd import receive\nos.closerange(3, 100)\n"
        "receive({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})"
    )
    assert program.ended() == 1
    assert "cannot listen on systemd:unknown: descriptor 3 was not passed" in program.log


def test_a_program_that_takes_the_place_of_this_one_begins_as_it_did(
    start: Any, opened: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """The same sockets under the same names, and the same notifier; one that cannot start gets nothing."""
    code = (
        "import os, sys\n"
        "from srvkit.net import socket_activation as inherited\n"
        "from srvkit.process import systemd\n"
        "notifier = systemd.begin()\n"
        "print(sys.argv[1], notifier, [(one.name, one.fd) for one in inherited.passed()], flush=True)\n"
        "if sys.argv[1] == 'first':\n"
        "    try:\n"
        "        with systemd.handed_over(notifier) as variables:\n"
        "            os.execve('/nowhere', ['nowhere'], variables)\n"
        "    except FileNotFoundError:\n"
        "        print('inherit', [fd for fd in (3, 4) if os.get_inheritable(fd)], flush=True)\n"
        "    with systemd.handed_over(notifier) as variables:\n"
        "        os.execve(sys.executable, [sys.executable, __file__, 'second'], os.environ | variables)\n"
    )
    (tmp_path / "code.py").write_text(code)
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody")
    fds = [opened().fileno(), opened().fileno()]
    arguments = ("-c", PASS, "a:b", ",".join(map(str, fds)), "code.py", "first")
    with start(*arguments, folder=tmp_path, pass_fds=fds) as program:
        assert program.ended() == 0, program.log
    state = "<Notifier @nobody> [('a', 3), ('b', 4)]"
    assert program.log.splitlines() == [f"first {state}", "inherit []", f"second {state}"]


def test_systemd_socket_activate_starts_it_with_the_first_client(
    tool: Any, start: Any, client: Any, tmp_path: Path
) -> None:
    tool("systemd-socket-activate")
    (tmp_path / "srvkit.toml").write_text(server("s", "systemd:web"))
    socket_file = tmp_path / "a.sock"
    command = ("systemd-socket-activate", "-l", str(socket_file), "--fdname=web", "-E", f"PYTHONPATH={ROOT}")
    with start("-c", EXEC, *command, sys.executable, "-m", "srvkit", "run", folder=tmp_path) as program:
        program.wait_for("Listening on ")
        with client(f"unix:{socket_file}") as peer:
            peer.sendall(b"hello\n")
            assert peer.recv(100) == b"hello\n"
        program.addresses("s")
        assert program.end() == 0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Where systemd listens for news."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE)
        yield sock


def heard(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def test_each_piece_of_news_is_one_datagram(manager: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    with Notifier.from_environ({"NOTIFY_SOCKET": manager.getsockname()}) as notifier:
        notifier.ready()
        notifier.reloading()
        notifier.stopping()
        notifier.status("two\nlines é")
        notifier.watchdog()
        notifier.mainpid(7)
        notifier.extend_timeout(1.5)
    assert heard(manager) == "READY=1"
    reloading, usec = heard(manager).splitlines()
    assert reloading == "RELOADING=1"
    assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert [heard(manager) for _ in range(5)] == [
        "STOPPING=1", "STATUS=two lines é", "WATCHDOG=1", "MAINPID=7", "EXTEND_TIMEOUT_USEC=1500000",
    ]  # fmt: skip


def test_a_manager_may_listen_at_an_abstract_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")
        manager.settimeout(PATIENCE)
        name = manager.getsockname().decode()
        with Notifier.from_environ({"NOTIFY_SOCKET": name.replace("\0", "@")}) as notifier:
            notifier.ready()
        assert heard(manager) == "READY=1"


def test_a_manager_that_does_not_listen_does_no_harm(manager: socket.socket, tmp_path: Path) -> None:
    for target in (manager.getsockname(), str(tmp_path / "nobody"), "vsock:2:1", ""):
        with Notifier.from_environ({"NOTIFY_SOCKET": target}) as notifier:
            for _ in range(2000):  # more than the kernel queues
                notifier.watchdog()
        notifier.ready()  # nor after the end


def test_the_variables_are_taken_out_of_the_environment_and_kept() -> None:
    environ = {"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "HOME": "/"}
    with Notifier.from_environ(environ) as notifier:
        assert environ == {"HOME": "/"}
        assert notifier.environ == {"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2"}


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_wants_to_hear_twice_in_its_time(
    variables: dict[str, str], interval: float | None
) -> None:
    with Notifier.from_environ(dict(variables)) as notifier:
        assert notifier.watchdog_interval == interval


LATE = """
from srvkit import BaseRequestHandler, hookimpl

class Late(BaseRequestHandler):
    @classmethod
    def startup(cls, server):
        print("late\\n", end="", flush=True)  # by one write: the log of another process comes beside it
        with open("release") as pipe:
            pipe.read()

@hookimpl
def srvkit_handlers():
    return {"late": Late}
"""


def until(manager: socket.socket, last: str) -> list[str]:
    """Return what the manager hears up to a certain thing."""
    news = []
    while not news or not news[-1].startswith(last):
        news.append(heard(manager))
    return news


@MODES
@pytest.mark.parametrize("late", ["threading", "forking"])
def test_ready_is_said_when_all_servers_are_and_stopping_when_they_stop(
    run_srvkit: Any,
    manager: socket.socket,
    tmp_path: Path,
    monkeypatch: Any,
    late: str,
    mode: tuple[str, ...],
) -> None:
    """Also by the process that a forking server has."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    os.mkfifo(tmp_path / "release")
    more = f"[server.late]\nlisten = 'unix:b.sock'\nhandler = 'late'\nconcurrency = '{late}'\n"
    program = run_srvkit(server("s", "unix:a.sock") + more, LATE, *mode)
    program.wait_for("^late$")
    if mode:
        program.addresses("s")
    manager.setblocking(False)
    news = []
    with contextlib.suppress(BlockingIOError):
        while True:
            news.append(heard(manager))
    manager.settimeout(PATIENCE)
    news += [heard(manager), heard(manager)]  # a loop that has gone round since then would have said so
    assert set(news) <= {"WATCHDOG=1"}
    (tmp_path / "release").write_text("")
    until(manager, "READY=1")
    program.addresses("s")
    program.addresses("late")
    assert program.end() == 0
    assert "STOPPING=1" in until(manager, "EXTEND_TIMEOUT_USEC=")


@MODES
@pytest.mark.parametrize("concurrency", ["event", "forking"])
def test_the_watchdog_is_fed_while_it_serves(
    run_srvkit: Any, manager: socket.socket, monkeypatch: Any, concurrency: str, mode: tuple[str, ...]
) -> None:
    """Also by a forking server, which has the main thread."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    run_srvkit(server("s", "unix:a.sock", concurrency=concurrency), "", *mode)
    until(manager, "READY=1")
    for _ in range(5):
        until(manager, "WATCHDOG=1")
