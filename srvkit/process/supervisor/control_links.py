"""Links to a control socket: a configuration is found by every name that leads to it.

The socket lies where the name belongs by which srvkit was started. Where that goes through a link, there is
a plate for what it leads to: who asks by that name finds it, and a second srvkit does not start by it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from srvkit.net import unixpath
from srvkit.process.runtime_paths import AlreadyRunning, lock_path, name_places, temporary_name

log = logging.getLogger("srvkit.process")


class ControlLinks:
    """Those of one srvkit, whose control socket is at `control`; `made` are a predecessor's."""

    def __init__(self, control: Path, made: Iterable[Path] = ()) -> None:
        self._control = control
        self.made = list(made)

    def refuse_another(self, config: Path) -> None:
        """Raise AlreadyRunning where another srvkit answers by one of the configuration's names."""
        for path in name_places(config):
            # At its own place a socket of another's is what the lock is for; a plate has none.
            if (path != self._control or path.is_symlink()) and _answers(path):
                raise AlreadyRunning(f"this configuration is running already{_pid_at(path)}")

    def follow(self, config: Path) -> None:
        """Have a plate for each name that there is now, and for no other; what cannot be made is logged."""
        try:
            self._follow(config)
        except OSError as error:  # no descriptor is left, say
            log.warning("not every name of %s leads here: %s", config, error.strerror or error)

    def _follow(self, config: Path) -> None:
        wanted = [path for path in name_places(config) if path != self._control]
        for path in [path for path in self.made if path not in wanted]:
            self._remove(path)
        for path in wanted:
            if self._is_anothers(path):
                log.warning("another srvkit%s answers for this configuration at %s", _pid_at(path), path)
            elif not self._leads_here(path):
                self._make(path)

    def move(self, control: Path) -> None:
        """Have all lead to another control socket."""
        self._control = control
        for path in self.made:
            self._make(path)

    def remove(self) -> None:
        """Take them all down."""
        for path in list(self.made):
            self._remove(path)

    def _make(self, path: Path) -> None:
        temporary = temporary_name(path)
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            os.symlink(self._control, temporary)
            os.replace(temporary, path)
        except OSError as error:
            log.warning("cannot create %s: %s", path, error.strerror or error)
        else:
            if path not in self.made:
                self.made.append(path)

    def _remove(self, path: Path) -> None:
        self.made.remove(path)
        # A second look where the first was in vain, for want of memory, say: nobody comes by later.
        if self._leads_here(path) or self._leads_here(path):
            with suppress(OSError):
                os.unlink(path)

    def _leads_here(self, path: Path) -> bool:
        with suppress(OSError):
            return os.readlink(path) == os.fspath(self._control)
        return False

    def _is_anothers(self, path: Path) -> bool:
        return not self._leads_here(path) and path not in self.made and _answers(path)


def _answers(path: Path) -> bool:
    """Return whether somebody listens at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            unixpath.connect(probe, path)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EINPROGRESS)  # its queue is full
    return True


def _pid_at(path: Path) -> str:
    """Return whose socket a place leads to, as a text for messages."""
    with suppress(OSError):
        pid = lock_path(Path(os.path.realpath(path))).read_text("ascii", "replace").strip()
        return f" (pid {pid})" if pid.isdigit() else ""
    return ""
