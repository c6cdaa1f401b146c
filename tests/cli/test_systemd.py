"""`srvkit systemd` writes units that systemd takes without a word, hardened as far as the servers allow."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ODD = """a b%c"d'e\\f;$g"""  # what means something to systemd, but may be in a path


def config(*listen: str, general: str = "", more: str = "") -> str:
    return f"[srvkit]\n{general}\n[server.echo]\nlisten = {json.dumps(listen)}\nhandler = 'echo'\n{more}"


@pytest.fixture
def units(srvkit: Any, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """`units(config, "--sockets")`: the units of a configuration, by the names of their files."""

    def units(text: str, *words: str, folder: Path = tmp_path) -> dict[str, str]:
        folder.mkdir(exist_ok=True)
        (folder / "srvkit.toml").write_text(text)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        done = srvkit("systemd", str(folder / "srvkit.toml"), "--output", str(out), *words)
        assert done.returncode == 0, done.stderr
        return {file.name: file.read_text() for file in out.iterdir()}

    return units


@pytest.fixture
def verified(tool: Any, tmp_path: Path) -> Callable[[], str]:
    """`verified()`: what `systemd-analyze verify` has to say of the units written."""
    tool("systemd-analyze")

    def verified() -> str:
        files = sorted(f"./{file.name}" for file in (tmp_path / "out").iterdir())
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *files],
            cwd=tmp_path / "out",
            capture_output=True,
            text=True,
            timeout=60,
        )
        return f"{done.stdout}{done.stderr}{done.returncode or ''}"

    return verified


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.M)


@pytest.mark.parametrize("sockets", [(), ("--sockets",)], ids=["", "sockets"])
@pytest.mark.parametrize(
    "text",
    [
        config("tcp://127.0.0.1:7007"),
        config("tcp://[::1]:80", "tcp://:81", "tcp://localhost:82", "tcp://0.0.0.0:0", "systemd:x"),
        config("udp://[::]:53", "unixgram:@na%me"),
        config("unix:/run/echo/a.sock", "unix:/var/lib/a b/c/d.sock", f"unix:{ODD}.sock"),
        config("tcp://:7", general="user = 'daemon'\ngroup = 'daemon'\ndrain_timeout = '1h'"),
        config(
            "unix:a.sock",
            more="socket = { owner = 'daemon', group = 'daemon', receive_buffer = 4096, send_buffer = 4096 }",
        ),
    ],
    ids=["one", "internet", "datagrams", "odd", "user", "owner"],
)
def test_systemd_accepts_the_units(units: Any, verified: Any, text: str, sockets: tuple[str, ...]) -> None:
    assert "srvkit.service" in units(text, *sockets)
    assert verified() == ""


def test_odd_characters_of_paths_and_settings_reach_the_command(
    units: Any, verified: Any, tmp_path: Path
) -> None:
    folder = tmp_path / ODD
    service = units(config("unix:a.sock"), "--set", "server.echo.handler=e$cho", folder=folder)[
        "srvkit.service"
    ]
    escaped = r"a b%%c\x22d'e\\f;$$g"
    (command,) = values(service, "ExecStart")
    assert command.endswith(f' run "{tmp_path}/{escaped}/srvkit.toml" --set=server.echo.handler=e$$cho')
    assert values(service, "WorkingDirectory") == [f"{tmp_path}/{ODD.replace('%', '%%')}"]
    assert verified() == ""


def test_the_service_is_told_what_the_configuration_says(units: Any) -> None:
    text = config(
        "tcp://127.0.0.1:7007", general="drain_timeout = '2m'", more="limits.max_connections = 5000"
    )
    service = units(text, "--name", "mine")["mine.service"]
    assert values(service, "Type") == ["notify"]
    assert values(service, "TimeoutStopSec") == ["135"]
    assert values(service, "LimitNOFILE") == ["5512"]
    assert values(service, "RestrictAddressFamilies") == ["AF_INET AF_UNIX"]
    assert values(service, "DynamicUser") == ["yes"]
    assert values(service, "CapabilityBoundingSet") == values(service, "AmbientCapabilities") == [""]
    assert values(service, "RuntimeDirectory") == ["mine"]
    assert values(service, "EnvironmentFile") == []


@pytest.mark.parametrize(
    ("listen", "families"),
    [
        ("tcp://[::]:7", "AF_INET6 AF_UNIX"),
        ("udp://:7777", "AF_INET AF_INET6 AF_UNIX"),
        ("tcp://localhost:7777", "AF_INET AF_INET6 AF_UNIX"),
        ("unix:a.sock", "AF_UNIX"),
    ],
)
def test_only_the_families_of_the_addresses_are_allowed(units: Any, listen: str, families: str) -> None:
    assert values(units(config(listen))["srvkit.service"], "RestrictAddressFamilies") == [families]


