"""`srvkit check`: everything that `run` would refuse, without opening a socket."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from srvkit.cli import guests
from srvkit.cli.run import CONFIG_HELP, DEFAULT_CONFIG

if TYPE_CHECKING:
    from srvkit.cli.run import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="say everything that is wrong with a configuration",
        description="Read the configuration, load its plugins, compose its servers; open nothing.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", default=DEFAULT_CONFIG, help=CONFIG_HELP)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a setting")
    parser.add_argument("--explain", action="store_true", help="print each server as the class that it is")
    parser.set_defaults(run=command)


def command(args: argparse.Namespace) -> int:
    """Print that all is well, or the classes; raises ConfigError or PluginError."""
    from srvkit.config import loader
    from srvkit.config.assemble import assemble
    from srvkit.net.address import objection
    from srvkit.process import privileges
    from srvkit.process.child import refuse_threads

    config, problems = loader.read(args.config, args.set)
    for key, message in privileges.check(config.srvkit.user, config.srvkit.group, names_only=True):
        problems.add(("srvkit", key), message)
    with guests.received():
        assembled = assemble(config, problems)
        if any(not plan.server_class.fork_beside_threads for plan in assembled.plans):
            refuse_threads()
        assembled.try_models(problems)
    for plan in assembled.plans:
        for index, address in enumerate(plan.addresses):
            if address.is_internet and (why := objection(address.host)):
                problems.add(
                    ("server", plan.name, "listen", index), f"{address}: no host can have this name: {why}"
                )
    problems.raise_if_any()
    for note in assembled.notes():
        print(f"note: {note}")
    for plan in assembled.plans:
        for address in plan.addresses:
            if not address.kind_is_known:
                print(f"note: {plan.name}: {address} is there under systemd only, and not checked")
    if args.explain:
        print("\n\n\n".join(plan.explain() for plan in assembled.plans))
    else:
        count = len(assembled.plans)
        print(f"{args.config}: {count} server{'s' * (count != 1)}, nothing wrong")
    return 0
