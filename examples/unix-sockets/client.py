"""Ask through both files, a stream and datagrams:  python client.py"""

import os
import socket
import stat
import tempfile

for path in ("stream.sock", "datagrams.sock"):
    print(stat.filemode(os.stat(path).st_mode), path)

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
    sock.connect("stream.sock")
    sock.sendall(b"over a stream\n")
    with sock.makefile() as answers:
        print("stream:", answers.readline(), end="")

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, tempfile.TemporaryDirectory() as folder:
    sock.bind(os.path.join(folder, "me.sock"))  # without an address of its own nobody could answer
    sock.connect("datagrams.sock")
    sock.send(b"in a datagram")
    print("datagram:", sock.recv(65535).decode(), end="")
