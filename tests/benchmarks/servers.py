"""What can be measured: every server by its name, how it is started, and where it listens.

To add one, write it (in peers.py, say) and name it here. Those of srvkit are started by the command that
an operator would give. A server that does not start is Absent, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from measure import pinned

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PATIENCE = 15.0  # seconds to start
ADDRESS = re.compile(r"listening on \w+://(\S+):(\d+)$|^(127\.0\.0\.1) (\d+)$", re.MULTILINE)

LIMIT, PEER, SRVKIT = "limit", "peer", "srvkit"


class Absent(Exception):
    """A server that cannot be measured here, and why."""


@dataclass(frozen=True)
class Server:
    """How one server is started; `slow` divides the operations where thousands would take too long."""

    command: tuple[str, ...]
    family: str = PEER
    framed: bool = True  # whether it cuts lines, as all do that are compared with each other
    slow: int = 1


@dataclass(frozen=True)
class Running:
    pid: int
    host: str
    port: str


def _srvkit(model: str, *settings: str, handler: str = "echo", scheme: str = "tcp") -> Server:
    command = (sys.executable, "-m", "srvkit", "serve", handler, f"{scheme}://127.0.0.1:0")
    options = ("limits.max_connections=20000", *settings)
    sets = [part for option in options for part in ("--set", f"server.serve.{option}")]
    return Server((*command, "--concurrency", model, *sets), SRVKIT, slow=10 if model == "forking" else 1)


def _peer(name: str, framed: bool = True, slow: int = 1) -> Server:
    return Server((sys.executable, str(HERE / "peers.py"), name), PEER, framed, slow)


def _bare(library: str, name: str) -> Server:
    family = SRVKIT if library == "srvkit" else PEER
    return Server((sys.executable, str(HERE / "drop_in.py"), library, name), family)


LINES = "framing=lines"
MODELS = ("event", "asyncio", "gevent", "pool", "threading", "forking", "serial")
BARE = (
    ("threading, StreamRequestHandler, one line", "StreamRequestHandler"),
    ("threading, BaseRequestHandler, one read", "BaseRequestHandler"),
    ("threading, BaseRequestHandler, until the client closes", "BaseRequestHandler-until-eof"),
    ("threading, UDP, BaseRequestHandler", "UDP-BaseRequestHandler"),
    ("threading, UDP, DatagramRequestHandler", "UDP-DatagramRequestHandler"),
)

SERVERS: dict[str, Server] = {
    "C epoll": Server(("epoll", "tcp"), LIMIT),
    "C, UDP": Server(("epoll", "udp"), LIMIT),
    "socketserver threading": _peer("socketserver-threading"),
    "socketserver forking": _peer("socketserver-forking", slow=10),
    "socketserver UDP": _peer("socketserver-udp"),
    "socketserver threading, UDP": _peer("socketserver-threading-udp"),
    "gevent StreamServer": _peer("gevent"),
    "gevent DatagramServer": _peer("gevent-udp"),
    "Twisted LineReceiver": _peer("twisted"),
    "Twisted DatagramProtocol": _peer("twisted-udp"),
    **{f"{loop} streams": _peer(f"{loop}-streams") for loop in ("asyncio", "uvloop")},
    **{f"{loop} Protocol": _peer(f"{loop}-protocol") for loop in ("asyncio", "uvloop")},
    **{f"{loop} Protocol, no framing": _peer(f"{loop}-unframed", False) for loop in ("asyncio", "uvloop")},
    **{f"{loop} DatagramProtocol": _peer(f"{loop}-udp") for loop in ("asyncio", "uvloop")},
    **{f"{loop} Protocol, Redis": _peer(f"{loop}-resp") for loop in ("asyncio", "uvloop")},
    **{f"{loop} Protocol, HTTP": _peer(f"{loop}-web") for loop in ("asyncio", "uvloop")},
    **{f"srvkit {model}": _srvkit(model, LINES) for model in MODELS},
    **{f"srvkit {model}, UDP": _srvkit(model, scheme="udp") for model in MODELS},
    "srvkit asyncio, AsyncHandler": _srvkit("asyncio", handler="async_lines:AsyncLines"),
    **{
        f"srvkit {model}, Redis": _srvkit(model, handler="resp:Resp")
        for model in ("event", "asyncio", "threading")
    },
    **{
        f"srvkit {model}, HTTP": _srvkit(model, handler="web:Web")
        for model in ("event", "asyncio", "threading")
    },
    **{
        f"{lib} {name}": _bare(lib, argument) for lib in ("socketserver", "srvkit") for name, argument in BARE
    },
    "srvkit threading, MessageHandler, until the client closes": _bare("srvkit", "MessageHandler"),
}


@contextlib.contextmanager
def serving(name: str, core: int, programs: Path) -> Iterator[Running]:
    """A server in a process of its own; `programs` is the folder of the compiled ones. Raises Absent."""
    command = SERVERS[name].command
    if command[0] == "epoll":
        command = (str(programs / command[0]), *command[1:])
    with tempfile.TemporaryFile("w+") as output:
        with pinned(core):
            process = subprocess.Popen(
                command, cwd=HERE, env=_environment(), stdout=output, stderr=output, preexec_fn=_raise_limits
            )
        try:
            yield Running(process.pid, *_address(process, output.fileno()))
        finally:
            # A server's own children end with it, or notice its end; it gets a moment to see to that.
            process.terminate()
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _raise_limits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _address(process: subprocess.Popen[bytes], output: int) -> tuple[str, str]:
    deadline = time.monotonic() + PATIENCE
    while True:
        ended = process.poll() is not None
        text = os.pread(output, 65536, 0).decode(errors="replace")
        if found := ADDRESS.search(text):
            return found[1] or found[3], found[2] or found[4]
        if ended or time.monotonic() > deadline:
            said = [line for line in text.splitlines() if line.strip()]
            raise Absent(said[-1].strip() if said else "it does not start and says nothing")
        time.sleep(0.002)
