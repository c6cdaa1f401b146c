"""Certificates that are renewed while srvkit serves, and what is wrong with others."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from pathlib import Path

from tests.conftest import Connect, Start, Tool
from tests.server.conftest import Say, Secure, Under
from tests.server.tls_settings import TLS

PATIENCE = 30


TABLES = {"reload": (TLS.replace('client_ca = "ca.pem"\n', ""),)}


def test_certificates_are_renewed_and_nobody_is_cut(
    under: Under, client: Connect, secure: Secure, say: Say
) -> None:
    """Connections that have begun a message go on where they are; broken certificates change nothing."""
    program = under("reload")
    config = program.folder / "srvkit.toml"

    def connect(cell: str) -> ssl.SSLSocket:
        sock: ssl.SSLSocket = secure(client(program.address(cell)), "")
        return sock

    def names(sock: ssl.SSLSocket) -> list[str]:
        return [name for _, name in (sock.getpeercert() or {})["subjectAltName"]]

    before = {cell: connect(cell) for cell in program.cells}
    for sock in before.values():
        assert say(sock, b"hello") == b"hello"
        sock.sendall(b"half a ")
    config.write_text(program.config.replace('"server.pem"', '"ca.pem"'))
    answer = program.ask(do="reload")
    assert not answer.get("ok")
    assert "holds no usable key in PEM" in json.dumps(answer)
    config.write_text(program.config)
    (program.folder / "server.pem").write_bytes((program.folder / "renewed.pem").read_bytes())
    assert program.ask(do="reload").get("ok"), program.program.log
    after = {cell: connect(cell) for cell in program.cells}
    for sock in after.values():
        assert names(sock) == ["localhost", "renewed.example"]
        sock.sendall(b"half an")
    for cell, sock in before.items():
        assert names(sock) == ["localhost"]
        assert say(sock, b"message") == b"half a message", cell
        sock.close()
    idle = {cell: connect(cell) for cell in program.cells if not cell.startswith("serial")}
    for sock in idle.values():
        assert say(sock, b"hello") == b"hello"
    program.program.process.terminate()
    program.program.wait_for("stopping|draining")
    for cell, sock in after.items():
        assert say(sock, b"other") == b"half another", cell
        if "message" in cell:
            assert sock.recv(1) == b""  # announced, or ssl would raise
        sock.close()
    for cell, sock in idle.items():
        if "message" in cell:
            assert sock.recv(1) == b""
        sock.close()
    assert program.program.ended() == 0


# What is wrong with certificates is wrong with the configuration

WRONG = """\
[server.missing]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls.cert = "nowhere.pem"
[server.mismatched]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls = { cert = "server.pem", key = "other.pem" }
[server.encrypted]
listen = "tcp://127.0.0.1:0"
handler = "echo"
[server.encrypted.tls]
cert = "server.pem"
key = "encrypted.pem"
[server.nothing]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls.cert = "srvkit.toml"
[server.names]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls.cert = "server.pem"
[[server.names.tls.sni]]
names = ["a.*.example", "b.example"]
cert = "server.pem"
[[server.names.tls.sni]]
names = ["b.example"]
cert = "folder"
[server.authority]
listen = "tcp://127.0.0.1:0"
handler = "echo"
tls = { cert = "server.pem", client_ca = "empty.pem", alpn = [""] }
[server.datagrams]
listen = "udp://127.0.0.1:0"
handler = "echo"
tls.cert = "server.pem"
"""
PROBLEMS = """\
srvkit.toml:4: server.missing.tls.cert: nowhere.pem cannot be read: No such file or directory
srvkit.toml:8: server.mismatched.tls.key: other.pem is not the key of server.pem
srvkit.toml:14: server.encrypted.tls.key: encrypted.pem is encrypted; srvkit cannot ask for its password: \
store it without one
srvkit.toml:18: server.nothing.tls.cert: srvkit.toml holds no usable certificate in PEM
srvkit.toml:24: server.names.tls.sni[0].names[0]: 'a.*.example': only a whole first label may be '*'
srvkit.toml:27: server.names.tls.sni[1].names[0]: 'b.example' has another certificate already
srvkit.toml:28: server.names.tls.sni[1].cert: folder cannot be read: Is a directory
srvkit.toml:32: server.authority.tls.client_ca: empty.pem holds no certificate in PEM
srvkit.toml:32: server.authority.tls.alpn: a protocol's name has 1 to 255 bytes of ASCII
srvkit.toml:36: server.datagrams.tls: only streams (tcp, unix) can have it, not udp://127.0.0.1:0
"""


def test_every_problem_with_certificates_has_its_place(
    tool: Tool, start: Start, certificates: Path, tmp_path: Path
) -> None:
    tool("openssl")
    for name, source in (("server", "server"), ("other", "one")):
        (tmp_path / f"{name}.pem").write_bytes((certificates / f"{source}.pem").read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pem").touch()
    (tmp_path / "srvkit.toml").write_text(WRONG)
    subprocess.run(
        [
            "openssl",
            "pkey",
            "-in",
            "server.pem",
            "-aes128",
            "-passout",
            "pass:secret",
            "-out",
            "encrypted.pem",
        ],
        cwd=tmp_path,
        check=True,
        timeout=PATIENCE,
    )
    with start("-m", "srvkit", "check", folder=tmp_path) as program:
        assert program.ended() == 2
    said = program.log.replace(f"{tmp_path}/", "")
    for line in PROBLEMS.splitlines():
        assert line in said
    assert len(re.findall(r"srvkit\.toml:\d+:", program.log)) == len(PROBLEMS.splitlines())
