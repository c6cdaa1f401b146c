"""Whatever looks like a plugin, a hook or a handler is taken, or somebody says that it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from srvkit.errors import PluginError
from srvkit.plugins.manager import Plugins, make_manager

HEAD = "import srvkit\nfrom srvkit import hookimpl\n"
REFUSES = "@hookimpl\ndef srvkit_verify_request(server):\n    return False\n"
HANDLER = """
class Mine(srvkit.MessageHandler):
    framing = srvkit.Lines()
    def handle_message(self, message):
        return message
"""
OFFERS = HANDLER + "@hookimpl\ndef srvkit_handlers():\n    return {'mine': Mine}\n"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Plugins]]:
    """`make({"plugs/one.py": source}, "plugs")`: the plugins of these entries, in files of these names."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)

    def make(files: dict[str, str], *entries: str) -> Plugins:
        for name, source in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(HEAD + dedent(source))
        return make_manager(entries or ["plugs"], folder=tmp_path)

    yield make
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def refused(make: Callable[..., Plugins], *arguments: object) -> str:
    with pytest.raises(PluginError) as caught:
        make(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The file of a package


@pytest.mark.parametrize("more", [{}, {"plugs/mine.py": OFFERS}], ids=["alone", "beside others"])
@pytest.mark.parametrize("entry", ["plugs", "./plugs/", "plugs/__init__.py"])
def test_hooks_of_a_folders_init_count(entry, more, make):
    plugins = make({"plugs/__init__.py": REFUSES, **more}, entry)
    assert plugins.implementers("srvkit_verify_request") == ["plugs/__init__.py"]
    assert ("mine" in plugins.handlers) == (bool(more) and entry != "plugs/__init__.py")
    assert plugins.remarks() == []


def test_those_of_the_configurations_own_folder_count_too(make):
    plugins = make({"__init__.py": REFUSES, "mine.py": OFFERS}, ".")
    assert plugins.implementers("srvkit_verify_request") == ["__init__.py"]


def test_an_init_without_hooks_is_no_matter(make):
    plugins = make({"plugs/__init__.py": "value = 1\n", "plugs/mine.py": OFFERS})
    assert "mine" in plugins.handlers
    assert plugins.remarks() == []


def test_what_an_init_imports_from_the_plugins_beside_it_counts_once(make):
    files = {
        "plugs/__init__.py": "from plugs.mine import *\nfrom plugs.mine import srvkit_handlers\n",
        "plugs/mine.py": OFFERS + REFUSES,
    }
    plugins = make(files)
    assert plugins.handlers["mine"].plugin == "plugs/mine.py"
    assert plugins.implementers("srvkit_verify_request") == ["plugs/mine.py"]
    assert plugins.remarks() == []


def test_what_it_imports_from_a_private_file_is_its_own(make):
    plugins = make({"plugs/__init__.py": "from plugs._hooks import *\n", "plugs/_hooks.py": REFUSES})
    assert plugins.implementers("srvkit_verify_request") == ["plugs/__init__.py"]
    assert plugins.remarks() == []


# Hooks


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (REFUSES.replace("request", "requests"), "unknown hook 'srvkit_verify_requests', did you mean"),
        (REFUSES.replace("@hookimpl\n", ""), "srvkit_verify_request is not marked with @hookimpl"),
        ("srvkit_verify_request = lambda server: False\n", "is not marked with @hookimpl"),
        (
            "import functools\nsrvkit_verify_request = functools.partial(max, 0)\n",
            "srvkit_verify_request is not marked with @hookimpl",
        ),
        ("import pytest\n" + REFUSES.replace("@hook", "@pytest.hook"), "is not marked with @hookimpl"),
        (
            REFUSES.replace("@hookimpl\n", "").replace("request", "requst"),
            "srvkit_verify_requst is no hook, did you mean 'srvkit_verify_request'? (with @hookimpl)",
        ),
        (REFUSES.replace("def", "async def"), "is a coroutine, and hooks are not awaited"),
        (REFUSES.replace("return", "yield"), "srvkit_verify_request yields, and is no wrapper"),
        (
            "class Guard:\n    @hookimpl\n    def srvkit_verify_request(self): ...\nguard = Guard()\n",
            "srvkit_verify_request is a method of Guard, only functions of the module itself are hooks",
        ),
        (
            "class Guard:\n    @staticmethod\n    def srvkit_configure(config): ...\n",
            "srvkit_configure is a method of Guard",
        ),
    ],
)
@pytest.mark.parametrize("file", ["plugs/one.py", "plugs/__init__.py"])
def test_a_hook_that_was_to_refuse_somebody_is_taken_or_an_error(file, source, said, make):
    message = refused(make, {file: source})
    assert message.startswith(f"plugin {file}: ")
    assert said in message


