"""Where plugins come from: folders, files and import names of the configuration, installed packages.

Finding runs no plugin's code, so that a blocked one is never imported; `Source.load` does, and makes
the plugin answer for what its code does. Nothing here knows hooks or what plugins offer.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from srvkit.concurrency import monkey_patching as monkey
from srvkit.contracts import in_one_line
from srvkit.errors import PluginError
from srvkit.plugins.process_state import Interpreter

INIT = "__init__.py"
_MADE_HERE = "__srvkit_plugin__"  # in the namespace of every module that a `_Loader` made
_MACHINERY = (os.path.dirname(__file__) + os.sep, os.path.dirname(importlib.__file__) + os.sep, "<frozen ")


@dataclass(frozen=True)
class Source:
    """A plugin that was found and is not imported yet."""

    name: str  # for people: "handlers/echo.py", "my_pkg.my_plugin", "srvkit 0.1.0: echo"
    load: Callable[[], object]  # imports it; every failure leaves as PluginError
    aliases: tuple[str, ...] = ()  # what else names it in `block`
    configured: bool = False  # named by the configuration, not merely installed
    explicit: bool = True  # False for a file of a folder, which may also be there to help the others
    siblings: frozenset[str] = frozenset()  # of an __init__.py: the plugins beside it


def configured(entries: Sequence[str], folder: Path | None) -> list[Source]:
    """Find the plugins that `entries` name: folders and .py files, relative to `folder`, or import names.

    `folder` is put in front of `sys.path`; None means the current folder and leaves `sys.path` alone.
    Raises PluginError for an entry that is nothing of the kind, or that names a plugin once more.
    """
    base = Path(os.path.abspath(folder or "."))
    if folder is not None:
        lead_import_path(base)
    importlib.invalidate_caches()
    loader = _Loader(base)
    found: dict[str, tuple[str, Source]] = {}
    for entry in entries:
        for source in _sources_of(entry, base, loader):
            if source.name in found:
                raise PluginError(source.name, f"named twice, by {found[source.name][0]!r} and by {entry!r}")
            found[source.name] = (entry, source)
    return [source for _entry, source in found.values()]


def folders(entries: Sequence[str], folder: Path | None) -> list[tuple[Path, Path]]:
    """Return which of the entries are folders, with how one calls them."""
    base = Path(os.path.abspath(folder or "."))
    named = [(Path(os.path.abspath(base / entry)), Path(os.path.normpath(entry))) for entry in entries]
    return [(path, shown) for path, shown in named if path.is_dir()]


def lead_import_path(folder: Path) -> None:
    """Put a folder in front of `sys.path`."""
    place = os.path.abspath(folder)
    if sys.path[:1] != [place]:
        sys.path[:] = [place, *(other for other in sys.path if other != place)]


def installed() -> list[Source]:
    """Find the plugins that installed packages register under the entry point group "srvkit"."""
    found: dict[str, Source] = {}
    for point in sorted(importlib.metadata.entry_points(group="srvkit"), key=lambda point: point.name):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
        name = f"{package}: {point.name}"
        if name in found:
            raise PluginError(name, f"{package} registers two plugins under this name")
        found[name] = Source(name, _answering_for(name, point.load), aliases=(point.name,))
    return list(found.values())


@contextmanager
def answerable(plugin: str, failure: str) -> Iterator[None]:
    """Turn what goes wrong inside into a PluginError of one line, with file and line of the plugin.

    SystemExit is such an error too, a KeyboardInterrupt is the user's and passes. The current folder,
    the beginning of `sys.path` and the signal handlers belong to the process: they are put back, and
    changing them is an error. The signal mask and what would spoil the interpreter are put back.
    """
    before = _ProcessState.now()
    try:
        yield
    except (KeyboardInterrupt, PluginError):
        raise
    except BaseException as error:
        raise PluginError(plugin, f"{failure}: {_in_one_line(error)}") from error
    finally:
        changed = before.put_back()
    if changed:
        raise PluginError(plugin, f"{failure}: it changes {' and '.join(changed)}: that is the process's own")


def import_name(name: str) -> ModuleType:
    """Import a module by its dotted name; one that does not exist is a PluginError that says so."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise PluginError(name, f"there is no module {error.name!r} on the import path") from error
        raise


def _sources_of(entry: str, base: Path, loader: _Loader) -> list[Source]:
    path = base / entry
    # Behind a link `..` is not the folder in front of it.
    path = Path(os.path.realpath(path) if ".." in path.parts else os.path.abspath(path))
    shown = Path(os.path.normpath(entry))
    if path.is_dir():
        try:
            files = sorted(file for file in path.iterdir() if _is_plugin_file(file))
        except OSError as error:
            raise PluginError(entry, f"cannot read folder {path}: {error.strerror}") from error
        found = [_file_source(str(shown / file.name), file, loader, explicit=False) for file in files]
        init = path / INIT
        if init.is_file():  # first: it is imported before the others anyway
            source = _file_source(str(shown / INIT), init, loader, explicit=False)
            found.insert(0, replace(source, siblings=frozenset(map(str, files))))
        return found
    if entry.endswith(".py") and path.is_file():
        return [_file_source(str(shown), path, loader, explicit=True)]
    if not all(part.isidentifier() for part in entry.split(".")) or entry.endswith(".py"):
        kind = "file" if entry.endswith(".py") else "folder"
        raise PluginError(entry, f"there is no {kind} {path}" if entry else "the name of a plugin is empty")

    def load() -> ModuleType:
        try:
            return import_name(entry)
        except PluginError as error:
            raise PluginError(
                entry, f"there is no folder {path}, and no module {entry!r} to import"
            ) from error

    return [Source(entry, _answering_for(entry, load), configured=True)]


