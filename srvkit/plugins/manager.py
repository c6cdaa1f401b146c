"""From the names of plugins to what they offer: import, check, register, ask.

A manager is made, by `make_manager`; importing this module loads nothing. It knows the hooks and
the rules about names, but not what a handler, a model or a framing is, nor who calls the other hooks.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pluggy import HookImpl, PluginManager, PluginValidationError

from srvkit.errors import ConfigError, PluginError, did_you_mean
from srvkit.plugins import builtin, connection_log, hookspecs, overlooked
from srvkit.plugins.sources import INIT, Source, answerable, configured, folders, import_name, installed

log = logging.getLogger("srvkit.plugins")

BUILTIN = "srvkit"
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("srvkit_")}
REFUSING = ("srvkit_verify_request", "srvkit_configure")  # who misses these lets in what was to stay out
NAME = re.compile(r"[a-z0-9._-]+")


@dataclass(frozen=True)
class Offer:
    """A handler, model or framing, the name it goes by, and the plugin that brought it."""

    name: str
    cls: type[Any]
    plugin: str


def make_manager(
    plugins: Sequence[str] = (), block: Sequence[str] = (), folder: Path | None = None
) -> Plugins:
    """Import srvkit's own, the installed and the given plugins, and collect what they offer.

    `plugins` are folders and .py files, relative to `folder`, or import names. `folder` is the
    configuration's: it leads `sys.path` from now on. `block` names plugins that must not be
    imported, as `srvkit plugins` shows them, or by file name or entry point name.
    Raises PluginError for the first plugin that is not found, cannot be imported or breaks the rules.
    """
    own = Source(BUILTIN, lambda: builtin)
    sources = [own, *installed(), *configured(plugins, folder)]
    wanted = _without_blocked(sources, block)
    made = Plugins()
    for source in wanted:
        made._add(source)
    made._collect()
    made._note_what_is_overlooked(folders(plugins, folder))
    return made


class Plugins:
    """The plugins of one process: their hooks, and everything they offer, by name."""

    def __init__(self) -> None:
        self.pm = _Manager("srvkit")
        self.pm.add_hookspecs(hookspecs)
        self.hook = self.pm.hook
        self.handlers: dict[str, Offer] = {}
        self.models: dict[str, Offer] = {}
        self.framings: dict[str, Offer] = {}
        self.notes: list[str] = []  # worth a line in the log, each; nothing is wrong
        self._configured: set[str] = set()
        self._unnamed: dict[type[Any], str] = {}  # handlers that no plugin offers, with the note that says so

    def __repr__(self) -> str:
        return f"<Plugins: {', '.join(name for name, _ in self.pm.list_name_plugin())}>"

    def log_connections(self) -> None:
        """Let srvkit's own observer write a log record for each connection, from the next server made."""
        self.pm.register(connection_log, f"{BUILTIN} connection log")

    @property
    def only_installed(self) -> bool:
        """Whether the configuration names no plugins of its own."""
        return not self._configured

    def remarks(self) -> list[str]:
        """Return all notes, with those of handlers that no name leads to."""
        return [*self.notes, *self._unnamed.values()]

    def implementers(self, hook: str) -> list[str]:
        """Return the names of the plugins that implement `hook`; empty where nobody does."""
        return [impl.plugin_name for impl in getattr(self.hook, hook).get_hookimpls()]

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of a hook that only watches.

        What one of them raises is logged with the plugin's name; the others are called all the same.
        """
        caller = getattr(self.hook, hook)
        implementations = caller.get_hookimpls()
        if any(impl.wrapper or impl.hookwrapper for impl in implementations):
            _call_or_complain(f"{hook} of a plugin", lambda: caller(**arguments))
            return
        for impl in reversed(implementations):  # as pluggy does: the last to come is the first to hear
            values = [arguments[name] for name in impl.argnames]
            _call_or_complain(f"{hook} of plugin {impl.plugin_name}", impl.function, *values)

    def vetoes(self, config: Any) -> list[tuple[str, ValueError | ConfigError]]:
        """Show every plugin the configuration; return what they raised to refuse it, with their names.

        Raises PluginError for one that fails in another way.
        """
        raised: list[tuple[str, ValueError | ConfigError]] = []
        for impl in self.hook.srvkit_configure.get_hookimpls():
            _refuse_wrapper("srvkit_configure", impl)
            with answerable(impl.plugin_name, "srvkit_configure failed"):
                try:
                    impl.function(*[config for _ in impl.argnames])
                except (ValueError, ConfigError) as veto:
                    raised.append((impl.plugin_name, veto))
        return raised

    def import_handler(self, reference: str) -> type[Any]:
        """Import the class that "package.module:Class" names; it need not be part of any plugin.

        Raises PluginError, with the reference for a name, if there is no such module or class.
        """
        module_name, _, path = reference.partition(":")
        if not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
            raise PluginError(reference, 'not of the form "package.module:Class"')
        with answerable(reference, "cannot be imported"):
            try:
                thing: Any = import_name(module_name)
            except PluginError as error:
                raise PluginError(
                    reference, f"there is no module {module_name!r} on the import path"
                ) from error
            file = getattr(thing, "__file__", None) or module_name
            for part in path.split("."):
                if not hasattr(thing, part):
                    hint = did_you_mean(part, [name for name in vars(thing) if not name.startswith("_")])
                    raise PluginError(reference, f"{file} has no class {path!r}{hint}")
                thing = getattr(thing, part)
        if not isinstance(thing, type):
            raise PluginError(reference, f"{path!r} in {file} is {_article(thing)}, not a class")
        self._unnamed.pop(thing, None)
        return thing

    def _add(self, source: Source) -> None:
        plugin = source.load()
        if known := self.pm.get_name(plugin):
            raise PluginError(source.name, f"is the same as plugin {known}: name it once")
        self.pm.leave_out(plugin, source.siblings)
        count = self._check_hooks(source.name, plugin)
        if inspect.ismodule(plugin):
            self._check_classes(source.name, plugin)
        if not count:
            if source.siblings or Path(source.name).name == INIT:
                return  # a package like any other
            if source.explicit:
                raise PluginError(source.name, f"implements no hook{_where(plugin)}: is @hookimpl missing?")
            self.notes.append(f"{source.name} implements no hook, it is no plugin: name it _… to say so")
            return
        try:
            self.pm.register(plugin, source.name)
        except PluginValidationError as error:
            raise PluginError(source.name, " ".join(str(error).split())) from error
        if source.configured:
            self._configured.add(source.name)

    def _check_hooks(self, name: str, plugin: object) -> int:
        """Count the hooks that `plugin` implements; complain where pluggy would be silent or unclear."""
        count = 0
        for attribute in dir(plugin):
            options = self.pm.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                if inspect.ismodule(plugin) and not self.pm.is_left_out(plugin, attribute):
                    self._check_unmarked(name, plugin, attribute)
                continue
            hook, function = options.get("specname") or attribute, getattr(plugin, attribute)
            _refuse_coroutine(name, attribute, function, options)
            if hook in HOOKS:
                _check_arguments(name, hook, function)
            elif not options.get("optionalhook"):
                raise PluginError(name, f"unknown hook {hook!r}{did_you_mean(hook, HOOKS)}{_where(function)}")
            count += 1
        return count

    def _check_unmarked(self, name: str, plugin: ModuleType, attribute: str) -> None:
        thing = vars(plugin).get(attribute)
        if not attribute.startswith("srvkit_") or not callable(thing) or isinstance(thing, type):
            return
        if attribute in HOOKS:
            raise PluginError(name, f"{attribute} is not marked with @hookimpl{_where(thing)}")
        if getattr(thing, "__module__", None) != plugin.__name__:
            return
        if hint := did_you_mean(attribute, HOOKS, cutoff=0.8):
            raise PluginError(name, f"{attribute} is no hook{hint} (with @hookimpl){_where(thing)}")
        self.notes.append(f"{name}: {attribute} is called like a hook, and there is none of this name")

    def _check_classes(self, name: str, plugin: ModuleType) -> None:
        """Refuse a method that was to refuse clients, and note other hooks that are methods."""
        for owner, hook, function in overlooked.hooks_in_classes(plugin, HOOKS):
            said = f"{hook} is a method of {owner}, only functions of the module itself are hooks"
            if hook in REFUSING:
                raise PluginError(name, f"{said}{_where(function)}")
            self.notes.append(f"{name}: {said}")

    def _note_what_is_overlooked(self, searched: list[tuple[Path, Path]]) -> None:
        taken = set()
        offered = {offer.cls for offer in self.handlers.values()}
        for name, plugin in self.pm.list_name_plugin():
            callers = self.pm.get_hookcallers(plugin) or []
            impls = [impl for caller in callers for impl in caller.get_hookimpls() if impl.plugin is plugin]
            taken |= {getattr(_code(impl.function), "co_filename", "") for impl in impls}
            if inspect.ismodule(plugin) and name in self._configured:
                for one in overlooked.handlers_in(plugin):
                    if not any(one in thing.__mro__ for thing in offered):
                        note = f"{name} has a handler {one.__name__} that it does not offer: return it from "
                        self._unnamed[one] = f"{note}srvkit_handlers, or name it _{one.__name__} to say so"
        for path, shown in searched:
            self.notes += overlooked.files_in(path, shown, taken)

    def _collect(self) -> None:
        self.handlers = self._offers("handler", "srvkit_handlers")
        self.models = self._offers("concurrency model", "srvkit_concurrency")
        self.framings = self._offers("framing", "srvkit_framings")

    def _offers(self, kind: str, hook: str) -> dict[str, Offer]:
        offers: dict[str, list[Offer]] = {}
        for impl in getattr(self.hook, hook).get_hookimpls():
            for name, thing in _ask(hook, impl).items():
                offers.setdefault(name, []).append(Offer(name, thing, impl.plugin_name))
        return {name: self._choose(kind, offers[name]) for name in sorted(offers)}

    def _choose(self, kind: str, offers: list[Offer]) -> Offer:
        configured = [offer for offer in offers if offer.plugin in self._configured]
        first, *others = configured or offers
        if others:
            message = f"offers {kind} {first.name!r}, and so does plugin {first.plugin}"
            raise PluginError(others[0].plugin, f"{message}: block or rename one of them")
        for loser in offers:
            if not _same_class(loser.cls, first.cls):
                whose = "srvkit's own" if loser.plugin == BUILTIN else f"the installed one ({loser.plugin})"
                self.notes.append(
                    f"{kind} {first.name!r} of plugin {first.plugin} is used instead of {whose}"
                )
        return first


class _Manager(PluginManager):
    """One that leaves out hooks which a package has from the plugins beside it: these have them already."""

    def __init__(self, project_name: str) -> None:
        self._left_out: dict[int, frozenset[str]] = {}  # by id of the plugin: files
        super().__init__(project_name)

    def leave_out(self, plugin: object, files: frozenset[str]) -> None:
        """Let hooks that are defined in these files be none of this plugin's."""
        if files:
            self._left_out[id(plugin)] = files

    def is_left_out(self, plugin: object, name: str) -> bool:
        """Tell whether what a plugin calls so is another one's."""
        files = self._left_out.get(id(plugin))
        return bool(files) and getattr(_code(getattr(plugin, name, None)), "co_filename", "") in (files or ())

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return None if self.is_left_out(plugin, name) else super().parse_hookimpl_opts(plugin, name)


