"""`srvkit completion bash|zsh|fish`: a script that completes srvkit's command line.

It is made from the command line's own parsers, so that a new command or option needs nothing here. What
stands for a value is told by its METAVAR.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srvkit.cli.completion_scripts import Argument, Command
    from srvkit.cli.run import Subparsers

SHELLS = ("bash", "zsh", "fish")
WHERE = """\
bash: put it into ~/.local/share/bash-completion/completions/srvkit; zsh: into a folder of $fpath, as _srvkit;
fish: into ~/.config/fish/completions/srvkit.fish. For this shell only: source <(srvkit completion bash)"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes srvkit's command line",
        description="Print a script for a shell to read.",
        epilog=WHERE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=partial(command, subparsers))


def command(subparsers: Subparsers, args: argparse.Namespace) -> int:
    """Print the script."""
    from srvkit.cli import completion_scripts

    write = {
        "bash": completion_scripts.bash,
        "zsh": completion_scripts.zsh,
        "fish": completion_scripts.fish,
    }
    print(write[args.shell](commands_of(subparsers)), end="")
    return 0


def commands_of(subparsers: Subparsers) -> list[Command]:
    """Return every command that the parsers know."""
    helps = {one.dest: one.help or "" for one in subparsers._choices_actions}
    words = _words()
    return [_command(name, helps.get(name, ""), parser, words) for name, parser in subparsers.choices.items()]


def _command(name: str, help: str, parser: argparse.ArgumentParser, words: Mapping[str, Any]) -> Command:
    from srvkit.cli.completion_scripts import Command

    arguments = [_argument(action, words) for action in parser._actions]
    return Command(
        name,
        help,
        tuple(one for one in arguments if one.flags),
        tuple(one for one in arguments if not one.flags),
    )


def _argument(action: argparse.Action, words: Mapping[str, tuple[str, ...]]) -> Argument:
    from srvkit.cli.completion_scripts import Argument

    help = re.sub(r"\s+", " ", (action.help or "").replace("%(default)s", str(action.default)))
    if action.nargs == 0:
        return Argument(tuple(action.option_strings), help)
    metavar = str(action.metavar or action.dest).upper()
    choices = tuple(map(str, action.choices)) if action.choices else words.get(metavar, ())
    files = {"CONFIG": "toml", "DIR": "folder", "PATH": "any"}.get(metavar, "")
    return Argument(tuple(action.option_strings), help, metavar, choices, files, action.nargs in ("+", "*"))


def _words() -> dict[str, tuple[str, ...]]:
    """Return what may stand for some METAVARs; what plugins bring is known of those that are installed."""
    from srvkit.cli.docs import chapters
    from srvkit.config.model import settings_table
    from srvkit.plugins.manager import make_manager

    plugins = make_manager()
    keys = _shortest_tails([one.key for one in settings_table()])
    return {
        "KEY": tuple(dict.fromkeys([*keys, *plugins.handlers, *plugins.models, *plugins.framings])),
        "MODEL": tuple(plugins.models),
        "HANDLER": tuple(plugins.handlers),
        "CHAPTER": tuple(chapters()),
    }


def _shortest_tails(keys: list[str]) -> Iterator[str]:
    """Yield the shortest end of each key that is no other key's."""
    paths = [key.replace("[]", "").split(".") for key in keys]
    for path in paths:
        for length in range(1, len(path) + 1):
            if sum(other[-length:] == path[-length:] for other in paths) == 1:
                yield ".".join(path[-length:])
                break
