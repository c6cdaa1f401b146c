"""TLS as it is configured: settings, and certificates made ready to be presented.

`ssl` is imported when certificates are loaded, so that who has none does not pay for it (25 ms). What
goes over a connection is `encrypted`'s business; servers are not known here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srvkit.contracts import Duration, setting

if TYPE_CHECKING:
    from ssl import SSLContext

Report = Callable[[tuple[str | int, ...], str], None]  # where in the table something is wrong, and what
SOON = 14 * 86400  # seconds before a certificate's end from which on that is worth a note


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
    client_ca: str = setting("", "given: clients must present a certificate of one of these authorities")
    min_version: Literal["1.2", "1.3"] = setting("1.2", "the oldest version of TLS that is spoken")
    alpn: list[str] = setting([], "protocols to choose from, the preferred one first (ALPN, RFC 7301)")
    begin: Literal["connect", "handler"] = setting(
        "connect", "connect: at once; handler: in the clear until the handler calls start_tls()"
    )
    handshake_timeout: Duration = setting(10.0, "how long a handshake may take", minimum=0)


class ServerTls:
    """The settings of a server with its certificates loaded; `context` is the one clients meet first."""

    def __init__(self, settings: TlsSettings, context: SSLContext, others: dict[str, SSLContext]) -> None:
        self.settings = settings
        self.context = context
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
            name = name.lower()
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


def load(settings: TlsSettings, folder: Path, report: Report) -> ServerTls | None:
    """Load the certificates of a server; None after calling `report` for each thing that is wrong."""
    context = _context(settings, settings.cert, settings.key, (), folder, report)
    others: dict[str, SSLContext] = {}
    complete = context is not None
    for index, entry in enumerate(settings.sni):
        place = ("sni", index)
        other = _context(settings, entry.cert, entry.key, place, folder, report)
        complete = complete and other is not None
        if not entry.names:
            report((*place, "names"), "expected at least one name, got an empty list")
            complete = False
        for number, name in enumerate(entry.names):
            wanted = name.lower()
            if "*" in wanted.removeprefix("*.") or not wanted.strip("*."):
                report((*place, "names", number), f"{name!r}: only a whole first label may be '*'")
                complete = False
            elif wanted in others:
                report((*place, "names", number), f"{name!r} has another certificate already")
                complete = False
            elif other is not None:
                others[wanted] = other
    return ServerTls(settings, context, others) if complete and context is not None else None


def _context(
    settings: TlsSettings, cert: str, key: str, place: tuple[str | int, ...], folder: Path, report: Report
) -> SSLContext | None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_3 if settings.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    )
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    usable = _load_pair(context, folder / cert, folder / (key or cert), (*place, "cert"), report)
    if settings.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        authorities = folder / settings.client_ca
        try:
            context.load_verify_locations(authorities)
        except ssl.SSLError:
            if not place:
                report(("client_ca",), f"{authorities} holds no certificate in PEM")
            usable = False
        except OSError as error:
            if not place:
                report(("client_ca",), f"{authorities} cannot be read: {error.strerror}")
            usable = False
    try:
        context.set_alpn_protocols(settings.alpn)
    except (ssl.SSLError, ValueError, UnicodeError):
        if not place:
            report(("alpn",), "a protocol's name has 1 to 255 bytes of ASCII")
        usable = False
    return context if usable else None


def _load_pair(
    context: SSLContext, cert: Path, key: Path, place: tuple[str | int, ...], report: Report
) -> bool:
    import ssl

    key_place = (*place[:-1], "key") if key != cert else place
    for path, where in dict.fromkeys(((cert, place), (key, key_place))):
        try:
            path.read_bytes()
        except OSError as error:
            report(where, f"{path} cannot be read: {error.strerror}")
            return False
    try:
        context.load_cert_chain(cert, key, password=_refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            report(key_place, f"{key} is not the key of {cert}")
        elif _is_certificate(cert):
            report(key_place, f"{key} holds no usable key in PEM ({in_words(error)})")
        else:
            report(place, f"{cert} holds no usable certificate in PEM ({in_words(error)})")
    except _EncryptedKeyError:
        report(key_place, f"{key} is encrypted; srvkit cannot ask for its password: store it without one")
    else:
        return True
    return False


class _EncryptedKeyError(Exception):
    """A key that wants a password."""


def _refuse_password() -> str:
    raise _EncryptedKeyError


def _is_certificate(path: Path) -> bool:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True


def in_words(error: Any) -> str:
    """Return OpenSSL's reason for an SSLError, as it would be said."""
    return (error.reason or str(error)).replace("_", " ").lower()


def validity(tls: ServerTls) -> str:
    """Return what is to be noted of the certificate that clients meet first: expired, or soon to be.

    Found out as a client would, by a handshake in memory.
    """
    import ssl
    import time

    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    seen = _handshake(client, tls)
    if seen is None:
        return ""
    client.load_verify_locations(cadata=seen)
    client.verify_mode = ssl.CERT_REQUIRED
    ends: dict[str, Any] = {}
    try:
        _handshake(client, tls, ends)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message if error.verify_code in (9, 10) else ""  # not yet valid, expired
    left = ssl.cert_time_to_seconds(ends["notAfter"]) - time.time() if "notAfter" in ends else SOON
    return f"ends in {left / 86400:.1f} days" if left < SOON else ""


def _handshake(client: SSLContext, tls: ServerTls, found: dict[str, Any] | None = None) -> bytes | None:
    import ssl

    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_context = tls.context
    asks, server_context.verify_mode = server_context.verify_mode, ssl.CERT_NONE
    try:
        one = client.wrap_bio(back, there)
        other = server_context.wrap_bio(there, back, server_side=True)
        for end in (one, other, one, other):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError:
                raise
            except ssl.SSLError:
                return None
        if found is not None:
            found.update(one.getpeercert() or {})
        return one.getpeercert(binary_form=True)
    finally:
        server_context.verify_mode = asks
