"""From settings to server classes: the configuration file is a class statement.

`[server.echo]` with `concurrency = "threading"` on `tcp://` becomes
`class EchoTCPServer(ThreadingMixIn, TCPServer)` with its settings as class attributes. What cannot
go together is found here and added to the problems of the file. Nothing is opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

from srvkit.concurrency.serial import SerialMixIn
from srvkit.config.cpus import usable_cpus
from srvkit.config.edge import Edge
from srvkit.config.handler_shape import doubt_about, flaw_of, keeps_one_process, runs_under, takes_turns
from srvkit.config.model import Choice, Config, Problems, ServerSettings, convert_options
from srvkit.contracts import missing_packages, needed_packages
from srvkit.errors import ConfigError, PluginError, Problem, did_you_mean
from srvkit.net.address import Address, overlap, parse
from srvkit.net.listener import Listener, SocketSettings, bind_each
from srvkit.net.tls_context import ServerTls
from srvkit.plugins.hook_mixins import hook_mixins, verify_stage
from srvkit.plugins.manager import Offer, Plugins
from srvkit.server.admission import StandardVerify
from srvkit.server.base import BaseServer
from srvkit.server.blocking_handler import DatagramRequestHandler, StreamRequestHandler, kind_of
from srvkit.server.datagram import UDPServer, UnixDatagramServer
from srvkit.server.stream import TCPServer, UnixStreamServer

BASES: dict[str, type[TCPServer]] = {
    "tcp": TCPServer,
    "udp": UDPServer,
    "unix": UnixStreamServer,
    "unixgram": UnixDatagramServer,
}
CONFIGURED = ("framing", "options")  # what the configuration sets on a handler
FRAMING = ("feed", "eof", "datagram", "encode", "rest", "fresh", "buffered", "max_message")  # what one has
NOTHING: Mapping[str, Any] = MappingProxyType({})
LONGEST_DATAGRAM = 65535  # bytes; UDP's length field holds no more (RFC 768)


@dataclass(frozen=True)
class Plan:
    """One server as it is to be: where it listens, its class, and its handler."""

    name: str
    addresses: tuple[Address, ...]
    socket: SocketSettings
    model: str  # the word in the configuration
    server_class: type[TCPServer]
    handler: type[Any]

    def bind(self) -> list[Listener]:
        """Bind every address, without listening. Raises ListenError with nothing left open."""
        listeners: list[Listener] = []
        try:
            for address in self.addresses:
                listeners += bind_each(address, self.socket)
        except BaseException:
            for listener in listeners:
                listener.close()
            raise
        return listeners

    def build(self, listeners: list[Listener]) -> TCPServer:
        """Make the server; it owns the listeners from then on."""
        return self.server_class.from_listeners(listeners, self.handler)

    def explain(self) -> str:
        """Write the class statement that a person would have written."""
        bases = ", ".join(base.__name__ for base in self.server_class.__bases__)
        lines = [f"class {self.server_class.__name__}({bases}):"]
        lines += _assignments(vars(self.server_class))
        handler = f"{self.handler.__module__}.{self.handler.__qualname__}"
        if own := {name: vars(self.handler)[name] for name in CONFIGURED if name in vars(self.handler)}:
            lines = [f"class {self.handler.__name__}({handler}):", *_assignments(own), "", *lines]
            handler = self.handler.__name__
        request = "connection" if self.addresses[0].kind == "stream" else "datagram"
        listen = ", ".join(map(str, self.addresses))
        return "\n".join([*lines, "", f"# listens on {listen}; each {request} goes to {handler}"])


def compose(
    config: Config,
    plugins: Plugins,
    problems: Problems,
    certificates: Mapping[str, ServerTls] = NOTHING,
    *,
    tried: bool = False,
) -> list[Plan]:
    """Return a plan for each server; what is wrong is added to `problems`, and its server left out.

    `certificates` are those of servers with TLS, by name; a server whose own are not there is left out.
    `tried` is whether all this was found good before, in another process: then the number of CPUs, which may
    change meanwhile, is not asked for again.

    Raises PluginError where a plugin, and not the configuration, is at fault.
    """
    composed = [
        _Composer(name, settings, config.folder, plugins, problems, certificates.get(name), tried).plan()
        for name, settings in config.server.items()
    ]
    plans = [plan for plan in composed if plan is not None]
    _report_shared_addresses(plans, problems)
    if not problems:
        _ask_plugins(config, plugins, problems)
    return plans


class _Composer:
    """Puts one server together, noting every reason why it cannot be."""

    def __init__(
        self,
        name: str,
        settings: ServerSettings,
        folder: Path,
        plugins: Plugins,
        problems: Problems,
        tls: ServerTls | None,
        tried: bool,
    ) -> None:
        self.name = name
        self.key = ("server", name)
        self.settings = settings
        self.folder = folder
        self.plugins = plugins
        self.problems = problems
        self.tls = tls
        self.tried = tried

    def plan(self) -> Plan | None:
        before = len(self.problems)
        addresses = self._addresses()
        handler = self._handler()
        model = self._offer(
            self.settings.concurrency, self.plugins.models, "concurrency", "concurrency model"
        )
        if addresses and handler:
            self._check_transport(handler, addresses[0])
        edge = Edge(self.key, self.settings, self.tls, self.problems)
        if addresses:
            edge.check(addresses)
        if handler and model:
            self._check_model(handler, model)
        if handler and keeps_one_process(handler):
            self._check_workers(handler)
        options = self._model_options(model) if model else {}
        if model:
            self._check_packages(model, options)
        if handler:
            handler = self._with_settings(handler)
        if len(self.problems) > before or not (addresses and handler and model and edge.is_complete):
            return None
        return Plan(
            self.name,
            tuple(addresses),
            self.settings.socket,
            model.name,
            self._server_class(addresses[0], model, handler, options, edge),
            handler,
        )

    def _addresses(self) -> list[Address]:
        addresses, kinds = [], set()
        for index, text in enumerate(self.settings.listen):
            try:
                address = parse(text).relative_to(self.folder)
                if address.kind_is_known:
                    kinds.add(address.kind)
                addresses.append(address)
            except ValueError as error:
                self.problems.add((*self.key, "listen", index), str(error))
            except OSError as error:
                self.problems.add((*self.key, "listen", index), f"{text} is no socket: {error.strerror}")
        if len(kinds) > 1:
            self.problems.add(
                (*self.key, "listen"),
                "one server listens either for streams (tcp, unix) or for datagrams (udp, unixgram): "
                "make two tables",
            )
        return addresses

    def _handler(self) -> type[Any] | None:
        name = self.settings.handler.name
        if ":" not in name:
            offer = self._offer(self.settings.handler, self.plugins.handlers, "handler", "handler")
            handler = offer.cls if offer else None
        else:
            try:
                handler = self.plugins.import_handler(name)
            except PluginError as error:
                self.problems.add((*self.key, "handler"), str(error).removeprefix("plugin "))
                return None
        if handler is None:
            return None
        if kind_of(handler) == "message" or hasattr(handler, "handle"):
            flaw = flaw_of(handler)
        else:
            advice = "a server, name its handler" if hasattr(handler, "serve_forever") else "no handler"
            flaw = f"{handler.__name__} has no handle(): it is {advice}"
        if flaw:
            self.problems.add((*self.key, "handler"), flaw)
            return None
        if doubt := doubt_about(handler):
            self.plugins.notes.append(f"server.{self.name}: {doubt}")
        return handler

    def _offer(self, choice: Choice, offers: Mapping[str, Offer], key: str, noun: str) -> Offer | None:
        if choice.name in offers:
            return offers[choice.name]
        hint = did_you_mean(choice.name, offers)
        known = f"known are {', '.join(offers)}" if offers else "no plugin offers any"
        if key == "handler" and not hint:
            if "." in choice.name:
                known += "; a class is written package.module:Class"
            elif self.plugins.only_installed:
                known += "; srvkit.plugins names no folder or module of your own"
        self.problems.add((*self.key, key), f"unknown {noun} {choice.name!r}{hint} ({known})")
        return None

    def _check_transport(self, handler: type[Any], address: Address) -> None:
        # By name as well: a handler may be built on the standard library's classes.
        ancestors = {base.__name__ for base in handler.__mro__}
        if not address.kind_is_known:  # systemd passes the socket, and has not done so yet
            return
        if address.kind == "datagram" and (
            issubclass(handler, StreamRequestHandler) or "StreamRequestHandler" in ancestors
        ):
            wanted = "streams (tcp://, unix:)"
        elif address.kind == "stream" and (
            issubclass(handler, DatagramRequestHandler) or "DatagramRequestHandler" in ancestors
        ):
            wanted = "datagrams (udp://, unixgram:)"
        else:
            return
        self.problems.add((*self.key, "handler"), f"{handler.__name__} handles {wanted}, not {address}")

    def _check_model(self, handler: type[Any], model: Offer) -> None:
        if runs_under(handler, model.cls):
            return
        able = [
            offer.name
            for offer in self.plugins.models.values()
            if runs_under(handler, offer.cls) and not missing_packages(offer.cls)
        ]
        able_text = f"it runs under {', '.join(able)}" if able else "no model that is installed can"
        kind = kind_of(handler)
        reason = f"a handler of the {kind} kind"
        if kind in model.cls.handler_kinds:
            reason = "whose one_process asks for a single process: this model forks one for each request"
        self.problems.add(
            (*self.key, "concurrency"),
            f"{model.name!r} cannot run {handler.__name__}, {reason}; {able_text}",
        )

    def _check_workers(self, handler: type[Any]) -> None:
        count = self.settings.workers
        if not count and not self.tried:
            count = usable_cpus()
        if count > 1:
            many = f"{count} workers" if self.settings.workers else f'"auto" is {count} workers here, which'
            self.problems.add(
                (*self.key, "workers"),
                f"{many} cannot run {handler.__name__}, whose one_process asks for a single process; "
                "write workers = 1",
            )

    def _check_packages(self, model: Offer, options: Mapping[str, Any]) -> None:
        missing = missing_packages(model.cls, **options)
        for package in needed_packages(model.cls, **options):
            key = (*self.key, "concurrency", *([package.option] if package.option else []))
            needs = f"{options.get(package.option, model.name)!r} needs the package {package.name}"
            if package in missing:
                self.problems.add(key, f"{needs}: pip install {package.install!r}")
            elif reason := package.why_broken():
                self.problems.add(key, f"{needs}, which cannot be imported: {reason}", status=3)
        notes = getattr(model.cls, "notes", None)
        if notes is not None:
            self.plugins.notes += [f"server.{self.name}: {note}" for note in notes(**options)]

    def _model_options(self, model: Offer) -> dict[str, Any]:
        declared = getattr(model.cls, "Options", _NoOptions)
        options = convert_options(
            declared, self.settings.concurrency.options, (*self.key, "concurrency"), self.problems
        )
        return (
            {} if options is None else {field.name: getattr(options, field.name) for field in fields(options)}
        )

    def _with_settings(self, handler: type[Any]) -> type[Any]:
        """Return the handler with what the configuration says of it, as a class of the same name."""
        attributes: dict[str, Any] = {}
        declared = getattr(handler, "Options", None)
        if declared is not None or self.settings.handler.options:
            key = (*self.key, "handler")
            attributes["options"] = convert_options(
                declared or _NoOptions, self.settings.handler.options, key, self.problems
            )
        if kind_of(handler) == "message":
            framing = self._framing(handler)
            if framing is not None:
                attributes["framing"] = framing
        elif self.settings.framing is not None:
            self.problems.add(
                (*self.key, "framing"),
                f"framing is for message handlers; {handler.__name__} does its own input and output",
            )
        if not attributes:
            return handler
        attributes |= {
            "__module__": handler.__module__,
            "__qualname__": handler.__qualname__,
            "__doc__": handler.__doc__,
        }
        return type(handler.__name__, (handler,), attributes)

    def _framing(self, handler: type[Any]) -> Any:
        framing = handler.framing
        if isinstance(framing, type):
            message = f"{handler.__name__}.framing is a class, it must be an instance: {framing.__name__}()"
            self.problems.add((*self.key, "handler"), message)
            return None
        if self.settings.framing is not None:
            offer = self._offer(self.settings.framing, self.plugins.framings, "framing", "framing")
            if offer is None:
                return None
            framing = convert_options(
                offer.cls, self.settings.framing.options, (*self.key, "framing"), self.problems
            )
            if framing is None:
                return None
        made = None
        try:
            problem = _no_framing(framing)
            if not problem:
                # Who wrote the handler may have set a maximum; whoever operates it has the last word.
                is_decided = framing.max_message is None or self._is_set("limits", "max_message")
                made = framing.fresh(self.settings.limits.max_message if is_decided else None)
                problem = _no_framing(made, f"{type(framing).__name__}.fresh() returned ") or _not_alike(
                    framing, made
                )
        except KeyboardInterrupt:
            raise
        except ValueError as error:
            self.problems.add((*self.key, "limits", "max_message"), str(error))
            return None
        except BaseException as error:  # of the framing's own, which each connection would meet
            name = type(framing).__name__
            problem = str(error) if name in str(error) else f"{name}.fresh(): {type(error).__name__}: {error}"
        if problem:
            where = "handler" if self.settings.framing is None else "framing"
            self.problems.add((*self.key, where), problem)
            return None
        return made

    def _is_set(self, *path: str) -> bool:
        table: Any = self.problems.source.data
        for part in (*self.key, *path):
            if not isinstance(table, dict) or part not in table:
                return False
            table = table[part]
        return True

    def _server_class(
        self,
        address: Address,
        model: Offer,
        handler: type[Any],
        options: dict[str, Any],
        edge: Edge,
    ) -> type[TCPServer]:
        base = BASES.get(address.scheme) or (TCPServer if address.kind == "stream" else UDPServer)
        mixins = [] if model.cls is SerialMixIn else [model.cls]
        attributes: dict[str, Any] = {
            "__module__": __name__,
            "name": self.name,
            "limits": self.settings.limits,
            "log_errors": True,
            "contain_exit": True,
            "always_finish": True,
            **options,
        }
        if address.kind == "stream":
            attributes["request_queue_size"] = self.settings.socket.backlog
            # Where messages and coroutines are at home, the limits are kept there, and cheaper.
            blocks = kind_of(handler) == "blocking"
            attributes["connection_class"] = edge.connection_class(keeps_limits=blocks)
        else:
            attributes |= {
                "max_packet_size": LONGEST_DATAGRAM,
                "drop_truncated": True,
                "reply_only_if_written": True,
            }
            if address.scheme != "udp":  # which knows no longer ones
                framing = getattr(handler, "framing", None) if kind_of(handler) == "message" else None
                attributes["max_message"] = framing.limit if framing else self.settings.limits.max_message
        attributes |= getattr(model.cls, "managed", {})
        attributes |= edge.attributes
        hooks = verify_stage(self.plugins)
        if hasattr(model.cls, "verify_request"):  # of somebody else's
            hooks.insert(0, StandardVerify())
        one_by_one = address.kind == "datagram" and takes_turns(handler, model.cls)
        attributes["admission"] = edge.stages(hooks, has_capacity=not one_by_one)
        bases = (*hook_mixins(self.plugins), *mixins, base)
        return type(_class_name(self.name, base), bases, attributes)


@dataclass(frozen=True)
class _NoOptions:
    """What is declared where nothing is: any option is unknown."""


def _no_framing(thing: Any, how: str = "") -> str:
    """Say why something cannot be the framing of a handler; "" where it can."""
    lacking = [name for name in FRAMING if not hasattr(thing, name)]
    if not lacking:
        return ""
    named = f"an object of type {type(thing).__name__}, without {lacking[0]}"
    what = "None" if thing is None else named
    return f"{how or 'its framing is '}{what}: it must be an instance of a Framing, as Lines() is"


def _not_alike(framing: Any, made: Any) -> str:
    """Return what a connection's framing would lack of the one that was written down; "" for nothing."""
    name = type(framing).__name__
    if made is framing:
        return f"{name}.fresh() returns the framing itself, which all connections would then share"
    there = getattr(made, "__dict__", {})
    lacking = [key for key in getattr(framing, "__dict__", {}) if key not in there]
    if lacking:
        return (
            f"{name}: {lacking[0]!r} was set after it was made, so no connection has it; let __init__ set it"
        )
    return ""


