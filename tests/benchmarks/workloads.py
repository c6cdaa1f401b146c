"""What is measured, and of which servers.

A workload is a row of the comparison. Operations are chosen so that a fast server takes about half a
second; `--quick` takes a quarter of them, and the servers named in `quick`.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAMED = (
    "C epoll",
    "srvkit event",
    "srvkit asyncio",
    "srvkit asyncio, AsyncHandler",
    "srvkit gevent",
    "srvkit pool",
    "srvkit threading",
    "uvloop Protocol",
    "uvloop Protocol, no framing",
    "uvloop streams",
    "asyncio Protocol",
    "asyncio streams",
    "gevent StreamServer",
    "socketserver threading",
    "Twisted LineReceiver",
)
DATAGRAMS = (
    "C, UDP",
    "srvkit event, UDP",
    "srvkit serial, UDP",
    "srvkit asyncio, UDP",
    "srvkit gevent, UDP",
    "srvkit pool, UDP",
    "srvkit threading, UDP",
    "uvloop DatagramProtocol",
    "asyncio DatagramProtocol",
    "gevent DatagramServer",
    "Twisted DatagramProtocol",
    "socketserver UDP",
    "socketserver threading, UDP",
)
THREADED = (
    "C epoll",
    "srvkit event",
    "srvkit threading",
    "uvloop Protocol",
    "uvloop streams",
    "gevent StreamServer",
    "socketserver threading",
)
FEW = ("C epoll", "srvkit event", "uvloop Protocol", "uvloop streams")


@dataclass(frozen=True)
class Workload:
    """One row; `load` are the arguments that load.c takes after the operations."""

    name: str
    servers: tuple[str, ...]
    quick: tuple[str, ...]
    operations: int
    client: str = "load"  # or idle, redis, wrk
    transport: str = "tcp"
    clients: int = 64
    load: tuple[str, ...] = ("64", "1", "keep")
    rounds: int = 0  # at least so many
    idle: int = 0  # connections that do nothing meanwhile
    drawn: bool = True  # shown in the picture
    why: str = ""  # srvkit is not ahead of every peer here, if it is not

    @property
    def batch(self) -> int:
        """Operations per write."""
        return int(self.load[1]) if len(self.load) > 1 else 1


ONE, LINES, MANY = "line echo, 1 connection", "line echo, 64 connections", "line echo, 1,000 connections"
PIPELINED = "pipelined lines, 16 per write"
CONNECT = "connect, echo a line, close"
LARGE = "64 KiB lines"
UDP = "UDP echo"
ASYNC = "coroutines: line echo, 64 connections"
IDLE, IDLE_THREADS = "15,000 idle connections", "500 idle connections"
DROP_IN = "drop-in: connect, echo a line, close"
DROP_IN_UDP = "drop-in: UDP echo"
REDIS, REDIS_PIPELINED = "redis-benchmark, {}", "redis-benchmark, {}, 16 per write"
HTTP = "wrk, HTTP keep-alive"
COROUTINES = ("uvloop streams", "srvkit asyncio, AsyncHandler")
THREADS = ("srvkit threading", "socketserver threading")

DROP_IN_SERVERS = (
    "socketserver threading, StreamRequestHandler, one line",
    "srvkit threading, StreamRequestHandler, one line",
    "socketserver threading, BaseRequestHandler, one read",
    "srvkit threading, BaseRequestHandler, one read",
    "socketserver threading, BaseRequestHandler, until the client closes",
    "srvkit threading, BaseRequestHandler, until the client closes",
    "srvkit threading, MessageHandler, until the client closes",
)
DROP_IN_DATAGRAMS = tuple(
    f"{library} threading, UDP, {handler}"
    for handler in ("BaseRequestHandler", "DatagramRequestHandler")
    for library in ("socketserver", "srvkit")
)
IDLERS = (
    "C epoll",
    "srvkit event",
    "srvkit asyncio",
    "srvkit asyncio, AsyncHandler",
    "srvkit pool",
    "srvkit gevent",
    "uvloop Protocol",
    "uvloop streams",
    "asyncio Protocol",
    "asyncio streams",
    "gevent StreamServer",
    "Twisted LineReceiver",
)
FORKED = ("srvkit serial", "srvkit forking", "socketserver forking")


def of(protocol: str) -> tuple[str, ...]:
    """The servers of one protocol of its own."""
    models = tuple(f"srvkit {model}, {protocol}" for model in ("event", "asyncio", "threading"))
    return (*models, *(f"{loop} Protocol, {protocol}" for loop in ("uvloop", "asyncio")))


_COMPILED = (
    "The system calls are the same for each message; uvloop makes them from compiled code, srvkit from Python"
)

_ALL = [
    Workload(ONE, (*FRAMED, "srvkit serial"), FEW, 20_000, clients=1, why=_COMPILED),
    Workload(LINES, FRAMED, (*THREADED, "asyncio Protocol", "Twisted LineReceiver"), 60_000, why=_COMPILED),
    Workload(MANY, FRAMED, FEW, 60_000, clients=1000, why=_COMPILED),
    Workload(PIPELINED, FRAMED, THREADED, 320_000, load=("64", "16", "keep"), why=_COMPILED),
    Workload(
        CONNECT,
        (*FRAMED, *FORKED),
        (*THREADED, "socketserver forking", "srvkit serial"),
        16_000,
        load=("64", "1", "close"),
        why=_COMPILED,
    ),
    Workload(LARGE, FRAMED, FEW, 8_000, clients=16, load=("65536", "1", "keep")),
    Workload(
        UDP,
        DATAGRAMS,
        ("C, UDP", "srvkit event, UDP", "srvkit serial, UDP", "uvloop DatagramProtocol", "socketserver UDP"),
        40_000,
        transport="udp",
        load=("64",),
        why="recvfrom and sendto called from Python alone cost what all of uvloop does",
    ),
    Workload(ASYNC, COROUTINES, COROUTINES, 60_000, rounds=7, drawn=False),
    Workload(IDLE, IDLERS, FEW, 20_000, client="idle", clients=1, idle=15_000),
    Workload(IDLE_THREADS, THREADS, (), 5_000, client="idle", clients=1, idle=500),
    Workload(DROP_IN, DROP_IN_SERVERS, DROP_IN_SERVERS, 8_000, load=("64", "1", "close"), drawn=False),
    Workload(
        DROP_IN_UDP,
        DROP_IN_DATAGRAMS,
        DROP_IN_DATAGRAMS[:2],
        8_000,
        transport="udp",
        load=("64",),
        drawn=False,
    ),
    *(
        Workload(
            REDIS.format(test),
            of("Redis"),
            ("srvkit event, Redis", "uvloop Protocol, Redis") if test == "GET" else (),
            40_000,
            client="redis",
            load=(test, "1"),
            drawn=test == "GET",
        )
        for test in ("GET", "SET", "PING", "PING, inline")
    ),
    Workload(REDIS_PIPELINED.format("GET"), of("Redis"), (), 160_000, client="redis", load=("GET", "16")),
    Workload(HTTP, of("HTTP"), ("srvkit event, HTTP", "uvloop Protocol, HTTP"), 1, client="wrk"),
]

WORKLOADS = {workload.name: workload for workload in _ALL}
