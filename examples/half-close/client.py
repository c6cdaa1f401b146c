"""Have the SHA-256 of standard input computed:  python client.py [PORT] < FILE"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7112

with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("r") as answers:
    while data := sys.stdin.buffer.read(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)  # "that was all": ends this direction, and leaves the other one open
    print(answers.read().strip() or "no answer")
