"""Ask for four things at once, and draw who was served when:  python client.py [PORT]"""

import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

CLIENTS = 4
WIDTH = 48  # characters of the timeline
port = int(sys.argv[1]) if len(sys.argv) > 1 else 7104
all_connected = threading.Barrier(CLIENTS)


def ask(number):
    with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rw") as stream:
        all_connected.wait()  # the kernel accepts for the server: even a serial one seems to be there
        print("and?", file=stream, flush=True)
        begin, end, where = stream.readline().split()
        return float(begin), float(end), where


def most_at_once(times):
    changes = sorted([(begin, 1) for begin, _, _ in times] + [(end, -1) for _, end, _ in times])
    busy = [sum(step for _, step in changes[: index + 1]) for index in range(len(changes))]
    return max(busy)


with ThreadPoolExecutor(CLIENTS) as clients:
    times = sorted(clients.map(ask, range(CLIENTS)))

first, last = times[0][0], max(end for _, end, _ in times)
scale = WIDTH / (last - first)
for begin, end, where in times:
    bar = "." * round((begin - first) * scale) + "#" * max(1, round((end - begin) * scale))
    print(f"|{bar:<{WIDTH}}| in {where}")
print(f"{last - first:.1f} s, at most {most_at_once(times)} at once")
