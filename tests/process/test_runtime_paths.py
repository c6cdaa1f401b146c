"""Where sockets, locks and pid files lie, and what is refused there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from srvkit.config.model import SrvkitSettings
from srvkit.config.paths import names_of
from srvkit.net.address import MAX_UNIX_PATH
from srvkit.process import runtime_paths as places
from srvkit.process.runtime_paths import (
    AlreadyRunning,
    Lock,
    PidFile,
    PlaceError,
    control_path,
    control_paths,
    runtime_folder,
)
from srvkit.process.supervisor.control_links import ControlLinks

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True)
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A /run of our own, in which nobody has anything yet."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(places, "RUN", tmp_path / "run")


def unit(folder: Path) -> dict[str, str]:
    folder.mkdir(mode=0o755, exist_ok=True)
    return {"RUNTIME_DIRECTORY": str(folder)}


def test_the_folder_is_made_for_us_alone(tmp_path):
    before = os.umask(0)
    try:
        folder = runtime_folder({"XDG_RUNTIME_DIR": str(tmp_path)})
    finally:
        os.umask(before)
    assert folder == (tmp_path / "run/srvkit" if os.geteuid() == 0 else tmp_path / "srvkit")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert runtime_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == folder


def test_the_folder_of_a_systemd_unit_comes_first(tmp_path):
    environ = unit(tmp_path / "echo") | {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert runtime_folder(environ) == (tmp_path / "echo").resolve()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_write_to_is_passed_over(mode, tmp_path):
    environ = unit(tmp_path / "echo")
    (tmp_path / "echo").chmod(mode)
    assert runtime_folder(environ) != (tmp_path / "echo").resolve()


def test_without_any_folder_the_reasons_are_told_and_it_runs_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    names = ("link", "file", "open", "missing/deep")
    monkeypatch.setattr(places, "_candidates", lambda environ: [tmp_path / name for name in names])
    with pytest.raises(PlaceError) as refused:
        runtime_folder({})
    text = str(refused.value)
    assert f"{tmp_path}/link is a link" in text
    assert f"{tmp_path}/file is no folder" in text
    assert f"{tmp_path}/open can be written to by other users" in text
    assert f"{tmp_path}/missing/deep cannot be used (No such file or directory)" in text
    assert refused.value.exit_status == 3
    assert control_path(SrvkitSettings(), "srvkit.toml", {}) is None
    assert "running without one" in caplog.text


@as_root
def test_another_users_folder_is_not_used(tmp_path):
    environ = unit(tmp_path / "theirs")
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    assert runtime_folder(environ) != (tmp_path / "theirs").resolve()


def test_a_configuration_has_one_place_however_it_is_written(tmp_path, monkeypatch):
    environ = unit(tmp_path / "here")
    folder = tmp_path / "echo"
    folder.mkdir()
    (folder / "srvkit.toml").touch()
    (tmp_path / "link.toml").symlink_to(folder / "srvkit.toml")
    (folder / "other.toml").touch()
    path = control_path(SrvkitSettings(), folder / "srvkit.toml", environ)
    assert path is not None and path.parent == (tmp_path / "here").resolve()
    assert path.name.startswith("echo-") and path.suffix == ".sock"
    linked = control_path(SrvkitSettings(), tmp_path / "link.toml", environ)
    assert linked is not None and linked != path  # which a link leads to, for as long as it runs
    assert control_paths("", tmp_path / "link.toml", environ)[:2] == [linked, path]
    monkeypatch.chdir(folder)
    assert control_path(SrvkitSettings(), "srvkit.toml", environ) == path
    assert control_paths("", "srvkit.toml", environ)[0] == path
    other = control_path(SrvkitSettings(), "other.toml", environ)
    assert other is not None and other.name.startswith("other-")


def test_every_name_gives_a_path_that_a_socket_can_have(tmp_path):
    long = Path("/" + "x" * 60)
    environ = unit(tmp_path / "here") | {"XDG_RUNTIME_DIR": str(long)}
    for name in ("ä" * 200, "..", "a b\n", "x" * 300, "-"):
        path = control_path(SrvkitSettings(), tmp_path / f"{name}.toml", environ)
        assert path is not None and len(os.fsencode(path)) <= MAX_UNIX_PATH
        assert path.name.isascii() and path.name.isprintable() and " " not in path.name


def test_control_is_relative_to_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = SrvkitSettings(control="run/c.sock")
    assert control_path(settings, "conf/srvkit.toml", {}) == tmp_path / "conf/run/c.sock"
    assert control_paths("run/c.sock", "conf/srvkit.toml", {})[0] == tmp_path / "conf/run/c.sock"


def test_a_path_that_no_socket_can_have_is_refused():
    with pytest.raises(PlaceError, match=r"srvkit\.control: /x+ is longer than the \d+ bytes"):
        control_path(SrvkitSettings(control="/" + "x" * 200), "srvkit.toml", {})


def test_without_a_file_there_is_no_place():
    assert control_path(SrvkitSettings(), None, {}) is None


def test_who_asks_looks_where_it_may_have_been_started(tmp_path):
    """The environment of a service is not that of a shell, and `control` may be newer than the start."""
    started = control_path(SrvkitSettings(), tmp_path / "x.toml", unit(tmp_path / "run/service"))
    assert started is not None
    started.touch()
    assert control_paths("new.sock", tmp_path / "x.toml", {})[0] == tmp_path / "new.sock"
    assert started in control_paths("new.sock", tmp_path / "x.toml", {})
    assert started in control_paths("", tmp_path / "x.toml", {})
    assert started not in control_paths("", tmp_path / "y.toml", {})


def test_who_asks_trusts_no_folder_that_anybody_may_write_to(tmp_path):
    environ = unit(tmp_path / "run/lock")
    started = control_path(SrvkitSettings(), tmp_path / "x.toml", environ)
    assert started is not None
    started.touch()
    (tmp_path / "run/lock").chmod(0o1777)
    assert started not in control_paths("", tmp_path / "x.toml", environ)


def test_a_second_start_is_refused_with_the_pid_of_the_first(tmp_path):
    lock = Lock.take(tmp_path / "run" / "c.sock")
    assert lock is not None
    with pytest.raises(AlreadyRunning) as refused:
        Lock.take(tmp_path / "run" / "c.sock")
    assert str(refused.value) == f"this configuration is running already (pid {os.getpid()})"
    assert refused.value.exit_status == 3
    lock.remove()
    assert not list((tmp_path / "run").iterdir())
    again = Lock.take(tmp_path / "run" / "c.sock")
    assert again is not None
    again.remove()


def test_a_lock_is_no_longer_than_its_process(tmp_path):
    code = (
        f"from srvkit.process.runtime_paths import *\n"
        "from pathlib import Path\n"
        f"l = Lock.take(Path('{tmp_path}/c'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert (tmp_path / "c.lock").read_text().strip().isdigit()
    lock = Lock.take(tmp_path / "c")
    assert lock is not None and (tmp_path / "c.lock").read_text() == f"{os.getpid()}\n"
    lock.remove()


def test_a_forked_child_leaves_and_the_lock_stays(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from srvkit.process.runtime_paths import AlreadyRunning, Lock\n"
        "lock = Lock.take(Path(sys.argv[1]))\nchild = os.fork()\n"
        "if not child:\n    lock.close_in_child()\n    lock.remove()\n    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "try:\n    Lock.take(Path(sys.argv[1]))\nexcept AlreadyRunning:\n    print('still ours')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "c"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "still ours\n"


def test_a_lock_outlives_an_exec(tmp_path):
    """What takes the place of the process has it by its descriptor, and gives it back."""
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from srvkit.process.runtime_paths import AlreadyRunning, Lock\n"
        "path = Path(sys.argv[1])\n"
        "if len(sys.argv) == 2:\n"
        "    lock = Lock.take(path)\n"
        "    os.set_inheritable(lock.fileno(), True)\n"
        "    os.execv(sys.executable, [sys.executable, '-c', os.environ['CODE'], path, str(lock.fileno())])\n"
        "lock = Lock(path.with_name('c.lock'), int(sys.argv[2]))\n"
        "assert not os.get_inheritable(lock.fileno())\n"
        "try:\n    Lock.take(path)\n"
        "except AlreadyRunning as error:\n    print(str(error).replace(str(os.getpid()), 'us'))\n"
        "lock.remove()\nprint(os.listdir(path.parent))\n"
    )
    (tmp_path / "f").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "f" / "c"],
        env=os.environ | {"CODE": code},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["this configuration is running already (pid us)", "[]"]


def test_a_lock_that_was_deleted_by_hand_is_not_ours_to_delete_again(tmp_path):
    lock = Lock.take(tmp_path / "c")
    assert lock is not None
    (tmp_path / "c.lock").unlink()
    other = Lock.take(tmp_path / "c")
    assert other is not None
    lock.remove()
    with pytest.raises(AlreadyRunning):
        Lock.take(tmp_path / "c")
    other.remove()


def test_a_lock_whose_file_went_before_it_was_locked_is_taken_anew(tmp_path, monkeypatch):
    """Its owner removes it in the moment between our opening and our locking it."""
    flock = fcntl.flock

    def removed_meanwhile(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "c.lock").unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    lock = Lock.take(tmp_path / "c")
    assert lock is not None
    assert (tmp_path / "c.lock").read_text() == f"{os.getpid()}\n"
    lock.remove()


def test_where_nothing_can_be_locked_a_warning_has_to_do(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert Lock.take(tmp_path / "file" / "c.sock") is None
    (tmp_path / "d.lock").symlink_to(tmp_path / "target")
    assert Lock.take(tmp_path / "d") is None
    assert not (tmp_path / "target").exists()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "a second start will not be noticed" in caplog.text


def test_the_pid_file_holds_the_pid_while_we_live(tmp_path):
    (tmp_path / "x.pid").write_text("4194304999\n")  # what a crash has left
    file = PidFile.write("x.pid", tmp_path / "srvkit.toml")
    assert (tmp_path / "x.pid").read_text() == f"{os.getpid()}\n"
    with pytest.raises(
        AlreadyRunning, match=rf"x\.pid belongs to a process that is running \(pid {os.getpid()}\)"
    ):
        PidFile.write("x.pid", tmp_path / "srvkit.toml")
    file.remove()
    assert not (tmp_path / "x.pid").exists()


def test_the_pid_file_of_somebody_else_is_not_removed(tmp_path):
    file = PidFile.write("run/x.pid", tmp_path / "srvkit.toml")
    (tmp_path / "run/x.pid").unlink()
    (tmp_path / "run/x.pid").write_text("1\n")
    file.remove()
    assert (tmp_path / "run/x.pid").read_text() == "1\n"


def test_a_file_that_is_no_pid_file_is_left_untouched(tmp_path):
    (tmp_path / "srvkit.toml").write_text("[srvkit]\n")
    with pytest.raises(PlaceError, match="another file stands there, it was left untouched"):
        PidFile.write("srvkit.toml", tmp_path / "srvkit.toml")
    assert (tmp_path / "srvkit.toml").read_text() == "[srvkit]\n"


def test_a_link_in_place_of_the_pid_file_is_not_followed(tmp_path):
    (tmp_path / "x.pid").symlink_to(tmp_path / "target")
    with pytest.raises(PlaceError, match=r"x\.pid cannot be written: it is a link"):
        PidFile.write("x.pid", tmp_path / "srvkit.toml")
    assert not (tmp_path / "target").exists()


# ---- names that links lead to


def test_a_file_has_a_name_for_each_link_on_the_way(tmp_path, monkeypatch):
    real = Path(os.path.realpath(tmp_path))
    (real / "srv/releases/1").mkdir(parents=True)
    (real / "srv/current").symlink_to("releases/1")
    (real / "short").symlink_to(real / "srv")
    (real / "srv/releases/1/x.toml").touch()
    names = names_of(real / "short/./current/x.toml")
    ways = ("short/current/x.toml", "srv/current/x.toml", "srv/releases/1/x.toml")
    assert names == [real / way for way in ways]
    assert names_of(real / "srv/current/../1/x.toml") == [real / "srv/releases/1/x.toml"]
    monkeypatch.chdir(real / "srv/current")
    monkeypatch.setenv("PWD", str(real / "srv/current"))
    assert names_of("x.toml") == names[1:]
    monkeypatch.setenv("PWD", "/")  # which is not where we are
    assert names_of("x.toml") == names[2:]
    (real / "loop").symlink_to("loop")
    assert len(names_of(real / "loop/x.toml")) == 1


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """`listening(path)`: somebody who answers at a path."""
    with contextlib.ExitStack() as stack:

        def listen(path: Path) -> Path:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(path))
            sock.listen()
            return path

        yield listen


def test_there_is_a_plate_for_each_other_name_and_it_goes_with_the_name(tmp_path, listening, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", unit(tmp_path / "here")["RUNTIME_DIRECTORY"])
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
    (tmp_path / "current").symlink_to("1")
    config = tmp_path / "current/srvkit.toml"
    control = listening(control_path(SrvkitSettings(), config))
    plates = ControlLinks(control)
    plates.refuse_another(config)
    plates.follow(config)
    (old,) = control_paths("", tmp_path / "1/srvkit.toml")[:1]
    assert old.readlink() == control
    with pytest.raises(AlreadyRunning):
        ControlLinks(old.with_name("other.sock")).refuse_another(tmp_path / "1/srvkit.toml")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("2")
    plates = ControlLinks(control, plates.made)  # a successor's
    plates.follow(config)
    (new,) = control_paths("", tmp_path / "2/srvkit.toml")[:1]
    assert new.readlink() == control and not old.is_symlink()
    plates.remove()
    assert list((tmp_path / "here").iterdir()) == [control]


def test_what_a_dead_one_has_left_is_replaced_and_what_lives_is_left_alone(
    tmp_path, listening, monkeypatch, caplog
):
    monkeypatch.setenv("RUNTIME_DIRECTORY", unit(tmp_path / "here")["RUNTIME_DIRECTORY"])
    (tmp_path / "link.toml").symlink_to("srvkit.toml")
    control, name = (control_path(SrvkitSettings(), tmp_path / file) for file in ("link.toml", "srvkit.toml"))
    name.symlink_to("nowhere")
    plates = ControlLinks(control)
    plates.follow(tmp_path / "link.toml")
    assert name.readlink() == control
    plates.remove()
    listening(name)
    plates.follow(tmp_path / "link.toml")
    assert "answers for this configuration at" in caplog.text
    plates.remove()
    assert name.is_socket()


# ---- other users


def test_what_runs_without_a_session_finds_what_runs_in_one(tmp_path):
    folder = tmp_path / f"run/user/{os.geteuid()}/srvkit"
    folder.mkdir(parents=True, mode=0o700)
    assert folder in [path.parent for path in control_paths("", tmp_path / "srvkit.toml", {})]


@as_root
def test_root_looks_into_the_folders_of_all_users_that_are_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "TMP", tmp_path)
    config = tmp_path / "srvkit.toml"
    found = []
    for number, owner, mode in ((NOBODY, NOBODY, 0o700), (7, NOBODY, 0o700), (8, 8, 0o777)):
        folder = tmp_path / f"srvkit-{number}"
        folder.mkdir()
        name = control_paths("", config, {})[0].name
        (folder / name).touch()
        os.chown(folder, owner, owner)
        os.chown(folder / name, owner, owner)
        folder.chmod(mode)
        found.append(folder / name)
    assert set(control_paths("", config, {})) & set(found) == {found[0]}
    assert places.owner_of(found[0]) in ("nobody", str(NOBODY))
    assert places.owner_of(config) == ""


@pytest.mark.parametrize("call", ["fcntl.flock", "os.pread", "os.ftruncate", "os.pwrite"])
def test_what_cannot_be_locked_or_filled_leaves_no_file(call, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as broken:
        broken.setattr(call, fails)
        assert Lock.take(tmp_path / "c") is None
        with pytest.raises(PlaceError, match="cannot be written: No locks available"):
            PidFile.write("pid", tmp_path / "srvkit.toml")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    (tmp_path / "pid").touch()  # somebody else's
    with monkeypatch.context() as broken:
        broken.setattr(call, fails)
        with pytest.raises(PlaceError):
            PidFile.write("pid", tmp_path / "srvkit.toml")
    assert (tmp_path / "pid").exists() == (call in ("fcntl.flock", "os.pread"))
