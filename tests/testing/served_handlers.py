"""Handlers that tests have served, live and in memory."""

from __future__ import annotations

from dataclasses import dataclass

import srvkit


class Echo(srvkit.MessageHandler):
    """Send lines back; with the option, more than once."""

    framing = srvkit.Lines()

    @dataclass
    class Options:
        times: int = 1

    def handle_message(self, message):
        if message.startswith(b"raise"):
            raise LookupError(message.decode())
        return [message] * self.options.times


class Blocking(srvkit.BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            data, sock = self.request
            sock.sendto(data.upper(), self.client_address)
            return
        while data := self.request.recv(100):
            self.request.sendall(data.upper())


class Upper(srvkit.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class Coroutine(srvkit.AsyncHandler):
    async def handle(self):
        self.writer.write((await self.reader.read()).upper())


class Silent(srvkit.MessageHandler):
    def handle_message(self, message):
        return None


class Greeter(srvkit.MessageHandler):
    """Greets, sends by itself, and closes; says how it ended."""

    framing = srvkit.Lines()
    ends: list[str] = []

    def connected(self):
        return b"welcome"

    def send(self, message):
        super().send(b"*" + message)

    def handle_message(self, message):
        self.send(b"thinking")
        if message == b"bye":
            self.close()
        yield b"hello " + message

    def disconnected(self, reason):
        self.ends.append(reason)
