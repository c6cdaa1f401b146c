r"""Send text, bytes that are no text, half a character, and nothing at all:  python client.py [PORT]"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7103
umlaut = "ü".encode()  # two bytes

with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("r", encoding="utf-8") as answers:
    for data in ["grüß dich".encode(), b"broken: \xff", umlaut[:1], umlaut[1:]]:
        sock.sendall(data)
        print(data, "->", answers.readline().strip())

with socket.create_connection(("127.0.0.1", port)):
    print("connected, said nothing, and left")
