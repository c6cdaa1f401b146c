"""Give your name in a datagram; Ctrl-D ends:  python client_udp.py [PORT]"""

import socket
import sys

port = int(sys.argv[1]) if len(sys.argv) > 1 else 7105


def ask(sock, question):
    """Send it until an answer comes: a datagram may get lost on either way."""
    for seconds in (1, 2, 4):
        sock.send(question)
        sock.settimeout(seconds)
        try:
            return sock.recv(65535)
        except TimeoutError:
            print("(no answer, once more)")
    sys.exit("nobody answers")


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect(("127.0.0.1", port))  # sends nothing: it only remembers to whom, and from whom to receive
    for line in sys.stdin:
        print(ask(sock, line.encode()).decode(), end="", flush=True)
