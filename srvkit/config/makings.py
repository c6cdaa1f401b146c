"""What each server is made of, so that a reload can tell which ones have changed, and in what.

A server is made of its settings, of some of those that hold for all, of its certificates and keys, of files
that its options name, and of code: the modules of its handler, model and framing and whatever those import,
of plugins with hooks, and of installed packages. Two servers are the same where all of that is.
"""

from __future__ import annotations

import ast
import logging
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from srvkit.config.compose import Plan
from srvkit.config.model import Config, ServerSettings
from srvkit.net.credentials import Files
from srvkit.plugins.manager import Plugins

log = logging.getLogger("srvkit.process")

# What changes nothing about a worker that serves: the supervisor has these, or hands them on.
ELSEWHERE = frozenset(
    (
        "srvkit.drain_timeout",
        "srvkit.retire_timeout",
        "srvkit.generations",
        "srvkit.ready_timeout",
        "srvkit.control",
        "srvkit.pid_file",
        "logging.file",
    )
)
OFFERS = frozenset(("srvkit_handlers", "srvkit_concurrency", "srvkit_framings"))  # hooks without an effect
PACKAGES = "installed packages"

Makings = dict[str, str]  # a digest for each thing, by its name: a key of the file, or a file


def makings_of(
    config: Config, plugins: Plugins, plans: Sequence[Plan], files: Mapping[str, Files]
) -> dict[str, Makings]:
    """Return what each server is made of, in the process that has loaded its plugins.

    Nothing where that cannot be told, of which the log says why: then a reload keeps none.
    """
    try:
        return _makings_of(config, plugins, plans, files)
    except Exception:
        log.exception("what the servers are made of cannot be told, so a reload replaces all of them")
        return {}


def _makings_of(
    config: Config, plugins: Plugins, plans: Sequence[Plan], files: Mapping[str, Files]
) -> dict[str, Makings]:
    common = {
        **_of_settings("srvkit", config.srvkit),
        **_of_settings("logging", config.logging),
        PACKAGES: _digest(repr(sorted(_installed()))),
    }
    common = {key: digest for key, digest in common.items() if key not in ELSEWHERE}
    sources = _Sources(config.folder)
    hooked = list(_modules_with_hooks(plugins))
    return {
        plan.name: {
            **common,
            **_of_settings("", config.server[plan.name]),
            **{f"file {path}": _digest(data) for path, data in files.get(plan.name, {}).items()},
            **sources.of([*hooked, *_modules_of(plan, plugins, config.server[plan.name])]),
            **_of_files(getattr(plan.handler, "options", None), config.folder),
        }
        for plan in plans
    }


def changed(before: Makings, now: Makings) -> list[str]:
    """Return the names of what is different, in order."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def summary(makings: Makings) -> str:
    """Return one digest of it all."""
    return _digest(repr(sorted(makings.items())))


def _of_settings(prefix: str, settings: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in fields(settings):
        key, value = ".".join(filter(None, (prefix, field.name))), getattr(settings, field.name)
        if is_dataclass(value) and field.name not in ("handler", "concurrency", "framing"):
            found.update(_of_settings(key, value))
        else:
            found[key] = _digest(repr(value))
    return found


def _of_files(options: Any, folder: Path) -> dict[str, str]:
    """Return the contents of files that options name, as far as they can be read."""
    return {f"file {path}": _digest(_contents(folder / path)) for path in _paths_in(options)}


def _paths_in(value: Any) -> Iterator[PurePath]:
    if isinstance(value, PurePath):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _paths_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for one in (*value.keys(), *value.values()):
            yield from _paths_in(one)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            yield from _paths_in(one)


def _modules_with_hooks(plugins: Plugins) -> Iterator[str]:
    for _, plugin in plugins.pm.list_name_plugin():
        hooks = {caller.name for caller in plugins.pm.get_hookcallers(plugin) or ()}
        if hooks - OFFERS:
            yield plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__


def _modules_of(plan: Plan, plugins: Plugins, settings: ServerSettings) -> Iterator[str]:
    """Return the modules that a server's own classes are from, and the plugins that offer them."""
    framing = getattr(plan.handler, "framing", None)
    for one in (*plan.handler.__mro__, *plan.server_class.__mro__, *type(framing).__mro__):
        yield one.__module__
    offers = [
        plugins.handlers.get(settings.handler.name),
        plugins.models.get(settings.concurrency.name),
        plugins.framings.get(settings.framing.name) if settings.framing is not None else None,
    ]
    offering = {offer.plugin for offer in offers if offer is not None}
    for name, plugin in plugins.pm.list_name_plugin():
        if name in offering and isinstance(plugin, ModuleType):
            yield plugin.__name__


