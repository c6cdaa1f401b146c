"""Whoever looks whether a port is open, and says nothing, is nobody's fault: one `eof`, and no line."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Connect, Eventually, Tool
from tests.server.conftest import Reset, Under

KINDS = ("message", "blocking", "receive", "async")
PROXY = '[sub.proxy]\ntrusted = ["127.0.0.1/32"]\nheader_timeout = "20s"\n'
TLS = '[sub.tls]\ncert = "server.pem"\nhandshake_timeout = "20s"\n'
TABLES = {
    "plain": ("", *KINDS),
    "tls": (TLS, *KINDS),
    "proxy": (PROXY, *KINDS),
    "both": (PROXY + TLS, *KINDS),
}
LOCAL = {
    "unknown": b"PROXY UNKNOWN\r\n",
    "local": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    "client": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
}
CHECKS = [("plain", ""), ("tls", ""), ("proxy", ""), ("both", "")]
CHECKS += [(table, header) for table in ("proxy", "both") for header in LOCAL]


def counters(under: Under, table: str, cell: str) -> dict[str, Any]:
    found: dict[str, Any] = under(table).server(cell)["counters"]
    return found


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(("table", "header"), CHECKS)
def test_it_is_an_end_like_any_other(
    table: str,
    header: str,
    how: str,
    every_cell: str,
    under: Under,
    client: Connect,
    reset: Reset,
    eventually: Eventually,
) -> None:
    before = counters(under, table, every_cell)
    sock = client(under(table).address(every_cell))
    address = sock.getsockname()
    if header:
        sock.sendall(LOCAL[header])
    reset(sock) if how == "reset" else sock.close()
    eventually(lambda: counters(under, table, every_cell)["outcomes"] != before["outcomes"])
    after = counters(under, table, every_cell)
    before["outcomes"]["eof"] = before["outcomes"].get("eof", 0) + 1
    assert after["outcomes"] == before["outcomes"]
    assert [after[name] - before[name] for name in ("errors", "refused")] == [0, 0]
    assert under(table).lines(every_cell, address) == []


@pytest.mark.parametrize("table", ["plain", "tls", "proxy"])
def test_who_has_said_something_is_still_told(
    table: str, every_cell: str, under: Under, client: Connect, reset: Reset, eventually: Eventually
) -> None:
    sock = client(under(table).address(every_cell))
    address = sock.getsockname()
    sock.sendall({"plain": b"hal", "tls": b"\x16\x03\x01\x02\x00", "proxy": b"PROXY TC"}[table])
    reset(sock)
    eventually(lambda: under(table).lines(every_cell, address) != [])
    (line,) = under(table).lines(every_cell, address)
    assert "ended: reset" in line


WAYS = {
    "plain": ("plain", "", "check"),
    "linger": ("plain", "option tcp-check\n  tcp-check connect linger", "check"),
    "connect": ("tls", "", "check"),
    "tls": ("tls", "", "check check-ssl verify none"),
    "tls-linger": ("tls", "option tcp-check\n  tcp-check connect linger ssl", "check verify none"),
    "header": ("proxy", "", "check check-send-proxy send-proxy"),
    "header-2": ("proxy", "", "check check-send-proxy send-proxy-v2"),
    "header-linger": (
        "proxy",
        "option tcp-check\n  tcp-check connect linger send-proxy",
        "check send-proxy-v2",
    ),
    "all": ("both", "", "check check-send-proxy send-proxy-v2 check-ssl verify none"),
}


@pytest.fixture(scope="module")
def checked(under: Under, tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """HAProxy, which looks after every server in every way."""
    tool("haproxy")
    folder = tmp_path_factory.mktemp("haproxy")
    config = "defaults\n  mode tcp\n  timeout connect 30s\n  timeout client 30s\n  timeout server 30s\n"
    for way, (table, option, words) in WAYS.items():
        program = under(table)
        for cell in program.cells:
            address = program.address(cell).removeprefix("tcp://")
            config += f"backend {cell}-{way}\n  {option}\n  server one {address} {words} inter 1s\n"
    with socket.create_server(("127.0.0.1", 0)) as unused:
        config += f"listen none\n  bind fd@{unused.fileno()}\n"
        (folder / "haproxy.cfg").write_text(config)
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", "haproxy.cfg"],
            cwd=folder,
            pass_fds=[unused.fileno()],
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("table", TABLES)
def test_haproxy_looks_after_servers(table: str, under: Under, eventually: Eventually) -> None:
    """Again and again, in all its ways; some of its looks never reach the server at all."""
    program = under(table)
    before = {cell: counters(under, table, cell) for cell in program.cells}
    length = len(program.program.log)

    def looked(cell: str) -> bool:
        found = counters(under, table, cell)["outcomes"].get("eof", 0)
        return bool(found >= before[cell]["outcomes"].get("eof", 0) + 3)

    for cell in program.cells:
        eventually(looked, cell)
    log = program.program.log[length:]
    for cell in program.cells:
        after = counters(under, table, cell)
        for found in (before[cell], after):
            found["outcomes"].pop("eof", None)
        assert after["outcomes"] == before[cell]["outcomes"], log
        assert [after[name] - before[cell][name] for name in ("errors", "refused", "dropped")] == [0, 0, 0]
    assert "127.0.0.1" not in log
