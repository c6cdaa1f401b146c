"""What each server is made of, so that a reload can tell which ones have changed, and in what.

A server is made of its settings, of some of those that hold for all, of its certificates and keys, of files
that its options name, and of code: the modules of its handler, model and framing and whatever those import,
of plugins with hooks, and of installed packages. Two servers are the same where all of that is.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from srvkit.config.compose import Plan
from srvkit.config.model import Config
from srvkit.net.credentials import Files
from srvkit.plugins.manager import Plugins

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
    """Return what each server is made of, in the process that has loaded its plugins."""
    common = {
        **_of_settings("srvkit", config.srvkit),
        **_of_settings("logging", config.logging),
        PACKAGES: _digest(repr(sorted(_packages()))),
    }
    common = {key: digest for key, digest in common.items() if key not in ELSEWHERE}
    sources = _Sources(config.folder)
    hooked = list(_modules_with_hooks(plugins))
    return {
        plan.name: {
            **common,
            **_of_settings("", config.server[plan.name]),
            **{path: _digest(data) for path, data in files.get(plan.name, {}).items()},
            **sources.of([*hooked, *_modules_of(plan, plugins, config.server[plan.name].handler.name)]),
            **_of_files(getattr(plan.handler, "options", None), config.folder),
        }
        for plan in plans
    }


def changed(before: Makings, now: Makings) -> list[str]:
    """Return the names of what is different, in order."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


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
    found = {}
    for field in fields(options) if is_dataclass(options) else ():
        value = getattr(options, field.name)
        if isinstance(value, PurePath):
            found[str(value)] = _digest(_contents(folder / value))
    return found


def _modules_with_hooks(plugins: Plugins) -> Iterator[str]:
    for _, plugin in plugins.pm.list_name_plugin():
        hooks = {caller.name for caller in plugins.pm.get_hookcallers(plugin) or ()}
        if hooks - OFFERS:
            yield plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__


def _modules_of(plan: Plan, plugins: Plugins, handler: str) -> Iterator[str]:
    """Return the modules that a server's own classes are from, and the plugin that offers its handler."""
    framing = getattr(plan.handler, "framing", None)
    for one in (*plan.handler.__mro__, *plan.server_class.__mro__, *type(framing).__mro__):
        yield one.__module__
    offer = plugins.handlers.get(handler)
    for name, plugin in plugins.pm.list_name_plugin():
        if offer is not None and offer.plugin == name and isinstance(plugin, ModuleType):
            yield plugin.__name__


class _Sources:
    """The code of who operates srvkit: modules that are no library's, and what they import of each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {
            name: file
            for name, module in list(sys.modules.items())
            if (file := getattr(module, "__file__", None)) and not _is_of_library(file)
        }
        self._imports: dict[str, set[str]] = {}
        self._digests: dict[str, str] = {}

    def of(self, modules: Iterable[str]) -> dict[str, str]:
        """Return the digests of these modules and of all that they import, by file."""
        todo, seen = [name for name in modules if name in self._files], set[str]()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += self._imported_by(name)
        return {self._shown(self._files[name]): self._digests[name] for name in seen}

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
        package = getattr(sys.modules.get(name), "__package__", None) or ""
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
        return {parent for one in found for parent in _with_parents(one) if parent in self._files}

    def _shown(self, file: str) -> str:
        try:
            return str(Path(file).relative_to(self._folder))
        except ValueError:
            return file


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _is_of_library(file: str) -> bool:
    return os.path.realpath(file).startswith(_LIBRARIES)


def _packages() -> Iterator[tuple[str, int, int]]:
    """Return what is installed beside Python's own library, and loaded: files, when written, how long."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and ("site-packages" in file or "dist-packages" in file):
            try:
                found = os.stat(file)
            except OSError:
                continue
            yield file, found.st_mtime_ns, found.st_size


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        return str(error.errno).encode()


def _digest(data: bytes | str) -> str:
    return blake2b(data.encode() if isinstance(data, str) else data, digest_size=12).hexdigest()


_LIBRARIES = tuple(
    {os.path.realpath(one) for one in (sys.prefix, sys.base_prefix, Path(__file__).parent.parent)}
)
