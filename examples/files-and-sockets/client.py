"""Add up numbers:  python client.py 1 2 3 [--port PORT]"""

import argparse
import socket

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("numbers", nargs="+")
arguments.add_argument("--port", type=int, default=7114)
options = arguments.parse_args()

# makefile() is what rfile and wfile are at the other end. A file and its socket share the connection:
# it is closed when both are.
with (
    socket.create_connection(("127.0.0.1", options.port)) as sock,
    sock.makefile("rw", encoding="ascii", newline="\n") as file,
):
    for number in options.numbers:
        print(number, file=file, flush=True)  # without flush it would stay here, and both would wait
        print(f"+ {number} = {file.readline()}", end="")
