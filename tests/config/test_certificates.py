"""What is noted of certificates that are in order by themselves, and what is wrong with others."""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from srvkit.config import loader
from srvkit.config.assemble import assemble
from srvkit.errors import ConfigError

SERVER = "[server.a]\nlisten = 'tcp://127.0.0.1:0'\nhandler = 'echo'\ntls.cert = 'cert.pem'\n"
SNI = "[[server.a.tls.sni]]\nnames = ['soon.example']\ncert = 'soon.pem'\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(organization_name="Those who know")


def in_days(days: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


@pytest.fixture
def folder(tmp_path: Path, authority: trustme.CA) -> Path:
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path


@pytest.fixture
def notes(folder: Path) -> Callable[[str], list[str]]:
    """`notes(more)`: what is noted of a server with TLS and more."""

    def notes(more: str = "") -> list[str]:
        (folder / "srvkit.toml").write_text(SERVER + more)
        return assemble(*loader.read(folder / "srvkit.toml")).notes()

    return notes


@pytest.fixture
def errors(notes: Any) -> Callable[[str], list[str]]:
    """`errors(more)`: what is wrong with it, with the lines of the file."""

    def errors(more: str = "") -> list[str]:
        with pytest.raises(ConfigError) as caught:
            notes(more)
        return [f"{one.line}: {one.key}: {one.message}" for one in caught.value.problems]

    return errors


@pytest.mark.parametrize(
    ("days", "note"),
    [
        (-1, ["server.a.tls.cert: certificate has expired"]),
        (5.01, ["server.a.tls.cert: ends in 5.0 days"]),
        (100, []),
    ],
)
@pytest.mark.parametrize("more", ["", "tls.client_ca = 'ca.pem'\n"])
def test_a_certificate_that_ends_is_a_note_and_no_error(
    days: float, note: list[str], more: str, authority: trustme.CA, folder: Path
) -> None:
    issued = authority.issue_cert("localhost", not_after=in_days(days))
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
    path = folder / "srvkit.toml"
    path.write_text(SERVER + more)
    assembled = assemble(*loader.read(path))
    assert assembled.notes() == note
    server_class: type = assembled.plans[0].server_class
    assert server_class.tls.context.verify_mode == bool(more) * 2  # type: ignore[attr-defined]


def test_there_is_none_without_tls(tmp_path: Path) -> None:
    path = tmp_path / "srvkit.toml"
    path.write_text("[server.a]\nlisten = 'tcp://127.0.0.1:0'\nhandler = 'echo'\n")
    assert assemble(*loader.read(path)).notes() == []


def test_one_that_is_not_yet_valid_is_noted_too(authority: trustme.CA, folder: Path, notes: Any) -> None:
    issued = authority.issue_cert("localhost", not_before=in_days(1), not_after=in_days(90))
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
    assert notes() == ["server.a.tls.cert: certificate is not yet valid"]


def test_every_certificate_is_looked_at(authority: trustme.CA, folder: Path, notes: Any) -> None:
    """Those for other names, whole chains, and the authorities of clients."""
    soon = authority.issue_cert("soon.example", not_after=in_days(2.01))
    soon.private_key_and_cert_chain_pem.write_to_path(folder / "soon.pem")
    late = authority.issue_cert("late", common_name="an old one", not_after=in_days(-1))
    for name in ("cert.pem", "ca.pem"):
        late.cert_chain_pems[0].write_to_path(folder / name, append=True)
    assert notes("tls.client_ca = 'ca.pem'\n" + SNI) == [
        "server.a.tls.client_ca: CN=an old one has expired",
        "server.a.tls.cert: CN=an old one, in its chain, has expired",
        "server.a.tls.sni[0].cert: ends in 2.0 days",
    ]


# Authorities and their lists


@pytest.fixture
def listed(folder: Path, revocation_list: Any, authority: trustme.CA) -> Callable[..., None]:
    """`listed(ca, ...)`: have the file of authorities hold the lists of these."""

    def listed(*authorities: Any, **more: Any) -> None:
        data = authority.cert_pem.bytes() + b"".join(revocation_list(one, **more) for one in authorities)
        (folder / "ca.pem").write_bytes(data)

    return listed


CA = "tls.client_ca = 'ca.pem'\n"


@pytest.mark.parametrize("has_list", [False, True])
def test_lists_are_obeyed_where_there_are_any(
    has_list: bool, listed: Any, authority: trustme.CA, folder: Path
) -> None:
    listed(*[authority] * has_list)
    (folder / "srvkit.toml").write_text(SERVER + CA)
    assembled = assemble(*loader.read(folder / "srvkit.toml"))
    assert assembled.notes() == []
    context = assembled.certificates["a"].context
    chain = ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    assert (context.verify_flags & chain == chain) == has_list


@pytest.mark.parametrize(
    ("times", "note"),
    [
        ({"days": -0.5}, "has expired, so its clients are refused"),
        ({"days": 0.501}, "ends in 0.5 days"),
        ({"days": 5, "begins": 1}, "is not yet valid, so its clients are refused"),
    ],
)
def test_a_list_that_is_too_old_is_noted(
    times: Any, note: str, listed: Any, authority: trustme.CA, notes: Any
) -> None:
    listed(authority, **times)
    name = "O=Those who know, OU="
    (said,) = notes(CA)
    assert said.startswith(f"server.a.tls.client_ca: the revocation list of {name}")
    assert said.endswith(note)


def test_either_every_authority_has_a_list_or_none_has(
    listed: Any, authority: trustme.CA, folder: Path, errors: Any, notes: Any, revocation_list: Any
) -> None:
    """OpenSSL would refuse every client of an authority without one, and nobody would know why."""
    below = authority.create_child_ca()
    other = trustme.CA(organization_name="Others")
    listed(authority)
    for one in (below, other):
        one.cert_pem.write_to_path(folder / "ca.pem", append=True)
    (said,) = errors(CA)
    assert said.startswith("5: server.a.tls.client_ca: ")
    assert "ca.pem holds revocation lists, and none of O=trustme v" in said
    assert " and O=Others, OU=" in said
    with (folder / "ca.pem").open("ab") as file:
        for one in (below, other):
            file.write(revocation_list(one))
    assert notes(CA) == []


LETTERS = b"-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (b"0\x82\x03\x01", "there are bytes that are no PEM, from line"),
        (LETTERS, "the CERTIFICATE on line"),
        (LETTERS.replace(b"CERTIFICATE", b"X509 CRL"), "the X509 CRL on line"),
        (LETTERS.replace(b"bm8", b"%%%"), "is no base64"),
        (LETTERS.replace(b"CERTIFICATE", b"CRL"), "nothing is made of the CRL on line"),
        (LETTERS.replace(b"CERTIFICATE", b"CERTIFICATE REQUEST"), "nothing is made of the CERTIFICATE REQ"),
        (LETTERS.replace(b"-----END CERTIFICATE-----\n", b""), "begins "),
        (LETTERS.replace(b"-----B", b"  -----B"), "begins or ends a block and has no counterpart"),
        (LETTERS.replace(b"-----", b"----"), "begins or ends a block and has no counterpart"),
        (b"\xef\xbb\xbf" + LETTERS, "begins or ends a block and has no counterpart"),
    ],
)
def test_what_openssl_would_pass_over_is_an_error(
    more: bytes, reason: str, folder: Path, errors: Any, authority: trustme.CA
) -> None:
    whole = (folder / "ca.pem").read_bytes()
    for text in (whole + b"\n# its list:\n" + more, more + whole):
        (folder / "ca.pem").write_bytes(text)
        (said,) = errors(CA)
        assert said.startswith(f"5: server.a.tls.client_ca: {folder}/ca.pem: ")
        assert reason in said


