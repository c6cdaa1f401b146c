"""Clients whose certificates were revoked, under every model; and authorities that were themselves."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.conftest import Connect, RevocationList
from tests.server.conftest import Say, Secure, Under

TLS = """
[sub.tls]
cert = "server.pem"
client_ca = "authorities.pem"
[[sub.tls.sni]]
names = ["other.example"]
cert = "other.pem"
"""
TABLES = {"revoked": (TLS,)}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory, revocation_list: RevocationList) -> Path:
    """A folder: ca, server, other; client and revoked, of the authority, of one below it, and of one that
    was revoked itself."""
    folder: Path = tmp_path_factory.mktemp("revocation")
    root = trustme.CA(organization_name="Root")
    good, bad = (root.create_child_ca() for _ in range(2))
    # trustme gives all authorities below one name, and OpenSSL tells them apart by their keys.
    root.cert_pem.write_to_path(folder / "ca.pem")
    for name, host in (("server", "localhost"), ("other", "other.example")):
        root.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    issued = {}
    for word, authority in (("root", root), ("good", good), ("bad", bad)):
        for name in ("client", "revoked"):
            made = issued[name, word] = authority.issue_cert(f"{name}@example.org")
            made.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}-{word}.pem")
    with (folder / "authorities.pem").open("wb") as file:
        for one in (root, good, bad):
            file.write(one.cert_pem.bytes())
        file.write(revocation_list(root, issued["revoked", "root"].cert_chain_pems[0], bad.cert_pem))
        file.write(revocation_list(good, issued["revoked", "good"].cert_chain_pems[0]))
        file.write(revocation_list(bad))
    return folder


@pytest.fixture
def comes_in(under: Under, client: Connect, secure: Secure, say: Say) -> Callable[..., bool]:
    """`comes_in(cell, "client-root")`: whether a client with this certificate is answered."""

    def comes_in(cell: str, certificate: str, name: str = "localhost") -> bool:
        try:
            with secure(client(under("revoked").address(cell)), certificate, name) as sock:
                return bool(say(sock, b"hello") == b"hello")
        except (ssl.SSLError, ConnectionError):
            return False

    return comes_in


@pytest.mark.parametrize("name", ["localhost", "other.example"])
def test_who_was_revoked_does_not_come_in(name: str, cell: str, comes_in: Any) -> None:
    assert comes_in(cell, "client-root", name)
    assert not comes_in(cell, "revoked-root", name)


def test_an_authority_below_has_its_own_list(cell: str, comes_in: Any) -> None:
    assert comes_in(cell, "client-good")
    assert not comes_in(cell, "revoked-good")


def test_an_authority_that_was_revoked_vouches_for_nobody(cell: str, comes_in: Any, under: Under) -> None:
    assert not comes_in(cell, "client-bad")
    under("revoked").program.wait_for(
        f"{cell}: .* ended: bad-tls: the client's certificate is not accepted: certificate revoked"
    )
