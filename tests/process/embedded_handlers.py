"""An echo for programs that embed a server, and a client of it."""

from __future__ import annotations

import socket

import srvkit

TCP = "tcp://127.0.0.1:0"


class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()

    def handle_message(self, message):
        return message


def ask(address, line=b"hello\n"):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(30)
        sock.connect(address)
        sock.sendall(line)
        with sock.makefile("rb") as file:
            return file.readline()
