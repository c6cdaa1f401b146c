"""A configuration is tried out in a child: the supervisor's side of it."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from srvkit.config.makings import Makings
from srvkit.config.model import Config, Problems
from srvkit.errors import SrvkitError
from srvkit.net.closing import close
from srvkit.net.tls_context import Term
from srvkit.process.channel import Channel, Message, open_channel
from srvkit.process.child import end_group, ending
from srvkit.process.credential_store import CredentialStore, parts
from srvkit.process.name_lookup import NO_NAMES, Names
from srvkit.process.supervisor.shared import Shared
from srvkit.process.worker.trial import try_out
from srvkit.process.worker.worker import CANNOT_START


class Refused(SrvkitError):
    """A configuration cannot be served; `exit_status` says whose fault that is."""

    def __init__(self, errors: list[str], status: int = CANNOT_START) -> None:
        self.exit_status = status
        super().__init__("\n".join(errors))


@dataclass
class Answer:
    """What was found out about a configuration that can be served."""

    names: Names = field(default_factory=lambda: NO_NAMES)
    notes: list[str] = field(default_factory=list)
    noted: float = 0.0  # when they were, on the wall clock
    terms: list[Term] = field(default_factory=list)  # of its certificates
    one_process: list[str] = field(default_factory=list)  # servers that two processes must not serve at once
    makings: dict[str, Makings] = field(default_factory=dict)  # what each server is made of
    credentials: dict[str, CredentialStore] = field(default_factory=dict)  # who takes one out closes it


class Trial:
    """Begins to try a configuration out; whoever makes it closes it.

    `known` are numbers of hosts that are not looked up. Raises OSError where there is no child for it.
    """

    def __init__(self, config: Config, problems: Problems, known: Mapping[str, str], shared: Shared) -> None:
        self._shared = shared
        self._status: int | None = None  # once the child has ended
        self._doing = "starting a process"
        self._names: Names = NO_NAMES
        self._answer: Message | None = None
        self._credentials: dict[str, CredentialStore] = {}
        self._broken: Exception | None = None  # what kept it from keeping them
        self._child = 0
        timeout = config.srvkit.ready_timeout
        self._deadline = monotonic() + timeout
        self._timer = shared.loop.call_later(timeout, _nothing)  # wakes up who waits for it
        self._channel, theirs = open_channel()
        main = partial(_main, self._channel, theirs, config, problems, known)
        try:
            self._child = shared.children.fork(main, self._ended)
        except BaseException:
            self._channel.close()
            self._timer.cancel()
            raise
        finally:
            theirs.close()
        self._channel.attach(shared.loop, self._heard, _nothing)

    def is_over(self) -> bool:
        """Tell whether the answer is there, or there is no time left for it."""
        return self._status is not None or monotonic() >= self._deadline

    def answer(self) -> Answer:
        """Return what was found out. Raises Refused, or what kept it from being kept."""
        if self._status is None:
            raise Refused([f"the configuration was not tried out within ready_timeout: still {self._doing}"])
        self._channel.read_the_rest()
        answer = self._answer
        if self._broken is not None:
            raise self._broken
        if answer is None:
            raise Refused([f"the process that tried the configuration out {ending(self._status)}"])
        if answer["errors"]:
            raise Refused(answer["errors"], answer["status"])
        return Answer(
            self._names,
            answer["notes"],
            answer["noted"],
            [Term(**term) for term in answer["terms"]],
            answer["one_process"],
            answer["makings"],
            self._credentials,
        )

    def close(self) -> None:
        """End it, and let go of all that nobody has taken. Does nothing the second time."""
        if self._status is None:
            self._shared.children.signal(self._child, signal.SIGKILL)
        self._timer.cancel()
        self._channel.close()
        for one in self._credentials.values():
            one.close()

    def _ended(self, status: int) -> None:
        self._status = status
        end_group(self._child)  # what a plugin has forked: nobody else would end it

    def _heard(self, message: Message, descriptors: list[int]) -> None:
        if self._answer is not None:  # what comes later is of a plugin, whose word does not count
            close(*descriptors)
            return
        if message.get("certificates"):
            try:
                self._keep(message, descriptors)
            except Exception as error:
                self._broken = error
        else:
            close(*descriptors)
        if "doing" in message:
            self._doing = str(message["doing"])
        elif "names" in message:
            if self._names is NO_NAMES:
                self._names = message["names"]
        else:
            self._answer = message

    def _keep(self, message: Message, descriptors: list[int]) -> None:
        kept, self._credentials = self._credentials, parts(descriptors, message.get("certificates", {}))
        for one in kept.values():
            one.close()


def _main(
    ours: Channel, theirs: Channel, config: Config, problems: Problems, known: Mapping[str, Any]
) -> int:
    ours.close_in_child()
    return try_out(config, problems, known, theirs)


def _nothing() -> None:
    pass
