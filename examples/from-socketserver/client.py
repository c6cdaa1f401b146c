"""Have lines reversed:  python client.py [PORT]"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7120

with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rw", newline="\n") as stream:
    for word in ("stressed", "drawer", "level"):
        print(word, file=stream, flush=True)
        print(word, "->", stream.readline(), end="")
