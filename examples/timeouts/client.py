"""Be a bad client:  python client.py silent|dribble|deaf|idle [PORT]

silent    says nothing at all
dribble   sends a line, a letter at a time, and never comes to its end
deaf      asks for a page and does not read it
idle      asks for a page, reads it, and says nothing more
"""

import socket
import sys
import time


def silent(sock):
    sock.recv(1)


def dribble(sock):
    while True:
        sock.sendall(b".")
        time.sleep(0.1)


def deaf(sock):
    sock.sendall(b"a page, please\n")
    input("not reading; press Enter when the log says how it ended\n")
    read_page(sock)


def idle(sock):
    sock.sendall(b"a page, please\n")
    read_page(sock)
    sock.recv(1)


def read_page(sock):
    count = 0
    with sock.makefile("rb") as file:
        while data := file.read1():
            count += len(data)
            if data.endswith(b"\n"):
                print(f"a whole page, {count} bytes", flush=True)
                return
    print(f"only {count} bytes of the page", flush=True)


if len(sys.argv) < 2:
    sys.exit(__doc__)
behave = {"silent": silent, "dribble": dribble, "deaf": deaf, "idle": idle}[sys.argv[1]]
port = int(sys.argv[2]) if len(sys.argv) > 2 else 7118

begin = time.monotonic()
with socket.create_connection(("127.0.0.1", port)) as sock:
    host, my_port = sock.getsockname()
    print(f"I am {host}:{my_port}", flush=True)  # as it stands in the log
    try:
        behave(sock)
    except ConnectionError:
        pass  # one of the ways to see that the server has hung up
    print(f"the server has hung up after {time.monotonic() - begin:.1f} s")
