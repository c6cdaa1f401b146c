"""The certificates of a configuration: their files read once, and what each server presents made of them.

Whatever is wrong with them is a problem of the file. What they are used for is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from time import time

from srvkit.config import toml
from srvkit.config.model import Config, Problems
from srvkit.config.toml import Key
from srvkit.net import credentials
from srvkit.net.credentials import Files
from srvkit.net.tls_context import ServerTls, Term


def read_files(config: Config, problems: Problems) -> dict[str, Files]:
    """Return the bytes of each server's files, by path; what cannot be read is added to `problems`."""
    return {
        name: credentials.read(settings.tls, config.folder, partial(_report, problems, _table(name)))
        for name, settings in config.server.items()
        if settings.tls is not None
    }


def load_certificates(
    config: Config,
    problems: Problems,
    files: Mapping[str, Files] | None = None,
    servers: Collection[str] | None = None,
) -> dict[str, ServerTls]:
    """Return what each server presents, or each of `servers`; what is wrong is added to `problems`.

    `files` are those that `read_files` has found, before; without them it reads them.
    """
    if files is None:
        files = read_files(config, problems)
    found = {}
    for name, settings in config.server.items():
        if settings.tls is None or not (servers is None or name in servers):
            continue
        report = partial(_report, problems, _table(name))
        loaded = credentials.load(settings.tls, config.folder, files[name], report)
        if loaded is not None:
            found[name] = loaded
    return found


def terms_of(certificates: Mapping[str, ServerTls]) -> list[Term]:
    """Return how long each certificate and list is good, each with its key."""
    found = []
    for name, loaded in certificates.items():
        for term in loaded.terms:
            key = toml.dotted((*_table(name), *term.place))
            found.append(replace(term, key=key))
    return found


def notes_on(terms: Iterable[Term]) -> list[str]:
    """Return a line for each that is not good, or soon will not be any more."""
    now = time()
    return [f"{term.key}: {note}" for term in terms if (note := term.note(now))]


def _table(server: str) -> Key:
    return ("server", server, "tls")


def _report(problems: Problems, table: Key, place: Key, message: str) -> None:
    problems.add((*table, *place), message)
