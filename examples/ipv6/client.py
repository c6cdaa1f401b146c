"""Ask the same server by IPv4, by IPv6 and by name:  python client.py [PORT]"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7111

for host in ("127.0.0.1", "::1", "localhost"):
    # create_connection() asks for all addresses of a name and tries one after the other.
    with socket.create_connection((host, port)) as sock, sock.makefile() as answer:
        print(f"{host}: {answer.readline()}", end="")
