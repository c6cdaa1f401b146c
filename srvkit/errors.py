"""What can go wrong, told apart by whose fault it is.

    SrvkitError                  has .exit_status: what the command line ends with
    ├── ConfigError              the configuration is wrong: every problem of it at once      2
    │                            (3 where it only asks for what is broken)
    ├── PluginError              a plugin is wrong; carries the plugin's name                 3
    ├── ListenError              an address cannot be listened on                             3
    ├── EscapedError             a handler raised what is no Exception; stands for it inside
    └── PeerError                the other side's fault: one log line, close, count
        ├── FrameError           a message too long, malformed, or cut short
        └── PeerGone             the peer vanished, or took nothing for too long

`PeerError` never leaves a server; the others end the command with one line and their status. This
module imports nothing of srvkit and knows nothing of sockets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return what an error about an unknown name adds where a known one is close to it; "" where none is."""
    import difflib  # only where something is wrong

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f", did you mean {close[0]!r}?" if close else ""


class SrvkitError(Exception):
    """Anything srvkit itself refuses or fails to do."""

    exit_status = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a configuration: where it stands, and what to do about it."""

    message: str
    key: str = ""  # the dotted path, "server.echo.limits"; empty where the file as a whole is meant
    file: str = ""  # as the user named it; "--set" for an override, empty where there is no file
    line: int = 0  # 1-based; 0 where there is none
    column: int = 0  # 1-based; of errors of syntax only
    status: int = 2  # 3: not the configuration is wrong, but what it asks for is broken

    def __str__(self) -> str:
        numbers = f":{self.line}" * (self.line > 0) + f":{self.column}" * (self.column > 0)
        place = f"{self.file}{numbers}" if self.file else ""
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(SrvkitError):
    """The configuration is wrong; `problems` lists everything found, in the order of the file."""

    exit_status = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = (Problem(problems),) if isinstance(problems, str) else tuple(problems)
        self.exit_status = min((problem.status for problem in self.problems), default=2)
        super().__init__("\n".join(map(str, self.problems)))


class PluginError(SrvkitError):
    """A plugin cannot be used; `plugin` is its name as the user knows it."""

    exit_status = 3

    def __init__(self, plugin: str, message: str) -> None:
        self.plugin = plugin
        super().__init__(f"plugin {plugin}: {message}")


class ListenError(SrvkitError):
    """An address cannot be listened on; `address` is written as in the configuration."""

    exit_status = 3

    def __init__(self, address: object, message: str) -> None:
        self.address = address
        super().__init__(f"cannot listen on {address}: {message}")


class PeerError(SrvkitError):
    """The peer broke the rules: its connection ends with one log line, nobody else notices."""


class FrameError(PeerError):
    """Bytes of a peer that are no message: too long, malformed, or ended in the middle.

    `messages` are the whole messages that came before the fault in the same piece of data; they
    are to be handled, what follows the fault never is. `cut_short`: the stream ended in the middle.
    """

    def __init__(self, message: str, messages: Sequence[bytes] = (), cut_short: bool = False) -> None:
        self.messages = list(messages)
        self.cut_short = cut_short
        super().__init__(message)


class PeerGone(PeerError, ConnectionError):
    """The peer cannot be written to any more; `outcome` says why. Also a ConnectionError."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome
        super().__init__(outcome)


class EscapedError(SrvkitError):
    """A handler raised something that is no `Exception` (`SystemExit`, say); `__cause__` is what."""
