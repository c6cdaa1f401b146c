"""Certificates and keys: read from their files, seen through, and made into what is presented.

Files are read once (`read`), by whoever may; certificates are made of the bytes (`load`), as often as
needed. `ssl` is imported when that is done: who has none does not pay for it (25 ms).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from srvkit.net import pem
from srvkit.net.pem import PemError
from srvkit.net.sni import asked_for
from srvkit.net.tls_context import SOON_FOR_LISTS, Place, ServerTls, Term, TlsSettings, in_words

if TYPE_CHECKING:
    from ssl import SSLContext

Report = Callable[[Place, str], None]  # where in the table something is wrong, and what
Files = Mapping[str, bytes]  # what certificates and keys are made of, by path

SHARED_MEMORY = "/dev/shm"  # a file there is memory, too
LARGEST = 64 * 2**20  # bytes of a file; lists of revoked certificates may be long


def read(settings: TlsSettings, folder: Path, report: Report) -> dict[str, bytes]:
    """Read each file of a server's certificates and keys once; calls `report` for those that cannot be."""
    found: dict[str, bytes] = {}
    failed: dict[str, str] = {}
    for place, name in _named(settings):
        path = str(folder / name)
        if path not in found and path not in failed:
            try:
                found[path] = _contents(path)
            except OSError as error:
                failed[path] = f"cannot be read: {error.strerror}"
            except ValueError as error:
                failed[path] = str(error)
        if path in failed:
            report(place, f"{path} {failed[path]}")
    return found


