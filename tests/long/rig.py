"""A srvkit in a folder of its own whose supervisor runs under `injector.py`, and how it is looked at."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import injector

from srvkit.process.control_client import ControlError, ask

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PATIENCE = 40  # seconds before something counts as hung
MUTE = 3.0  # seconds after which a log that says nothing may be one that could not be written

PLUGIN = """
from srvkit import Lines, MessageHandler, hookimpl

class Mirror(MessageHandler):
    framing = Lines()

    def handle_message(self, message):
        return message

class Stumble(Mirror):
    @classmethod
    def startup(cls, server):
        raise OSError("no database")

@hookimpl
def srvkit_handlers():
    return {"mirror": Mirror, "stumble": Stumble}
"""

CONFIG = """
[srvkit]
plugins = ["plugin.py"]
control = "run/control.sock"
pid_file = "run/pid"
drain_timeout = "2s"
ready_timeout = "10s"
heartbeat_timeout = "{heartbeat}"

[logging]
file = "log-{variant}"
level = "debug"

[server.stream]
listen = [
    "tcp://127.0.0.{number}:0", "tcp://localhost:0",
    "unix:stays.sock", "unix:moves-{variant}.sock", "systemd:passed",
]
handler = "mirror"
concurrency = "event"
workers = 2

[server.stream.socket]
owner = "{user}"
send_buffer = "{number}28KiB"

[server.datagram]
listen = ["udp://127.0.0.1:0", "unixgram:gram.sock"]
handler = "{handler}"
concurrency = "event"
{more}
"""

WANTED = {"stream": 2, "datagram": 1}


class Unsound(Exception):
    """Something is not as it should be after a call has failed."""


def state_of(pid: int) -> str:
    """Say whether a process runs, sleeps, or is a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "gone"


class Case(NamedTuple):
    """One call that fails: where, which time it is made, how."""

    site: str
    nth: int
    error: str

    def __str__(self) -> str:
        return f"{self.error} (time {self.nth}) at {self.site}"


