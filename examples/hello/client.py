"""Read what the server says, to the end:  python client.py [PORT]"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7101

with socket.create_connection(("127.0.0.1", port)) as sock:
    text = b""
    while data := sock.recv(4):  # so few bytes at a time only to show that one recv() is not all
        print("received", data)
        text += data

print("the end:", text.decode().strip())
