"""Send ten customers to a counter that serves one at a time:  python client.py [PORT]"""

import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

CUSTOMERS = 10
port = int(sys.argv[1]) if len(sys.argv) > 1 else 7113
looked = threading.Event()


def tell(text):
    print(f"{text}\n", end="", flush=True)  # one write: ten threads print


def queue_up(number):
    with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rw") as stream:
        tell(f"customer {number} is connected")
        answer = stream.readline().strip()
        tell(f"customer {number} hears: {answer}")
        looked.wait()
        print("thanks", file=stream, flush=True)
        stream.read()  # "goodbye", and the end: they hang up


with ThreadPoolExecutor(CUSTOMERS) as customers:
    done = customers.map(queue_up, range(1, CUSTOMERS + 1))
    input(f"Look at  ss -ltn 'sport = :{port}'  and press Enter to go on.\n")
    looked.set()
    print(len(list(done)), "customers were served")
