"""How many descriptors this process may have, raised to what it is about to need."""

from __future__ import annotations

import os
import resource


def raise_limit(wanted: int) -> int:
    """Let this process have so many descriptors, as far as it may; return how many that are.

    What is unlimited is `wanted`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if allowed > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        except (OSError, ValueError):  # the system has a bound of its own
            return soft
    return allowed


def make_room(more: int) -> None:
    """Let this process have so many descriptors besides those it has, as far as it may."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:  # the last one is taken
        used = soft
    raise_limit(used + more)
