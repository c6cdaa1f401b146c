"""Listening sockets: bound with care for what stands there already, and put away without trace."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srvkit.errors import ListenError
from srvkit.net import socket_activation as inherited
from srvkit.net import unixpath
from srvkit.net.address import parse
from srvkit.net.listener import SocketSettings, bind, bind_each


@pytest.fixture(params=["unix", "unixgram"])
def scheme(request: Any) -> Any:
    return request.param


def kind(scheme: str) -> socket.SocketKind:
    return socket.SOCK_STREAM if scheme == "unix" else socket.SOCK_DGRAM


def bound(text: str, **settings: Any) -> Any:
    return bind(parse(text), SocketSettings(**settings))


@pytest.fixture
def umask() -> Iterator[Any]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# Files of Unix sockets


def test_the_file_is_there_while_the_listener_is(scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = bound(f"{scheme}:{path}")
    assert stat.S_ISSOCK(path.lstat().st_mode)
    listener.close()
    assert list(tmp_path.iterdir()) == []
    listener.close()  # again


def test_a_file_that_nobody_listens_on_is_replaced(scheme: str, tmp_path: Path) -> None:
    """It was left by a server that was killed."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind(scheme)) as dead:
        dead.bind(str(path))
    listener = bound(f"{scheme}:{path}")
    listener.listen()
    with socket.socket(socket.AF_UNIX, kind(scheme)) as client:
        client.connect(str(path))
    listener.close()