def _named(settings: TlsSettings) -> Iterator[tuple[Place, str]]:
    yield ("cert",), settings.cert
    if settings.key:
        yield ("key",), settings.key
    for index, entry in enumerate(settings.sni):
        yield ("sni", index, "cert"), entry.cert
        if entry.key:
            yield ("sni", index, "key"), entry.key
    if settings.client_ca:
        yield ("client_ca",), settings.client_ca


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"is larger than {LARGEST >> 20} MiB")
    return data


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Give bytes the path that OpenSSL wants; nobody else can read there, and nothing is left."""
    with _unnamed() as file:
        file.write(data)
        file.seek(0)  # where /dev/fd is the same open file, and not opened anew
        number = file.fileno()
        ways = (f"/proc/self/fd/{number}", f"/dev/fd/{number}")
        found = next((way for way in ways if os.path.exists(way)), "")
        if found:
            yield found
            return
    with tempfile.NamedTemporaryFile(prefix="srvkit-", dir=_memory()) as named:  # neither is there
        named.write(data)
        named.flush()
        yield named.name


def _unnamed() -> IO[bytes]:
    try:
        return open(os.memfd_create("srvkit-certificate"), "w+b")
    except (AttributeError, OSError):
        return tempfile.TemporaryFile(prefix="srvkit-", dir=_memory())


def _memory() -> str | None:
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else None


# ---- certificates


def load(settings: TlsSettings, folder: Path, files: Files, report: Report) -> ServerTls | None:
    """Make the certificates of a server of what `read` has found.

    Returns None after calling `report` for each thing that is wrong, files that are not there excepted:
    these were reported.
    """
    return _Loading(settings, folder, files, report).result()


class _Loading:
    """Makes the contexts of one server, noting every reason why they cannot be made."""

    def __init__(self, settings: TlsSettings, folder: Path, files: Files, report: Report) -> None:
        self._settings = settings
        self._folder = folder
        self._files = files
        self._complete = True
        self._terms: list[Term] = []
        self._report_only = report

    def result(self) -> ServerTls | None:
        settings = self._settings
        has_lists = self._check_authorities() if settings.client_ca else False
        context = self._context(("cert",), settings.cert, settings.key, has_lists)
        others: dict[str, SSLContext] = {}
        for index, entry in enumerate(settings.sni):
            place = ("sni", index)
            other = self._context((*place, "cert"), entry.cert, entry.key, has_lists)
            if not entry.names:
                self._report((*place, "names"), "expected at least one name, got an empty list")
            for number, name in enumerate(entry.names):
                self._note_name((*place, "names", number), name, other, others)
        return ServerTls(settings, context, others, self._terms) if self._complete else None

    def _report(self, place: Place, message: str) -> None:
        self._complete = False
        self._report_only(place, message)

    def _file(self, name: str) -> tuple[str, bytes] | None:
        path = str(self._folder / name)
        if path not in self._files:
            self._complete = False
            return None
        return path, self._files[path]

    def _note_name(
        self, place: Place, written: str, context: SSLContext, others: dict[str, SSLContext]
    ) -> None:
        try:
            names = asked_for(written)
        except ValueError as error:
            self._report(place, f"{written!r}: {error}")
            return
        for name in names:
            if others.setdefault(name, context) is not context:
                self._report(place, f"{written!r} has another certificate already")
                return

    # ---- who may come

    def _check_authorities(self) -> bool:
        """Report what is wrong with the file of authorities; return whether it has revocation lists."""
        found = self._file(self._settings.client_ca)
        if found is None:
            return False
        path, data = found
        try:
            blocks = pem.blocks(data)
            certificates = [one for one in blocks if one.is_certificate]
            lists = [one for one in blocks if one.is_list]
            for one in blocks:
                if not (one.is_certificate or one.is_list or one.is_key):
                    raise PemError(f"nothing is made of the {one.label} on line {one.line}")
            if not certificates:
                self._report(("client_ca",), f"{path} holds no certificate in PEM")
                return False
            names = self._note_authorities(certificates)
            listed = self._note_lists(lists)
        except PemError as error:
            self._report(("client_ca",), f"{path}: {error}")
            return False
        missing = [name for name in names if pem.same(name) not in listed]
        if lists and missing:
            who = " and ".join(map(pem.shown, dict.fromkeys(missing)))
            self._report(
                ("client_ca",),
                f"{path} holds revocation lists, and none of {who}: its clients would be refused; add its "
                "list (an empty one will do)",
            )
        return bool(lists)

    def _note_authorities(self, certificates: list[pem.Block]) -> list[pem.Name]:
        names = []
        _see_through(certificates)
        for one in certificates:
            facts = pem.certificate_facts(one.der)
            names.append(facts.subject)
            self._terms.append(Term(("client_ca",), pem.shown(facts.subject), facts.begins, facts.ends))
        return names

    def _note_lists(self, lists: list[pem.Block]) -> set[pem.Name]:
        names = set()
        _see_through(lists)
        for one in lists:
            facts = pem.list_facts(one.der)
            names.add(pem.same(facts.subject))
            what = f"the revocation list of {pem.shown(facts.subject)}"
            then = ", so its clients are refused"
            self._terms.append(Term(("client_ca",), what, facts.begins, facts.ends, SOON_FOR_LISTS, then))
        return names

    # ---- what is presented

    def _context(self, place: Place, cert: str, key: str, has_lists: bool) -> SSLContext:
        """Return a context; it is of use only where nothing was reported."""
        import ssl

        settings = self._settings
        is_first = place == ("cert",)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = (
            ssl.TLSVersion.TLSv1_3 if settings.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
        )
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        self._load_pair(context, place, cert, key)
        if settings.client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            if has_lists:
                # Of each authority in a client's chain: one that has been revoked itself vouches for nobody.
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
            if self._complete and (found := self._file(settings.client_ca)) is not None:
                with _as_file(found[1]) as file:
                    try:
                        context.load_verify_locations(file)
                    except ssl.SSLError as error:
                        self._report(("client_ca",), f"{found[0]} cannot be used: {in_words(error)}")
        try:
            context.set_alpn_protocols(settings.alpn)
        except (ssl.SSLError, ValueError, UnicodeError):
            if is_first:
                self._report(("alpn",), "a protocol's name has 1 to 255 bytes of ASCII")
        return context

    def _load_pair(self, context: SSLContext, place: Place, cert: str, key: str) -> None:
        import ssl

        key_place = (*place[:-1], "key") if key else place
        certificates, keys = self._file(cert), self._file(key or cert)
        if certificates is None or keys is None:
            return
        (cert_path, cert_data), (key_path, key_data) = certificates, keys
        blocks = self._blocks(place, cert_path, cert_data, "certificate")
        if blocks is None or (
            key_path != cert_path and self._blocks(key_place, key_path, key_data, "key") is None
        ):
            return
        try:
            with _as_file(cert_data) as cert_file, _as_file(key_data) as key_file:
                context.load_cert_chain(cert_file, key_file, password=_refuse_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                self._report(key_place, f"{key_path} is not the key of {cert_path}")
            elif any(one.is_certificate for one in blocks):
                self._report(key_place, f"{key_path} holds no usable key in PEM ({in_words(error)})")
            else:
                self._report(place, f"{cert_path} holds no usable certificate in PEM ({in_words(error)})")
        except _EncryptedKeyError:
            self._report(
                key_place,
                f"{key_path} is encrypted; srvkit cannot ask for its password: store it without one",
            )
        else:
            self._note_chain(place, blocks)

    def _blocks(self, place: Place, path: str, data: bytes, wanted: str) -> list[pem.Block] | None:
        """Return what a file consists of; None after reporting what should not be in it."""
        try:
            blocks = pem.blocks(data)
            for one in blocks:
                if one.is_list:
                    raise PemError(f"the revocation list on line {one.line} belongs into client_ca")
                if not (one.is_certificate or one.is_key):
                    raise PemError(f"nothing is made of the {one.label} on line {one.line}")
            _see_through([one for one in blocks if one.is_certificate])
        except PemError as error:
            self._report(place, f"{path} holds no usable {wanted} in PEM: {error}")
            return None
        return blocks

    def _note_chain(self, place: Place, blocks: list[pem.Block]) -> None:
        chain = [pem.certificate_facts(one.der) for one in blocks if one.is_certificate]
        for number, facts in enumerate(chain):
            what = f"{pem.shown(facts.subject)}, in its chain," if number else ""
            self._terms.append(Term(place, what, facts.begins, facts.ends))


def _see_through(blocks: list[pem.Block]) -> None:
    """See that OpenSSL takes each certificate and list; raises PemError for the first that it does not."""
    import ssl

    scratch = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for one in blocks:
        try:
            if one.is_list or one.label.startswith("TRUSTED"):
                with _as_file(one.text + b"\n") as file:
                    scratch.load_verify_locations(file)
            else:
                scratch.load_verify_locations(cadata=one.der)
        except ssl.SSLError as error:
            raise PemError(f"the {one.label} on line {one.line} is none ({in_words(error)})") from None


class _EncryptedKeyError(Exception):
    """A key that wants a password."""


def _refuse_password() -> str:
    raise _EncryptedKeyError
