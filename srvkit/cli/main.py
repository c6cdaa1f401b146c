"""The command line: parse it, run the command, and turn errors into one line and a status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from srvkit.cli import check, new, plugins, run
from srvkit.errors import SrvkitError

STATUSES = """\
exit statuses: 0 clean; 1 connections were cut or a server broke; 2 the command or the configuration is
wrong; 3 something could not start (address, plugin)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="srvkit",
        description="Serve handlers on sockets, configured by srvkit.toml.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"srvkit {_version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (run, check, plugins, new):
        group.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except SrvkitError as error:
        for line in str(error).splitlines():
            print(f"srvkit: {line}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # Whoever read the output has enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _version() -> str:
    try:
        return version("srvkit")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"
