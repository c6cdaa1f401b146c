"""What the parts of the supervisor have in common."""

from __future__ import annotations

from dataclasses import dataclass

from srvkit.process.supervisor.child_reaper import ChildReaper
from srvkit.process.supervisor.fault_barrier import GuardedLoop
from srvkit.process.supervisor.service_log import ServiceLog


@dataclass
class Shared:
    """One of each, for the supervisor and all that it is made of."""

    loop: GuardedLoop
    children: ChildReaper
    log: ServiceLog
    tells_files: bool = False  # `run --reload`: workers say which files a developer may edit
