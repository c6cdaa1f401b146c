"""The text of systemd's unit files: a hardened service, and sockets that systemd opens.

Made from a configuration alone; nothing is read, written, started or installed here. Sources:
systemd.exec(5), systemd.service(5), systemd.socket(5), as of systemd 252.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from srvkit.config import toml
from srvkit.config.model import Config, ServerSettings
from srvkit.errors import ConfigError
from srvkit.net.address import Address
from srvkit.net.listener import SocketSettings

LOWEST_FREE_PORT = 1024
OTHER_FILES = 512  # descriptors beside connections: sockets, logs, what a handler opens
SPARE_STOP_TIME = 15  # seconds beyond drain_timeout before systemd kills
MANAGED = {"/run": "Runtime", "/var/lib": "State", "/var/cache": "Cache", "/var/log": "Logs"}
HOMES = ("/home/", "/root/", "/run/user/")
TEMPORARY = ("/tmp/", "/var/tmp/")

SERVICE = """\
# Made by `srvkit systemd`. Changes go into `systemctl edit {name}.service`, so that it can be made anew.

[Unit]
Description=srvkit: {servers}
After=network.target
{requires}
[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
# Type=notify-reload would do this by itself, but came with systemd 253.
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={folder}
{environment}WatchdogSec=30
Restart=on-failure
RestartSec=1
# A wrong configuration does not mend itself.
RestartPreventExitStatus=2
# TERM to srvkit alone: it drains and ends its workers in good order.
KillMode=mixed
# drain_timeout, and time to cut what is left
TimeoutStopSec={stop}
LimitNOFILE={files}

{identity}
{paths}
NoNewPrivileges=yes
ProtectSystem=strict
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
{proc}RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
UMask=0077
# The sockets that srvkit opens; add what the handlers need themselves.
RestrictAddressFamilies={families}
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
{privileged}# Not here: MemoryDenyWriteExecute=yes. It breaks packages that make code as they run, and the
# import of ctypes on older Pythons.

[Install]
WantedBy=multi-user.target
"""

SOCKET = """\
# Made by `srvkit systemd --sockets`; with it goes, in the configuration:
# [server.{server}]
# listen = {listen}

[Unit]
Description=srvkit: sockets of {server}

[Socket]
{addresses}
FileDescriptorName={server}
Service={name}.service
{options}

[Install]
WantedBy=sockets.target
"""


def service_unit(
    name: str,
    config: Config,
    bound: Sequence[Address],
    *,
    requires: Sequence[str] = (),
    overrides: Sequence[str] = (),
    variables: bool = False,
) -> str:
    """Return the text of `name`.service.

    `bound` is what srvkit itself listens on, `requires` are units whose sockets it gets. `overrides` go
    to the command line; with `variables` there is a file for those of the environment. Raises
    ConfigError for a path that cannot stand in a unit.
    """
    capabilities = _capabilities(config, bound)
    environment = f"# For the variables of the configuration.\nEnvironmentFile=-/etc/default/{name}\n"
    return SERVICE.format(
        name=name,
        servers=", ".join(config.server),
        requires="".join(f"Requires={unit}\n" for unit in requires),
        command=_command(config, overrides),
        folder=_line(str(folder_of(config))),
        environment=environment if variables else "",
        stop=int(config.srvkit.drain_timeout) + SPARE_STOP_TIME,
        files=OTHER_FILES + sum(settings.limits.max_connections for settings in config.server.values()),
        identity="\n".join(_identity(config, capabilities)),
        paths="\n".join(_paths(name, config, bound)),
        # Root without CAP_SYS_PTRACE would not see its own workers.
        proc="" if config.srvkit.user else "ProtectProc=invisible\n",
        families=" ".join(_families(bound)),
        privileged="" if capabilities - {"CAP_NET_BIND_SERVICE"} else "SystemCallFilter=~@privileged\n",
    )


def socket_unit(
    name: str, server: str, settings: ServerSettings, passed: Sequence[Address], others: Sequence[Address]
) -> str:
    """Return the text of a socket unit that passes these addresses to one server of `name`.service.

    `others` are those that the server still opens itself. Raises ConfigError for a path that cannot
    stand in a unit.
    """
    listen = [f"systemd:{server}", *map(str, others)]
    return SOCKET.format(
        name=name,
        server=server,
        listen=_line(toml.literal(listen if others else listen[0])),
        addresses="\n".join(map(_listen, passed)),
        options="\n".join(_socket_options(settings.socket, passed)),
    )


def can_pass(address: Address) -> bool:
    """Tell whether systemd can open it: no name of a host, and no port of the kernel's choice."""
    if address.scheme in ("tcp", "udp"):
        return address.port > 0 and bool(re.fullmatch(r"[0-9.]*|.*:.*", address.host))
    return address.is_unix


def folder_of(config: Config) -> Path:
    """Return the folder that relative paths of a configuration start at, as an absolute path."""
    return Path(os.path.abspath(config.path or ".")).parent


def _command(config: Config, overrides: Sequence[str]) -> str:
    program = Path(sys.executable).with_name("srvkit")
    start = [str(program)] if os.access(program, os.X_OK) else [sys.executable, "-m", "srvkit"]
    words = [*start[1:], "run", os.path.abspath(config.path or "srvkit.toml"), *overrides]
    # A $ means a variable in the arguments, and itself in the program's path.
    return " ".join([_word(start[0]), *(_word(word).replace("$", "$$") for word in words)])


def _capabilities(config: Config, bound: Sequence[Address]) -> set[str]:
    needed = set()
    if any(0 < one.port < LOWEST_FREE_PORT for one in bound):
        needed.add("CAP_NET_BIND_SERVICE")
    if config.srvkit.user:
        needed |= {"CAP_SETUID", "CAP_SETGID", "CAP_KILL"}  # become the user, and stop what runs as it
    if any(s.socket.owner or s.socket.group for s in config.server.values()) and any(map(_has_file, bound)):
        needed |= {"CAP_CHOWN", "CAP_FOWNER"}
    return needed


def _identity(config: Config, capabilities: set[str]) -> list[str]:
    shown = " ".join(sorted(capabilities))
    if config.srvkit.user:
        who = f"# Started by root, which binds; the workers become {config.srvkit.user!r}."
        return [_line(who), f"CapabilityBoundingSet={shown}"]
    lines = ["# A user of its own, made at the start; User=NAME makes it one that exists.", "DynamicUser=yes"]
    if config.srvkit.group:
        lines.append(f"Group={_line(config.srvkit.group)}")
    return [*lines, f"CapabilityBoundingSet={shown}", f"AmbientCapabilities={shown}"]


def _paths(name: str, config: Config, bound: Sequence[Address]) -> list[str]:
    """Return what makes folders, opens them for writing, and hides the rest."""
    lines = []
    made = {"Runtime": [name]}  # the first is where srvkit puts its control socket
    writable = set()
    for folder in map(os.path.dirname, _written(config, bound)):
        place = re.sub("^/var/run(?=/|$)", "/run", folder)
        root = next((root for root in MANAGED if place.startswith(f"{root}/")), "")
        if root:
            made.setdefault(MANAGED[root], []).append(place[len(root) + 1 :])
        else:
            writable.add(folder)
    lines += [f"{kind}Directory={' '.join(map(_word, dict.fromkeys(made[kind])))}" for kind in made]
    if writable:
        lines.append(f"ReadWritePaths={' '.join(map(_word, sorted(writable)))}")
    read = {str(folder_of(config)), sys.prefix, sys.base_prefix}
    at_home = sorted(path for path in read | writable if path.startswith(HOMES))
    if at_home:
        lines.append(_line(f"# ProtectHome=yes would hide {at_home[0]}."))
    lines.append(f"ProtectHome={'read-only' if at_home else 'yes'}")
    lines.append("PrivateTmp=yes")
    for setting, folders in (("BindReadOnlyPaths", read - writable), ("BindPaths", writable)):
        if hidden := sorted(path for path in folders if path.startswith(TEMPORARY)):
            lines.append(f"{setting}={' '.join(map(_word, hidden))}")
    return lines


def _written(config: Config, bound: Sequence[Address]) -> list[str]:
    files = (config.logging.file, config.srvkit.pid_file, config.srvkit.control)
    named = [os.path.join(folder_of(config), file) for file in files if file]
    return named + [one.path for one in bound if _has_file(one)]


def _families(bound: Sequence[Address]) -> list[str]:
    families = {"AF_UNIX"}  # for systemd and syslog
    for one in bound:
        if one.scheme in ("tcp", "udp"):
            numeric = bool(re.fullmatch(r"[0-9.]+", one.host))
            families |= (
                {"AF_INET6"} if ":" in one.host else {"AF_INET"} if numeric else {"AF_INET", "AF_INET6"}
            )
    return sorted(families)


def _listen(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    port = f"{host}:{address.port}" if host else str(address.port)
    kind = "Stream" if address.kind == "stream" else "Datagram"
    return f"Listen{kind}={_line(address.path if address.is_unix else port)}"


def _socket_options(settings: SocketSettings, passed: Sequence[Address]) -> list[str]:
    options = {"Backlog": str(settings.backlog)}
    if hosts := {one.host for one in passed if ":" in one.host}:
        options["BindIPv6Only"] = "both" if "::" in hosts else "ipv6-only"
    if any(one.scheme == "tcp" for one in passed):
        options["NoDelay"] = "yes" if settings.nodelay else "no"
        options["KeepAlive"] = "yes" if settings.keepalive else "no"
    if settings.receive_buffer:
        options["ReceiveBuffer"] = str(settings.receive_buffer)
    if settings.send_buffer:
        options["SendBuffer"] = str(settings.send_buffer)
    if any(map(_has_file, passed)):
        options |= {"SocketMode": settings.mode, "RemoveOnStop": "yes"}
        options |= {"SocketUser": settings.owner} if settings.owner else {}
        options |= {"SocketGroup": settings.group} if settings.group else {}
    return [f"{key}={_line(value)}" for key, value in options.items()]


def _has_file(address: Address) -> bool:
    return address.is_unix and not address.is_abstract


def _line(text: str) -> str:
    """Write a value that takes the rest of its line."""
    if text != text.strip() or text.endswith("\\"):
        raise ConfigError(f"{text!r} cannot stand in a unit file")
    return _plain(text)


def _word(text: str) -> str:
    """Write one word of several, quoted where it must be."""
    # Not \": of a folder to bind, systemd 262 takes that for the end of the word.
    escaped = _plain(text).replace("\\", r"\\").replace('"', r"\x22")
    return f'"{escaped}"' if re.search(r"""[\s"'\\;]""", text) else escaped


def _plain(text: str) -> str:
    if not text.isprintable():  # surrogates neither: what is not UTF-8 has no place there
        raise ConfigError(f"{text!r} cannot stand in a unit file")
    return text.replace("%", "%%")
