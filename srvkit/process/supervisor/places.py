"""The places of a running srvkit: its control socket with lock and links, and its pid file."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from srvkit.config.model import Config
from srvkit.errors import SrvkitError
from srvkit.net.event_loop import EventLoop
from srvkit.process.runtime_paths import Lock, PidFile, PlaceError, control_path
from srvkit.process.supervisor.control_links import ControlLinks
from srvkit.process.supervisor.control_server import Answer, ControlSocket
from srvkit.process.supervisor.fault_barrier import attempt, in_words
from srvkit.process.supervisor.next_paths import NextPaths

log = logging.getLogger("srvkit.process")


class Places:
    """Those of one supervisor; `answer` is given each request that comes by the control socket."""

    def __init__(self, loop: EventLoop, answer: Answer) -> None:
        self._loop = loop
        self._answer = answer
        self._next: NextPaths | None = None
        self.control: ControlSocket | None = None
        self.links: ControlLinks | None = None
        self.lock: Lock | None = None
        self.pid_file: PidFile | None = None

    def claim(self, config: Config) -> None:
        """Take them for a configuration, which is the first. Raises AlreadyRunning, PlaceError."""
        settings = config.srvkit
        path = control_path(settings, config.path)
        if path is not None and config.path is not None:
            links = ControlLinks(path)
            links.refuse_another(config.path)
            self.lock = Lock.take(path)
            try:
                self.control = ControlSocket(path, self._loop, self._answer)
            except PlaceError as error:
                log.warning("srvkit status and the like will not work: %s", error)
            else:
                self.links = links
        if settings.pid_file:
            self.pid_file = PidFile.write(settings.pid_file, config.path or config.folder / "srvkit.toml")

    def adopt(
        self,
        links: Iterable[Path],
        *,
        lock: tuple[Path, int] | None,
        pid_file: tuple[Path, int] | None,
        control: tuple[Path, int] | None,
    ) -> None:
        """Have those of a predecessor of this program, by their paths and descriptors."""
        if lock is not None:
            self.lock = Lock(*lock)
        if pid_file is not None:
            self.pid_file = PidFile(*pid_file)
        if control is not None:
            path, fd = control
            self.control = ControlSocket(path, self._loop, self._answer, fd=fd)
            self.links = ControlLinks(path, links)

    def prepare(self, config: Config) -> None:
        """Take those that another configuration wants. Raises PlaceError, AlreadyRunning."""
        self.forget_next()
        self._next = NextPaths(config, self.control, self.pid_file)

    def change(self) -> None:
        """Go on with what was prepared."""
        following, self._next = self._next, None
        if following is None:
            return
        if following.has_other_control and self.control is not None and self.links is not None:
            self.control.move(*following.take_control())
            before, self.lock = self.lock, following.take_lock()
            if before is not None:
                before.remove()
            self.links.move(self.control.path)
        if following.has_other_pid_file:
            file, self.pid_file = self.pid_file, following.take_pid_file()
            if file is not None:
                file.remove()

    def forget_next(self) -> None:
        """Take away what was prepared."""
        following, self._next = self._next, None
        if following is not None:
            following.give_up()

    def follow(self, config: Config) -> None:
        """Be found by every name that leads to the configuration."""
        if self.links is not None and config.path is not None:
            self.links.follow(config.path)

    def renew(self, folder: Path | None) -> list[str]:
        """Make anew what somebody has removed, a cleaner of /tmp, say; return what cannot be.

        `folder` is that of the configuration, if there is one.
        """
        gone = []
        for thing in (self.control, self.lock, self.pid_file):
            if thing is None:
                continue
            try:
                if folder is not None and folder.is_relative_to(thing.path.parent) and not folder.exists():
                    gone.append(f"{thing.path} is gone, and the folder of the configuration with it")
                elif thing.renew():
                    log.warning("%s: the file was removed; created it again", thing.path)
            except BlockingIOError as other:
                gone.append(f"{thing.path} belongs to another process by now: {other}")
            except (OSError, SrvkitError) as error:
                gone.append(f"{thing.path} is gone, and cannot be made anew: {in_words(error)}")
        return gone

    def close_broken(self) -> None:
        """Let go of clients of the control socket that can get no answer."""
        if self.control is not None:
            self.control.close_broken()

    def close_in_child(self, keep: Collection[object] = ()) -> None:
        """Close their descriptors alone, in a child."""
        if self._next is not None:
            self._next.close_in_child()
        for one in (self.control, self.pid_file, self.lock):
            if one is not None:
                one.close_in_child()

    def put_away(self) -> None:
        """Remove all of them: the end."""
        if self.links is not None:
            self.links.remove()
        if self.control is not None:
            attempt("closing the control socket", self.control.close)
        for file in (self.pid_file, self.lock):
            if file is not None:
                attempt(f"removing {file.path}", file.remove)
