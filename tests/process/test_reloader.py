"""`srvkit run --reload`: what a developer saves is served a moment later."""

from __future__ import annotations

SERVER = '[server.a]\nlisten = "tcp://127.0.0.1:0"\nhandler = "talk"\n'


def test_an_edited_plugin_is_served(managed, talking):
    managed.write(SERVER)
    managed.begin("--reload")
    assert managed.answer().startswith(b"hello one ")
    managed.write(SERVER, talking.replace('b"one"', 'b"two"'))
    managed.program.wait_for(r"changed: \S+plugin\.py")
    managed.program.wait_for("reloaded: this is generation 2$")
    assert managed.answer().startswith(b"hello two ")


def test_a_mistake_leaves_what_runs_and_its_correction_is_served(managed, talking):
    managed.write(SERVER)
    managed.begin("--reload")
    managed.write(SERVER, talking + "\nsyntax error(")
    managed.program.wait_for("reload failed")
    assert managed.answer().startswith(b"hello one ")
    managed.write(SERVER, talking.replace('b"one"', 'b"two"'))
    managed.program.wait_for("reloaded: this is generation 2$")
    assert managed.answer().startswith(b"hello two ")


def test_the_configuration_and_what_a_plugin_imports_are_watched_too(managed, talking, eventually):
    (managed.folder / "words.py").write_text('NAME = b"alpha"\n')
    plugin = talking.replace('b"one"', '__import__("words").NAME')
    managed.write(SERVER, plugin)
    managed.begin("--reload")
    (managed.folder / "words.py").write_text('NAME = b"omega"\n')
    managed.program.wait_for("reloaded: this is generation 2$")
    eventually(lambda: managed.answer().startswith(b"hello omega "))
    (managed.folder / "srvkit.toml").write_text(
        (managed.folder / "srvkit.toml").read_text() + "workers = 2\n"
    )
    managed.program.wait_for("reloaded: this is generation 3$")
    assert len(managed.workers()) == 2


def test_without_it_nothing_is_watched(managed, talking):
    managed.write(SERVER)
    managed.begin()
    managed.write(SERVER, talking.replace('b"one"', 'b"two"'))
    managed.reload()
    assert managed.answer().startswith(b"hello two ")
    assert "changed: " not in managed.program.log
