"""Send two messages, and see how many arrive:  python client.py [PORT PORT PORT PORT]"""

import socket
import sys

MORE = getattr(socket, "MSG_MORE", 0)  # Linux: wait for the next send() and let both leave together
ports = [int(port) for port in sys.argv[1:]] or [7106, 7107, 7108, 7109]


def exchange(port, first, second):
    """Send two messages by two calls, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        # It may happen to any two sends, whenever the network or the kernel likes; here it happens each time.
        sock.send(first, MORE)
        sock.send(second)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as answers:
            return answers.read()


def with_length(message):
    return len(message).to_bytes(2, "big") + message


raw, lines, delimiter, length_prefix = ports
print("raw          ", exchange(raw, b"left", b"right"))
print("lines        ", exchange(lines, b"left\n", b"right\n"))
print("delimiter    ", exchange(delimiter, b"left\0", b"right\0"))
print("length-prefix", exchange(length_prefix, with_length(b"left"), with_length(b"right")))
