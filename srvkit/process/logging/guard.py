"""srvkit's own loggers, which stay on whatever a plugin makes of the logging of its process.

`logging.config.dictConfig` switches off every logger that exists, unless it is told not to, and may empty
the root logger; `logging.disable` silences all. What plugins log is theirs to arrange; that a handler has
raised must be seen all the same. Knows `logging`, and neither files nor layouts.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

OURS = "srvkit"  # the root of our loggers


def keep_on(handler: logging.Handler, level: str) -> None:
    """Have all records of our loggers from this level on go to `handler`, and then to whoever wants them."""
    OwnLogger.handler = handler
    logging.getLogger(OURS).setLevel(level)
    for logger in _loggers():
        logger.__class__ = OwnLogger


def let_go() -> None:
    """Make ordinary loggers of them again."""
    OwnLogger.handler = logging.NullHandler()
    logging.getLogger(OURS).setLevel(logging.NOTSET)
    for logger in _loggers():
        logger.__class__ = logging.Logger


def _loggers() -> list[logging.Logger]:
    known = logging.getLogger().manager.loggerDict.items()
    return [
        logger
        for name, logger in known
        if isinstance(logger, logging.Logger) and f"{name}.".startswith(f"{OURS}.")
    ]


class OwnLogger(logging.Logger):
    """A logger that cannot be switched off, and always writes to `handler`."""

    handler: ClassVar[logging.Handler] = logging.NullHandler()
    _cache: dict[int, bool]  # of logging, which empties it when a level changes

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass

    def isEnabledFor(self, level: int) -> bool:
        """Tell by the levels of the loggers alone."""
        try:
            return self._cache[level]
        except KeyError:
            self._cache[level] = enabled = level >= self.getEffectiveLevel()
            return enabled

    def makeRecord(self, *args: Any, **more: Any) -> logging.LogRecord:
        """Make a record, by logging's own class where the factory of somebody else raises."""
        try:
            return super().makeRecord(*args, **more)
        except Exception:
            return logging.LogRecord(*args[:7])

    def callHandlers(self, record: logging.LogRecord) -> None:
        """Write it, and show it to what others have added to this logger or to those above it."""
        ours = self.handler
        if record.levelno >= ours.level:
            ours.handle(record)
        logger: logging.Logger | None = self
        while logger is not None:
            for handler in logger.handlers:
                if handler is not ours and record.levelno >= handler.level:
                    handler.handle(record)
            logger = logger.parent if logger.propagate else None
