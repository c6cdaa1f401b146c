"""The certificates of a configuration, loaded: before privileges are given up, and once for each process.

Whatever is wrong with them is a problem of the file. What they are used for is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from srvkit.config.model import Config, Problems
from srvkit.config.toml import Key
from srvkit.net import tls
from srvkit.net.tls import ServerTls


def load_certificates(
    config: Config, problems: Problems, servers: Collection[str] | None = None
) -> dict[str, ServerTls]:
    """Return what each server presents, or each of `servers`; what is wrong is added to `problems`."""
    folder = config.folder
    found = {}
    for name, settings in config.server.items():
        if settings.tls is None or not (servers is None or name in servers):
            continue
        loaded = tls.load(settings.tls, folder, partial(_report, problems, ("server", name, "tls")))
        if loaded is not None:
            found[name] = loaded
    return found


def notes_on(certificates: Mapping[str, ServerTls]) -> list[str]:
    """Return a line for each certificate that clients do not accept, or soon will not any more."""
    found = {name: tls.validity(loaded) for name, loaded in certificates.items()}
    return [f"server.{name}.tls.cert: {why}" for name, why in found.items() if why]


def _report(problems: Problems, table: Key, place: Key, message: str) -> None:
    problems.add((*table, *place), message)
