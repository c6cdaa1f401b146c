"""Clock: tells the time, served by a model of one's own.

`python clock.py [PORT]` does the same without a configuration.
"""

import sys
from datetime import datetime

from srvkit import BaseRequestHandler, hookimpl


class Clock(BaseRequestHandler):
    """Tell the time and close."""

    def handle(self):
        self.request.sendall(f"{datetime.now():%H:%M:%S.%f}\n".encode())


@hookimpl
def srvkit_handlers():
    return {"clock": Clock}


if __name__ == "__main__":
    from rate_limited import RateLimitedTCPServer

    port = int(sys.argv[1]) if len(sys.argv) > 1 else 7123
    with RateLimitedTCPServer(("127.0.0.1", port), Clock) as server:
        print("listening on port", server.server_address[1], flush=True)
        server.serve_forever()