def _class_name(name: str, base: type[BaseServer]) -> str:
    words = re.findall(r"[A-Za-z0-9]+", name)
    camel = "".join(word[0].upper() + word[1:] for word in words)
    return f"{'Server' if camel[:1].isdigit() else ''}{camel}{base.__name__}"


def _assignments(attributes: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in attributes.items():
        if name == "admission" and value:  # the order in which a connection passes them
            lines += [f"    {name} = (", *(f"        {stage!r}," for stage in value), "    )"]
        elif not name.startswith("_"):
            lines.append(f"    {name} = {value.__name__ if isinstance(value, type) else repr(value)}")
    return lines


def _report_shared_addresses(plans: Sequence[Plan], problems: Problems) -> None:
    places = [(plan, index, address) for plan in plans for index, address in enumerate(plan.addresses)]
    for (first, _, one), (second, index, other) in combinations(places, 2):
        if overlap(one, other):
            problems.add(
                ("server", second.name, "listen", index),
                f"{other} and {one} of server.{first.name} are the same address",
            )


def _ask_plugins(config: Config, plugins: Plugins, problems: Problems) -> None:
    for plugin, veto in plugins.vetoes(config):
        for problem in veto.problems if isinstance(veto, ConfigError) else (Problem(str(veto)),):
            key = tuple(problem.key.split(".")) if problem.key else ()
            problems.add(key, f"plugin {plugin}: {problem.message}")
