"""The log of a service: the file that the supervisor and its workers write, and the next one."""

from __future__ import annotations

from collections.abc import Collection

from srvkit.config.model import Config
from srvkit.process.logging import setup
from srvkit.process.logging.file import LogFile


class ServiceLog:
    """Where everybody logs; `turn` is how often that was opened anew, so that workers can be told."""

    def __init__(self, file: LogFile) -> None:
        self.file = file
        self.turn = 0
        self._next: LogFile | None = None

    def begin(self, config: Config) -> None:
        """Log as the first configuration says. Raises LogError."""
        self.file.become(setup.open_log(config))
        setup.set_up(config.logging, self.file)

    def prepare(self, config: Config) -> None:
        """Open the file that another configuration wants, unless it is the same. Raises LogError."""
        self.forget_next()
        if not self.file.is_at(setup.path_of(config)):
            self._next = setup.open_log(config)

    def change(self, config: Config) -> bool:
        """Log as that configuration says from now on; return whether it is to another file."""
        following, self._next = self._next, None
        if following is not None:
            self.file.become(following)
            self.turn += 1
        setup.set_up(config.logging, self.file)
        return following is not None

    def reopen(self) -> bool:
        """Open the file by its name once more; return whether it is another one now."""
        if not self.file.reopen():
            return False
        self.turn += 1
        return True

    def forget_next(self) -> None:
        """Close what was prepared."""
        following, self._next = self._next, None
        if following is not None:
            following.close()

    def close_in_child(self, keep: Collection[object] = ()) -> None:
        """Close what is to be next: a worker gets that by its channel."""
        self.forget_next()
