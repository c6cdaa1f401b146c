"""What of the interpreter everybody in a process shares, and one plugin or handler must not spoil for others.

Knows nothing of plugins.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Interpreter:
    """Settings as they were at one moment."""

    switch_interval: float
    recursion_limit: int
    stack_size: int  # of threads to come

    @classmethod
    def now(cls) -> Interpreter:
        """Take down what they are."""
        return cls(sys.getswitchinterval(), sys.getrecursionlimit(), threading.stack_size())

    def put_back(self) -> None:
        """Undo what differs; that calls may go deeper, or threads switch more often, harms nobody."""
        if sys.getswitchinterval() > self.switch_interval:
            sys.setswitchinterval(self.switch_interval)
        if sys.getrecursionlimit() < self.recursion_limit:
            with suppress(RecursionError):  # this call is too deep for it
                sys.setrecursionlimit(self.recursion_limit)
        if threading.stack_size() != self.stack_size:
            threading.stack_size(self.stack_size)
