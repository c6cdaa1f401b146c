"""How many CPUs this process may use: its affinity, and the quota of its control groups."""

from __future__ import annotations

import os
from contextlib import suppress
from math import ceil
from pathlib import Path


def usable_cpus(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number; at least 1. A quota of 150 % counts as 2."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, _, path = line.split(":", 2)
            folder = cgroups / path.lstrip("/")
            for one in (folder, *folder.parents):
                if one == cgroups.parent:
                    break
                with suppress(OSError, ValueError):
                    quota, period = (one / "cpu.max").read_text().split()  # "max 100000" where there is none
                    count = min(count, ceil(int(quota) / int(period)))
    return max(1, count)
