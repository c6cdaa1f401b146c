"""Where the things of one running configuration lie: its control socket, its lock, its pid file.

Whoever starts it and whoever asks it later find the same places by the configuration's name alone. What is
said over the control socket is not known here.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from srvkit.config.model import SrvkitSettings
from srvkit.config.paths import absolute, names_of
from srvkit.errors import SrvkitError
from srvkit.net import unixpath
from srvkit.net.closing import close, close_one
from srvkit.net.socketfile import identity

try:
    import fcntl
    import pwd
except ImportError:  # Windows, where nothing of this runs
    pass

log = logging.getLogger("srvkit.process")

RUN, TMP = Path("/run"), Path("/tmp")
LONGEST_NAME = 24  # characters of a file's readable part
# Nobody's link is followed, and no pipe put there holds the open.
_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_OPEN |= getattr(os, "O_NONBLOCK", 0)

Identity = tuple[int, int]  # device and inode: what a file is, whatever its name


class PlaceError(SrvkitError):
    """A file or folder that srvkit needs cannot be made, or is not safe to use."""

    exit_status = 3


class AlreadyRunning(SrvkitError):
    """Another process runs this configuration, or owns its pid file."""

    exit_status = 3


def runtime_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for what lives as long as a process, made (0700) where it is not there yet.

    It is $RUNTIME_DIRECTORY where a systemd unit gives one, else root has /run/srvkit and others
    $XDG_RUNTIME_DIR/srvkit; /tmp/srvkit-UID is the last resort. A folder that is a link, another user's,
    or writable by others is not used. Raises PlaceError with the reasons.
    """
    reasons = []
    for folder in _candidates(environ):
        with suppress(OSError):
            os.mkdir(folder, 0o700)
        reason = _objection(folder)
        if reason is None:
            return folder
        reasons.append(f"{folder} {reason}")
    raise PlaceError(f"no folder for a control socket: {'; '.join(reasons)}")


def control_path(
    settings: SrvkitSettings, config: Path | str | None, environ: Mapping[str, str] = os.environ
) -> Path | None:
    """Return where the control socket of this configuration file belongs; for who is about to run it.

    None without a file, and, with a warning, without any folder to put it in. Raises PlaceError where
    `[srvkit] control` names what cannot be.
    """
    if config is None:
        return None
    if settings.control:
        path = _explicit(settings.control, config)
        if objection := unixpath.objection(path) or unixpath.objection(temporary_name(path)):
            raise PlaceError(f"srvkit.control: {objection}")
        return path
    try:
        return _place_in(runtime_folder(environ), absolute(config))
    except PlaceError as error:
        log.warning("%s: running without one", error)
        return None


def name_places(config: Path | str, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where a control socket, or a link to it, belongs by each name of the configuration.

    The first is for the name that is given, the last for what that leads to. None without any folder.
    """
    try:
        folder = runtime_folder(environ)
    except PlaceError:
        return []
    return [_place_in(folder, name) for name in names_of(config)]


def control_paths(control: str, config: Path | str, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where the control socket may be found, the likeliest first; for who asks. Makes nothing.

    `control` is `[srvkit] control`, "" where it is not set or not known. It may have been another when
    srvkit was started, and the environment, too: the places without it follow. For root these are all
    users' places, for others their own.
    """
    names = names_of(config)
    folders = _candidates(environ)
    session = RUN / "user" / str(os.geteuid()) / "srvkit"  # which a service started elsewhere may have
    usable = [folder for folder in dict.fromkeys([*folders, session]) if _objection(folder) is None]
    found = [_place_in(folder, name) for name in names for folder in usable]
    found += [path for name in names for path in _of_services(name) if path not in found]
    if os.geteuid() == 0:
        found += [path for name in names for path in _of_users(name) if path not in found]
    explicit = [_explicit(control, config)] if control else []
    if not found:  # for the message that nobody is there
        found = [_place_in(folder, names[0]) for folder in folders if not os.path.lexists(folder)][:1]
    return explicit + found


def owner_of(control: Path) -> str:
    """Return the user whose control socket it is, by name or number; "" for one of our own, or none."""
    try:
        uid = os.stat(control).st_uid
    except OSError:
        return ""
    if uid == os.geteuid():
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def are_others() -> bool:
    """Return whether other users have folders for control sockets that we cannot look into."""
    folders = [RUN / "srvkit", *RUN.glob("user/*/srvkit"), *TMP.glob("srvkit-*")]
    return any(os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK) for folder in folders)