def _call_or_complain(what: str, function: Callable[..., object], *arguments: Any) -> None:
    try:
        function(*arguments)
    except (Exception, SystemExit):  # sys.exit() is not a plugin's to call, least of all here
        log.exception("%s failed; everything else goes on", what)


def _without_blocked(sources: list[Source], block: Sequence[str]) -> list[Source]:
    names = [name for source in sources for name in (source.name, *source.aliases)]
    for entry in block:
        if entry not in names:
            raise PluginError(entry, f"there is no such plugin to block{did_you_mean(entry, names)}")
    return [source for source in sources if not {source.name, *source.aliases} & set(block)]


def _refuse_coroutine(plugin: str, hook: str, function: Any, options: Any) -> None:
    """Refuse what returns something else than it seems to: a coroutine is never False."""
    is_wrapper = options.get("wrapper") or options.get("hookwrapper")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(plugin, f"{hook} is a coroutine, and hooks are not awaited{_where(function)}")
    if inspect.isgeneratorfunction(function) and not is_wrapper:
        raise PluginError(plugin, f"{hook} yields, and is no wrapper: it would never run{_where(function)}")


def _check_arguments(plugin: str, hook: str, function: Any) -> None:
    known = list(inspect.signature(HOOKS[hook]).parameters)
    for argument in inspect.signature(function).parameters.values():
        if argument.default is argument.empty and argument.name not in known:
            offered = f"only {', '.join(known)}" if known else "none"
            message = f"{hook} takes {argument.name!r}, the hook's arguments are {offered}"
            raise PluginError(plugin, message + _where(function))
        if argument.name in known:  # which pluggy hands over by position, and only where it must
            if argument.default is not argument.empty:
                message = (
                    f"{hook} gives {argument.name!r} a default, so it would never be given anything else"
                )
                raise PluginError(plugin, message + _where(function))
            if argument.kind is argument.KEYWORD_ONLY:
                message = f"{hook} takes {argument.name!r} behind a *, where it would not be handed over"
                raise PluginError(plugin, message + _where(function))


