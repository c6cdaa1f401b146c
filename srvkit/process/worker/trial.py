"""A configuration is tried out, in a process that nobody will miss: its plugins may hang or crash."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from srvkit.config.assemble import Assembled, assemble
from srvkit.config.certificates import load_certificates, read_files, terms_of
from srvkit.config.handler_shape import keeps_one_process
from srvkit.config.makings import makings_of
from srvkit.config.model import Config, Problems
from srvkit.errors import ListenError, SrvkitError
from srvkit.net.credentials import Files
from srvkit.net.tls_context import ServerTls
from srvkit.process import privileges
from srvkit.process.channel import Channel, Message
from srvkit.process.child import refuse_threads
from srvkit.process.credential_store import keep
from srvkit.process.name_lookup import NO_NAMES, look_up_names
from srvkit.process.worker.reporting import begin_afresh
from srvkit.process.worker.worker import CANNOT_START

log = logging.getLogger("srvkit.process")


def try_out(config: Config, problems: Problems, known: Mapping[str, str], channel: Channel) -> int:
    """Do with a configuration all that may take its time, and say what is wrong with it.

    That is what a worker does before it serves, and to look up the names that new sockets need and that are
    not `known` (see `look_up_names`). Each step is said before it is taken: who waits for one that does not
    end can name it. In a process that was begun for this.
    """
    begin_afresh()
    channel.die_with_the_other_side()

    def doing(what: str) -> None:
        channel.send_blocking({"doing": what})

    names, refused = NO_NAMES, None
    if not problems:  # else there is nothing to listen on
        try:
            names = look_up_names(config, known, lambda what: doing(f"looking up {what}"))
        except ListenError as error:
            refused = error
        except ValueError:  # no address at all, which is said where everything else is
            pass
    channel.send_blocking({"names": names})
    if config.srvkit.user or config.srvkit.group:
        doing(f"looking up the user {config.srvkit.user or config.srvkit.group}")
    files = read_files(config, problems)
    answer = _trial(config, problems, files, lambda: doing("importing the plugins"))
    if refused is not None and not answer["errors"]:
        answer = _refusal(str(refused).splitlines(), refused.exit_status)
    descriptors = []
    if files and not answer["errors"]:
        try:
            fd, answer["certificates"] = keep(files)
            descriptors.append(fd)
        except OSError as error:
            answer = _refusal([f"the certificates cannot be kept: {error.strerror or error}"])
    channel.send_blocking(answer, descriptors)
    return 0


def _refusal(errors: list[str], status: int = CANNOT_START) -> Message:
    return {"errors": errors, "status": status}


def _trial(
    config: Config, problems: Problems, files: Mapping[str, Files], importing: Callable[[], None]
) -> Message:
    settings = config.srvkit
    refused = privileges.check(settings.user, settings.group)
    for key, message in refused:
        problems.add(("srvkit", key), message)
    certificates = load_certificates(config, problems, files)
    try:
        if not refused:
            privileges.drop(settings.user, settings.group)
        elif os.geteuid() == 0:  # and plugins must not be imported by root that were meant for another
            problems.raise_if_any()
        importing()
        noted = time.time()
        assembled = _assembled(config, problems, certificates)
        notes = assembled.notes()
    except SrvkitError as error:
        return _refusal(str(error).splitlines(), error.exit_status)
    except BaseException as error:
        log.exception("a plugin broke")
        return _refusal([f"a plugin broke: {type(error).__name__}: {error}"])
    return {
        "errors": [],
        "notes": notes,
        "noted": noted,
        "terms": [asdict(term) for term in terms_of(certificates)],
        "one_process": [plan.name for plan in assembled.plans if keeps_one_process(plan.handler)],
        "makings": makings_of(config, assembled.plugins, assembled.plans, files),
    }


def _assembled(config: Config, problems: Problems, certificates: Mapping[str, ServerTls]) -> Assembled:
    assembled = assemble(config, problems, certificates)
    if any(not plan.server_class.fork_beside_threads for plan in assembled.plans):
        refuse_threads()  # of the plugins; a model that is tried below may leave one for a moment
    assembled.try_models(problems)
    return assembled
