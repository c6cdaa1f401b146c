"""Chat; Ctrl-D or /quit leaves:  python client.py [PORT]"""

import socket
import sys
import threading

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7117


def show(sock):
    """Print what others say, until the server hangs up: reading and typing go on at the same time."""
    with sock.makefile("r", encoding="utf-8") as heard:
        for line in heard:
            print(line, end="", flush=True)


with socket.create_connection(("127.0.0.1", port)) as sock:
    listener = threading.Thread(target=show, args=[sock])
    listener.start()
    for line in sys.stdin:
        sock.sendall(line.encode())
        if line.strip() == "/quit":
            break
    else:
        sock.shutdown(socket.SHUT_WR)
    listener.join()
