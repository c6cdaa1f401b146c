"""`srvkit new NAME`: a handler plugin, its test and its table in srvkit.toml, ready to run.

It writes into the current folder and never over anything. What it writes is in `templates`.
"""

from __future__ import annotations

import argparse
import builtins
import keyword
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from srvkit.cli.templates import Kind

CONFIG = Path("srvkit.toml")
FIRST_PORT = 7007
KINDS = ("message", "stream", "datagram", "async")  # those of `templates`, which loads later


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "new",
        help="write a new handler plugin, its test and its config table",
        description="Write handlers/NAME.py, tests/test_NAME.py and a table [server.NAME] in srvkit.toml, "
        "all in the current folder. Nothing that exists is overwritten.",
    )
    parser.add_argument("name", metavar="NAME", help="the handler's name: letters, digits, - and _")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="message",
        help="message: whole messages (default); stream: files on a connection; datagram; async: a coroutine",
    )
    parser.set_defaults(run=command)


def command(args: argparse.Namespace) -> int:
    """Write the three, and say what to do next; raises ConfigError when something is in the way."""
    from srvkit.cli import templates
    from srvkit.errors import ConfigError

    kind, name = templates.KINDS[args.kind], _module_name(args.name)
    title = _class_name(name)
    files = {
        Path(templates.FOLDER, f"{name}.py"): kind.handler(name, title),
        Path("tests", f"test_{name}.py"): kind.test(name, title),
    }
    for file in files:
        if file.exists() or file.is_symlink():
            raise ConfigError(f"{file} exists already: srvkit new overwrites nothing")
    addition, port, listed = _addition(name, kind)
    try:
        for file, text in files.items():
            file.parent.mkdir(exist_ok=True)
            with file.open("x", encoding="utf-8") as out:
                out.write(text)
        with CONFIG.open("a", encoding="utf-8") as out:
            out.write(addition)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
    for line in _report(name, listed, [*map(str, files)], kind.talk.format(port=port)):
        print(line)
    return 0


def _module_name(wanted: str) -> str:
    from srvkit.errors import ConfigError

    name = wanted.replace("-", "_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{wanted!r} cannot be a handler's name: a letter, then letters, digits, - and _, no keyword"
        )
    if name.startswith("test_") or name == "conftest":
        raise ConfigError(
            f"{wanted!r} cannot be a handler's name: srvkit takes {name}.py for a test, not for a plugin"
        )
    return name


def _class_name(name: str) -> str:
    from srvkit.cli.templates import TAKEN

    title = "".join(part.capitalize() for part in name.split("_"))
    if title.startswith("Test"):  # pytest would take the class for a test
        title = f"My{title}"
    # None, True and False begin with a capital; Exception and its kin would be hidden.
    is_taken = title in TAKEN or keyword.iskeyword(title) or hasattr(builtins, title)
    return f"{title}Handler" if is_taken else title


def _addition(name: str, kind: Kind) -> tuple[str, int, bool]:
    """Return what to append to the configuration, the port in it, and whether the plugins are listed."""
    from srvkit.cli.templates import FOLDER
    from srvkit.config import loader, toml
    from srvkit.errors import ConfigError, Problem

    text, data = "", {}
    if CONFIG.exists() or CONFIG.is_symlink():
        source = loader.read(CONFIG)[1].source  # whatever else is wrong in it is not for us to say
        text, data = source.text, source.data
    servers = data.get("server", {})
    if isinstance(servers, dict) and name in servers:
        raise ConfigError(
            [Problem("exists already: srvkit new overwrites nothing", f"server.{name}", str(CONFIG))]
        )
    port = FIRST_PORT
    while f":{port}" in text:
        port += 1
    addition = ("\n" if text and not text.endswith("\n") else "") + ("\n" if text.strip() else "")
    general = data.get("srvkit", {})
    if "srvkit" not in data:
        addition += f'[srvkit]\nplugins = ["{FOLDER}"]\n\n'
        general = {"plugins": [FOLDER]}
    addition += kind.table(name, port)
    try:
        toml.parse(text + addition)
    except toml.SyntaxProblem as error:
        message = f"a table [server.{name}] cannot be appended: {error.msg}"
        raise ConfigError([Problem(message, file=str(CONFIG))]) from error
    return addition, port, _lists_folder(general, name)


def _lists_folder(general: object, name: str) -> bool:
    from srvkit.cli.templates import FOLDER

    entries = general.get("plugins", []) if isinstance(general, dict) else []
    listed = {str(Path(entry)) for entry in entries if isinstance(entry, str)}
    return bool(listed & {FOLDER, f"{FOLDER}/{name}.py", f"{FOLDER}.{name}"})


def _report(name: str, listed: bool, files: list[str], talk: str) -> Iterator[str]:
    from srvkit.cli.templates import FOLDER

    for file in files:
        yield f"wrote     {file}"
    yield f"appended  [server.{name}] to {CONFIG}"
    if not listed:
        yield f'to do     add "{FOLDER}" to plugins of [srvkit] in {CONFIG}, or the handler is not found'
    yield f"test it   python -m pytest {files[1]}"
    yield f"run it    srvkit run {CONFIG}"
    yield f"talk      {talk}   (type a line; it comes back)"
