"""Whom a handler talks to: put together from the connection, whatever of it there is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from srvkit.net.access import Credentials, credentials_of
from srvkit.net.connection import is_datagram
from srvkit.protocol.proxy_header import unmapped

if TYPE_CHECKING:
    from srvkit.protocol.proxy_header import ProxyHeader


@dataclass(frozen=True)
class TlsPeer:
    """What a TLS handshake has told of a client."""

    version: str  # "TLSv1.3"
    cipher: str
    protocol: str | None  # as agreed on by ALPN
    server_name: str | None  # the host that was asked for (SNI)
    certificate: dict[str, Any] | None  # as `ssl.SSLSocket.getpeercert()` returns it; verified, or None


class Peer:
    """The other end of a connection, or the sender of a datagram.

    `address` is the client's, which a proxy may have told. What does not apply is None.
    """

    def __init__(self, request: Any, address: Any) -> None:
        self.address = address
        self._request = None if is_datagram(request) else request

    def __repr__(self) -> str:
        known = {"credentials": self.credentials, "tls": self.tls, "proxy": self.proxy}
        return f"<Peer {self.address}{''.join(f', {key} {it}' for key, it in known.items() if it)}>"

    @cached_property
    def socket_address(self) -> Any:
        """The address of the socket's peer, which may be a proxy. Raises OSError once that is gone."""
        request: Any = self._request
        return self.address if self.proxy is None else unmapped(request.getpeername())

    @cached_property
    def credentials(self) -> Credentials | None:
        """The process id, user and group of the peer of a Unix stream socket, when it connected."""
        return None if self._request is None else credentials_of(self._request)

    @property
    def tls(self) -> TlsPeer | None:
        """What the handshake told; None in the clear."""
        request: Any = self._request
        if not getattr(request, "is_encrypted", False):
            return None
        name = request.cipher()
        return TlsPeer(
            request.version() or "",
            name[0] if name else "",
            request.selected_alpn_protocol(),
            request.server_name,
            request.getpeercert(),
        )

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The client's certificate, verified against `client_ca`; None where it presented none."""
        return self.tls.certificate if self.tls is not None else None

    @property
    def proxy(self) -> ProxyHeader | None:
        """The PROXY header, with all it says; None where there was none."""
        found: ProxyHeader | None = getattr(self._request, "proxy", None)
        return found
