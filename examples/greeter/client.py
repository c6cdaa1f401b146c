"""Give your name, as often as you like; `exit` or Ctrl-D ends:  python client.py [PORT]"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7105

with (
    socket.create_connection(("127.0.0.1", port)) as sock,
    sock.makefile("rw", encoding="utf-8", newline="\n") as stream,
):
    print(stream.readline(), end="", flush=True)
    for line in sys.stdin:
        stream.write(line)
        stream.flush()
        answer = stream.readline()
        if not answer:
            print("(the server has hung up)")
            break
        print(answer, end="", flush=True)
