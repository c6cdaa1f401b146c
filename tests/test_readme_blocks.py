"""The blocks of the README run: its programs, its configurations, its conversations with the shell.

A block is played as a reader would, in a folder of its own; only ports are others, so that nothing is in
the way. In what a command prints, … stands for anything.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
PATIENCE = 60  # seconds before a command counts as hung
PLAYED = ("Run it", "Your own server in two minutes")  # the sections that show a shell


def blocks(language: str, heading: str = "") -> list[str]:
    text = (
        re.split(r"^## ", re.split(rf"^## {heading}$", TEXT, flags=re.M)[1], flags=re.M)[0]
        if heading
        else TEXT
    )
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def block(language: str, text: str) -> str:
    """The block with this in it."""
    (found,) = (one for one in blocks(language) if text in one)
    return found


@pytest.fixture
def shell(tmp_path: Path, tool: Callable[[str], None]) -> Callable[..., str]:
    """`shell(command, folder=...)`: what bash says to it, with the srvkit and the Python of these tests."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, words in (("srvkit", "-m srvkit"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(command: str, folder: Path) -> str:
        if command.split()[0] == "nc" or "| nc " in command:
            tool("nc")
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def commands(conversation: str) -> list[tuple[str, str]]:
    """The commands of a conversation with a shell, each with what it prints."""
    parts = re.split(r"^\$ (.*)\n", conversation, flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def assert_printed(shown: str, printed: str) -> None:
    pattern = ".*".join(map(re.escape, shown.split("…")))
    assert re.fullmatch(pattern, printed), f"the README shows\n{shown}\nand not\n{printed}"


def port(address: str) -> str:
    return address.rsplit(":", 1)[1]


def write_plugins(folder: Path) -> None:
    """Write the README's plugins where their first lines say."""
    for program in blocks("python"):
        if place := re.match(r"# (handlers/\w+\.py)\n", program):
            (folder / "handlers").mkdir(exist_ok=True)
            (folder / place[1]).write_text(program)


def write_certificates(folder: Path) -> trustme.CA:
    (folder / "tls").mkdir()
    authority = trustme.CA()
    for names, cert, key in (
        (["mail.example.org"], "fullchain.pem", "privkey.pem"),
        (["mail.example.net", "*.mail.example.net"], "net.pem", "net.pem"),
    ):
        pair = authority.issue_cert(*names)
        pair.private_key_pem.write_to_path(folder / "tls" / key)
        for one in pair.cert_chain_pems:
            one.write_to_path(folder / "tls" / cert, append=cert == key)
    return authority


def test_every_conversation_is_in_a_section_that_is_played() -> None:
    assert sum(len(blocks("console", heading)) for heading in PLAYED) == len(blocks("console"))


def test_the_clone_answers_as_it_says(tmp_path: Path, start: Any, shell: Callable[..., str]) -> None:
    config = (ROOT / "srvkit.toml").read_text()
    (tmp_path / "srvkit.toml").write_text(re.sub(r"(127.0.0.1):\d+", r"\1:0", config))
    (tmp_path / "handlers").symlink_to(ROOT / "handlers")
    (conversation,) = blocks("console", "Run it")
    with start("-m", "srvkit", "run", "srvkit.toml", folder=tmp_path) as program:
        udp, tcp, shout = (port(program.addresses(name)[0]) for name in ("echo-udp", "echo", "shout"))
        program.addresses("echo-unix")
        for command, shown in commands(conversation):
            here = command.replace("7007", udp if " -u " in command else tcp).replace("7008", shout)
            assert_printed(shown, shell(here, tmp_path))
        assert program.end(signal.SIGINT) == 0


def test_the_server_of_two_minutes_is_made_edited_and_reloaded(
    tmp_path: Path, start: Any, shell: Callable[..., str]
) -> None:
    """The story as it is told, its files included."""
    heading = "Your own server in two minutes"
    folder = tmp_path / "mine"
    folder.mkdir()
    first, second, third = blocks("console", heading)
    (new, report), (run, nothing) = commands(first)
    assert_printed(report, shell(new, folder))
    assert (folder / "srvkit.toml").read_text() == blocks("toml", heading)[0]
    assert (run, nothing) == ("srvkit run", "")
    free = "server.greet.listen=tcp://127.0.0.1:0"
    with start("-m", *run.split(), "--set", free, folder=folder) as program:
        number = port(program.addresses("greet")[0])
        for conversation in (second, third):
            for command, shown in commands(conversation):
                assert_printed(shown, shell(command.replace("7007", number), folder))
            write_plugins(folder)
        assert program.end() == 0


@pytest.mark.parametrize("program", blocks("python"), ids=range(len(blocks("python"))))
def test_the_python_blocks_run(program: str, tmp_path: Path) -> None:
    (tmp_path / "test_block.py").write_text(program)
    words = ["test_block.py"]
    if "def test_" in program:
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        [sys.executable, "-W", "error", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("config", blocks("toml"), ids=range(len(blocks("toml"))))
def test_the_configurations_have_nothing_wrong(
    config: str, tmp_path: Path, shell: Callable[..., str]
) -> None:
    write_plugins(tmp_path)
    write_certificates(tmp_path)
    (tmp_path / "srvkit.toml").write_text(config)
    assert shell("srvkit check --set srvkit.plugins='[\"handlers\"]'", tmp_path).endswith(", nothing wrong\n")


def test_the_mail_server_begins_tls_when_asked(tmp_path: Path, run_srvkit: Any, client: Any) -> None:
    write_plugins(tmp_path)
    authority = write_certificates(tmp_path)
    free = ("--set", "server.mail.listen=tcp://127.0.0.1:0", "--set", 'srvkit.plugins=["handlers"]')
    program = run_srvkit(block("toml", "[server.mail.tls]"), "", *free)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    for name in ("mail.example.org", "mail.example.net", "in.mail.example.net"):
        sock = client(program.addresses("mail")[0])
        assert ask(sock, b"hello") == b"530 STARTTLS first\n"
        assert ask(sock, b"STARTTLS") == b"220 go ahead\n"
        with context.wrap_socket(sock, server_hostname=name) as encrypted:
            assert ask(encrypted, b"hello") == b"250 TLSv1.3\n"


def ask(sock: socket.socket, question: bytes) -> bytes:
    sock.sendall(question + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        received = sock.recv(1)
        assert received, f"the server has hung up after {answer!r}"
        answer += received
    return answer


def test_the_proxied_server_wants_a_header_of_those_it_trusts(
    tmp_path: Path, run_srvkit: Any, client: Any
) -> None:
    write_plugins(tmp_path)
    config = block("toml", "[server.mail.proxy]")
    words = ("--set", "server.mail.listen=tcp://127.0.0.1:0", "--set", 'srvkit.plugins=["handlers"]')
    program = run_srvkit(config.replace("10.0.0.2", "127.0.0.1"), "", *words)
    sock = client(program.addresses("mail")[0])
    assert ask(sock, b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 25\r\nhello") == b"530 STARTTLS first\n"
    client(program.addresses("mail")[0]).sendall(b"hello\n")
    program.wait_for("bad-proxy")


def test_the_lines_for_editors_and_shells_work(tmp_path: Path, shell: Callable[..., str]) -> None:
    (lines,) = (one for one in blocks("sh") if "srvkit schema" in one)
    printed = shell(f"{lines}complete -p srvkit", tmp_path)
    assert "title" in json.loads((tmp_path / ".srvkit.schema.json").read_text())
    assert printed.startswith("server.NAME.limits.idle_timeout\n")
    assert "complete " in printed.splitlines()[-1]
    assert (ROOT / "srvkit.toml").read_text().startswith("#:schema ./.srvkit.schema.json\n")


def test_the_container_runs_srvkit_and_stops_it_in_order() -> None:
    (image,) = blocks("dockerfile")
    command = json.loads(image.split("\nCMD ")[1])
    assert command == ["srvkit", "run"]
    assert re.search(r"^STOPSIGNAL SIGTERM$", image, re.M)
    assert re.search(r"^\| TERM, INT \| `stop` \| stops:", TEXT, re.M)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    lines = [line for one in blocks("sh") for line in one.splitlines() if "venv .venv" in line]
    assert [line for line in lines if "pytest" in line and "--group test" in line]
    assert [line for line in lines if line.endswith("srvkit run srvkit.toml")]
    assert "grep -m1 'pip install --editable' README.md" in (ROOT / ".ci" / "run").read_text()