def lock_path(control: Path) -> Path:
    """Return where the lock belongs that goes with a control socket."""
    return control.with_name(f"{control.name}.lock")


def temporary_name(path: Path) -> Path:
    """Return the name under which a file is made before it takes the place of `path`."""
    return path.with_name(f".{os.getpid():x}")


def make_folder(folder: Path) -> None:
    """Make a folder for us alone where there is none; raises PlaceError."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise PlaceError(f"the folder {folder} cannot be made: {error.strerror}") from None


def remove_if(path: Path, own: Identity | None) -> None:
    """Remove a file while it is still the one that is meant."""
    if own is not None and identity(path) == own:
        with suppress(OSError):
            os.unlink(path)


class _PidInFile:
    """A file that is ours as long as this process, or who takes its place, has it open and locked.

    `fileno()` may be handed on over `exec`, and the constructor takes it again.
    """

    mode = 0o600

    def __init__(self, path: Path, fd: int) -> None:
        os.set_inheritable(fd, False)
        self.path = path
        self._fd = fd

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def fileno(self) -> int:
        return self._fd

    def close_in_child(self) -> None:
        """Close the descriptor alone, in a forked process: the lock stays with who took it."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1

    def renew(self) -> bool:
        """Make the file anew where it is gone; return whether it was.

        Raises PlaceError, OSError; BlockingIOError where another process has made it meanwhile.
        """
        if self._fd < 0 or identity(self._fd) == identity(self.path):
            return False
        make_folder(self.path.parent)
        made = self._take(self.path, self.mode)
        close_one(self._fd)
        self._fd = made._fd
        return True

    def remove(self) -> None:
        """Remove the file, unless another stands in its place by now, and give the lock back."""
        if self._fd >= 0:
            remove_if(self.path, identity(self._fd))
            self.close_in_child()

    @classmethod
    def _take(cls, path: Path, mode: int) -> Self:
        """Open, lock and fill the file; raises BlockingIOError with the other's pid as its text, OSError."""
        for _ in range(100):
            fd, made = _open(path, mode)
            try:
                _refuse_what_is_no_pid(fd, path)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise BlockingIOError(os.pread(fd, 32, 0).decode("ascii", "replace").strip()) from None
                if identity(fd) == identity(path):
                    made = True  # locked, so that it is nobody else's
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
                    return cls(path, fd)
            except BaseException as error:
                if made and not isinstance(error, BlockingIOError):  # who was quicker has it for good
                    remove_if(path, identity(fd))
                close(fd)
                raise
            close(fd)  # its owner removed it between our two calls
        raise OSError(errno.EBUSY, "it does not stay in its place", str(path))


