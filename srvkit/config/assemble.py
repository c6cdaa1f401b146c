"""The whole way of a configuration: settings, plugins, server classes; or all that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from srvkit.concurrency import monkey_patching as monkey
from srvkit.config.certificates import load_certificates, notes_on, terms_of
from srvkit.config.compose import Plan, compose
from srvkit.config.model import Config, Problems
from srvkit.contracts import in_one_line
from srvkit.errors import PluginError
from srvkit.net.tls_context import ServerTls
from srvkit.plugins.manager import Plugins, make_manager
from srvkit.plugins.sources import lead_import_path


@dataclass(frozen=True)
class Assembled:
    """A configuration with its plugins loaded and its servers planned."""

    config: Config
    plugins: Plugins
    plans: list[Plan]
    certificates: Mapping[str, ServerTls]

    def notes(self) -> list[str]:
        """Return what is worth knowing, although nothing is wrong."""
        return [*self.plugins.remarks(), *monkey.notes(), *notes_on(terms_of(self.certificates))]

    def try_models(self, problems: Problems) -> None:
        """Make the loop of each model once. Raises ConfigError, of status 3, where one cannot be made."""
        for plan in self.plans:
            try_loop = getattr(plan.server_class, "try_loop", None)
            if try_loop is None:
                continue
            try:
                try_loop()
            except Exception as error:
                message = f"{plan.model!r} cannot run here: {in_one_line(error)}"
                problems.add(("server", plan.name, "concurrency"), message, status=3)
        problems.raise_if_any()


def assemble(
    config: Config,
    problems: Problems,
    certificates: Mapping[str, ServerTls] | None = None,
    only: str = "",
) -> Assembled:
    """Load the plugins and plan the servers of what `loader` has read; `certificates` may be loaded already.

    `only` is the one server that this process is to run, if there is one.

    Raises ConfigError with every problem there is, PluginError where the plugins are the only one.
    """
    if certificates is None:
        certificates = load_certificates(config, problems)
    folder = config.folder
    served = [settings for name, settings in config.server.items() if not only or name == only]
    lead_import_path(folder)  # it may have a gevent of its own
    monkey.guard({settings.concurrency.name for settings in served})
    try:
        plugins = make_manager(config.srvkit.plugins, config.srvkit.block, folder)
        if config.logging.connections:
            plugins.log_connections()
        plans = compose(config, plugins, problems, certificates, tried=bool(only))
    except PluginError as error:
        if problems:
            problems.add(("srvkit", "plugins"), str(error))
            problems.raise_if_any()
        raise
    problems.raise_if_any()
    return Assembled(config, plugins, plans, certificates)
