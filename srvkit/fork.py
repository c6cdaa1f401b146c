"""The one way in which srvkit forks.

Python warns of a fork beside other threads, its own and foreign ones. From 3.15 on that warning is raised
after the fork where warnings are errors: the parent then never learns the child's number, so it neither
waits for the child nor closes what it gave away. Where it matters srvkit refuses to fork beside threads
itself, beforehand.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import FunctionType


def _fork() -> int:
    """Fork as `os.fork`, and warn of nothing, whatever the filters of warnings say.

    Returns the child's number, in the child 0. Raises OSError where the system cannot fork.
    """
    return os.fork()


# A warning is dropped where the module that causes it has no name, as modules have none while the interpreter
# ends. Filters would be the usual way, but they belong to all threads, which may be changing them.
fork: Callable[[], int] = FunctionType(_fork.__code__, {"__name__": None, "os": os}, "fork")
fork.__doc__ = _fork.__doc__
