"""TLS as it is configured: settings, and certificates that are ready to be presented.

They are made by `credentials`; what goes over a connection is `encrypted`'s business. Servers are not known
here, and `ssl` is not imported, so that who has no certificates does not pay for it (25 ms).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from srvkit.contracts import Duration, setting
from srvkit.net.sni import as_asked

if TYPE_CHECKING:
    from ssl import SSLContext

Place = tuple[str | int, ...]  # in the table

SOON = 14 * 86400  # seconds before a certificate's end from which on that is worth a note
SOON_FOR_LISTS = 86400  # lists of revoked certificates are short-lived, and made anew in time


@dataclass(frozen=True)
class SniSettings:
    """`[[server.NAME.tls.sni]]`: another certificate, for clients that ask for one of these names."""

    names: list[str] = setting(dataclasses.MISSING, 'host names that clients ask for; "*.example.org" too')
    cert: str = setting(dataclasses.MISSING, "the certificate for them, with its chain, in PEM")
    key: str = setting("", "its key; empty: in the same file")


@dataclass(frozen=True)
class TlsSettings:
    """`[server.NAME.tls]`: given, connections are encrypted. Paths are relative to the file."""

    cert: str = setting(dataclasses.MISSING, "the server's certificate, with its chain, in PEM")
    key: str = setting("", "its key; empty: in the same file")
    sni: list[SniSettings] = setting([], "tables of names, cert and key for clients that ask by name")
    client_ca: str = setting(
        "",
        "given: clients must present a certificate of one of these authorities; their lists are obeyed",
    )
    min_version: Literal["1.2", "1.3"] = setting("1.2", "the oldest version of TLS that is spoken")
    alpn: list[str] = setting([], "protocols to choose from, the preferred one first (ALPN, RFC 7301)")
    begin: Literal["connect", "handler"] = setting(
        "connect", "connect: at once; handler: in the clear until the handler calls start_tls()"
    )
    handshake_timeout: Duration = setting(10.0, "how long a handshake may take", minimum=0)


@dataclass(frozen=True)
class Term:
    """How long a certificate or a revocation list is good; on the wall clock, None where unsaid."""

    place: Place
    what: str  # "" for the certificate of that place itself
    begins: float | None
    ends: float | None
    soon: float = SOON  # seconds before its end from which on that is worth a note
    then: str = ""  # what follows when it is not good
    key: str = ""  # of the configuration, for whoever knows it

    def moments(self) -> list[float]:
        """Return when there is something new to note."""
        return [] if self.ends is None else [self.ends - self.soon, self.ends]

    def note(self, now: float) -> str:
        """Return what is to be noted of it: expired, or soon to be; "" where nothing is."""
        what = f"{self.what} " if self.what else ""
        if self.ends is not None and self.ends <= now:
            return f"{what or 'certificate '}has expired{self.then}"
        if self.begins is not None and self.begins > now:
            return f"{what or 'certificate '}is not yet valid{self.then}"
        if self.ends is not None and self.ends - now < self.soon:
            return f"{what}ends in {(self.ends - now) / 86400:.1f} days"
        return ""


class ServerTls:
    """The settings of a server with its certificates loaded; `context` is the one clients meet first.

    `terms` say how long each of them is good, chains and authorities included.
    """

    def __init__(
        self, settings: TlsSettings, context: SSLContext, others: dict[str, SSLContext], terms: list[Term]
    ) -> None:
        self.settings = settings
        self.context = context
        self.terms = terms
        self._others = others
        context.sni_callback = self._choose

    def __repr__(self) -> str:
        return f"<ServerTls {self.settings.cert}>"

    @property
    def begins_at_once(self) -> bool:
        """Whether connections are encrypted from their first byte on."""
        return self.settings.begin == "connect"

    def _choose(self, connection: Any, name: str | None, _: SSLContext) -> None:
        connection.server_name = name
        if name is not None and self._others:
            name = as_asked(name)
            found = self._others.get(name) or self._others.get("*." + name.partition(".")[2])
            if found is not None:
                connection.context = found


def to_begin(server: Any, request: Any) -> ServerTls:
    """Return what a handler may begin TLS with now. Raises RuntimeError where it may not."""
    tls: ServerTls | None = getattr(server, "tls", None)
    if tls is None:
        raise RuntimeError('start_tls() needs certificates: a table [server.NAME.tls] with begin = "handler"')
    if request.is_encrypted:
        raise RuntimeError("the connection is encrypted already")
    return tls


def encrypt(server: Any, request: Any) -> None:
    """Begin TLS on a connection, and wait until the handshake is over; for whoever has a place to wait.

    Raises RuntimeError where it may not begin, PeerError and OSError where the handshake fails or takes
    longer than it may.
    """
    tls = to_begin(server, request)
    request.begin_tls(tls)
    request.wait_for_handshake(request.time_for(tls.settings.handshake_timeout))


def in_words(error: Any) -> str:
    """Return OpenSSL's reason for an SSLError, as it would be said."""
    return (error.reason or str(error)).replace("_", " ").lower()
