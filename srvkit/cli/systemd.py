"""`srvkit systemd [CONFIG]`: the service unit of a configuration, and socket units for its addresses.

It writes what `process.unitfiles` makes, and says what is left to do. No plugin is loaded, and
nothing is installed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from srvkit.cli.run import CONFIG_HELP, DEFAULT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from srvkit.cli.run import Subparsers
    from srvkit.config.model import Config, Problems
    from srvkit.net.address import Address

    Addresses = dict[str, list[Address]]  # of each server


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "systemd",
        help="write systemd's unit files for a configuration",
        description="Write a hardened unit to standard output, or into a folder. Nothing is installed.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", default=DEFAULT_CONFIG, help=CONFIG_HELP)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a setting")
    parser.add_argument("--name", metavar="NAME", default="srvkit", help="of the units (default: srvkit)")
    parser.add_argument("--output", metavar="DIR", help="write files there, in place of earlier ones")
    parser.add_argument(
        "--sockets", action="store_true", help="let systemd open the sockets; say which listen lines to use"
    )
    parser.set_defaults(run=command)


def command(args: argparse.Namespace) -> int:
    """Write the units; raises ConfigError where the configuration is wrong or does not fit into a unit."""
    from srvkit.config import loader
    from srvkit.errors import ConfigError
    from srvkit.process.unit_files import service_unit, socket_unit

    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", args.name):
        raise ConfigError(f"--name {args.name}: letters, digits, '_', '-' and '.' are expected")
    config, problems = loader.read(args.config, args.set)
    bound = _addresses(config, problems)
    problems.raise_if_any()
    passed = _pass_on(bound) if args.sockets else {}
    sockets = {
        f"{args.name}-{server}.socket": socket_unit(
            args.name, server, config.server[server], some, bound[server]
        )
        for server, some in passed.items()
    }
    service = service_unit(
        args.name,
        config,
        [one for some in bound.values() for one in some],
        requires=list(sockets),
        overrides=[f"--set={one}" for one in args.set],
        variables="${" in problems.source.text,
    )
    _write({f"{args.name}.service": service, **sockets}, args.output)
    for note in _notes(config, bound, passed):
        print(f"note: {note}", file=sys.stderr)
    return 0


def _addresses(config: Config, problems: Problems) -> Addresses:
    from srvkit.net.address import parse
    from srvkit.process.unit_files import folder_of

    found: Addresses = {name: [] for name in config.server}
    for name, settings in config.server.items():
        for index, text in enumerate(settings.listen):
            try:
                found[name].append(parse(text).relative_to(folder_of(config)))
            except ValueError as error:
                problems.add(("server", name, "listen", index), str(error))
    return found


def _pass_on(bound: Addresses) -> Addresses:
    """Take out the addresses that systemd can open, and return them."""
    from srvkit.process.unit_files import can_pass

    passed = {}
    for server, some in bound.items():
        if able := [one for one in some if can_pass(one)]:
            passed[server] = able
            bound[server] = [one for one in some if one not in able]
    return passed


def _notes(config: Config, bound: Addresses, passed: Addresses) -> Iterator[str]:
    from srvkit.config import toml
    from srvkit.process.unit_files import folder_of

    for server in passed:
        listen = [f"systemd:{server}", *map(str, bound[server])]
        yield f"with its socket unit goes, in [server.{server}]: listen = {toml.literal(listen)}"
    for server, some in bound.items():
        for one in some:
            if one.scheme == "systemd":
                yield f"server.{server}: {one} needs a socket unit with FileDescriptorName={one.name}"
            elif one.scheme == "fd":
                yield f"server.{server}: {one} is not passed by systemd; use systemd:NAME"
    private = [
        path for path in (str(folder_of(config)), sys.prefix, sys.base_prefix) if path.startswith("/root/")
    ]
    if private and not config.srvkit.user:
        yield f"{private[0]} is root's own: the service, which runs as another user, cannot read there"


def _write(units: dict[str, str], folder: str | None) -> None:
    from srvkit.errors import ConfigError

    try:
        for file, text in units.items():
            if folder is None:
                print(f"# {file}\n{text}")
            else:
                Path(folder, file).write_text(text, encoding="utf-8")
                print(f"wrote {Path(folder, file)}")
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