def test_a_low_port_takes_one_capability(units: Any) -> None:
    service = units(config("tcp://127.0.0.1:1023"))["srvkit.service"]
    assert values(service, "CapabilityBoundingSet") == ["CAP_NET_BIND_SERVICE"]
    assert values(service, "AmbientCapabilities") == ["CAP_NET_BIND_SERVICE"]
    assert values(service, "SystemCallFilter") == ["@system-service", "~@privileged"]


def test_a_user_of_the_configuration_is_become_by_srvkit(units: Any) -> None:
    service = units(config("tcp://127.0.0.1:7007", general="user = 'daemon'"))["srvkit.service"]
    assert values(service, "DynamicUser") == values(service, "AmbientCapabilities") == []
    assert values(service, "CapabilityBoundingSet") == ["CAP_KILL CAP_SETGID CAP_SETUID"]
    assert values(service, "SystemCallFilter") == ["@system-service"]


def test_folders_of_unix_sockets_are_made_or_opened(units: Any) -> None:
    service = units(
        config("unix:/run/echo/a.sock", "unix:/var/lib/x/y/a.sock", "unix:/srv/a.sock", "unix:@b")
    )["srvkit.service"]
    assert values(service, "RuntimeDirectory") == ["srvkit echo"]
    assert values(service, "StateDirectory") == ["x/y"]
    assert values(service, "ReadWritePaths") == ["/srv"]


def test_variables_of_the_configuration_come_from_a_file(units: Any) -> None:
    service = units(config("${ADDRESS:-unix:a.sock}"))["srvkit.service"]
    assert values(service, "EnvironmentFile") == ["-/etc/default/srvkit"]


def test_socket_units_open_what_systemd_can_and_say_what_to_listen_on(units: Any) -> None:
    text = config(
        "tcp://127.0.0.1:80", "tcp://:81", "tcp://[::1]:82", "unix:/run/e.sock", "tcp://localhost:83"
    )
    made = units(text + "socket = { backlog = 9, nodelay = false, mode = '0660' }\n", "--sockets")
    assert sorted(made) == ["srvkit-echo.socket", "srvkit.service"]
    unit, service = made["srvkit-echo.socket"], made["srvkit.service"]
    assert values(unit, "ListenStream") == ["127.0.0.1:80", "81", "[::1]:82", "/run/e.sock"]
    assert values(unit, "FileDescriptorName") == ["echo"]
    assert values(unit, "Service") == ["srvkit.service"]
    assert values(unit, "Backlog") == ["9"]
    assert values(unit, "NoDelay") == ["no"]
    assert values(unit, "SocketMode") == ["0660"]
    assert '# listen = ["systemd:echo", "tcp://localhost:83"]' in unit.splitlines()
    assert values(service, "Requires") == ["srvkit-echo.socket"]
    assert values(service, "CapabilityBoundingSet") == ["CAP_NET_BIND_SERVICE"]  # of port 83


def test_without_a_folder_the_units_are_printed(srvkit: Any, tmp_path: Path) -> None:
    (tmp_path / "srvkit.toml").write_text(config("udp://127.0.0.1:53"))
    done = srvkit("systemd", "--sockets")
    assert re.findall(r"^# (\S+\.\w+)$", done.stdout, re.M) == ["srvkit.service", "srvkit-echo.socket"]
    assert values(done.stdout, "ListenDatagram") == ["127.0.0.1:53"]
    assert 'note: with its socket unit goes, in [server.echo]: listen = ["systemd:echo"]' in done.stderr


def test_a_socket_of_somebody_elses_unit_is_pointed_out(srvkit: Any, tmp_path: Path) -> None:
    (tmp_path / "srvkit.toml").write_text(config("systemd:web"))
    done = srvkit("systemd", "--sockets")
    assert done.returncode == 0
    assert "server.echo: systemd:web needs a socket unit with FileDescriptorName=web" in done.stderr


def test_what_cannot_be_written_into_a_unit_is_refused(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "srvkit.toml").write_text(config("x://y", "unix:a.sock"))
    (line,) = refused(2, "systemd")
    assert line.startswith("srvkit.toml:4: server.echo.listen[0]: 'x://y' is no address")
    (line,) = refused(2, "systemd", "--name", "a/b")
    assert "--name a/b" in line
    (tmp_path / "srvkit.toml").write_text(config("unix:a.sock"))
    (line,) = refused(2, "systemd", "--output", "nowhere")
    assert line == "cannot write nowhere/srvkit.service: No such file or directory"
    folder = tmp_path / "new\nline"
    folder.mkdir()
    (folder / "srvkit.toml").write_text(config("unix:a.sock"))
    (line,) = refused(2, "systemd", str(folder / "srvkit.toml"))
    assert line.endswith("cannot stand in a unit file")
