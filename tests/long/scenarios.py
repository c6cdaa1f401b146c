"""What may happen to a supervisor that runs: each can be gone through again and again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from rig import MUTE, WANTED, Rig, Unsound

from srvkit.process.control_client import ControlError

# ---- what is done with it


class Scenario:
    """One thing that may happen to a supervisor that runs, again and again."""

    settings: dict[str, Any] = {}  # of the rig
    beyond: type[Scenario] | None = None  # what it has in common with this one is left to that
    said = ""  # what was logged meanwhile, where `act` has read it
    only = ""  # a module whose calls it is about; else all of them
    asks = False  # whether it is about what is asked over the control socket; else that is how we look at it

    def prepare(self, rig: Rig) -> None:
        """Do what comes before."""

    def act(self, rig: Rig) -> None:
        """Let it happen, and wait until it is over."""

    def later(self, rig: Rig) -> None:
        """Do it once more, undisturbed, or put back what was changed."""


class Hup(Scenario):
    """A reload that changes addresses, paths, options and the log."""

    number = signal.SIGHUP

    def prepare(self, rig: Rig) -> None:
        self._before = rig.status()["last_reload"]
        rig.write(rig.other)

    def act(self, rig: Rig) -> None:
        rig.signal(signal.SIGHUP)
        self.wait(rig)

    def wait(self, rig: Rig) -> None:
        def is_over() -> bool:
            try:
                status = rig.status()
            except ControlError:
                return False
            self.last = status["last_reload"]
            return self.last != self._before and status["state"] == "running"

        rig.until(is_over, "the reload is over, one way or the other")

    def later(self, rig: Rig) -> None:
        if self.last["ok"]:
            rig.variant = rig.other
        else:
            rig.switch()


class Asked(Hup):
    """The same, asked for over the control socket."""

    beyond = Hup
    asks = True

    def act(self, rig: Rig) -> None:
        try:
            heard = "ok" in rig.ask(do="reload")
        except ControlError:
            heard = False
        if not heard:  # whoever asked knows, and asks again
            rig.disarm()
            rig.ask(do="reload")
        self.wait(rig)


class Refused(Hup):
    """A reload whose workers do not start."""

    beyond = Hup

    def prepare(self, rig: Rig) -> None:
        super().prepare(rig)
        rig.write(rig.other, handler="stumble")

    def later(self, rig: Rig) -> None:
        if self.last["ok"]:
            raise Unsound("what cannot start is in force")
        rig.switch()


class Taken(Refused):
    """A reload to an address that somebody else has."""

    def prepare(self, rig: Rig) -> None:
        super().prepare(rig)
        port = rig.taken.getsockname()[1]
        more = f'[server.taken]\nlisten = ["unix:new.sock", "tcp://127.0.0.1:{port}"]\nhandler = "mirror"'
        rig.write(rig.other, more=more)


class Watched(Hup):
    """A reload that comes by itself, because a file was edited."""

    only = "process/supervisor/reloader.py"
    settings = {"reload": True}

    def act(self, rig: Rig) -> None:
        rig.write(rig.other)
        self.wait(rig)

    def prepare(self, rig: Rig) -> None:
        self._before = rig.status()["last_reload"]


class Usr1(Scenario):
    """The log is reopened after it was renamed."""

    def prepare(self, rig: Rig) -> None:
        log = rig.folder / f"log-{rig.variant}"
        log.replace(log.with_suffix(".old"))

    def act(self, rig: Rig) -> None:
        rig.signal(signal.SIGUSR1)
        deadline = time.monotonic() + 2
        while not rig.fired and time.monotonic() < deadline:
            if (rig.folder / f"log-{rig.variant}").exists():
                break
            time.sleep(0.01)
        time.sleep(0.05)
        rig.settle()

    def later(self, rig: Rig) -> None:
        log = rig.folder / f"log-{rig.variant}"
        if log.exists():
            self.prepare(rig)
        rig.signal(signal.SIGUSR1)
        rig.until(lambda: log.exists() and "log reopened" in log.read_text(), "the log is reopened")

        def is_new() -> bool:
            try:
                return not [
                    link
                    for pid in (rig.pid, *rig.children())
                    for path in Path(f"/proc/{pid}/fd").iterdir()
                    if ".old" in (link := os.readlink(path))
                ]
            except FileNotFoundError:  # closed meanwhile
                return False

        rig.until(is_new, "nobody writes to the old log")


class Usr2(Scenario):
    """A new installation takes over."""

    beyond = Hup

    def prepare(self, rig: Rig) -> None:
        self._before = rig.status()["generation"]

    def act(self, rig: Rig) -> None:
        self.said = rig.new_log()
        rig.signal(signal.SIGUSR2)
        began = time.monotonic()

        def is_replaced() -> bool:
            """Tell whether it is, although the line that says so could not be written."""
            if time.monotonic() < began + MUTE:
                return False
            with contextlib.suppress(ControlError):
                status = rig.status()
                return bool(status["state"] == "running" and status["generation"] > self._before)
            return False

        def is_over() -> bool:
            self.said += rig.new_log()
            if not rig.is_alive():
                raise Unsound(f"the supervisor has ended: {rig.last_words()}")
            return bool(
                re.search(
                    "reloaded: this is|reload failed|nothing is replaced"
                    "|USR2: MemoryError|the end of process .*: MemoryError",
                    self.said,
                )
                or is_replaced()
            )

        try:
            rig.until(is_over, "srvkit is replaced, or says why not")
        except Unsound as error:
            raise Unsound(f"{error}\n{self.said[-3000:]}{rig.errors()[-3000:]}") from None

    def later(self, rig: Rig) -> None:
        rig.switch()


class Killed(Scenario):
    """A worker dies and is replaced."""

    number: int = signal.SIGKILL

    def prepare(self, rig: Rig) -> None:
        self._pid = rig.workers()[0]

    def act(self, rig: Rig) -> None:
        os.kill(self._pid, self.number)
        rig.until(lambda: self._pid not in rig.children(), "the worker is gone")
        rig.settle()


class Retired(Killed):
    """A worker asks to be replaced."""

    beyond = Killed
    number = signal.SIGTERM


class Hung(Killed):
    """A worker hangs and is replaced."""

    beyond = Killed
    number = signal.SIGSTOP
    settings = {"heartbeat": "1s"}


class More(Scenario):
    """A worker more for each server, and then one less again."""

    def act(self, rig: Rig) -> None:
        usual, rig._usual = rig._usual, None
        for number, wanted in ((signal.SIGTTIN, 1), (signal.SIGTTOU, 0)):
            rig.wanted = {name: count + wanted for name, count in WANTED.items()}
            rig.signal(number)
            rig.settle()
        rig._usual = usual


class Questions(Scenario):
    """Everything that can be asked over the control socket but to reload and stop."""

    asks = True

    def prepare(self, rig: Rig) -> None:
        self._pid = rig.workers()[0]

    def act(self, rig: Rig) -> None:
        for request in (
            {"do": "connections"},
            {"do": "kill", "id": f"{self._pid}-12345678"},
            {"do": "nonsense"},
            {"do": "status"},
        ):
            with contextlib.suppress(ControlError):
                rig.ask(**request)


class Idle(Scenario):
    """Nothing but beats and the watchdog."""

    settings = {"heartbeat": "500ms", "watchdog": 0.4}

    def act(self, rig: Rig) -> None:
        time.sleep(0.6)


SCENARIOS: dict[str, type[Scenario]] = {
    "reload": Hup,
    "asked-reload": Asked,
    "refused-reload": Refused,
    "taken-address": Taken,
    "watched-files": Watched,
    "usr1": Usr1,
    "usr2": Usr2,
    "killed-worker": Killed,
    "retired-worker": Retired,
    "hung-worker": Hung,
    "ttin-ttou": More,
    "questions": Questions,
    "idle": Idle,
}