@pytest.mark.parametrize(
    ("source", "note"),
    [
        (
            "class Watch:\n    @hookimpl\n    def srvkit_connection_open(self, server): ...\n",
            "plugs/one.py: srvkit_connection_open is a method of Watch, only functions of the module itself "
            "are hooks",
        ),
        (
            "def srvkit_banner():\n    return 'hello'\n",
            "plugs/one.py: srvkit_banner is called like a hook, and there is none of this name",
        ),
        (
            "class Other(Mine):\n    pass\n",
            "plugs/one.py has a handler Other that it does not offer: return it from srvkit_handlers, or "
            "name it _Other to say so",
        ),
    ],
)
def test_anything_else_that_is_not_taken_is_a_note(source, note, make):
    assert make({"plugs/one.py": OFFERS + source}).remarks() == [note]


def test_what_is_no_hook_and_no_handler_is_none(make):
    """Bases of what is offered, private classes, mixins, and what was imported from elsewhere."""
    source = """
        from socketserver import StreamRequestHandler
        from srvkit import MessageHandler
        class Base(srvkit.MessageHandler):
            def handle_message(self, message): ...
        class _Private(Base): ...
        class Mixin:
            def handle(self): ...
        class Ready(Base): ...
        @hookimpl
        def srvkit_handlers():
            return {"ready": Ready}
        @hookimpl(wrapper=True)
        def srvkit_verify_request(server):
            return (yield)
    """
    assert make({"plugs/one.py": source}).remarks() == []


def test_a_handler_that_the_configuration_names_by_its_class_is_taken(make):
    plugins = make({"plugs/one.py": OFFERS + "class Other(Mine): ...\n"})
    plugins.import_handler("plugs.one:Other")
    assert plugins.remarks() == []


# Files


NAME = " has hooks and is not taken, for its name: plugins are files NAME.py"


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("plugs/_guard.py", f"plugs/_guard.py{NAME}"),
        ("plugs/.guard.py", f"plugs/.guard.py{NAME}"),
        ("plugs/guard.PY", f"plugs/guard.PY{NAME}"),
        ("plugs/guard", f"plugs/guard{NAME}"),
        (
            "plugs/guard.pyc",
            "plugs/guard.pyc is compiled and not taken: name it in plugins as it is imported",
        ),
        (
            "plugs/more/guard.py",
            "plugs/more is a folder within a folder of plugins and is not searched, though guard.py there "
            "has hooks: name it in plugins, too",
        ),
    ],
)
def test_a_file_with_hooks_that_is_skipped_is_noted(file, note, make):
    plugins = make({"plugs/one.py": OFFERS, file: REFUSES})
    assert plugins.remarks() == [note]
    assert plugins.implementers("srvkit_verify_request") == []


@pytest.mark.parametrize(
    "file", ["plugs/test_guard.py", "plugs/conftest.py", "plugs/guard.txt", "plugs/.git/guard.py"]
)
def test_tests_and_texts_are_no_plugins(file, make):
    assert make({"plugs/one.py": OFFERS, file: REFUSES}).remarks() == []


@pytest.mark.parametrize("file", ["plugs/_helper.py", "plugs/README", "plugs/more/helper.py"])
def test_neither_are_files_without_hooks(tmp_path, file, make):
    assert make({"plugs/one.py": OFFERS, file: "value = 'hookimpl'\n"}).remarks() == []
