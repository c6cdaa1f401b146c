"""Nothing that a reload, USR1 or USR2 meets ends the supervisor or makes it deaf."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import socket
import time

import pytest

FAILED = "reload failed; still serving the previous configuration$"
RUN = '\nimport runpy\nrunpy.run_module("srvkit", run_name="__main__", alter_sys=True)\n'

# A name server, and a directory of users, that answer when the pipe of this name is opened.
SILENT = """
import os, pwd, socket
real = socket.getaddrinfo

def ask(host, *more, **named):
    if host == "slow.example" and not named.get("flags", 0) & socket.AI_NUMERICHOST:
        with open("silence") as pipe:
            pipe.read()
        host = "127.0.0.1"
    return real(host, *more, **named)

def who(name):
    with open("silence") as pipe:
        pipe.read()
    return pwd.getpwuid(os.getuid())

socket.getaddrinfo, pwd.getpwnam = ask, who
"""

# No process is to be had while there is a file of this name.
NO_PROCESS = f"""
import os
real = os.fork

def fork():
    if os.path.exists("no-process"):
        raise OSError({errno.EAGAIN}, os.strerror({errno.EAGAIN}))
    return real()

os.fork = fork
"""


def server(listen="tcp://127.0.0.1:0", name="a", more=""):
    return f'[server.{name}]\nlisten = "{listen}"\nhandler = "talk"\n{more}\n'


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def goes_on(managed, workers):
    """Whether the same workers serve, and a reload that nothing keeps from it works."""
    assert managed.workers() == workers
    assert managed.answer().startswith(b"hello ")
    managed.reload()
    assert managed.answer().startswith(b"hello ")


# ---- names


@pytest.mark.parametrize("host", ["web..example.net", ".example.net", "x" * 64 + ".example.net"])
def test_a_name_that_no_host_can_have_is_one_line(host, managed):
    managed.write(server())
    managed.begin()
    workers = managed.workers()
    bad = server() + server(f"tcp://{host}:7009", "b")
    managed.write(bad)
    for command, said in (
        ("check", rf"srvkit\.toml:\d+: server\.b\.listen.*{re.escape(host)}.*no host can have this name"),
        ("reload", rf"cannot listen on tcp://{re.escape(host)}:7009: the host name cannot be resolved"),
    ):
        done = managed.command(command)
        (line,) = done.stderr.splitlines()
        assert re.search(said, line), line
        assert done.returncode > 0
    managed.write(server())
    goes_on(managed, workers)
    managed.write(bad)
    assert managed.program.end() == 0
    done = managed.command("run")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_while_a_name_server_is_silent_the_supervisor_serves_and_answers(managed):
    managed.write(server())
    managed.program = managed.start("-c", SILENT + RUN, "run")
    managed.program.wait_for("listening on ")
    workers = managed.workers()
    silence = managed.gate("silence")
    port = free_port()
    managed.write(server() + server(f"tcp://slow.example:{port}", "b"))
    managed.hup()
    silence.reached()
    assert managed.ask(do="status")["state"] == "reloading"
    assert managed.workers() == workers
    assert managed.answer(address=managed.address()).startswith(b"hello ")
    silence.open()
    managed.program.wait_for(f"b: listening on tcp://127.0.0.1:{port}$")
    managed.program.wait_for("reloaded: this is generation 2$")
    # What is listened on keeps its number: nobody is asked again.
    managed.gate("silence")
    managed.reload()
    assert managed.answer(address=f"tcp://127.0.0.1:{port}").startswith(b"hello ")
    assert managed.program.end() == 0


def test_what_took_too_long_is_named(managed):
    managed.write(server())
    managed.program = managed.start("-c", SILENT + RUN, "run")
    managed.program.wait_for("listening on ")
    workers = managed.workers()
    silence = managed.gate("silence")
    managed.write(server() + server("tcp://slow.example:1", "b"), general='ready_timeout = "300ms"')
    (line,) = managed.ask(do="reload")["errors"]
    assert line == (
        "the configuration was not tried out within ready_timeout: still looking up the host slow.example"
    )
    managed.write(
        server() + server("unix:b.sock", "b", 'socket.owner = "somebody"'), general='ready_timeout = "300ms"'
    )
    (line,) = managed.ask(do="reload")["errors"]
    assert line.endswith("still looking up the owner of a socket")
    silence.abandon()
    managed.write(server())
    goes_on(managed, workers)


def test_the_first_start_hears_signals_and_feeds_the_watchdog_while_a_name_server_is_silent(
    managed, monkeypatch
):
    silence = managed.gate("silence")
    managed.write(server("tcp://slow.example:1"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(managed.folder / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(managed.folder / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        managed.program = managed.start("-c", SILENT + RUN, "run")
        silence.reached()
        fed = 0
        while fed < 3:
            fed += manager.recv(1000) == b"WATCHDOG=1"
        assert managed.ask(do="status")["state"] == "starting"
        assert managed.program.end() == 0


# ---- files


def test_a_log_that_cannot_be_opened_refuses_the_reload(managed):
    managed.write(server())
    managed.begin()
    workers = managed.workers()
    managed.write(server() + '[logging]\nfile = "nowhere/srvkit.log"\n')
    done = managed.command("reload")
    assert done.returncode == 1
    assert re.fullmatch(r"srvkit: cannot open the log .*nowhere/srvkit.log: No such file.*\n", done.stderr)
    managed.program.wait_for(FAILED)
    managed.write(server())
    goes_on(managed, workers)


def test_a_pipe_without_a_reader_is_no_log_either(managed):
    managed.write(server())
    managed.begin()
    workers = managed.workers()
    os.mkfifo(managed.folder / "log")
    managed.write(server() + '[logging]\nfile = "log"\n')
    (line,) = managed.ask(do="reload")["errors"]
    assert "cannot open the log" in line
    managed.write(server())
    goes_on(managed, workers)


def test_a_refused_reload_leaves_the_log_alone_that_it_would_have_had(managed, talking):
    managed.write(server() + '[logging]\nfile = "old.log"\n')
    managed.program = managed.start("-m", "srvkit", "run")
    old = managed.folder / "old.log"
    while not old.exists() or "listening on " not in old.read_text():
        assert managed.program.process.poll() is None
    managed.write(
        server() + '[logging]\nfile = "new.log"\n', talking.replace('wait_at("gate")', "raise OSError()")
    )
    assert not managed.ask(do="reload")["ok"]
    assert "still serving the previous configuration" in old.read_text()
    assert managed.program.end() == 0
    assert "SIGTERM: stopping" in old.read_text()


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
def test_the_file_of_a_socket_that_somebody_removed_is_made_anew(kind, managed):
    managed.write(server(f"{kind}:a.sock"))
    managed.begin()
    path = managed.folder / "a.sock"
    path.unlink()
    managed.reload()
    assert path.is_socket()
    managed.program.wait_for(r"a\.sock: its file was removed; created it again$")
    if kind == "unix":
        assert managed.answer(address="unix:a.sock").startswith(b"hello ")
    # It is claimed still, and removed at the end.
    managed.reload()
    assert "running already" in managed.command("run").stderr
    assert managed.program.end() == 0
    assert not path.exists()
    assert "belongs to another process" not in managed.program.log


def test_the_path_of_a_removed_socket_that_another_has_by_now_is_left_to_it(managed):
    managed.write(server("unix:a.sock"))
    managed.begin()
    path = managed.folder / "a.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        (line,) = managed.ask(do="reload")["errors"]
        assert line.endswith("another server is listening there")
        assert path.is_socket()
    managed.reload()  # what a dead one has left is in nobody's way
    assert managed.answer(address="unix:a.sock").startswith(b"hello ")


def test_a_socket_that_was_made_anew_goes_when_the_reload_is_refused(managed, talking):
    managed.write(server("unix:a.sock"))
    managed.begin()
    path = managed.folder / "a.sock"
    path.unlink()
    managed.write(server("unix:a.sock"), talking.replace('wait_at("gate")', "raise OSError()"))
    assert not managed.ask(do="reload")["ok"]
    assert not path.exists()
    managed.write(server("unix:a.sock"))
    managed.reload()
    assert managed.answer(address="unix:a.sock").startswith(b"hello ")


def test_control_socket_lock_and_pid_file_that_somebody_removed_are_made_anew(managed):
    managed.write(server(), general='control = "run/ctl.sock"\npid_file = "srvkit.pid"')
    managed.begin()
    shutil.rmtree(managed.folder / "run")
    (managed.folder / "srvkit.pid").unlink()
    managed.hup()
    managed.program.wait_for("reloaded: this is generation 2$")
    managed.program.wait_for("the file was removed; created it again$", times=3)
    assert managed.command("status").returncode == 0
    assert "running already" in managed.command("run").stderr
    assert (managed.folder / "srvkit.pid").read_text() == f"{managed.program.pid}\n"
    assert managed.command("reload").returncode == 0
    assert managed.program.end() == 0
    assert not (managed.folder / "srvkit.pid").exists()
    assert not list((managed.folder / "run").iterdir())


def test_they_are_made_anew_without_a_reload_too_and_what_a_reload_would_do_is_said_once(managed):
    managed.write(server("unix:a.sock"), general='control = "ctl.sock"\nheartbeat_timeout = "100ms"')
    managed.begin()
    (managed.folder / "a.sock").unlink()
    (managed.folder / "ctl.sock").unlink()
    managed.program.wait_for(r"a\.sock: its file is gone; a reload makes it anew$")
    managed.program.wait_for(r"ctl\.sock: the file was removed; created it again$")
    assert managed.command("reload").returncode == 0
    assert managed.answer(address="unix:a.sock").startswith(b"hello ")
    assert len(re.findall("a reload makes it anew", managed.program.log)) == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_folder_that_was_removed_ends_nothing(number, managed, start, eventually):
    folder = managed.folder / "release"
    folder.mkdir()
    port = free_port()
    text = f'[server.a]\nlisten = "tcp://127.0.0.1:{port}"\nhandler = "echo"\n[logging]\nfile = "log"\n'
    (folder / "srvkit.toml").write_text(text)
    log = folder / "log"
    with start("-m", "srvkit", "run", folder=folder) as program:
        eventually(lambda: log.exists() and "listening on " in log.read_text())
        with log.open() as file:  # the one that is removed is written to until a reload finds another

            def has(pattern: str) -> bool:
                assert program.process.poll() is None
                file.seek(0)
                both = file.read() + (log.read_text() if log.exists() else "")
                assert "Traceback" not in both
                return re.search(pattern, both) is not None

            shutil.rmtree(folder)
            os.kill(program.pid, number)
            eventually(has, "still serving the previous configuration|cannot reopen|nothing is replaced")
            with managed.connect(f"tcp://127.0.0.1:{port}") as sock:
                sock.sendall(b"hello\n")
                assert sock.recv(9) == b"hello\n"
            folder.mkdir()
            (folder / "srvkit.toml").write_text(text)
            os.kill(program.pid, signal.SIGHUP)
            eventually(has, "reloaded")
        assert program.end() == 0


# ---- processes and descriptors


def test_no_process_is_to_be_had_for_a_reload_a_new_installation_or_a_worker(managed, eventually):
    managed.write(server())
    managed.program = managed.start("-c", NO_PROCESS + RUN, "run")
    managed.program.wait_for("listening on ")
    (worker,) = managed.workers()
    lack = managed.folder / "no-process"
    lack.touch()
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("nothing is replaced: cannot fork a process: Resource temporarily unavailable$")
    done = managed.command("reload")
    assert done.returncode == 1
    assert re.search("cannot fork a process: Resource temporarily unavailable", done.stderr)
    assert managed.workers() == [worker]
    os.kill(worker, signal.SIGKILL)
    managed.program.wait_for("a: cannot start a worker: cannot fork a process")
    assert managed.ask(do="status")["state"] == "running"
    lack.unlink()
    eventually(managed.workers)  # it is tried again by itself
    goes_on(managed, managed.workers())
    assert "Traceback" not in managed.program.log
    assert managed.program.end() == 0


def descriptors_of(pid):
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def leave_free(pid, count):
    """Let a process have so many descriptors besides those it has."""
    used, limit = set(descriptors_of(pid)), 0
    while count or limit in used:
        count -= limit not in used
        limit += 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


FIXED_LIMIT = "import resource\nresource.setrlimit = lambda *_: None\n"


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_whatever_there_is_no_descriptor_for_everything_goes_on_and_none_is_lost(number, managed, eventually):
    managed.write(server() + server("unix:b.sock", "b"))
    managed.program = managed.start("-c", FIXED_LIMIT + RUN, "run")
    managed.program.wait_for("listening on ", times=2)
    pid = managed.program.pid
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    managed.reload()  # what is imported then is imported
    eventually(lambda: len(managed.server()["workers"]) == 1)
    before = min(len(descriptors_of(pid)) for _ in range(50) if time.sleep(0.005) is None)  # nobody asks
    over = 1  # reloads that have come to an end
    ends = f"{FAILED}|reloaded: this is generation|nothing is replaced"
    for free in (0, 1, 2, 3, 5, 7, 9, 11, 13) if number == signal.SIGHUP else (0, 1, 2, 3):
        leave_free(pid, free)
        managed.signal(number)
        over += 1
        managed.program.wait_for(ends, times=over)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        assert managed.answer(address=managed.address()).startswith(b"hello ")
        eventually(lambda: len(descriptors_of(pid)) <= before)
    managed.reload()
    assert managed.answer(address="unix:b.sock").startswith(b"hello ")
    assert managed.program.end() == 0


# ---- what nobody thought of

BREAKS = """
import srvkit.{module} as module

