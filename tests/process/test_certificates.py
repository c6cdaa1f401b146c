"""Whatever becomes of their files, workers show the certificates that their generation was tried with."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

TABLE = """
[server.a]
listen = "tcp://127.0.0.1:0"
handler = "talk"
concurrency = "{model}"
[server.a.tls]
cert = "cert.pem"
key = "key.pem"
[[server.a.tls.sni]]
names = ["other.example"]
cert = "other.pem"
[server.b]
listen = "unix:b.sock"
handler = "talk"
"""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def issue(authority: trustme.CA, managed: Any) -> Callable[..., None]:
    """`issue("one.example")`: write the files anew, for this name."""

    def issue(name: str, **more: Any) -> None:
        made = authority.issue_cert(name, **more)
        made.cert_chain_pems[0].write_to_path(managed.folder / "cert.pem")
        made.private_key_pem.write_to_path(managed.folder / "key.pem")
        other = authority.issue_cert(f"other.{name}")
        other.private_key_and_cert_chain_pem.write_to_path(managed.folder / "other.pem")

    return issue


@pytest.fixture
def shown(authority: trustme.CA, managed: Any) -> Callable[[], set[str]]:
    """`shown()`: the names in the certificates that clients are shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    context.check_hostname = False

    def shown() -> set[str]:
        found = set()
        for name in ("any.example", "other.example") * 3:
            with managed.connect() as sock, context.wrap_socket(sock, server_hostname=name) as tls:
                found.add(dict(tls.getpeercert()["subjectAltName"])["DNS"])
        return found

    return shown


def replace_all(managed: Any, eventually: Any) -> None:
    before = set(managed.workers())
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(managed.workers()) == len(before) and not before & set(managed.workers()))


@pytest.mark.parametrize("model", ["threading", "forking", "event", "asyncio"])
def test_a_replacement_shows_what_the_others_show(
    model: str, managed: Any, issue: Any, shown: Any, eventually: Any
) -> None:
    issue("one.example")
    managed.write(TABLE.format(model=model))
    managed.begin()
    one, two = {"one.example", "other.one.example"}, {"two.example", "other.two.example"}
    assert shown() == one
    issue("two.example")
    replace_all(managed, eventually)
    assert shown() == one
    for name in ("cert.pem", "key.pem", "other.pem"):
        (managed.folder / name).unlink()
    managed.signal(signal.SIGTTIN)
    eventually(lambda: len(managed.workers()) == 2)  # which they are with certificates only
    assert shown() == one
    assert not managed.ask(do="reload")["ok"]
    replace_all(managed, eventually)
    assert shown() == one
    issue("two.example")
    managed.reload()
    assert shown() == two
    replace_all(managed, eventually)
    assert shown() == two
    assert "Traceback" not in managed.program.log


def test_a_new_installation_reads_them_anew(managed: Any, issue: Any, shown: Any, eventually: Any) -> None:
    issue("one.example")
    managed.write(TABLE.format(model="threading"))
    managed.begin()
    issue("two.example")
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("the new installation takes over")
    managed.program.wait_for("reloaded: this is generation 2$")
    assert shown() == {"two.example", "other.two.example"}
    replace_all(managed, eventually)
    assert shown() == {"two.example", "other.two.example"}


def open_files(pid: int) -> list[str]:
    """Return what a process has open, by name."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return found


def certificates_in(pid: int) -> int:
    return sum("srvkit-certificate" in name for name in open_files(pid))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files without a name have one here")
def test_keys_are_kept_by_the_supervisor_alone_and_not_for_longer_than_needed(
    managed: Any, issue: Any, eventually: Any
) -> None:
    issue("one.example")
    managed.write(TABLE.format(model="threading"))
    managed.begin()
    supervisor = managed.program.pid
    for _ in range(2):
        assert certificates_in(supervisor) == 1
        assert [certificates_in(pid) for name in "ab" for pid in managed.workers(name)] == [0, 0]
        managed.reload()
        eventually(lambda: len(managed.server()["workers"]) == 1)
    (managed.folder / "key.pem").write_text("none")
    assert not managed.ask(do="reload")["ok"]
    assert certificates_in(supervisor) == 1
    managed.write('[server.a]\nlisten = "tcp://127.0.0.1:0"\nhandler = "talk"\n')
    managed.reload()
    assert certificates_in(supervisor) == 0
    assert "libssl" not in Path(f"/proc/{supervisor}/maps").read_text()


def test_a_certificate_that_ends_meanwhile_is_noted_when_it_does(managed: Any, issue: Any) -> None:
    now = datetime.datetime.now(datetime.UTC)
    issue("one.example", not_after=now + datetime.timedelta(seconds=5))
    managed.write(TABLE.format(model="threading"))
    managed.begin()
    managed.program.wait_for(r"server\.a\.tls\.cert: ends in 0\.0 days$")
    managed.program.wait_for(r"WARNING .*server\.a\.tls\.cert: certificate has expired$")
