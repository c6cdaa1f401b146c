"""What is noted of certificates that are in order by themselves."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trustme

from srvkit.config import loader
from srvkit.config.assemble import assemble


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


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
    days: float, note: list[str], more: str, authority: trustme.CA, tmp_path: Path
) -> None:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    issued = authority.issue_cert("localhost", not_after=end)
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    path = tmp_path / "srvkit.toml"
    path.write_text(
        f"[server.a]\nlisten = 'tcp://127.0.0.1:0'\nhandler = 'echo'\ntls.cert = 'cert.pem'\n{more}"
    )
    assembled = assemble(*loader.read(path))
    assert assembled.notes() == note
    server_class: type = assembled.plans[0].server_class
    assert server_class.tls.context.verify_mode == bool(more) * 2  # type: ignore[attr-defined]


def test_there_is_none_without_tls(tmp_path: Path) -> None:
    path = tmp_path / "srvkit.toml"
    path.write_text("[server.a]\nlisten = 'tcp://127.0.0.1:0'\nhandler = 'echo'\n")
    assert assemble(*loader.read(path)).notes() == []