def test_a_server_that_lives_is_not_replaced(scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = bound(f"{scheme}:{path}")
    first.listen()
    with pytest.raises(ListenError, match=f"cannot listen on {scheme}:{path}: another server is listening"):
        bound(f"{scheme}:{path}")
    with socket.socket(socket.AF_UNIX, kind(scheme)) as client:
        client.connect(str(path))
    first.close()


@pytest.mark.parametrize("other", ["unix", "unixgram"])
def test_a_server_with_a_full_queue_or_of_another_kind_lives_too(other: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = bound(f"unix:{path}", backlog=1)
    first.listen()
    waiting = []
    while True:
        sock = socket.socket(socket.AF_UNIX)
        waiting.append(sock)
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except BlockingIOError:
            break
    with pytest.raises(ListenError, match="another server is listening there"):
        bound(f"{other}:{path}")
    for sock in waiting:
        sock.close()
    first.close()


def make_file(path: Path) -> None:
    path.write_text("precious")


def make_link_to_a_socket(path: Path) -> None:
    target = path.with_name("target")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(target))
    path.symlink_to(target)


@pytest.mark.parametrize(
    "make",
    [make_file, Path.mkdir, make_link_to_a_socket, lambda path: path.symlink_to("nowhere"), os.mkfifo],
    ids=["file", "folder", "link to a socket", "link to nothing", "fifo"],
)
def test_what_is_no_socket_is_left_alone(make: Any, scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    make(path)
    before = path.lstat(), sorted(tmp_path.iterdir())
    with pytest.raises(ListenError, match="a file that is no socket stands there; it was left untouched"):
        bound(f"{scheme}:{path}")
    assert (path.lstat(), sorted(tmp_path.iterdir())) == before


def test_a_file_that_was_replaced_meanwhile_is_left_alone(scheme: str, tmp_path: Path, caplog: Any) -> None:
    """It is somebody else's now."""
    path = tmp_path / "s"
    first = bound(f"{scheme}:{path}")
    path.rename(tmp_path / "moved away, so that its number is not used again")
    second = bound(f"{scheme}:{path}")
    first.close()
    assert path.is_socket()
    assert caplog.messages == [f"{scheme}:{path}: the file belongs to another process now; not removed"]
    second.close()
    assert not path.exists()


def test_a_file_that_was_removed_meanwhile_is_not_missed(scheme: str, tmp_path: Path, caplog: Any) -> None:
    listener = bound(f"{scheme}:{tmp_path / 's'}")
    (tmp_path / "s").unlink()
    listener.close()
    assert caplog.messages == []


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", ["0600", "0660", "0666"])
def test_the_mode_is_what_the_settings_say_whatever_the_umask(
    mode: str, mask: int, scheme: str, tmp_path: Path, umask: Any
) -> None:
    umask(mask)
    path = tmp_path / "s"
    listener = bound(f"{scheme}:{path}", mode=mode)
    umask(0o022)
    assert stat.S_IMODE(path.lstat().st_mode) == int(mode, 8)
    listener.close()


def test_there_is_no_moment_in_which_others_may_connect(
    scheme: str, tmp_path: Path, umask: Any, monkeypatch: Any
) -> None:
    """Under umask 0 the file is made with the mode that it is to have, not given it afterwards."""
    modes = []
    chmod = os.chmod

    def look_first(path: Any, mode: int) -> None:
        modes.append(stat.S_IMODE(os.lstat(path).st_mode))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", look_first)
    umask(0)
    listener = bound(f"{scheme}:{tmp_path / 's'}", mode="0600")
    assert modes == [0o600]
    listener.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"owner": "nobody-of-that-name"}, "there is no user 'nobody-of-that-name'"),
        ({"group": "no-such-group"}, "there is no group 'no-such-group'"),
        ({"owner": "99999999999999999999"}, "there is no user '99999999999999999999'"),
        ({"owner": "4294967295"}, "there is no user '4294967295'"),
        ({"owner": "a\0"}, "there is no user 'a"),
        ({"group": "9" * 5000}, "there is no group '999"),
        ({"group": "a\0"}, "there is no group 'a"),
    ],
)
def test_an_unknown_owner_is_an_error_that_leaves_nothing(
    settings: dict[str, str], message: str, scheme: str, tmp_path: Path
) -> None:
    with pytest.raises(ListenError, match=message):
        bound(f"{scheme}:{tmp_path / 's'}", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_group_are_set(scheme: str, tmp_path: Path) -> None:
    listener = bound(f"{scheme}:{tmp_path / 's'}", owner="nobody", group="daemon")
    import grp
    import pwd

    found = (tmp_path / "s").lstat()
    assert (found.st_uid, found.st_gid) == (pwd.getpwnam("nobody").pw_uid, grp.getgrnam("daemon").gr_gid)
    listener.close()


def test_a_missing_folder_is_named(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=f"the folder {tmp_path / 'missing'} does not exist"):
        bound(f"{scheme}:{tmp_path}/missing/s")


def test_of_many_that_start_at_once_one_wins(tmp_path: Path) -> None:
    """And its file is the one that stays, although a stale one stood there for all of them."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    code = (
        "import sys\n"
        "from srvkit.errors import ListenError\n"
        "from srvkit.net.address import parse\n"
        "from srvkit.net.listener import bind\n"
        "sys.stdin.read(1)\n"
        "try:\n"
        f"    listener = bind(parse('unix:{path}'))\n"
        "except ListenError:\n"
        "    print('lost', flush=True)\n"
        "else:\n"
        "    listener.listen()\n"
        "    print('won', flush=True)\n"
        "sys.stdin.read()\n"
    )
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in starting:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    results = []
    for process in starting:
        assert process.stdout is not None
        results.append(process.stdout.readline().strip())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    for process in starting:
        process.communicate()
    assert sorted(results) == ["lost", "lost", "lost", "won"]


def test_an_abstract_name_has_no_file(scheme: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"@srvkit-test-{os.getpid()}"
    listener = bound(f"{scheme}:{name}")
    listener.listen()
    with socket.socket(socket.AF_UNIX, kind(scheme)) as client:
        client.connect("\0" + name[1:])
    listener.close()
    assert list(tmp_path.iterdir()) == []


# Internet addresses


def test_a_bound_socket_refuses_clients_until_it_listens() -> None:
    listener = bound("tcp://127.0.0.1:0")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.socket.getsockname())
    listener.listen()
    socket.create_connection(listener.socket.getsockname()).close()
    listener.close()


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_a_port_in_use_is_named(scheme: str) -> None:
    first = bound(f"{scheme}://127.0.0.1:0")
    first.listen()
    address = f"{scheme}://127.0.0.1:{first.socket.getsockname()[1]}"
    with pytest.raises(ListenError) as caught:
        bound(address)
    assert (
        str(caught.value) == f"cannot listen on {address}: the address is in use; is another server running?"
    )
    first.close()


def test_two_udp_servers_never_share_a_port_unnoticed() -> None:
    first = bound("udp://127.0.0.1:0")
    assert first.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
    assert first.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    first.close()


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ListenError, match="this machine has no such address"):
        bound("tcp://192.0.2.1:0")


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("host", "family", "only"),
    [("127.0.0.1", socket.AF_INET, None), ("[::1]", socket.AF_INET6, 1), ("[::]", socket.AF_INET6, 0)],
)
def test_the_family_follows_from_the_address(
    host: str, family: socket.AddressFamily, only: int | None, scheme: str
) -> None:
    """And `[::]` takes IPv4 too, whatever the machine's default."""
    listener = bound(f"{scheme}://{host}:0")
    assert listener.socket.family == family
    if only is not None:
        assert listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only
    listener.close()


def test_connections_have_the_options_of_the_settings() -> None:
    for on in (True, False):
        listener = bound("tcp://127.0.0.1:0", nodelay=on, keepalive=on, receive_buffer=8192, send_buffer=8192)
        listener.listen()
        with socket.create_connection(listener.socket.getsockname()):
            accepted, _ = listener.socket.accept()
            with accepted:
                listener.prepare(accepted)
                assert bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == on
                assert bool(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == on
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 8192  # as Linux counts
        listener.close()


# Descriptors


def test_a_descriptor_that_was_inherited_is_used_and_stays_open(tmp_path: Path) -> None:
    """Its file is not ours to remove."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as inherited:
        inherited.bind(str(path))
        listener = bound(f"fd:{inherited.fileno()}")
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        listener.close()
        assert inherited.fileno() >= 0 and inherited.getsockname() == str(path)
        assert path.is_socket()


def test_a_descriptor_that_is_no_socket_is_named(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(ListenError, match=r"descriptor \d+ is no socket"),
    ):
        bound(f"fd:{file.fileno()}")


def test_a_socket_that_is_bound_and_does_not_listen_yet_is_not_taken_for_a_stale_one(tmp_path: Path) -> None:
    """A server whose start takes its time keeps its path; closing gives it back."""
    address = parse(f"unix:{tmp_path / 'a.sock'}")
    first = bind(address)
    inode = os.lstat(address.path).st_ino
    with pytest.raises(ListenError, match="another server is listening there"):
        bind(address)
    assert os.lstat(address.path).st_ino == inode
    first.close()
    bind(address).close()


def test_a_socket_of_systemd_outlives_its_listeners(tmp_path: Path, monkeypatch: Any) -> None:
    """So that a later configuration can name it again; backlog, options and file are systemd's."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(1)
        monkeypatch.setattr(inherited, "_passed", [inherited.Inherited("a", sock.fileno(), sock)])
        for _ in range(2):
            (listener,) = bind_each(parse("systemd:a"))
            listener.listen()
            listener.close()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert path.is_socket()


def test_several_sockets_of_one_name_are_several_listeners(monkeypatch: Any) -> None:
    with socket.socket() as one, socket.socket() as other:
        passed = [inherited.Inherited("a", sock.fileno(), sock) for sock in (one, other)]
        monkeypatch.setattr(inherited, "_passed", passed)
        listeners = bind_each(parse("systemd:a"))
        assert len(listeners) == 2
        for listener in listeners:
            listener.close()
        with pytest.raises(ListenError, match="several sockets were passed by this name"):
            bind(parse("systemd:a"))


# Paths of every kind


def talk_to(path: str, kind_: int) -> None:
    with socket.socket(socket.AF_UNIX, kind_) as client:
        unixpath.connect(client, path)


def test_a_path_may_be_longer_than_a_socket_address(scheme: str, tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    folder.mkdir(parents=True)
    path = folder / "s"
    with socket.socket(socket.AF_UNIX, kind(scheme)) as dead:
        unixpath.bind(dead, path)
    listener = bound(f"{scheme}:{path}")  # and is found stale there, as anywhere
    listener.listen()
    talk_to(str(path), kind(scheme))
    with pytest.raises(ListenError, match="another server is listening there"):
        bound(f"{scheme}:{path}")
    assert "clients need a shorter, a relative way there" in caplog.text
    listener.close()
    assert not path.exists()
    with pytest.raises(ValueError, match=r"holds, and the file's name alone is longer than \d+$"):
        parse(f"{scheme}:{folder}/{'z' * 100}")


def test_a_path_need_not_be_utf_8(scheme: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"h\xf6hle")
    folder.mkdir()
    listener = bind(parse(f"{scheme}:s").relative_to(folder))
    listener.listen()
    talk_to(f"{folder}/s", kind(scheme))
    with pytest.raises(ListenError, match="another server is listening there"):
        bind(parse(f"{scheme}:s").relative_to(folder))
    listener.close()
    assert not list(folder.iterdir())


def test_an_abstract_name_need_not_be_utf_8(scheme: str) -> None:
    name = f"srvkit-{os.getpid()}-".encode() + b"\xf6"
    listener = bound(f"{scheme}:@{os.fsdecode(name)}")
    assert listener.socket.getsockname() == b"\0" + name
    listener.close()


def test_the_file_goes_wherever_the_program_has_gone(scheme: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    listener = bound(f"{scheme}:s")
    monkeypatch.chdir("/")
    listener.close()
    assert not list(tmp_path.iterdir())


def test_a_claim_is_of_the_folder_and_not_of_its_name(scheme: str, tmp_path: Path) -> None:
    """Containers that share the network's names have each a folder of their own at one path."""
    folder = tmp_path / "run"
    folder.mkdir()
    first = bound(f"{scheme}:{folder}/s")
    folder.rename(tmp_path / "of the first")
    folder.mkdir()
    (folder / "s").touch()
    with pytest.raises(ListenError, match="a file that is no socket"):
        bound(f"{scheme}:{folder}/s")
    (folder / "s").unlink()
    with socket.socket(socket.AF_UNIX, kind(scheme)) as dead:
        dead.bind(f"{folder}/s")
    second = bound(f"{scheme}:{folder}/s")
    with pytest.raises(ListenError, match="another server is listening there"):  # and does not listen yet
        bound(f"{scheme}:{folder}/s")
    second.close()
    first.close()


def test_ipv4_within_ipv6_is_ipv4() -> None:
    listener = bound("tcp://[::ffff:127.0.0.1]:0")
    assert listener.socket.getsockname()[0] == "127.0.0.1"
    listener.close()


def test_a_listener_that_cannot_be_made_of_a_bound_socket_leaves_nothing(
    tmp_path: Path, monkeypatch: Any
) -> None:
    before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []

    def fails(fd: int) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as broken, pytest.raises(ListenError, match="Cannot allocate memory"):
        broken.setattr("srvkit.net.listener.os.fstat", fails)
        bind(parse(f"unix:{tmp_path}/s"))
    assert not (tmp_path / "s").exists()
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)
    bind(parse(f"unix:{tmp_path}/s")).close()
