"""Where the things of a running configuration are to lie next: taken before it is in force.

If one cannot be created, the configuration does not come into force and the others are removed again.
"""

from __future__ import annotations

import socket
from pathlib import Path

from srvkit.config.model import Config
from srvkit.net.socketfile import identity
from srvkit.process.runtime_paths import Lock, PidFile, control_path, remove_if
from srvkit.process.supervisor.control_server import ControlSocket, listen


class NextPaths:
    """The control socket, its lock and the pid file of a configuration, as far as they are other ones.

    A path is another one also where a link in it was turned. Raises PlaceError, AlreadyRunning, OSError,
    with nothing taken. What is taken out by the `take_` methods belongs to the caller.
    """

    def __init__(self, config: Config, control: ControlSocket | None, pid_file: PidFile | None) -> None:
        self._path: Path | None = None
        self._socket: socket.socket | None = None
        self._lock: Lock | None = None
        self._pid_file: PidFile | None = None
        self.has_other_pid_file = False
        try:
            if control is not None:
                self._find_control(config, control)
            self._find_pid_file(config, pid_file)
        except BaseException:
            self.give_up()
            raise

    @property
    def has_other_control(self) -> bool:
        """Whether the control socket is to be elsewhere."""
        return self._socket is not None

    def _find_control(self, config: Config, control: ControlSocket) -> None:
        path = control_path(config.srvkit, config.path)
        if path in (None, control.path):
            return
        assert path is not None
        self._lock = Lock.take(path)
        self._socket = listen(path)
        self._path = path

    def _find_pid_file(self, config: Config, before: PidFile | None) -> None:
        wanted, place = config.srvkit.pid_file, config.path or config.folder / "srvkit.toml"
        if before.is_at(wanted, place) if before is not None else not wanted:
            return
        self._pid_file = PidFile.write(wanted, place) if wanted else None
        self.has_other_pid_file = True

    def take_control(self) -> tuple[Path, socket.socket]:
        """Return the path and the socket that listens there."""
        path, sock, self._socket = self._path, self._socket, None
        assert path is not None and sock is not None
        return path, sock

    def take_lock(self) -> Lock | None:
        """Return what goes with the control socket, if it was created."""
        lock, self._lock = self._lock, None
        return lock

    def take_pid_file(self) -> PidFile | None:
        """Return the pid file; None where there is to be none."""
        file, self._pid_file = self._pid_file, None
        return file

    def close_in_child(self) -> None:
        """Close the descriptors alone, in a forked process."""
        if self._socket is not None:
            self._socket.close()
        for file in (self._lock, self._pid_file):
            if file is not None:
                file.close_in_child()

    def give_up(self) -> None:
        """Take it all away again."""
        if self._socket is not None:
            self._socket.close()
            if self._path is not None:
                remove_if(self._path, identity(self._path))
        for file in (self._lock, self._pid_file):
            if file is not None:
                file.remove()
