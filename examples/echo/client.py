"""Send each line you type and show what comes back; Ctrl-D ends:  python client.py [PORT]"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7102


def receive_exactly(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            sys.exit("the server has hung up")
        data += piece
    return data


with socket.create_connection(("127.0.0.1", port)) as sock:
    host, my_port = sock.getsockname()
    print(f"my end of the connection is {host}:{my_port}", flush=True)
    for line in sys.stdin:
        message = line.encode()
        sock.sendall(message)
        print("echo:", receive_exactly(sock, len(message)).decode(), end="", flush=True)