def test_words_around_the_blocks_are_no_matter(folder: Path, notes: Any) -> None:
    whole = (folder / "ca.pem").read_bytes()
    (folder / "ca.pem").write_bytes("Certifié: §\n".encode() + whole.replace(b"\n", b"\r\n") + b"\n--\n")
    assert notes(CA) == []


def test_a_certificates_file_is_looked_at_as_closely(
    folder: Path, errors: Any, revocation_list: Any, authority: trustme.CA
) -> None:
    whole = (folder / "cert.pem").read_bytes()
    for more, reason in (
        (LETTERS, "the CERTIFICATE on line"),
        (revocation_list(authority), "the revocation list on line"),
        (b"\0\1", "there are bytes that are no PEM"),
    ):
        (folder / "cert.pem").write_bytes(whole + more)
        (said,) = errors()
        assert said.startswith(
            f"4: server.a.tls.cert: {folder}/cert.pem holds no usable certificate in PEM: "
        )
        assert reason in said


def test_der_is_no_pem(folder: Path, errors: Any, authority: trustme.CA) -> None:
    (folder / "ca.pem").write_bytes(ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode()))
    (said,) = errors(CA)
    assert "bytes that are no PEM" in said


# Keys and names


@pytest.mark.parametrize(
    ("sni", "wrong"),
    [
        ("key = 'ca.pem'", "9: server.a.tls.sni[0].key: {}/ca.pem holds no usable key in PEM"),
        ("key = 'key.pem'", "9: server.a.tls.sni[0].key: {}/key.pem is not the key of {}/soon.pem"),
        ("key = 'no.pem'", "9: server.a.tls.sni[0].key: {}/no.pem cannot be read: No such file"),
        ("key = 'secret.pem'", "9: server.a.tls.sni[0].key: {}/secret.pem is encrypted"),
    ],
)
def test_a_key_for_a_name_is_that_of_its_certificate(
    sni: str, wrong: str, folder: Path, authority: trustme.CA, errors: Any
) -> None:
    from cryptography.hazmat.primitives import serialization

    soon = authority.issue_cert("soon.example")
    soon.cert_chain_pems[0].write_to_path(folder / "soon.pem")
    key: Any = serialization.load_pem_private_key(soon.private_key_pem.bytes(), None)
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        locked = serialization.BestAvailableEncryption(b"secret")
        (folder / "secret.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
        (said,) = errors(f"{SNI}{sni}\n".replace("cert =", "\ncert ="))
        assert said.startswith(wrong.replace("{}", str(folder)))


def test_names_that_nobody_can_ask_for_are_errors_on_their_lines(
    folder: Path, errors: Any, authority: trustme.CA
) -> None:
    for name in ("soon.pem", "other.pem"):
        issued = authority.issue_cert("soon.example")
        issued.private_key_and_cert_chain_pem.write_to_path(folder / name)
    table = SNI + "[[server.a.tls.sni]]\nnames = [\n'127.0.0.1',\n'a.example:443',\n"
    table += "'SOON.example.',\n'stra\u00dfe.example', 'strasse.example']\ncert = 'other.pem'\n"
    assert errors(table) == [
        "10: server.a.tls.sni[1].names[0]: '127.0.0.1': clients ask for names only, never for addresses",
        "11: server.a.tls.sni[1].names[1]: 'a.example:443': a name alone is wanted, without a scheme, a port "
        "or a path",
        "12: server.a.tls.sni[1].names[2]: 'SOON.example.' has another certificate already",
    ]


def test_nothing_of_a_key_is_left_where_others_could_read_it(
    folder: Path, notes: Any, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where there is no unnamed memory, either."""

    def refuse(name: str) -> int:
        raise PermissionError(1, "not permitted")

    place = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr("srvkit.net.credentials.SHARED_MEMORY", str(place / "none"))
    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    assert notes(CA) == []
    monkeypatch.setattr("os.path.exists", lambda path: False)  # neither /proc nor /dev is there
    assert notes(CA) == []
    assert list(place.iterdir()) == []