class _Sources:
    """The code of who operates srvkit: modules that are no library's, and what they import of each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = own_modules()
        # What is imported later on, by a handler say, is found where it will be.
        self._roots = [
            Path(path) for path in sys.path if path and not _is_of_library(os.path.join(path, "x"))
        ]
        self._imports: dict[str, set[str]] = {}
        self._digests: dict[str, str] = {}

    def of(self, modules: Iterable[str]) -> dict[str, str]:
        """Return the digests of these modules and of all that they import, by file."""
        todo, seen = [name for name in modules if self._knows(name)], set[str]()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += self._imported_by(name)
        return {self._shown(self._files[name]): self._digests[name] for name in seen}

    def _knows(self, name: str) -> bool:
        """Tell whether a module is one of these, loaded or not."""
        if name in self._files:
            return True
        way = name.replace(".", os.sep)
        for root in self._roots if name not in sys.modules else ():
            for file in (root / way / "__init__.py", root / f"{way}.py"):
                if file.is_file():
                    self._files[name] = str(file)
                    return True
        return False

    def _imported_by(self, name: str) -> set[str]:
        if name not in self._imports:
            data = _contents(Path(self._files[name]))
            self._digests[name] = _digest(data)
            self._imports[name] = self._read_imports(name, data)
        return self._imports[name]

    def _read_imports(self, name: str, data: bytes) -> set[str]:
        if b"importlib" in data or b"__import__" in data:  # it may import whatever it likes
            return set(self._files)
        try:
            tree = ast.parse(data)
        except (SyntaxError, ValueError):  # compiled, say
            return set()
        package = name if self._files[name].endswith("__init__.py") else name.rpartition(".")[0]
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")
                    above = ".".join(parents[: len(parents) - node.level + 1])
                    base = ".".join(filter(None, (above, base)))
                found.add(base)
                found.update(f"{base}.{alias.name}" for alias in node.names)
        return {parent for one in found for parent in _with_parents(one) if self._knows(parent)}

    def _shown(self, file: str) -> str:
        try:
            return str(Path(file).relative_to(self._folder))
        except ValueError:
            return file


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def own_modules() -> dict[str, str]:
    """Return the modules that are loaded and no library's, with their files: what a developer may edit."""
    return {
        name: file
        for name, module in list(sys.modules.items())
        if (file := _file_of(module)) and not _is_of_library(file)
    }


def _file_of(module: Any) -> str:
    """Return the file of a module; "" for one without, and for whatever else stands in `sys.modules`."""
    try:
        file = module.__file__
    except Exception:
        return ""
    return file if isinstance(file, str) else ""


def _is_of_library(file: str) -> bool:
    """Tell whether a file is of Python's own library, of an installed package, or of srvkit."""
    return os.path.realpath(file).startswith(_LIBRARIES)


def _installed() -> Iterator[tuple[str, int]]:
    """Return what packages are installed, by the folders in which installers note them, and when."""
    for path in dict.fromkeys(sys.path):
        try:
            with os.scandir(path or ".") as entries:
                for entry in entries:
                    if entry.name.endswith((".dist-info", ".egg-info")):
                        yield entry.name, entry.stat().st_mtime_ns
        except OSError:
            continue


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        return str(error.errno).encode()


def _digest(data: bytes | str) -> str:
    return blake2b(data.encode() if isinstance(data, str) else data, digest_size=12).hexdigest()


_FOLDERS = {
    *(sysconfig.get_paths().get(name, "") for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))),
    str(Path(__file__).parent.parent),
}
_LIBRARIES = tuple(os.path.join(os.path.realpath(one), "") for one in _FOLDERS if one)