class Rig:
    """A srvkit in a folder of its own, whose calls can be made to fail."""

    def __init__(
        self, folder: Path, *, heartbeat: str = "8s", watchdog: float = 60, reload: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.wanted = dict(WANTED)
        self.variant = "a"
        self.handler = "mirror"
        self._heartbeat = heartbeat
        self._watchdog = watchdog
        self._reload = reload
        self._usual: Counter[str] | None = None
        self._read: dict[int, int] = {}
        self._turn = 0
        self._fired = False
        self.relieved: Callable[[], object] = bool  # waits until a shortage is over
        self._state = folder / "state"
        self._state.write_bytes(bytes(injector.SIZE))
        with self._state.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), injector.SIZE)
        self._passed = socket.create_server(("127.0.0.1", 0))
        self.taken = socket.create_server(("127.0.0.1", 0))
        self._news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._news.bind(str(folder / "notify"))
        (folder / "plugin.py").write_text(PLUGIN)
        self.write("a")

    def close(self) -> None:
        self.kill()
        self._passed.close()
        self.taken.close()
        self._news.close()
        self._memory.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- what is to fail

    def record(self) -> None:
        """Write down the calls from now on."""
        self._sites.unlink(missing_ok=True)
        self._begin(injector.RECORD, {})

    def recorded(self) -> list[tuple[str, int]]:
        """Stop that; return what was written down: sites, each once or twice, in their order."""
        self.disarm()
        if not self._sites.exists():
            return []
        found = [json.loads(line) for line in self._sites.read_text().splitlines()]
        return list(dict.fromkeys((site, nth) for site, nth in found))

    @property
    def _sites(self) -> Path:
        return self._state.with_suffix(".sites")

    def arm(self, case: Case) -> None:
        self._begin(injector.ARMED, {"site": case.site, "nth": case.nth, "errno": case.error})

    def starve(self, start: int, count: int) -> None:
        """Let so many allocations fail from the next event on, after `start` that do not."""
        self._begin(injector.MEMORY, {"start": start, "stop": start + count})

    def _begin(self, mode: int, spec: dict[str, Any]) -> None:
        memory = self._memory
        memory[0] = injector.IDLE
        memory[injector.FIRED] = memory[injector.DONE] = memory[injector.EXECUTED] = 0
        text = json.dumps(spec).encode() + b"\0"
        memory[injector.SPEC : injector.SPEC + len(text)] = text
        self._turn = (self._turn + 1) % 250
        memory[injector.TURN] = self._turn
        memory[0] = mode

    def disarm(self) -> bool:
        """Let nothing fail any more; return whether something has."""
        self.relieved()
        fired = self.fired
        if not self._memory.closed:
            self._memory[0] = injector.IDLE
        return fired

    @property
    def fired(self) -> bool:
        """Whether what was to fail has failed; also after the rig is closed."""
        if not self._memory.closed:
            self._fired = bool(self._memory[injector.FIRED])
        return self._fired

    def allocations(self) -> int:
        """Return how many there were from the first event on, where `starve` was given more."""
        self.until(lambda: self._memory[injector.DONE], "memory is counted")
        return int(self._memory[injector.SPEC :].split(b"\0", 1)[0])

    # ---- its life

    def write(self, variant: str, handler: str = "mirror", more: str = "") -> None:
        """Write the configuration: "a" or "b", which differ in an address, a path, options, and the log."""
        number = "ab".index(variant) + 2  # localhost is the first
        user = pwd.getpwuid(os.geteuid()).pw_name
        text = CONFIG.format(
            variant=variant, number=number, handler=handler, more=more, heartbeat=self._heartbeat, user=user
        )
        (self.folder / "srvkit.toml").write_text(text)

    @property
    def other(self) -> str:
        return "b" if self.variant == "a" else "a"

    def launch(self) -> None:
        """Start it; it says what goes wrong in the file `stderr`."""
        environ = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PWD": str(self.folder),
            "RUNTIME_DIRECTORY": str(self.folder / "run"),
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            "WATCHDOG_USEC": str(int(self._watchdog * 1e6)),
            "LISTEN_FDS": "1",
            "LISTEN_FDNAMES": "passed",
            "INJECTOR_PASSES": str(self._passed.fileno()),
        }
        with (self.folder / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / "injector.py"),
                    str(self._state),
                    "run",
                    *["--reload"] * self._reload,
                ],
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[self._passed.fileno()],
            )

    def begin(self) -> None:
        """Start it, and let it come to rest."""
        self.launch()
        self.settle()
        # What is opened or imported once has been.
        for _ in range(2):
            self.switch()
        self.new_log()
        processes = sum(self.wanted.values())
        self.until(lambda: len(self.children()) == processes, "those that were replaced have gone")
        self._usual = self._descriptors_at_rest()

    def switch(self) -> None:
        """Reload, undisturbed, with the other configuration."""
        self.write(self.other)
        answer = self.ask(do="reload")
        if not answer.get("ok"):
            raise Unsound(f"an undisturbed reload fails: {answer}")
        self.variant = self.other
        self.settle()

    def kill(self) -> None:
        """End whatever there is of it."""
        if self.process is not None:
            for pid in (self.process.pid, *self.others()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        self.disarm()

    def others(self) -> list[int]:
        """Return all of its processes but the supervisor."""
        assert self.process is not None
        mark = b"RUNTIME_DIRECTORY=" + os.fsencode(self.folder / "run")
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != self.process.pid]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    # ---- looking at it

    def ask(self, **request: Any) -> dict[str, Any]:
        return ask(self.folder / "run/control.sock", request, PATIENCE)

    def status(self) -> dict[str, Any]:
        answer = self.ask(do="status")
        if "state" not in answer:
            raise ControlError(f"no status but {answer}")
        return answer

    def children(self) -> set[int]:
        return {int(one) for one in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}

    def workers(self, name: str = "stream") -> list[int]:
        (found,) = (one for one in self.status()["servers"] if one["name"] == name)
        return [worker["pid"] for worker in found["workers"]]

    def _descriptors(self) -> Counter[str]:
        """Count what its descriptors are, without numbers and without what is different in both variants."""
        found: Counter[str] = Counter()
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                name = re.sub(r"\d+|-[ab](\.old)?( \(deleted\))?$", "", os.readlink(path))
                # Where there is no memfd_create a file does instead.
                found[re.sub(r"/dev/shm/(srvkit-\w+)-\w+", r"/memfd:\1", name)] += 1
        return found

    def _descriptors_at_rest(self) -> Counter[str]:
        """Count them when nothing is closed any more of who has just ended, or asked."""
        counts = []
        for _ in range(20):
            counts.append(self._descriptors())
            time.sleep(0.01)
        return min(counts, key=Counter.total)

    def is_alive(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            if not self.is_alive():
                raise Unsound(f"the supervisor has ended while waiting until {what}: {self.last_words()}")
            if time.monotonic() > deadline:
                raise Unsound(f"it never happens that {what}: {self.last_words()}")
            time.sleep(0.01)

    def settle(self) -> None:
        """Wait until all is as it should be."""
        deadline = time.monotonic() + PATIENCE
        while True:
            wrong = self._what_is_wrong()
            if wrong is None:
                return
            if not self.is_alive() or time.monotonic() > deadline:
                raise Unsound(wrong)
            time.sleep(0.01)

    def _what_is_wrong(self) -> str | None:
        if not self.is_alive():
            return f"the supervisor has ended: {self.last_words()}"
        try:
            status = self.status()
        except ControlError as error:
            return f"no status: {error}"
        if status["state"] != "running":
            return f"its state is {status['state']}"
        pids = set()
        for server in status["servers"]:
            states = [one["state"] for one in server["workers"]]
            wanted = self.wanted.get(server["name"], 0)
            if states != ["ready"] * wanted:
                return f"{server['name']} has workers {states}, {wanted} are wanted"
            pids |= {one["pid"] for one in server["workers"]}
        if len(status["servers"]) != len(self.wanted):
            return f"there are other servers: {status['servers']}"
        if self.children() != pids:
            more = [(pid, state_of(pid)) for pid in sorted(self.children() - pids)]
            return f"children without a server {more}, workers that are no children {pids - self.children()}"
        if self._usual is not None and (found := self._descriptors()) != self._usual:
            return f"descriptors: more {dict(found - self._usual)}, fewer {dict(self._usual - found)}"
        for server in status["servers"]:
            for address in server["addresses"]:
                try:
                    self.talk(address)
                except OSError as error:
                    return f"{address} does not answer: {error!r}"
        return None

    def talk(self, address: str) -> None:
        """Say something there, and wait for the answer."""
        kind = socket.SOCK_DGRAM if re.match("udp|unixgram", address) else socket.SOCK_STREAM
        where = re.search(r"([\d.]+):(\d+)\)?$", address)
        with socket.socket(socket.AF_INET if where else socket.AF_UNIX, kind) as sock:
            sock.settimeout(PATIENCE / 4)
            if not where and kind == socket.SOCK_DGRAM:
                sock.bind("")
            sock.connect((where[1], int(where[2])) if where else str(self.folder / address.split(":", 1)[1]))
            sock.sendall(b"canary\n")
            if (answer := sock.recv(100)) != b"canary\n":
                raise OSError(f"it says {answer!r}")

    def new_log(self) -> str:
        """Return what was logged since the last call."""
        text = ""
        for path in sorted(self.folder.glob("log-*")):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._read.get(inode, 0))
                text += file.read().decode()
                self._read[inode] = file.tell()
        return text

    def errors(self) -> str:
        """Return what stands on standard error."""
        return (self.folder / "stderr").read_text(errors="replace")

    def last_words(self) -> str:
        status = self.process.poll() if self.process is not None else None
        lines = (self.errors() + self.new_log()).splitlines()
        return f"status {status}; " + " | ".join(lines[-14:])

    def verify(self, log: str) -> None:
        """Fail where something was said that nobody can make sense of."""
        pattern = r"^(Traceback|Exception ignored|Fatal Python).*(\n.*){0,14}"
        # What the interpreter says where there is no memory for the words of its hook.
        own = r"^Exception ignored on building .*\n(Traceback .*\n(?: .*\n)*)?(\w*Error\b.*\n)?"
        for text in (log, self.errors()):
            if found := re.search(pattern, re.sub(own, "", text, flags=re.MULTILINE), re.MULTILINE):
                raise Unsound(f"said without context: {found[0]}")

    # ---- its end

    @property
    def exit_status(self) -> int | None:
        return self.process.poll() if self.process is not None else None

    def lowest_free(self, count: int) -> int:
        """Return the limit of descriptors that leaves so many free."""
        used = {int(name) for name in os.listdir(f"/proc/{self.pid}/fd")}
        return next(
            limit for limit in range(10_000) if limit - len({fd for fd in used if fd < limit}) >= count
        )

    def stop(self, name: str) -> None:
        """Have it end; `name` is that of the case."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Unsound(f"it does not end: {self.last_words()}") from None
        if status not in (0, 1):
            raise Unsound(f"not a clean end: {self.last_words()}")
        self.expect_nothing_left(name)

    def expect_nothing_left(self, name: str) -> None:
        if others := self.others():
            raise Unsound(f"processes are left: {others}; {self.last_words()}")
        files = [path.name for path in (*self.folder.glob("*.sock"), *(self.folder / "run").glob("*"))]
        if re.search("at os.(unlink|lstat|fstat|stat) ", name):
            files = files[1:]  # what could not be removed, or not be told from another's
        if files:
            raise Unsound(f"files are left: {files}; {self.last_words()}")
