"""What `srvkit new` writes: for each kind a handler, its test and its table.

As short as they can be: what a handler becomes is its author's business. Nothing is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass

FOLDER = "handlers"
TAKEN = {"Lines", "MessageHandler", "StreamRequestHandler", "DatagramRequestHandler", "AsyncHandler", "Path"}

_HANDLER = '''\
"""{name}: what this handler is for."""

from srvkit import {imports}


class {title}({base}):
    """{doc}"""
{body}

@hookimpl
def srvkit_handlers():
    return {{"{name}": {title}}}
'''

_TEST = '''\
"""The handler {name}: what it answers, in memory and served by every model."""

import sys
from pathlib import Path

from srvkit.pytest_plugin import converse, srvkit_models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # srvkit.toml is there

from {folder}.{name} import {title}
{tests}'''

_TABLE = """\
[server.{name}]
listen = "{scheme}://127.0.0.1:{port}"
handler = "{name}"
concurrency = "{model}"
"""

_IN_MEMORY = """

def test_{name}_answers():
    assert converse({title}, [{message}]) == {answer}
"""

_UNDER_EVERY_MODEL = """

@srvkit_models({title})
def test_{name}_is_served_by_every_model(srvkit_server):
    server = srvkit_server({title}{transport})
    assert server.exchange({sent}) == {sent}
"""


@dataclass(frozen=True)
class Kind:
    """One kind of handler: what fills the templates."""

    base: str
    doc: str
    body: str
    model: str = "threading"
    scheme: str = "tcp"
    framing: str = ""  # imported from srvkit
    message: str = 'b"hello\\n"'  # what converse is given
    answer: str = 'b"hello\\n"'
    sent: str = 'b"hello\\n"'  # what a client sends, and gets back
    talk: str = "nc 127.0.0.1 {port}"

    def handler(self, name: str, title: str) -> str:
        """Return the text of the handler's module."""
        imports = ", ".join([*([self.framing] if self.framing else []), self.base, "hookimpl"])
        return _HANDLER.format(
            name=name, title=title, imports=imports, base=self.base, doc=self.doc, body=self.body
        )

    def test(self, name: str, title: str) -> str:
        """Return the text of the test's module."""
        words = {"name": name, "title": title, "sent": self.sent}
        words |= {"message": self.message, "answer": self.answer}
        words["transport"] = "" if self.scheme == "tcp" else f', transport="{self.scheme}"'
        return _TEST.format(
            name=name,
            title=title,
            folder=FOLDER,
            tests=(_IN_MEMORY + _UNDER_EVERY_MODEL).format(**words),
        )

    def table(self, name: str, port: int) -> str:
        """Return the table of the configuration."""
        return _TABLE.format(name=name, port=port, scheme=self.scheme, model=self.model)


KINDS = {
    "message": Kind(
        base="MessageHandler",
        framing="Lines",
        doc="Answer each line with the same line.",
        body="""
    framing = Lines()

    def handle_message(self, message):
        return message
""",
        message='b"hello"',
        answer='[b"hello"]',
    ),
    "stream": Kind(
        base="StreamRequestHandler",
        doc="Answer each line with the same line.",
        body="""
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
""",
    ),
    "datagram": Kind(
        base="DatagramRequestHandler",
        doc="Answer each datagram with the same bytes.",
        body="""
    def handle(self):
        self.wfile.write(self.rfile.read())
""",
        model="serial",
        scheme="udp",
        message='b"hello"',
        answer='[b"hello"]',
        sent='b"hello"',
        talk="nc -u 127.0.0.1 {port}",
    ),
    "async": Kind(
        base="AsyncHandler",
        doc="Answer each line with the same line.",
        body="""
    async def handle(self):
        async for line in self.reader:
            self.writer.write(line)
            await self.writer.drain()
""",
        model="asyncio",
    ),
}
