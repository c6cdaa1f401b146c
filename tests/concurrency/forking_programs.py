"""Programs of forking servers, whose handlers tell what their processes have inherited."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

HANDLERS = """
import json, os
import srvkit

def inherited():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the descriptor of the listing itself
            pass
    return json.dumps({"pid": os.getpid(), "fds": links}).encode() + b"\\n"

class Stream(srvkit.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            if line == b"fail\\n":
                raise ValueError("a mistake")
            if line == b"exit\\n":
                raise SystemExit(3)
            self.wfile.write(inherited())

class Datagram(srvkit.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(inherited())

@srvkit.hookimpl
def srvkit_handlers():
    return {"stream": Stream, "datagram": Datagram}
"""
BARE = (
    HANDLERS
    + """
import signal, subprocess, sys, threading
class Server(srvkit.ForkingTCPServer):
    max_children = 2
before = lambda: None
after = lambda: None
# more
server = Server(("127.0.0.1", 0), Stream)
signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
before()
print(f" test: listening on tcp://127.0.0.1:{server.server_address[1]}")
server.serve_forever()
print("out of the loop")
server.server_close()
after()
"""
)
COMPOSED = """
[server.test]
listen = "tcp://127.0.0.1:0"
handler = "stream"
concurrency = { name = "forking", max_children = 2 }
"""
ANOTHER = """
[server.another]
listen = ["unix:another.sock", "tcp://127.0.0.1:0"]
handler = "stream"
concurrency = "forking"

[server.threads]
listen = "tcp://127.0.0.1:0"
handler = "stream"
concurrency = "threading"
"""


def ask(sock: socket.socket, line: bytes = b"hello\n") -> dict[str, Any]:
    sock.sendall(line)
    with sock.makefile("rb") as answers:
        found: dict[str, Any] = json.loads(answers.readline())
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
