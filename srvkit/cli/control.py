"""`srvkit status`, `reload`, `stop`, `connections`, `kill`: what is said to a srvkit that runs."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from srvkit.cli.run import CONFIG_HELP, DEFAULT_CONFIG

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Any]

PATIENCE = 10.0  # seconds; all but a reload is answered at once
UNKNOWN = "unknown request"  # how an answer begins where the question is of another version


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands to the command line."""
    add = _Adder(subparsers)
    parser = add("status", status, "show servers, workers and counters")
    parser.add_argument("--json", action="store_true", help="print the answer as it comes")

    parser = add(
        "reload",
        reload,
        "read the configuration anew, plugins and certificates included",
        "Returns when the new workers serve, or says what is wrong: then everything is as before (status 1). "
        "A server of which nothing has changed keeps its workers.",
    )
    parser.add_argument("--all", action="store_true", help="replace the workers of every server")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        help="wait no longer; the reload goes on (default: wait)",
    )

    add(
        "stop",
        stop,
        "stop, giving connections drain_timeout to finish",
        "Returns when srvkit has ended. Ctrl-C stops the waiting, not the stop.",
    )

    parser = add("connections", connections, "list what is open: peer, age, bytes")
    parser.add_argument("--json", action="store_true", help="print the answer as it comes")

    parser = subparsers.add_parser(
        "kill", help="end one connection", description="ID is what srvkit connections shows."
    )
    parser.add_argument("id", metavar="ID")
    parser.add_argument("config", metavar="CONFIG", nargs="?", default=DEFAULT_CONFIG, help=CONFIG_HELP)
    parser.set_defaults(run=kill)


def status(args: argparse.Namespace) -> int:
    """Print the state of everything; raises NotRunning."""
    from srvkit.cli.layout import wants_colours
    from srvkit.cli.status import status_lines

    answer = _ask(args, {"do": "status"})
    if args.json:
        return _print_json(answer)
    _print_lines(status_lines(_good(answer), coloured=wants_colours()))
    return 0


def reload(args: argparse.Namespace) -> int:
    """Have the configuration read anew; raises ControlError with every reason why it was not."""
    from srvkit.cli.status import plain
    from srvkit.process.control_client import ControlError
    from srvkit.process.supervisor.changes import told

    request = {"do": "reload", "all": True} if args.all else {"do": "reload"}
    answer = _good(_ask(args, request, timeout=args.timeout))
    if not answer.get("ok"):
        raise ControlError("\n".join(map(str, answer.get("errors") or ["the reload failed"])))
    took = answer.get("seconds")
    print(f"reloaded, generation {answer.get('generation')}" + (f", in {took:.2g} s" if took else ""))
    _print_lines([f"  {plain(line)}" for line in told(answer.get("servers") or {})])
    return 0


def stop(args: argparse.Namespace) -> int:
    """Stop srvkit and wait until it has ended."""
    _good(_ask(args, {"do": "stop"}, until_gone=True))
    return 0


def connections(args: argparse.Namespace) -> int:
    """Print what is open, and on standard error which workers did not say."""
    from srvkit.cli.status import connection_lines, plain

    answer = _ask(args, {"do": "connections"})
    if args.json:
        return _print_json(answer)
    _print_lines(connection_lines(_good(answer)))
    for pid in answer.get("silent") or ():
        print(f"srvkit: worker {plain(pid)} does not answer, its connections are missing", file=sys.stderr)
    return 0


def kill(args: argparse.Namespace) -> int:
    """End one connection."""
    _good(_ask(args, {"do": "kill", "id": args.id}))
    return 0


class _Adder:
    """Adds one command with its optional configuration."""

    def __init__(self, subparsers: Subparsers) -> None:
        self._subparsers = subparsers

    def __call__(self, name: str, run: Any, help: str, more: str = "") -> argparse.ArgumentParser:
        description = f"{help[0].upper()}{help[1:]}. {more}".strip()
        parser: argparse.ArgumentParser = self._subparsers.add_parser(
            name, help=help, description=description
        )
        parser.add_argument("config", metavar="CONFIG", nargs="?", default=DEFAULT_CONFIG, help=CONFIG_HELP)
        parser.set_defaults(run=run)
        return parser


def _ask(
    args: argparse.Namespace,
    request: dict[str, Any],
    timeout: float | None = PATIENCE,
    *,
    until_gone: bool = False,
) -> dict[str, Any]:
    """Ask whoever runs the configuration; the file may be broken by now, or gone."""
    from srvkit.config import loader
    from srvkit.errors import ConfigError
    from srvkit.process.control_client import NotRunning, ask
    from srvkit.process.runtime_paths import are_others, control_paths, owner_of

    control, doubt = "", ""
    try:
        control = loader.read(args.config)[0].srvkit.control
    except ConfigError as error:
        doubt = str(error)
    first: NotRunning | None = None
    for path in control_paths(control, args.config):
        try:
            owner = owner_of(path)  # asked before a stop takes it away
            answer = ask(path, request, timeout, until_gone=until_gone)
        except NotRunning as error:
            first = first or error
        else:
            if owner:
                print(f"srvkit: it is run by the user {owner}", file=sys.stderr)
            if str(answer.get("error", "")).startswith(UNKNOWN):
                answer["error"] = _of_another_version(request, ask(path, {"do": "status"}, timeout))
            return answer
    if doubt and not os.path.isfile(args.config):  # the wrong folder, more often than not
        raise NotRunning(f"{doubt}, and no srvkit runs with it")
    text = f"{first or 'srvkit is not running with this configuration'}"
    if are_others():
        text += "; what another user runs may be asked by that user, and by root"
    raise NotRunning(f"{text}\nits control socket may be elsewhere: {doubt}" if doubt else text)


def _of_another_version(request: dict[str, Any], status: dict[str, Any]) -> str:
    from srvkit.cli.status import plain

    runs = f"srvkit {plain(status.get('version') or 'of another version')}"
    return (
        f"{runs} runs there and does not know {request['do']!r}, which this command needs: "
        f"let this version take its place, by kill -USR2 {plain(status.get('pid'))} or a restart"
    )


def _good(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        from srvkit.process.control_client import ControlError

        raise ControlError(str(answer["error"]))
    return answer


def _print_json(answer: dict[str, Any]) -> int:
    import json

    print(json.dumps(answer))
    return 1 if "error" in answer else 0


def _print_lines(lines: list[str]) -> None:
    encoding = sys.stdout.encoding or "ascii"
    for line in lines:
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def _seconds(text: str) -> float:
    from srvkit.config import units

    try:
        return units.duration(float(text) if text.replace(".", "", 1).isdigit() else text) or 0.001
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
