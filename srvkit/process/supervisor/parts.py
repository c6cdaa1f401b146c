"""The parts of a supervisor that a reload works on."""

from __future__ import annotations

from dataclasses import dataclass

from srvkit.process.supervisor.expiry import ExpiryReminder
from srvkit.process.supervisor.generation import Generations
from srvkit.process.supervisor.health_check import HealthCheck
from srvkit.process.supervisor.places import Places
from srvkit.process.supervisor.reloader import Watch
from srvkit.process.supervisor.shared import Shared
from srvkit.process.systemd import Notifier


@dataclass
class Parts:
    """One of each."""

    shared: Shared
    generations: Generations
    places: Places
    health: HealthCheck
    reminder: ExpiryReminder
    notifier: Notifier
    watch: Watch | None  # `run --reload`
    began: float  # on the wall clock
