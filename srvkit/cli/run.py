"""`srvkit run` and `srvkit serve`: serve in the foreground until told to stop."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srvkit.config.assemble import Assembled

    Subparsers = argparse._SubParsersAction[Any]

DEFAULT_CONFIG = "srvkit.toml"


def add_parser(subparsers: Subparsers) -> None:
    """Add both commands to the command line."""
    parser = subparsers.add_parser(
        "run",
        help="serve what a configuration says",
        description="Serve in the foreground. TERM and INT stop: connections get drain_timeout to finish; "
        "the second one, or QUIT, stops at once.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", default=DEFAULT_CONFIG)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a setting")
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
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="processes (default: 1)")
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
    parser.set_defaults(run=serve)


def command(args: argparse.Namespace) -> int:
    """Serve a configuration; raises what keeps it from starting."""
    from srvkit.config import loader
    from srvkit.config.assemble import assemble

    return _run(assemble(*loader.read(args.config, args.set)))


def serve(args: argparse.Namespace) -> int:
    """Serve one handler; raises what keeps it from starting."""
    from srvkit.config import loader
    from srvkit.config.assemble import assemble

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
    return _run(assemble(*loader.from_table(table, args.set)))


def _run(assembled: Assembled) -> int:
    from srvkit.process.run import run

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for note in assembled.plugins.notes:
        logging.getLogger("srvkit.plugins").info("%s", note)
    return run(assembled.plans, assembled.plugins, assembled.config.srvkit.drain_timeout)
