"""`srvkit schema`: the JSON Schema of srvkit.toml, with what the plugins offer.

It prints what `config.schema` makes and knows nothing of editors.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from srvkit.cli.plugins import load
from srvkit.cli.run import DEFAULT_CONFIG

if TYPE_CHECKING:
    from srvkit.cli.run import Subparsers

FILE = ".srvkit.schema.json"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of srvkit.toml, for editors",
        description="Print the JSON Schema of the configuration. Editors that know Taplo use it: srvkit "
        f"schema > {FILE}, and the configuration begins with the line: #:schema ./{FILE}",
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help=f"whose plugins' names are suggested (default: {DEFAULT_CONFIG}, or what is installed)",
    )
    parser.set_defaults(run=command)


def command(args: argparse.Namespace) -> int:
    """Print the schema; raises PluginError or ConfigError for the first plugin that cannot be used."""
    import json

    from srvkit.config.schema import schema

    plugins = load(args.config)
    offers = (plugins.handlers, plugins.models, plugins.framings)
    made = schema(*({name: offer.cls for name, offer in some.items()} for some in offers))
    print(json.dumps(made, indent=2, ensure_ascii=False))
    return 0
