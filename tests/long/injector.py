"""Runs srvkit so that single calls of its supervisor fail: `python injector.py STATE run srvkit.toml`.

It puts itself in front of the functions of `os`, `socket` and the like before srvkit is imported, and is
told through the file STATE, which is mapped into memory, what to do: nothing, write down which calls
there are (call and stack), let one of them fail once, or let the interpreter's memory run out. Forked
children are left alone; a program that takes the supervisor's place (USR2) begins here again.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import functools
import importlib
import io
import json
import mmap
import os
import posix
import select
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

try:
    import _testcapi
except ImportError:  # a build without the interpreter's own test modules
    _testcapi = None

IDLE, RECORD, ARMED, MEMORY = range(4)  # what STATE begins with
SIZE, FIRED, DONE, TURN, EXECUTED, SPEC = 65536, 1, 2, 3, 4, 16  # of STATE; offsets in it, SPEC being JSON

# What may go wrong with each call, from its manual page. What is only a program's own mistake (EBADF,
# EFAULT, EINVAL) is not here, nor are calls that cannot fail otherwise, as close() of a socket or anything
# about flags of descriptors, nor EINTR where Python tries again.
_FILE = ("EACCES", "EIO", "ENOENT", "ENOMEM", "EPERM", "EROFS")
_OPEN = ("EACCES", "EIO", "EMFILE", "ENFILE", "ENOENT", "ENOMEM", "ENOSPC", "EROFS")
_MAKE = ("EMFILE", "ENFILE", "ENOMEM")
_SEND = ("EAGAIN", "ECONNRESET", "ENOBUFS", "ENOMEM", "EPIPE")
_CALLS: dict[str, tuple[str, ...]] = {
    "os.open": _OPEN,
    "os.read": ("EAGAIN", "EIO"),
    "os.write": ("EAGAIN", "EIO", "ENOSPC", "EPIPE"),
    "os.pread": ("EIO",),
    "os.pwrite": ("EIO", "ENOSPC"),
    "os.close": ("EIO", "ENOSPC", "EINTR"),
    "os.ftruncate": ("EIO", "ENOSPC", "EPERM"),
    "os.fstat": ("EIO", "ENOMEM"),
    "os.stat": ("EACCES", "EIO", "ENOENT", "ENOMEM"),
    "os.lstat": ("EACCES", "EIO", "ENOENT", "ENOMEM"),
    "os.readlink": ("EACCES", "EIO", "ENOENT", "ENOMEM"),
    "os.getcwd": ("EACCES", "ENOENT", "ENOMEM"),
    "os.listdir": ("EACCES", "EMFILE", "ENFILE", "ENOENT", "ENOMEM"),
    "os.scandir": ("EACCES", "EMFILE", "ENFILE", "ENOENT", "ENOMEM"),
    "os.unlink": (*_FILE, "EBUSY"),
    "os.rename": (*_FILE, "EBUSY", "ENOSPC"),
    "os.mkdir": (*_FILE, "ENOSPC"),
    "os.symlink": (*_FILE, "ENOSPC"),
    "os.link": (*_FILE, "ENOSPC"),
    "os.chmod": _FILE,
    "os.chown": _FILE,
    "os.fchmod": ("EIO", "EPERM", "EROFS"),
    "os.pipe": _MAKE,
    "os.dup": ("EMFILE", "ENOMEM"),
    "os.dup2": ("EBUSY", "EMFILE"),
    "os.fork": ("EAGAIN", "ENOMEM"),
    "os.kill": ("EPERM", "ESRCH"),
    "os.killpg": ("EPERM", "ESRCH"),
    "os.setpgid": ("EACCES", "EPERM", "ESRCH"),
    "os.waitpid": ("ECHILD",),
    "os.waitid": ("ECHILD",),
    "os.execve": ("E2BIG", "EACCES", "EAGAIN", "EIO", "EMFILE", "ENFILE", "ENOENT", "ENOMEM", "ETXTBSY"),
    "os.memfd_create": ("EMFILE", "ENFILE", "ENOMEM", "ENOSYS", "EPERM"),
    "os.eventfd": _MAKE,
    "os.pidfd_open": ("EMFILE", "ENFILE", "ENOMEM", "ENOSYS", "EPERM"),
    "fcntl.fcntl": ("EMFILE",),  # F_DUPFD
    "fcntl.flock": ("ENOLCK",),  # EWOULDBLOCK says that the file is another process's, which keeps it
    "select.epoll": _MAKE,
    "epoll.register": ("ENOMEM", "ENOSPC"),
    "epoll.modify": ("ENOMEM",),
    "select.select": ("ENOMEM",),
    "poll.poll": ("ENOMEM",),
    "mmap.mmap": ("EAGAIN", "ENFILE", "ENOMEM", "EPERM"),
    "socket.socket": ("EACCES", "EAFNOSUPPORT", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"),
    "socket.socketpair": ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"),
    "socket.dup": ("EMFILE", "ENOMEM"),
    "socket.getaddrinfo": ("EAI_AGAIN", "EAI_MEMORY", "EAI_NONAME", "EAI_SYSTEM"),
    "socket.bind": ("EACCES", "EADDRINUSE", "EADDRNOTAVAIL", "ENOENT", "ENOMEM", "EROFS"),
    "socket.listen": ("EADDRINUSE",),
    "socket.accept": ("EAGAIN", "ECONNABORTED", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM"),
    "socket.connect": ("EACCES", "EAGAIN", "ECONNREFUSED", "ENOENT", "EPERM"),
    "socket.connect_ex": ("EACCES", "EAGAIN", "ECONNREFUSED", "ENOENT", "EPERM"),
    "socket.getsockopt": ("ENOPROTOOPT",),
    "socket.setsockopt": ("ENOMEM", "ENOPROTOOPT", "EPERM"),
    "socket.getsockname": ("ENOBUFS",),
    "socket.getpeername": ("ENOBUFS",),
    "socket.send": _SEND,
    "socket.sendall": _SEND,
    "socket.sendto": _SEND,
    "socket.sendmsg": (*_SEND, "ETOOMANYREFS"),
    "socket.recv": ("EAGAIN", "ECONNRESET", "ENOMEM"),
    "socket.recvmsg": ("EAGAIN", "ECONNRESET", "ENOMEM"),
    "open": _OPEN,
    "open descriptor": ("EIO", "ENOMEM"),
    "file.read": ("EIO",),
    "stream.flush": ("EIO", "ENOSPC", "EPIPE"),
    "import": ("EACCES", "EIO", "EMFILE", "ENFILE", "ENOMEM"),
    "pwd.getpwnam": ("MemoryError",),
}
# These have had their effect when they fail: a descriptor is gone, whatever close() says; and where a
# child cannot be waited for, somebody else has done so.
_AFTER = {"os.close", "os.waitpid", "os.waitid"}

_LOGGING = ("logs.py", "emit")  # from here on to the file it is one site, whoever logs

memory: mmap.mmap
_sites_file = ""
_package = "\0"  # the folder of srvkit, once it is imported
_is_supervisor = True
_busy = False  # what is done here is no call of srvkit's
_turn = -1  # which of the tasks in STATE this is about
_seen: dict[str, int] = {}
_spec: dict[str, Any] = {}
_memory_begun = False
_real_open = open


def errors_of(site: str) -> tuple[str, ...]:
    """Return what may go wrong at a site."""
    return _CALLS[site.partition(" < ")[0]]


def site_of(call: str) -> str:
    """Return a call with the stack of srvkit's frames above it, "" where there is none."""
    frames: list[str] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_package):
            name = code.co_filename[len(_package) :]
            if name.endswith(_LOGGING[0]) and code.co_name == _LOGGING[1]:
                frames = [f"{name}:{code.co_name}"]
                break
            frames.append(f"{name}:{frame.f_lineno}:{code.co_name}")
        frame = frame.f_back
    if not frames or (call == "import" and frames[0].endswith(":<module>")):
        return ""
    return " < ".join((call, *frames))


