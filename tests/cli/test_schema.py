"""`srvkit schema` prints a schema that names the plugins of the configuration, and nothing else."""

from __future__ import annotations

import json

PARROT = """
from srvkit import MessageHandler, hookimpl
class Parrot(MessageHandler): ...
@hookimpl
def srvkit_handlers():
    return {"parrot": Parrot}
"""


def names(done):
    server = json.loads(done.stdout)["properties"]["server"]["additionalProperties"]
    return server["properties"]["handler"]["anyOf"][0]["examples"]


def test_handlers_of_the_configuration_are_suggested(srvkit, tmp_path):
    done = srvkit("schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert "echo" in names(done)
    assert "parrot" not in names(done)
    (tmp_path / "parrot.py").write_text(PARROT)
    (tmp_path / "zoo.toml").write_text('[srvkit]\nplugins = ["parrot.py"]\n[server.x]\nlisten = 7\n')
    assert "parrot" in names(srvkit("schema", "zoo.toml"))


def test_a_plugin_that_cannot_be_used_is_an_error(refused, tmp_path):
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["absent.py"]\n')
    (line,) = refused(3, "schema")
    assert "there is no file" in line


ODD = """
import enum, srvkit
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, List, Literal

class Kind(enum.Enum):
    ONE = object()

def fail():
    raise ZeroDivisionError("on purpose")

class Odd(srvkit.MessageHandler):
    framing = srvkit.Lines()

    @dataclass
    class Options:
        words: tuple[bytes, ...] = (b"quit", b"\\xff")
        ends: frozenset[bytes] = frozenset([b"b", b"a"])
        place: Path | str = Path("run")
        rate: Decimal = Decimal("1.5")
        choice: Literal[b"a", b"b"] = b"a"
        kind: Kind = Kind.ONE
        when: InitVar[int] = 0
        call: Callable[[], int] | None = None
        bare: List = field(default_factory=list)
        worse: [int] = None
        broken: list[int] = field(default_factory=fail)

        def __post_init__(self, when):
            raise LookupError("not today")

    def handle_message(self, message):
        return message

class Lost(Odd):
    class Options:
        def __init__(self, size: "Missing" = 1): ...

@srvkit.hookimpl
def srvkit_handlers():
    return {"odd": Odd, "lost": Lost}
"""


def test_every_command_survives_whatever_options_declare(srvkit, tmp_path):
    """Whether anything asks for them or not; `check` and `run` say in one line what is wrong."""
    (tmp_path / "plugin.py").write_text(ODD)
    head = '[srvkit]\nplugins = ["plugin.py"]\n'
    table = '[server.{0}]\nlisten = "unix:{0}.sock"\nhandler = {{ name = "{0}", {1} }}\n'
    (tmp_path / "srvkit.toml").write_text(head + table.format("odd", "") + table.format("lost", "size = 1"))

    for words in (("schema",), ("plugins",), ("explain", "odd"), ("explain", "lost")):
        done = srvkit(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
    for words in (("check",), ("run",), ("run", "--single"), ("check", "--explain")):
        done = srvkit(*words)
        assert done.returncode == 2
        lines = [line for line in done.stderr.splitlines() if "server." in line]
        assert [line.partition("srvkit.toml:")[2] for line in lines] == [
            "5: server.odd.handler: ZeroDivisionError: on purpose",
            "8: server.lost.handler: what options there are cannot be read from the annotations: name "
            "'Missing' is not defined",
        ], done.stderr
        assert "Traceback" not in done.stderr
