"""What looks like a plugin, a hook or a handler, and is not taken: found, so that somebody says so.

A hook that refuses clients and is passed over lets everybody in. Nothing is imported here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

MARK = "srvkit_impl"  # what pluggy's marker leaves on a function
LARGEST = 2**20  # bytes of a file that is looked into
MOST_FILES = 200  # of a folder within a folder
_HOOK = re.compile(rb"^[ \t]*@[\w.]*hookimpl\b|^[ \t]*(?:async[ \t]+)?def srvkit_\w+", re.MULTILINE)
_HANDLERS = ("BaseRequestHandler", "MessageHandler", "AsyncHandler")
_STEPS = ("handle", "handle_message", "handle_chunk")


def files_in(folder: Path, shown: Path, taken: Collection[str]) -> Iterator[str]:
    """Yield a note for each file in a folder of plugins that is skipped and seems to implement hooks.

    `taken` are the files whose hooks count all the same, since another one imports them.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return  # who loads the plugins says so
    for entry in entries:
        name = entry.name
        if name.startswith(".") and not name.endswith(".py"):
            continue
        if entry.is_dir():
            inside = sorted(entry.glob("*.py"))[:MOST_FILES] if name != "__pycache__" else []
            found = [file.name for file in inside if str(file) not in taken and _has_hooks(file)]
            if found:
                yield (
                    f"{shown / name} is a folder within a folder of plugins and is not searched, though "
                    f"{found[0]} there has hooks: name it in plugins, too"
                )
        elif name.endswith((".so", ".pyd", ".pyc")):
            yield f"{shown / name} is compiled and not taken: name it in plugins as it is imported"
        elif _is_skipped(name) and str(entry) not in taken and _has_hooks(entry):
            yield f"{shown / name} has hooks and is not taken, for its name: plugins are files NAME.py"


def _is_skipped(name: str) -> bool:
    if name.startswith("test_") or name in ("conftest.py", "__init__.py"):
        return False
    if name.endswith(".py"):
        return name.startswith(("_", "."))
    return name.lower().endswith((".py", ".pyw")) or "." not in name


def _has_hooks(file: Path) -> bool:
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            return False
        return _HOOK.search(file.read_bytes()) is not None
    except OSError:
        return False


def hooks_in_classes(module: ModuleType, hooks: Iterable[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield each hook that is a method of one of a module's classes: class, name, function."""
    names = set(hooks)
    for one in _classes(module):
        for name, thing in vars(one).items():
            function = getattr(thing, "__func__", thing)
            if hasattr(function, MARK) or (name in names and inspect.isfunction(function)):
                yield one.__name__, name, function


def handlers_in(module: ModuleType) -> list[type[Any]]:
    """Return the handlers that a module defines, those left out that others of its classes build on."""
    found = [one for one in _classes(module) if not one.__name__.startswith("_") and _is_handler(one)]
    return [one for one in found if not any(one in other.__mro__[1:] for other in _classes(module))]


def _classes(module: ModuleType) -> list[type[Any]]:
    named = vars(module).values()
    mine = [one for one in named if isinstance(one, type) and one.__module__ == module.__name__]
    return list(dict.fromkeys(mine))


def _is_handler(one: type[Any]) -> bool:
    """Tell whether it is one by its ancestors, and says itself, or where it comes from, what it does."""
    own = [
        base for base in one.__mro__ if base.__module__.partition(".")[0] not in ("srvkit", "socketserver")
    ]
    by_name = any(base.__name__ in _HANDLERS for base in one.__mro__)
    return by_name and any(step in vars(base) for base in own for step in _STEPS)
