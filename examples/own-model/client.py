"""Ask for the time, many at once:  python client.py [HOW-MANY [PORT]]"""

import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
port = int(sys.argv[2]) if len(sys.argv) > 2 else 7123


def ask(_):
    try:
        with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile() as answer:
            return answer.readline().strip() or "refused"
    except ConnectionResetError:
        return "refused"


begin = time.monotonic()
with ThreadPoolExecutor(count) as clients:
    answers = sorted(clients.map(ask, range(count)))
print(*answers, sep="\n")
print(f"{count - answers.count('refused')} answers in {time.monotonic() - begin:.2f} s")
