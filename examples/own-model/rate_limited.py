"""A concurrency model of one's own: threads, but only so many new ones in a second.

A model is a mixin that stands in front of a server class and extends the steps of a request, by the names
of the standard library. `verify_request` and `process_request` are called in the server's loop, where
nobody may wait; `process_request_thread` in the thread of the request that it concerns.
"""

import time
from collections import deque
from dataclasses import dataclass

from srvkit import TCPServer, ThreadingMixIn, hookimpl


class RateLimitedMixIn(ThreadingMixIn):
    """Handle each request in a thread, and begin at most `rate` of them in a second.

    Those that come faster wait for their turn; where `most_waiting` do so already, they are refused.
    """

    @dataclass
    class Options:
        rate: float = 10.0
        most_waiting: int = 100

        def __post_init__(self):
            if self.rate <= 0:
                raise ValueError(f"rate must be more than 0 in a second, not {self.rate}")

    rate = Options.rate
    most_waiting = Options.most_waiting

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._turns = deque()
        self._next_turn = time.monotonic()

    def verify_request(self, request, client_address):
        waiting = (self._next_turn - time.monotonic()) * self.rate
        return waiting < self.most_waiting and super().verify_request(request, client_address)

    def process_request(self, request, client_address):
        turn = max(self._next_turn, time.monotonic())
        self._next_turn = turn + 1 / self.rate
        self._turns.append(turn)
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        time.sleep(max(0.0, self._turns.popleft() - time.monotonic()))
        super().process_request_thread(request, client_address)


class RateLimitedTCPServer(RateLimitedMixIn, TCPServer):
    """What the configuration composes, as a class statement of one's own: for programs without a file."""

    allow_reuse_address = True


@hookimpl
def srvkit_concurrency():
    return {"rate-limited": RateLimitedMixIn}