def _fault(call: str) -> BaseException | None:
    """Look at a call that is about to be made; return how it is to fail."""
    global _busy
    if not _is_supervisor or _busy or memory[0] not in (RECORD, ARMED):
        return None
    _busy = True
    try:
        if memory[TURN] != _turn:
            _forget()
        site = site_of(call)
        if not site:
            return None
        if memory[0] == RECORD:
            _note(site)
            return None
        if memory[FIRED]:
            return None
        if not _spec:
            _spec.update(json.loads(memory[SPEC:].split(b"\0", 1)[0]))
        if site != _spec["site"]:
            return None
        _seen[site] = _seen.get(site, 0) + 1
        if _seen[site] < _spec["nth"]:
            return None
        memory[FIRED] = 1
        return error_of(_spec["errno"])
    finally:
        _busy = False


def _note(site: str) -> None:
    _seen[site] = _seen.get(site, 0) + 1
    if _seen[site] <= 2:
        fd = posix.open(_sites_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        posix.write(fd, json.dumps([site, _seen[site]]).encode() + b"\n")
        posix.close(fd)


def error_of(name: str) -> BaseException:
    """Make the exception that Python makes of an error's name."""
    if name == "MemoryError":
        return MemoryError()
    if name.startswith("EAI_"):
        number = getattr(socket, name)
        return socket.gaierror(number, f"{name} was injected")
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def _wrapped(call: str, real: Callable[..., Any], applies: Callable[..., Any] | None = None) -> Any:
    if call in _AFTER:

        @functools.wraps(real)
        def after(*args: Any, **keywords: Any) -> Any:
            result = real(*args, **keywords)
            # Of a child that still lives there is nothing to lose.
            if memory[0] and (call != "os.waitpid" or result[0]) and (call != "os.waitid" or result):
                error = _fault(call)
                if error is not None:
                    raise error
            return result

        return after

    @functools.wraps(real)
    def before(*args: Any, **keywords: Any) -> Any:
        if memory[0] and (applies is None or applies(*args, **keywords)):
            error = _fault(call)
            if error is not None:
                if call == "socket.connect_ex":
                    assert isinstance(error, OSError)
                    return error.errno
                raise error
        return real(*args, **keywords)

    return before


class _Epoll:
    """`select.epoll`, which allows no subclass."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self._real = _real_epoll(*args, **keywords)
        self.register = _wrapped("epoll.register", self._real.register)
        self.modify = _wrapped("epoll.modify", self._real.modify)
        self.unregister = self._real.unregister
        self.fileno = self._real.fileno
        self.close = self._real.close

    def poll(self, *args: Any, **keywords: Any) -> Any:
        result = self._real.poll(*args, **keywords)
        if _is_supervisor:
            if memory[0] == MEMORY and result and not _memory_begun:
                begin_shortage()
            elif memory[0] == IDLE and _memory_begun:
                end_shortage()
        return result


class _Poll:
    def __init__(self) -> None:
        self._real = _real_poll()
        self.register = self._real.register
        self.poll = _wrapped("poll.poll", self._real.poll)


class _Stream:
    """Standard output or error: flushing what was printed may fail."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.flush = _wrapped("stream.flush", real.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Finder:
    """Stands before all finders of modules: what is imported late may find no descriptor.

    Not so srvkit itself: a program whose own files cannot be read has not begun.
    """

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if memory[0] and not name.startswith("srvkit") and (error := _fault("import")) is not None:
            raise error


def _forget() -> None:
    """Begin anew with the next task."""
    global _turn
    _turn = memory[TURN]
    _seen.clear()
    _spec.clear()


def begin_shortage() -> None:
    """Let allocations fail, from the one with the number `start` up to before `stop`."""
    global _memory_begun
    _memory_begun = True
    _spec.update(json.loads(memory[SPEC:].split(b"\0", 1)[0]))
    memory[FIRED] = 1
    _testcapi.set_nomemory(_spec["start"], _spec["stop"])


def end_shortage() -> None:
    """Have memory again; where `start` was not reached, tell how many allocations there were."""
    global _memory_begun
    _memory_begun = False
    left = _until_there_is_none() if _spec["start"] > 1_000_000 else 0  # else it was reached long ago
    _testcapi.remove_mem_hooks()
    _testcapi.set_nomemory(10_000, 10_001)
    each = 10_000 / _until_there_is_none()
    _testcapi.remove_mem_hooks()
    told = b"%d\0" % (_spec["start"] - left * each)
    memory[SPEC : SPEC + len(told)] = told
    memory[DONE] = 1


def _until_there_is_none() -> int:
    """Ask for memory until there is none; return how often that was."""
    count = 0
    try:
        while count < 4_000_000:
            bytes(700)
            count += 1
    except MemoryError:
        pass
    return count


def _in_the_child() -> None:
    global _is_supervisor
    _is_supervisor = False
    if _memory_begun:
        _testcapi.remove_mem_hooks()


def _open(file: Any, *args: Any, **keywords: Any) -> Any:
    if memory[0] and (error := _fault("open descriptor" if isinstance(file, int) else "open")) is not None:
        raise error
    opened = _real_open(file, *args, **keywords)
    if memory[0] and _is_supervisor:
        opened.read = _wrapped("file.read", opened.read)
    return opened


def _duplicates(fd: Any, command: int, *_: Any) -> bool:
    return command in (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC)


def _makes(self: Any, *args: Any, **keywords: Any) -> bool:
    return keywords.get("fileno") is None and len(args) < 4


def install() -> None:
    """Put ourselves in front of everything that can fail."""
    global _real_epoll, _real_poll
    for call in _CALLS:
        module, _, name = call.partition(".")
        if module in ("os", "fcntl", "mmap", "pwd") or call in (
            "select.select",
            "socket.socketpair",
            "socket.dup",
            "socket.getaddrinfo",
        ):
            holder = importlib.import_module(module)
            if hasattr(holder, name):
                setattr(
                    holder,
                    name,
                    _wrapped(call, getattr(holder, name), _duplicates if call == "fcntl.fcntl" else None),
                )
        elif module == "socket" and name not in ("socket", "accept"):
            setattr(socket.socket, name, _wrapped(call, getattr(socket.socket, name)))
    for attribute, call, applies in (
        ("__init__", "socket.socket", _makes),
        ("_accept", "socket.accept", None),
    ):
        setattr(socket.socket, attribute, _wrapped(call, getattr(socket.socket, attribute), applies))
    _real_epoll, _real_poll = select.epoll, select.poll
    select.epoll = _wrapped("select.epoll", _Epoll)
    select.poll = _Poll
    builtins.open = io.open = _open
    sys.meta_path.insert(0, _Finder())
    os.register_at_fork(after_in_child=_in_the_child)


def main() -> int:
    """Be srvkit."""
    global memory, _sites_file, _package, _is_supervisor
    state = sys.argv[1]
    _sites_file = f"{state}.sites"
    _is_supervisor = os.environ.setdefault("INJECTOR_PID", str(os.getpid())) == str(os.getpid())
    if (passed := int(os.environ.pop("INJECTOR_PASSES", 3))) != 3:  # where systemd begins
        os.dup2(passed, 3)
        os.close(passed)
    if "LISTEN_FDS" in os.environ and _is_supervisor:
        os.environ["LISTEN_PID"] = str(os.getpid())
    with _real_open(state, "r+b") as file:
        memory = mmap.mmap(file.fileno(), SIZE)
    install()
    import srvkit

    _package = str(Path(srvkit.__file__).parent) + os.sep
    from srvkit.cli.main import main as srvkit_main

    sys.stdout, sys.stderr = _Stream(sys.stdout), _Stream(sys.stderr)
    if memory[0] == MEMORY and not memory[EXECUTED]:  # once: what is executed again is to have a chance
        memory[EXECUTED] = 1
        begin_shortage()
    return srvkit_main(sys.argv[2:])


if __name__ == "__main__":
    sys.argv[0] = "srvkit"
    sys.exit(main())
