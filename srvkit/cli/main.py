"""The command line: parse it, run the command, and turn errors into one line and a status."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from srvkit.cli import check, completion, control, docs, explain, guests, new, plugins, run, schema, systemd
from srvkit.errors import SrvkitError
from srvkit.process import command_line as origin

STATUSES = """\
exit statuses: 0 clean; 1 connections were cut or a server broke; 2 the command or the configuration is
wrong; 3 something could not start (address, plugin), or nothing is running"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    guests.status = _main(argv)
    return guests.status


def _main(argv: Sequence[str] | None) -> int:
    _open_standard_files()
    try:
        try:
            told = origin.told_instead()
            if told is not None:
                _import_what_takes_over()
            return _run(argv if told is None else told)
        finally:
            sys.stdout.flush()  # not left to the interpreter's end, where nobody could catch what it raises
    except SrvkitError as error:
        for line in str(error).splitlines():
            print(f"srvkit: {line}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        _forget_output()  # whoever read it has enough
        return 0
    except OSError as error:
        _forget_output()
        print(f"srvkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _import_what_takes_over() -> None:
    """Meet now what is broken or missing in this installation: later there is no way back."""
    import srvkit.process.supervisor.supervisor
    import srvkit.process.supervisor.takeover  # noqa: F401


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="srvkit",
        description="Serve handlers on sockets, configured by srvkit.toml.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (run, control, check, plugins, explain, docs, new, schema, systemd, completion):
        group.add_parser(subparsers)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status


class _ShowVersion(argparse.Action):
    """Look the version up only when it is asked for: that takes as long as everything else here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"srvkit {version('srvkit')}")
        except PackageNotFoundError:  # run from a checkout that is not installed
            print("srvkit (not installed)")
        parser.exit()


def _open_standard_files() -> None:
    """Put /dev/null where a standard file is closed, or the next socket would get its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                continue
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lasts
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8


def _forget_output() -> None:
    """Keep the interpreter from writing the rest once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