real, turns = module.{name}, []

def broken(*arguments, **named):
    turns.append(1)
    if {condition}:
        raise {error}
    return real(*arguments, **named)

module.{name} = broken
"""


def breaking(module, name, condition, error="KeyError('unexpected')"):
    return BREAKS.format(module=module, name=name, condition=condition, error=error) + RUN


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("reload", "SocketSet.__init__"),
        ("reload", "descriptors.make_room"),
        ("trial", "open_channel"),
        ("trial", "Trial.answer"),
        ("reload", "_is_ready"),
    ],
)
@pytest.mark.parametrize("error", ["KeyError('unexpected')", "MemoryError()", "UnicodeError('no text')"])
def test_whatever_raises_in_a_reload_is_its_answer_and_everything_stays(module, name, error, managed):
    managed.write(server())
    code = breaking(f"process.supervisor.{module}", name, "os.path.exists('break')", error)
    managed.program = managed.start("-c", f"import os{code}", "run")
    managed.program.wait_for("listening on ")
    workers = managed.workers()
    (managed.folder / "break").touch()
    answer = managed.ask(do="reload", all=True)
    (managed.folder / "break").unlink()
    assert len(answer["errors"]) == 1
    assert error.partition("(")[0] in answer["errors"][0]
    managed.program.wait_for(FAILED)
    goes_on(managed, workers)
    assert managed.program.end() == 0


def test_a_configuration_that_cannot_be_read_for_whatever_reason_is_answered(managed):
    code = breaking("config.loader", "read", "len(turns) == 2")
    managed.write(server())
    managed.program = managed.start("-c", code, "run")
    managed.program.wait_for("listening on ")
    workers = managed.workers()
    assert managed.ask(do="reload")["errors"] == ["KeyError: 'unexpected'"]
    goes_on(managed, workers)


def test_a_signal_is_not_lost_because_another_one_raised(managed):
    code = breaking("process.supervisor.supervisor", "Supervisor._ask_for_reload", "True")
    managed.write(server())
    managed.program = managed.start("-c", code, "run")
    managed.program.wait_for("listening on ")
    os.kill(managed.program.pid, signal.SIGSTOP)  # they come at once
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        managed.signal(number)
    os.kill(managed.program.pid, signal.SIGCONT)
    assert managed.program.ended() == 0
    managed.program.wait_for("SIGHUP: KeyError: 'unexpected'$")
    managed.program.wait_for("log reopened$")


def test_hung_workers_are_noticed_also_after_a_look_that_raised(managed, eventually):
    code = breaking("process.supervisor.worker_pool", "WorkerPool.look", "len(turns) < 3")
    managed.write(server(more='concurrency = "event"'), general='heartbeat_timeout = "500ms"')
    managed.program = managed.start("-c", code, "run")
    managed.program.wait_for("listening on ")
    (worker,) = managed.workers()
    with managed.talk(b"spin"):
        managed.program.wait_for(f"worker {worker} killed: no heartbeat")
        eventually(lambda: managed.workers() not in ([], [worker]))
    assert managed.program.end() == 0


def test_what_a_plugin_says_on_a_channel_harms_nobody(managed, talking, eventually):
    plugin = talking.replace(
        'elif word == b"exit":',
        'elif word == b"babble":\n'
        "        for fd in range(3, 40):\n"
        "            try:\n"
        "                import socket\n"
        "                sock = socket.socket(fileno=os.dup(fd))\n"
        "                if sock.family == socket.AF_UNIX and sock.getsockname() == '':\n"
        "                    socket.send_fds(sock, [b'no json\\n[]\\n{\"event\": 7}\\n{}\\n'], [0])\n"
        "            except OSError:\n"
        "                pass\n"
        '    elif word == b"exit":',
    )
    managed.write(server(), plugin)
    managed.begin()
    workers = managed.workers()
    before = len(descriptors_of(managed.program.pid))
    assert managed.answer(b"babble").startswith(b"babble ")
    managed.program.wait_for("not a message on a channel: b'no json'")
    assert managed.ask(do="connections")["silent"] == []
    eventually(lambda: len(descriptors_of(managed.program.pid)) <= before)
    goes_on(managed, workers)
