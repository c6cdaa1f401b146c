"""`srvkit serve HANDLER ADDRESS` serves one handler without a file."""

from __future__ import annotations

import re
import urllib.request

import pytest

from srvkit.plugins.builtin import srvkit_concurrency

MODELS = ", ".join(sorted(srvkit_concurrency()))


def test_the_standard_librarys_web_server_serves_the_current_folder(start, tmp_path):
    (tmp_path / "hello.txt").write_text("hello from a file\n")
    words = ("http.server:SimpleHTTPRequestHandler", "tcp://127.0.0.1:0")
    with start("-m", "srvkit", "serve", *words, folder=tmp_path) as program:
        (address,) = program.addresses("serve")
        with urllib.request.urlopen(
            f"http://{address.removeprefix('tcp://')}/hello.txt", timeout=30
        ) as answer:
            assert answer.read() == b"hello from a file\n"
        assert program.end() == 0


@pytest.mark.parametrize("model", ["serial", "threading", "pool", "forking"])
def test_a_handler_of_the_current_folder_is_found_under_every_model(model, start, client, tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "words.py").write_text('WORD = b"mine"\n')
    (tmp_path / "app" / "greet.py").write_text(
        "from srvkit import BaseRequestHandler\nfrom .words import WORD\n"
        "class Greet(BaseRequestHandler):\n"
        "    class Inner(BaseRequestHandler):\n"
        "        def handle(self):\n            self.request.sendall(WORD)\n"
    )
    words = ("app.greet:Greet.Inner", "unix:greet.sock", "tcp://127.0.0.1:0", "--concurrency", model)
    with start("-m", "srvkit", "serve", *words, folder=tmp_path) as program:
        addresses = program.addresses("serve")
        assert addresses[0] == f"unix:{tmp_path / 'greet.sock'}"
        for address in addresses:
            with client(address, tmp_path) as sock:
                assert sock.recv(100) == b"mine"
        assert program.end() == 0
    assert not (tmp_path / "greet.sock").exists()


def test_a_plugin_and_settings_can_be_given(start, client, tmp_path):
    (tmp_path / "parrot.py").write_text(
        "from srvkit import *\nclass Parrot(MessageHandler):\n"
        "    def handle_message(self, message):\n        return message * 2\n"
        "@hookimpl\ndef srvkit_handlers():\n    return {'parrot': Parrot}\n"
    )
    words = ("parrot", "unix:p.sock", "--plugins", "parrot.py", "--set", "server.serve.framing=lines")
    with start("-m", "srvkit", "serve", *words, folder=tmp_path) as program:
        program.addresses("serve")
        with client("unix:p.sock", tmp_path) as sock:
            sock.sendall(b"a\nb\n")
            received = b""
            while len(received) < 6:
                received += sock.recv(100)
            assert received == b"aa\nbb\n"
        assert program.end() == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["ehco", "tcp://127.0.0.1:0"],
            "server.serve.handler: unknown handler 'ehco', did you mean 'echo'? (known are chargen, daytime, "
            "discard, echo, shout, time)",
        ),
        (
            ["absent:X", "tcp://127.0.0.1:0"],
            "server.serve.handler: absent:X: there is no module 'absent' on the import path",
        ),
        (
            ["http.server:SimpleHTTPRequesthandler", "tcp://127.0.0.1:0"],
            r"server.serve.handler: http.server:SimpleHTTPRequesthandler: .*http/server.py has "
            r"no class "
            r"'SimpleHTTPRequesthandler', did you mean 'SimpleHTTPRequestHandler'\?",
        ),
        (
            ["http.server:HTTPServer", "tcp://127.0.0.1:0"],
            "server.serve.handler: HTTPServer has no handle(): it is a server, name its handler",
        ),
        (
            ["json:JSONDecoder", "tcp://127.0.0.1:0"],
            "server.serve.handler: JSONDecoder has no handle(): it is no handler",
        ),
        (
            ["json:dumps", "tcp://127.0.0.1:0"],
            "server.serve.handler: json:dumps: 'dumps' in .*json/__init__.py is an object of "
            "type function, "
            "not a class",
        ),
        (
            ["echo", "localhost:80"],
            "server.serve.listen[0]: 'localhost:80' is no address; known are tcp://HOST:PORT, "
            "udp://HOST:PORT, "
            "unix:PATH or unix:@NAME, unixgram:PATH or unixgram:@NAME, fd:N, systemd:NAME",
        ),
        (
            ["echo", "tcp://127.0.0.1:0", "--workers", "0"],
            'server.serve.workers: expected a number from 1 to 1024 or "auto", got 0',
        ),
        (
            ["echo", "tcp://127.0.0.1:0", "--concurrency", "quantum"],
            f"server.serve.concurrency: unknown concurrency model 'quantum' (known are {MODELS})",
        ),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(words, message, refused):
    (line,) = refused(2, "serve", *words)
    assert line == message or re.fullmatch(message, line)


def test_an_address_that_cannot_be_had_is_said_in_one_line(refused):
    assert refused(3, "serve", "echo", "tcp://192.0.2.1:0") == [
        "cannot listen on tcp://192.0.2.1:0: this machine has no such address"
    ]