def _is_plugin_file(file: Path) -> bool:
    name = file.name
    return name.endswith(".py") and not name.startswith((".", "_", "test_")) and name != "conftest.py"


def _file_source(name: str, file: Path, loader: _Loader, explicit: bool) -> Source:
    def load_file() -> ModuleType:
        if file.exists() and not file.is_file():  # a named pipe would be waited for
            raise PluginError(name, f"{file} is no file")
        return loader.load(file)

    load = _answering_for(name, load_file)
    return Source(name, load, aliases=(file.name,), configured=True, explicit=explicit)


def _answering_for(plugin: str, load: Callable[[], object]) -> Callable[[], object]:
    def load_or_blame() -> object:
        with answerable(plugin, "cannot be imported"):
            return load()

    return load_or_blame


class _Loader:
    """Imports files under the names by which they can import each other.

    handlers/echo.py in the configuration's folder is `handlers.echo`, whether there is an
    `__init__.py` or not. A name that means something else already (the standard library's, or a
    second folder's) gets a number: `handlers_2.echo`.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._claimed: set[str] = set()

    def load(self, file: Path) -> ModuleType:
        if file.name == INIT and file.parent != self._base:
            return sys.modules[self._package(file.parent)]
        name = self._claim(self._package(file.parent), file.stem, file)
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            _execute(spec)
        return sys.modules[name]

    def _package(self, folder: Path) -> str:
        if folder == self._base:
            return ""
        parent = self._package(folder.parent) if folder.is_relative_to(self._base) else ""
        name = self._claim(parent, folder.name, folder)
        if name not in sys.modules:
            init = folder / "__init__.py"
            spec: ModuleSpec | None = ModuleSpec(name, None, is_package=True)
            if init.is_file():
                spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[])
            assert spec is not None
            spec.submodule_search_locations = [str(folder)]
            _execute(spec)
        return name

    def _claim(self, package: str, stem: str, place: Path) -> str:
        wanted = f"{package}.{stem.replace('.', '_')}" if package else stem.replace(".", "_")
        for number in itertools.count(1):
            name = wanted if number == 1 else f"{wanted}_{number}"
            module = sys.modules.get(name)
            if module is not None and _is_at(module, place):
                break
            # Another folder's module, left by a manager that was made before in this process.
            if module is not None and name not in self._claimed and _MADE_HERE in vars(module):
                for stale in [name, *(other for other in sys.modules if other.startswith(f"{name}."))]:
                    del sys.modules[stale]
                module = None
            if module is None and name not in sys.stdlib_module_names:
                break
        self._claimed.add(name)
        return name


def _execute(spec: ModuleSpec) -> None:
    module = importlib.util.module_from_spec(spec)
    vars(module)[_MADE_HERE] = True
    sys.modules[spec.name] = module
    try:
        if spec.loader is not None and spec.origin is not None:
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    package, _, stem = spec.name.rpartition(".")
    if package:
        setattr(sys.modules[package], stem, sys.modules[spec.name])


def _is_at(module: ModuleType, place: Path) -> bool:
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    with suppress(OSError):
        return any(known and os.path.samefile(known, place) for known in places)
    return False


def _in_one_line(error: BaseException) -> str:
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    theirs = [(file, line) for file, line in frames if not file.startswith(_MACHINERY)]
    text: str | None = None
    place = ""
    if theirs:
        file = theirs[0][0]  # the plugin's own; what it calls comes below
        place = f" ({file}:{[line for other, line in theirs if other == file][-1]})"
    elif isinstance(error, SyntaxError) and error.filename:
        text, place = error.msg, f" ({error.filename}:{error.lineno or 1})"
    return in_one_line(error, text) + place


@dataclass
class _ProcessState:
    """What belongs to the process and not to any plugin in it."""

    cwd: str | None
    import_path: list[str]
    handlers: dict[int, Any]  # signal number to handler, None for one that Python did not set
    held_back: set[int]  # signals
    interpreter: Interpreter

    @classmethod
    def now(cls) -> _ProcessState:
        cwd = None
        with suppress(OSError):  # the current folder may have been removed
            cwd = os.getcwd()
        in_main = threading.current_thread() is threading.main_thread()  # only there can handlers be set
        numbers: Iterable[int] = signal.valid_signals() if in_main else ()
        handlers = {number: signal.getsignal(number) for number in numbers}
        held_back = set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return cls(cwd, list(sys.path), handlers, held_back, Interpreter.now())

    def put_back(self) -> list[str]:
        """Undo what differs by now, and name it; appending to `sys.path` is everybody's right."""
        changed = []
        if patched := monkey.replaced():
            monkey.put_back()
            changed.append(f"{', '.join(patched)} of the standard library")
        self.interpreter.put_back()
        signal.pthread_sigmask(signal.SIG_SETMASK, self.held_back)
        now = self.now()
        if self.cwd is not None and now.cwd != self.cwd:
            with suppress(OSError):  # it may have been removed as well
                os.chdir(self.cwd)
            changed.append("the current folder")
        if now.import_path[: len(self.import_path)] != self.import_path:
            sys.path[:] = self.import_path
            changed.append("the beginning of sys.path")
        for number, handler in self.handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
                changed.append(f"the handler of {getattr(number, 'name', number)}")
        return changed
