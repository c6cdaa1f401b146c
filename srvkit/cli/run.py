"""`srvkit run` and `srvkit serve`: serve in the foreground until told to stop."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srvkit.config.model import Config, Problems
    from srvkit.process.supervisor.reload import Read

    Subparsers = argparse._SubParsersAction[Any]

DEFAULT_CONFIG = "srvkit.toml"
CONFIG_HELP = f"the configuration (default: {DEFAULT_CONFIG})"
ONE_PROCESS = "one process cannot bind as root and serve as somebody else; start it as that user"


def add_parser(subparsers: Subparsers) -> None:
    """Add both commands to the command line."""
    parser = subparsers.add_parser(
        "run",
        help="serve what a configuration says",
        description="Serve in the foreground. TERM and INT stop: connections get drain_timeout to finish; "
        "the second one, or QUIT, stops at once.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", default=DEFAULT_CONFIG, help=CONFIG_HELP)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a setting")
    _add_single(parser)
    _add_reload(parser)
    parser.set_defaults(run=command)

    parser = subparsers.add_parser(
        "serve",
        help="serve one handler without a configuration file",
        description="HANDLER is a plugin's name or package.module:Class; ADDRESS as in srvkit.toml, "
        "tcp://127.0.0.1:7007 or unix:echo.sock.",
    )
    parser.add_argument("handler", metavar="HANDLER")
    parser.add_argument("addresses", metavar="ADDRESS", nargs="+")
    parser.add_argument("--concurrency", metavar="MODEL", default="threading", help="default: threading")
    parser.add_argument(
        "--workers", metavar="N", type=_number, default=1, help="processes, or auto (default: 1)"
    )
    parser.add_argument(
        "--plugins", metavar="PATH", action="append", default=[], help="a folder, a .py file or a module"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting, as in server.serve.framing=lines",
    )
    _add_single(parser)
    _add_reload(parser)
    parser.set_defaults(run=serve)


def _add_reload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reload", action="store_true", help="reload when the configuration or a plugin is edited"
    )


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _add_single(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--single", action="store_true", help="one process and no supervisor, for debugging")


def command(args: argparse.Namespace) -> int:
    """Serve a configuration; raises what keeps it from starting."""
    from srvkit.config import loader
    from srvkit.config.paths import absolute

    path = absolute(args.config)  # once: where its folder goes, or a link turns, the name stays
    overrides = [word for setting in args.set for word in ("--set", setting)]
    return _run(
        args,
        lambda: loader.read(path, args.set, name=args.config),
        ["check", os.fspath(path), *overrides],
    )


def serve(args: argparse.Namespace) -> int:
    """Serve one handler; raises what keeps it from starting."""
    from srvkit.config import loader
    from srvkit.config.paths import current_folder

    table = {
        "srvkit": {"plugins": args.plugins},
        "server": {
            "serve": {
                "listen": args.addresses,
                "handler": args.handler,
                "concurrency": args.concurrency,
                "workers": args.workers,
            }
        },
    }
    folder = current_folder()
    return _run(args, lambda: loader.from_table(table, args.set, folder=folder), ["--version"])


def _run(args: argparse.Namespace, read: Read, check: list[str]) -> int:
    from srvkit.process import systemd
    from srvkit.process.signals import HANDLED, hold_back
    from srvkit.process.supervisor import takeover

    if args.single:
        return _run_single(*read())
    hold_back(*HANDLED)  # a signal that comes too early is answered once there is somebody to do so
    with takeover.begun(HANDLED) as handed_over:
        from srvkit.process.supervisor.supervisor import Supervisor

        return Supervisor(read, systemd.begin(), check, takeover=handed_over, watch=args.reload).run()


def _run_single(config: Config, problems: Problems) -> int:
    from srvkit.config.assemble import assemble
    from srvkit.process import privileges, systemd
    from srvkit.process.logging.setup import open_log, set_up
    from srvkit.process.single import run

    notifier = systemd.begin()  # before a plugin starts a program that would inherit what it takes
    user, group = config.srvkit.user, config.srvkit.group
    for key, message in privileges.check(user, group):
        problems.add(("srvkit", key), message)
    if not problems and privileges.is_needed(user, group):
        problems.add(("srvkit", "user" if user else "group"), ONE_PROCESS)
    if not problems:  # else there is nothing to run, and `assemble` says why
        set_up(config.logging, open_log(config))
    assembled = assemble(config, problems)
    for note in assembled.notes():
        logging.getLogger("srvkit.plugins").info("%s", note)
    with notifier:
        return run(assembled.plans, assembled.plugins, config.srvkit.drain_timeout, notifier)
