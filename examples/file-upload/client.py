"""Upload a file; once more, where it was interrupted:  python client.py FILE [PORT]"""

import hashlib
import json
import os
import socket
import sys
from pathlib import Path

CHUNK = 256 * 1024
WIDTH = 40  # characters of the progress bar


def show_progress(done, size):
    filled = WIDTH * done // size if size else WIDTH
    percent = 100 * done // size if size else 100
    print(f"\r[{'#' * filled:<{WIDTH}}] {percent:3} %", end="", file=sys.stderr, flush=True)


def ask(stream):
    """Read an answer of the server; end the program where it is an error."""
    line = stream.readline()
    answer = json.loads(line) if line else {"error": "the server has hung up; try again to go on"}
    if "error" in answer:
        sys.exit(f"not stored: {answer['error']}")
    return answer


def upload(path, port):
    with path.open("rb") as file, socket.create_connection(("127.0.0.1", port)) as sock:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
        answers = sock.makefile("r", encoding="utf-8")
        header = {"name": path.name, "size": size, "sha256": sha256}
        sock.sendall(json.dumps(header).encode() + b"\n")
        done = file.seek(ask(answers)["have"])
        if done:
            print(f"resuming at {done} of {size} bytes")
        show_progress(done, size)
        while data := file.read(CHUNK):
            sock.sendall(data)
            done += len(data)
            show_progress(done, size)
        print(file=sys.stderr)
        print("stored as", ask(answers)["stored"])


if len(sys.argv) < 2:
    sys.exit(__doc__)
try:
    upload(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 7110)
except (KeyboardInterrupt, ConnectionError):
    sys.exit("\ninterrupted; the same command goes on from here")
