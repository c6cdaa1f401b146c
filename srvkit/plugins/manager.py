"""From the names of plugins to what they offer: import, check, register, ask.

A manager is made, by `make_manager`; importing this module loads nothing. It knows the hooks and
the rules about names, but not what a handler, a model or a framing is, nor who calls the other hooks.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluggy import HookImpl, PluginManager, PluginValidationError

from srvkit.errors import ConfigError, PluginError
from srvkit.plugins import builtin, connection_log, hookspecs
from srvkit.plugins.sources import Source, answerable, configured, import_name, installed

log = logging.getLogger("srvkit.plugins")

BUILTIN = "srvkit"
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("srvkit_")}
NAME = re.compile(r"[a-z0-9._-]+")


@dataclass(frozen=True)
class Offer:
    """A handler, model or framing, the name it goes by, and the plugin that brought it."""

    name: str
    thing: type[Any]
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
    return made


class Plugins:
    """The plugins of one process: their hooks, and everything they offer, by name."""

    def __init__(self) -> None:
        self.pm = PluginManager("srvkit")
        self.pm.add_hookspecs(hookspecs)
        self.hook = self.pm.hook
        self.handlers: dict[str, Offer] = {}
        self.models: dict[str, Offer] = {}
        self.framings: dict[str, Offer] = {}
        self.notes: list[str] = []  # worth a line in the log, each; nothing is wrong
        self._configured: set[str] = set()

    def __repr__(self) -> str:
        return f"<Plugins: {', '.join(name for name, _ in self.pm.list_name_plugin())}>"

    def log_connections(self) -> None:
        """Let srvkit's own observer write a log record for each connection, from the next server made."""
        self.pm.register(connection_log, f"{BUILTIN} connection log")

    def implementers(self, hook: str) -> list[str]:
        """Return the names of the plugins that implement `hook`; empty where nobody does."""
        return [impl.plugin_name for impl in getattr(self.hook, hook).get_hookimpls()]

    def tell(self, hook: str, **arguments: Any) -> None:
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
                    hint = _did_you_mean(part, [name for name in vars(thing) if not name.startswith("_")])
                    raise PluginError(reference, f"{file} has no class {path!r}{hint}")
                thing = getattr(thing, part)
        if not isinstance(thing, type):
            raise PluginError(reference, f"{path!r} in {file} is {_article(thing)}, not a class")
        return thing

    def _add(self, source: Source) -> None:
        plugin = source.load()
        if known := self.pm.get_name(plugin):
            raise PluginError(source.name, f"is the same as plugin {known}: name it once")
        if not self._check_hooks(source.name, plugin):
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
                function = vars(plugin).get(attribute) if inspect.ismodule(plugin) else None
                if attribute in HOOKS and inspect.isfunction(function):
                    raise PluginError(name, f"{attribute} is not marked with @hookimpl{_where(function)}")
                continue
            hook, function = options.get("specname") or attribute, getattr(plugin, attribute)
            if hook in HOOKS:
                _check_arguments(name, hook, function)
            elif not options.get("optionalhook"):
                raise PluginError(
                    name, f"unknown hook {hook!r}{_did_you_mean(hook, HOOKS)}{_where(function)}"
                )
            count += 1
        return count

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
            if not _same_class(loser.thing, first.thing):
                whose = "srvkit's own" if loser.plugin == BUILTIN else f"the installed one ({loser.plugin})"
                self.notes.append(
                    f"{kind} {first.name!r} of plugin {first.plugin} is used instead of {whose}"
                )
        return first


def _call_or_complain(what: str, function: Callable[..., object], *arguments: Any) -> None:
    try:
        function(*arguments)
    except (Exception, SystemExit):  # sys.exit() is not a plugin's to call, least of all here
        log.exception("%s failed; everything else goes on", what)


def _without_blocked(sources: list[Source], block: Sequence[str]) -> list[Source]:
    names = [name for source in sources for name in (source.name, *source.aliases)]
    for entry in block:
        if entry not in names:
            raise PluginError(entry, f"there is no such plugin to block{_did_you_mean(entry, names)}")
    return [source for source in sources if not {source.name, *source.aliases} & set(block)]


def _check_arguments(plugin: str, hook: str, function: Any) -> None:
    known = list(inspect.signature(HOOKS[hook]).parameters)
    for argument in inspect.signature(function).parameters.values():
        if argument.default is argument.empty and argument.name not in known:
            offered = f"only {', '.join(known)}" if known else "none"
            message = f"{hook} takes {argument.name!r}, the hook's arguments are {offered}"
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


def _where(thing: Any) -> str:
    code = getattr(inspect.unwrap(thing), "__code__", None) if callable(thing) else None
    if code is not None:
        return f" ({code.co_filename}:{code.co_firstlineno})"
    file = getattr(thing, "__file__", None)
    return f" ({file})" if file else ""


def _article(thing: object) -> str:
    return "None" if thing is None else f"an object of type {type(thing).__name__}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _same_class(one: type[Any], other: type[Any]) -> bool:
    """Tell whether two classes are one, maybe imported twice: from an installed folder and by its path."""
    if one is other:
        return True
    files = [getattr(sys.modules.get(thing.__module__), "__file__", None) for thing in (one, other)]
    return one.__qualname__ == other.__qualname__ and None not in files and os.path.samefile(*map(str, files))
