"""`srvkit docs [CHAPTER]`: the documentation that comes with the package, and a search in it.

It finds, prints and searches; what there is to say is in the chapters, Markdown files in `srvkit/docs/`. The
first line of each is its title.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from srvkit.errors import ConfigError, SrvkitError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from srvkit.cli.run import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "docs",
        help="show a chapter of the documentation, or search all of it",
        description="Show a chapter, in PAGER on a terminal. Without CHAPTER: list the chapters.",
    )
    parser.add_argument("chapter", metavar="CHAPTER", nargs="?")
    parser.add_argument(
        "--search",
        metavar="WORD",
        help="print the lines that have it, in upper or lower case; status 1 where there is none",
    )
    parser.set_defaults(run=command)


def command(args: argparse.Namespace) -> int:
    """Print what is asked for; raises ConfigError for an unknown chapter, SrvkitError for no match."""
    texts = chapters()
    if args.chapter is not None:
        texts = {args.chapter: _chosen(texts, args.chapter)}
    if args.search is not None:
        return _search(texts, args.search)
    if args.chapter is not None:
        from srvkit.cli.pager import show

        return show(texts[args.chapter])
    print("\n".join(_list(texts)))
    return 0


def chapters() -> dict[str, str]:
    """Return the text of every chapter by its name."""
    from importlib.resources import files

    found = files("srvkit").joinpath("docs").iterdir()
    texts = {
        one.name.removesuffix(".md"): one.read_text("utf-8") for one in found if one.name.endswith(".md")
    }
    return dict(sorted(texts.items()))


def title_of(text: str) -> str:
    """Return what a chapter is about: its first line, without the mark of a heading."""
    return text.partition("\n")[0].removeprefix("# ")


def _chosen(texts: Mapping[str, str], name: str) -> str:
    # Looked up among the names, never opened: whatever is asked for, no file but a chapter is read.
    if name in texts:
        return texts[name]
    hint = did_you_mean(name.lower(), texts)
    raise ConfigError(f"there is no chapter {name!r}{hint} (there are {', '.join(texts)})")


def _search(texts: Mapping[str, str], word: str) -> int:
    wanted = word.casefold()
    found = [
        f"{name}:{number}: {line}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if wanted in line.casefold()
    ]
    if not found:
        raise SrvkitError(f"no line of {' or '.join(texts)} has {word!r}")
    print("\n".join(found))
    return 0


def _list(texts: Mapping[str, str]) -> Iterator[str]:
    from srvkit.cli.layout import heading, table, terminal_width

    yield heading("CHAPTERS")
    yield from table([(name, title_of(text)) for name, text in texts.items()], terminal_width())