class Lock(_PidInFile):
    """Keeps a second srvkit from running the same configuration; beside the control socket."""

    @classmethod
    def take(cls, control: Path) -> Lock | None:
        """Lock what belongs to this control socket; None, with a warning, where no file can be made.

        Raises AlreadyRunning.
        """
        path = lock_path(control)
        try:
            make_folder(control.parent)
            return cls._take(path, cls.mode)
        except BlockingIOError as other:
            pid = f" (pid {other})" if str(other) else ""
            raise AlreadyRunning(f"this configuration is running already{pid}") from None
        except (PlaceError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("cannot lock %s, so a second start will not be noticed: %s", path, reason)
            return None


class PidFile(_PidInFile):
    """`[srvkit] pid_file`, for those who expect one."""

    mode = 0o644

    def is_at(self, pid_file: str, config: Path | str) -> bool:
        """Return whether this setting, by now, leads to where it is."""
        return bool(pid_file) and _explicit(pid_file, config) == self.path

    @classmethod
    def write(cls, pid_file: str, config: Path | str) -> PidFile:
        """Write this process's pid to the file, relative to the configuration's folder.

        What a process that has ended left there is overwritten. Raises AlreadyRunning, PlaceError.
        """
        path = _explicit(pid_file, config)
        make_folder(path.parent)
        try:
            return cls._take(path, cls.mode)
        except BlockingIOError as other:
            raise AlreadyRunning(f"{path} belongs to a process that is running (pid {other})") from None
        except OSError as error:
            raise PlaceError(f"{path} cannot be written: {_in_words(error)}") from None


def _candidates(environ: Mapping[str, str]) -> list[Path]:
    given = environ.get("XDG_RUNTIME_DIR", "")
    session = [Path(given, "srvkit")] if os.path.isabs(given) else []
    # Root's session folder goes with the session, its services stay: it comes last.
    own = [RUN / "srvkit", *session] if os.geteuid() == 0 else session
    of_unit = [Path(os.path.realpath(one)) for one in environ.get("RUNTIME_DIRECTORY", "").split(":") if one]
    folders = [folder for folder in (*of_unit, *own) if _room_in(folder) > 0]
    return [*folders, TMP / f"srvkit-{os.geteuid()}"]


def _of_services(config: Path) -> list[Path]:
    """Return this configuration's sockets in folders that systemd made for services (RuntimeDirectory=)."""
    found = sorted(RUN.glob(f"*/*-{_hash(config)}.sock"))
    return [path for path in found if not os.stat(path.parent).st_mode & 0o022]  # /run/lock is anybody's


def _of_users(config: Path) -> list[Path]:
    """Return this configuration's sockets in folders of single users, which are named by a number."""
    found = []
    for folder in (*RUN.glob("user/*/srvkit"), *TMP.glob("srvkit-*")):
        number = folder.parent.name if folder.name == "srvkit" else folder.name.removeprefix("srvkit-")
        if number.isdecimal() and _objection(folder, int(number)) is None:
            found += sorted(folder.glob(f"*-{_hash(config)}.sock"))
    return found


def _objection(folder: Path, owner: int | None = None) -> str | None:
    """Say why a folder is no place for files of its owner, by default of ours; None where it is one."""
    try:
        found = os.lstat(folder)
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != (os.geteuid() if owner is None else owner):
        return "belongs to another user"
    if found.st_mode & 0o022:
        return "can be written to by other users"
    return None if os.access(folder, os.W_OK | os.X_OK) else "cannot be written to"


def _explicit(path: str, config: Path | str) -> Path:
    wanted = absolute(config).parent / path
    return Path(os.path.realpath(wanted.parent), wanted.name)  # where its folder leads to now


def _place_in(folder: Path, config: Path) -> Path:
    """Name the socket so that people recognise it; the hash tells equal names apart."""
    name = config.stem if config.stem != "srvkit" else config.parent.name
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "srvkit"
    return folder / f"{readable[: min(LONGEST_NAME, _room_in(folder))]}-{_hash(config)}.sock"


def _room_in(folder: Path) -> int:
    """Return how many characters the readable part of a socket's name may have there."""
    return unixpath.MAX_PATH - len(os.fsencode(folder)) - len("/-0123456789ab.sock")


def _hash(config: Path) -> str:
    return hashlib.sha256(os.fsencode(config)).hexdigest()[:12]


def _open(path: Path, mode: int) -> tuple[int, bool]:
    """Open a file, or make it; return whether it was made."""
    try:
        return os.open(path, _OPEN | os.O_EXCL, mode), True
    except FileExistsError:
        return os.open(path, _OPEN, mode), False


def _refuse_what_is_no_pid(fd: int, path: Path) -> None:
    """Overwrite nobody's data because a path was mistyped."""
    if not stat.S_ISREG(os.fstat(fd).st_mode) or not re.fullmatch(rb"\s*\d*\s*", os.pread(fd, 64, 0)):
        raise FileExistsError(errno.EEXIST, "another file stands there, it was left untouched", str(path))


def _in_words(error: OSError) -> str:
    return "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
