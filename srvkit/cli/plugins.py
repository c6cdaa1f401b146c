"""`srvkit plugins [CONFIG]`: everything there is to choose from, and where each thing comes from.

It prints what `plugins` found; how a table is laid out is all it knows itself.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srvkit.cli import guests
from srvkit.cli.run import CONFIG_HELP, DEFAULT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from srvkit.plugins.manager import Offer, Plugins

ONE_PROCESS = "one process: workers = 1, not under a model that forks"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "plugins",
        help="list handlers, models, framings and hooks, and where each comes from",
        description="List the handlers, concurrency models, framings and hooks, and the plugin that each "
        f"comes from. Without CONFIG: {DEFAULT_CONFIG} of this folder; without that, only what is installed.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=CONFIG_HELP)
    parser.set_defaults(run=command)


def command(args: argparse.Namespace) -> int:
    """Print the tables; raises PluginError or ConfigError for the first plugin that cannot be used."""
    plugins = load(args.config)
    print("\n".join(_tables(plugins)))
    return 0


def load(config: str | None) -> Plugins:
    """Load the plugins of a configuration; None: of the one in this folder, or those installed.

    What else is wrong in the configuration is a note.
    """
    from srvkit.config import loader
    from srvkit.plugins.manager import make_manager

    path = config or (DEFAULT_CONFIG if Path(DEFAULT_CONFIG).exists() else None)
    if path is None:
        with guests.received():
            plugins = make_manager(folder=Path())
        plugins.notes.append(f"there is no {DEFAULT_CONFIG} here: these are the installed plugins only")
        return plugins
    read, problems = loader.read(path)
    with guests.received():
        plugins = make_manager(read.srvkit.plugins, read.srvkit.block, Path(path).parent)
    if problems:
        plugins.notes.append(f"something is wrong in {path}: srvkit check {path} says what")
    return plugins


def _tables(plugins: Plugins) -> Iterator[str]:
    from srvkit.cli.layout import terminal_width

    width = terminal_width()
    for title, head, rows in (
        ("HANDLERS", ("name", "kind", "from", ""), _handlers(plugins.handlers.values())),
        ("CONCURRENCY MODELS", ("name", "runs", "from", ""), _models(plugins.models.values())),
        ("FRAMINGS", ("name", "from", ""), _framings(plugins.framings.values())),
        ("HOOKS", ("name", ""), _hooks(plugins)),
    ):
        yield from _table(title, head, [*rows], width)
    for note in plugins.remarks():
        yield f"note: {note}"


def _handlers(offers: Iterable[Offer]) -> Iterator[tuple[str, ...]]:
    from srvkit.config.handler_shape import keeps_one_process
    from srvkit.server.blocking_handler import kind_of

    for offer in offers:
        yield offer.name, kind_of(offer.cls), offer.plugin, title_of(offer.cls)
        if keeps_one_process(offer.cls):
            yield "", "", "", ONE_PROCESS
        if options := _listed(getattr(offer.cls, "Options", None)):
            yield "", "", "", options


def _models(offers: Iterable[Offer]) -> Iterator[tuple[str, ...]]:
    from srvkit.contracts import missing_packages

    for offer in offers:
        kinds = getattr(offer.cls, "handler_kinds", None)
        yield offer.name, ", ".join(sorted(kinds or ())), offer.plugin, title_of(offer.cls)
        if options := _listed(getattr(offer.cls, "Options", None)):
            yield "", "", "", options
        for package in missing_packages(offer.cls):
            yield "", "", "", f"{package.name} is not installed: pip install {package.install!r}"


def _framings(offers: Iterable[Offer]) -> Iterator[tuple[str, ...]]:
    for offer in offers:
        yield offer.name, offer.plugin, title_of(offer.cls)
        if options := _listed(offer.cls):
            yield "", "", options


def _hooks(plugins: Plugins) -> Iterator[tuple[str, ...]]:
    from srvkit.plugins.manager import HOOKS

    for name, spec in HOOKS.items():
        yield name, title_of(spec)
        if implementers := plugins.implementers(name):
            yield "", f"implemented by: {', '.join(implementers)}"


def options_of(declared: Any) -> dict[str, str]:
    """Return the options that a class declares: "threads = 32" by its name."""
    if declared is None:
        return {}
    try:
        parameters = inspect.signature(declared).parameters.values()
    except Exception:  # srvkit check says what is wrong with them
        return {}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {one.name: _option(one) for one in parameters if one.kind not in variable}


def _listed(declared: Any) -> str:
    options = options_of(declared)
    return f"options: {', '.join(options.values())}" if options else ""


def _option(option: inspect.Parameter) -> str:
    from srvkit.config import toml
    from srvkit.config.value_types import as_written

    if option.default is option.empty:
        return f"{option.name} (required)"
    try:
        return f"{option.name} = {toml.literal(as_written(option.default))}"
    except (TypeError, ValueError):  # None, or what else cannot be written
        return option.name


def title_of(thing: Any) -> str:
    """Return what a class or hook is for: the first line of its docstring, without how it is used in code."""
    first = next(iter((thing.__doc__ or "").strip().splitlines()), "")
    return first.replace("; stands in front of a server class", "")


def _table(
    title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], width: int | None
) -> Iterator[str]:
    from srvkit.cli.layout import heading, table

    yield heading(title)
    yield from table([head, *rows], width) if rows else ("  none",)
    yield ""