def _ask(hook: str, impl: HookImpl) -> dict[str, type[Any]]:
    """Call one plugin's implementation, and see that it returned classes by name."""
    _refuse_wrapper(hook, impl)
    with answerable(impl.plugin_name, f"{hook} failed"):
        offers: Any = impl.function()
    if wrong := _what_is_wrong(offers):
        raise PluginError(impl.plugin_name, f"{hook}: {wrong}{_where(impl.function)}")
    checked: dict[str, type[Any]] = offers
    return checked


def _refuse_wrapper(hook: str, impl: HookImpl) -> None:
    if impl.wrapper or impl.hookwrapper:
        raise PluginError(impl.plugin_name, f"{hook} cannot be a wrapper{_where(impl.function)}")


def _what_is_wrong(offers: object) -> str:
    if not isinstance(offers, dict):
        return f"returned {_article(offers)}, not a dict of names to classes"
    for name, thing in offers.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return f"{name!r} is no name, names are made of a-z 0-9 - _ ."
        if not isinstance(thing, type):
            return f"{name!r} is {_article(thing)}, not a class"
    return ""


def _code(thing: Any) -> Any:
    return getattr(inspect.unwrap(thing), "__code__", None) if callable(thing) else None


def _where(thing: Any) -> str:
    code = _code(thing)
    if code is not None:
        return f" ({code.co_filename}:{code.co_firstlineno})"
    file = getattr(thing, "__file__", None)
    return f" ({file})" if file else ""


def _article(thing: object) -> str:
    return "None" if thing is None else f"an object of type {type(thing).__name__}"


def _same_class(one: type[Any], other: type[Any]) -> bool:
    """Tell whether two classes are one, maybe imported twice: from an installed folder and by its path."""
    if one is other:
        return True
    files = [getattr(sys.modules.get(thing.__module__), "__file__", None) for thing in (one, other)]
    return one.__qualname__ == other.__qualname__ and None not in files and os.path.samefile(*map(str, files))
