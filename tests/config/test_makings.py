"""What a server is made of: what changes it, and what does not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srvkit.config.assemble import assemble
from srvkit.config.loader import from_table
from srvkit.config.makings import changed, makings_of

HANDLER = """
from dataclasses import dataclass
from pathlib import Path
import srvkit
{imports}

class Talk(srvkit.MessageHandler):
    @dataclass
    class Options:
        motd: Path = Path("motd.txt")

    def handle_message(self, message):
        return message

@srvkit.hookimpl
def srvkit_handlers():
    return {{"talk": Talk}}
"""


@pytest.fixture
def makings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, str]]]:
    """`makings(**server)`: of a server whose plugin is `talk.py` in the folder, loaded anew."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "talk.py").write_text(HANDLER.format(imports=""))
    loaded = set(sys.modules)

    def made(files: Any = None, general: Any = None, **server: Any) -> dict[str, str]:
        for name in set(sys.modules) - loaded:
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
        table = {"listen": "tcp://127.0.0.1:0", "handler": "talk", **server}
        settings = {"plugins": ["talk.py"], **(general or {})}
        config, problems = from_table({"srvkit": settings, "server": {"a": table}}, path=tmp_path / "x.toml")
        done = assemble(config, problems)
        return makings_of(config, done.plugins, done.plans, files or {})["a"]

    yield made
    for name in set(sys.modules) - loaded:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_same_is_the_same(makings: Any) -> None:
    assert changed(makings(), makings()) == []


@pytest.mark.parametrize(
    ("server", "keys"),
    [
        ({"limits": {"idle_timeout": "5m"}}, ["limits.idle_timeout"]),
        ({"workers": 2}, ["workers"]),
        ({"framing": "lines"}, ["framing"]),
        ({"concurrency": {"name": "pool", "threads": 3}}, ["concurrency"]),
        ({"access": {"allow": ["10.0.0.0/8"]}}, ["access.allow"]),
        ({"proxy": {"trusted": ["10.0.0.0/8"]}}, ["proxy.header_timeout", "proxy.trusted"]),
        ({"handler": {"name": "talk", "motd": "other.txt"}}, ["file motd.txt", "file other.txt", "handler"]),
    ],
)
def test_settings_are_told_by_their_keys(server: Any, keys: list[str], makings: Any) -> None:
    found = changed(makings(), makings(**server))
    assert [key for key in found if key not in ("proxy",)] == keys


def test_files_that_options_name_and_certificates_are_part_of_it(tmp_path: Path, makings: Any) -> None:
    before = makings(files={"a": {"cert.pem": b"1"}})
    (tmp_path / "motd.txt").write_text("hello")
    assert changed(before, makings(files={"a": {"cert.pem": b"2"}})) == ["file cert.pem", "file motd.txt"]


@pytest.mark.parametrize(
    "imports",
    ["import deep", "from deep import x", "import deep.low", "from deep.low import y", "import importlib"],
)
def test_code_is_followed_through_imports(imports: str, tmp_path: Path, makings: Any) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text("from . import low\nx = 1\n")
    (tmp_path / "deep" / "low.py").write_text("y = 1\n")
    (tmp_path / "talk.py").write_text(HANDLER.format(imports=f"import deep\n{imports}"))
    before = makings()
    (tmp_path / "deep" / "low.py").write_text("y = 2\n")
    assert changed(before, makings()) == ["deep/low.py"]


def test_what_is_not_imported_is_no_part_of_it(tmp_path: Path, makings: Any) -> None:
    before = makings()
    (tmp_path / "other.py").write_text("z = 1\n")
    assert changed(before, makings()) == []


def test_what_only_the_supervisor_needs_is_no_part_of_it(makings: Any) -> None:
    later = makings(general={"drain_timeout": 1, "retire_timeout": 2, "generations": 3, "ready_timeout": 4})
    assert changed(makings(), later) == []
    assert changed(makings(), makings(general={"heartbeat_timeout": 5})) == ["srvkit.heartbeat_timeout"]


def test_what_is_imported_later_on_is_part_of_it(tmp_path: Path, makings: Any) -> None:
    """Within a function, when nobody has called it yet."""
    (tmp_path / "later.py").write_text("z = 1\n")
    text = HANDLER.format(imports="").replace("return message", "import later; return message")
    (tmp_path / "talk.py").write_text(text)
    before = makings()
    (tmp_path / "later.py").write_text("z = 2\n")
    assert changed(before, makings()) == ["later.py"]


def test_the_plugin_of_a_framing_is_part_of_it(tmp_path: Path, makings: Any) -> None:
    offer = "import srvkit\n\n@srvkit.hookimpl\ndef srvkit_framings():\n    return {{'mine': srvkit.{0}}}\n"
    (tmp_path / "framings.py").write_text(offer.format("Lines"))
    server = {"framing": "mine", "general": {"plugins": ["talk.py", "framings.py"]}}
    before = makings(**server)
    (tmp_path / "framings.py").write_text(offer.format("Netstring"))
    assert changed(before, makings(**server)) == ["framings.py"]


def test_the_name_of_a_file_hides_no_setting(tmp_path: Path, makings: Any) -> None:
    before = makings(handler={"name": "talk", "motd": "workers"})
    assert changed(before, makings(handler={"name": "talk", "motd": "workers"}, workers=3)) == ["workers"]


@pytest.mark.parametrize("kind", ["list[Path]", "tuple[Path, ...]"])
def test_files_in_lists_are_part_of_it(kind: str, tmp_path: Path, makings: Any) -> None:
    text = HANDLER.format(imports="").replace('motd: Path = Path("motd.txt")', f"motd: {kind} = ()")
    (tmp_path / "talk.py").write_text(text)
    (tmp_path / "one.txt").write_text("1")
    before = makings(handler={"name": "talk", "motd": ["one.txt"]})
    (tmp_path / "one.txt").write_text("2")
    assert changed(before, makings(handler={"name": "talk", "motd": ["one.txt"]})) == ["file one.txt"]
