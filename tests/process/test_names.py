"""A configuration by all its names: behind links that are turned, in folders of any name and any depth."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = '[server.a]\nlisten = "{listen}"\nhandler = "talk"\n'


OWN_PLACES = 'control = "c.sock"\npid_file = "srvkit.pid"\n'


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Python leave nothing of its own beside a plugin: what is left there is looked at."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


def release(folder: Path, plugin: str, listen: str, general: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "plugin.py").write_text(plugin)
    head = f'[srvkit]\nplugins = ["plugin.py"]\n{general}\n'
    (folder / "srvkit.toml").write_text(head + TABLE.format(listen=listen))


def turn(link: Path, target: str) -> None:
    new = link.with_name("new")
    new.symlink_to(target)
    new.replace(link)


def begin(managed, config, **settings):
    managed.program = managed.start("-m", "srvkit", "run", config, **settings)
    managed.program.wait_for("listening on ")


def obeyed(managed, *words):
    done = managed.command(*words)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize("general", ["", OWN_PLACES], ids=["default places", "own places"])
@pytest.mark.parametrize("inside", [False, True], ids=["by its path", "from inside"])
def test_a_deployment_turns_a_link(general, inside, managed, talking, monkeypatch):
    folder, current = managed.folder, managed.folder / "current"
    release(folder / "1", talking, "unix:a.sock", general)
    release(folder / "2", talking.replace('b"one"', 'b"two"'), "unix:a.sock", general)
    current.symlink_to("1")
    if inside:
        monkeypatch.setenv("PWD", str(current))
        managed.program = managed.start("-m", "srvkit", "run", folder=current)
        managed.program.wait_for("listening on ")
    else:
        begin(managed, "current/srvkit.toml")
    monkeypatch.delenv("PWD", raising=False)
    config = "current/srvkit.toml"
    assert str(managed.program.pid) in obeyed(managed, "status", config)
    turn(current, "2")
    for words in (["status"], ["connections"]):
        obeyed(managed, *words, config)
    assert managed.command("run", config).returncode == 3
    assert "generation 2" in obeyed(managed, "reload", config)
    assert managed.answer(address="unix:2/a.sock").startswith(b"hello two ")
    if general:
        assert (folder / "2/srvkit.pid").read_text() == f"{managed.program.pid}\n"
        assert (folder / "2/c.sock").is_socket()
        assert not list(folder.glob("1/*.sock*")) and not list(folder.glob("1/*.pid"))
    assert str(managed.program.pid) in obeyed(managed, "status", "2/srvkit.toml")
    assert "running already" in managed.command("run", "2/srvkit.toml").stderr
    turn(current, "1")
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("reloaded: this is generation 3$")
    assert managed.answer(address="unix:1/a.sock").startswith(b"hello one ")
    assert str(managed.program.pid) in obeyed(managed, "status", "1/srvkit.toml")
    obeyed(managed, "stop", config)
    assert managed.program.ended() == 0
    assert not list((folder / "run").iterdir())
    assert {path.name for path in folder.glob("[12]/*")} == {"srvkit.toml", "plugin.py"}


LOCALES = {
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize(
    "name", [b"h\xf6hle", "höhle".encode(), b"x" * 120], ids=["latin-1", "utf-8", "long"]
)
def test_a_folder_may_have_any_name(name, locale, managed, talking, monkeypatch, eventually):
    def logged(text):
        eventually(lambda: log.exists() and text in log.read_text())

    for variable, value in LOCALES[locale].items():
        monkeypatch.setenv(variable, value)
    folder = managed.folder / os.fsdecode(name)
    log = folder / "srvkit.log"
    general = 'control = "c.sock"\npid_file = "srvkit.pid"\n[logging]\nfile = "srvkit.log"'
    release(folder, talking, "unix:a.sock", general)
    config = str(folder / "srvkit.toml")
    obeyed(managed, "check", config)
    managed.program = managed.start("-m", "srvkit", "run", config)
    logged("listening on ")
    assert (folder / "srvkit.pid").read_text() == f"{managed.program.pid}\n"
    for words in (["status"], ["status", "--json"], ["connections"], ["reload"]):
        obeyed(managed, *words, config)
    managed.signal(signal.SIGUSR2)
    logged("this is generation 3")
    os.rename(folder / "srvkit.log", folder / "old.log")
    managed.signal(signal.SIGUSR1)
    logged("reopened")
    obeyed(managed, "stop", config)
    assert managed.program.ended() == 0
    left = {path.name for path in folder.iterdir()}
    assert left == {"srvkit.toml", "plugin.py", "old.log", "srvkit.log"}
    assert "Traceback" not in (folder / "old.log").read_text() + (folder / "srvkit.log").read_text()


# ---- however it was started


def zipped(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "srvkit.pyz", "w") as file:
        for path in (ROOT / "srvkit").rglob("*.py"):
            file.write(path, path.relative_to(ROOT))
        file.writestr("__main__.py", "import sys\nfrom srvkit.cli.main import main\nsys.exit(main())\n")
    return [str(folder / "srvkit.pyz"), "run"]


def checkout(folder: Path) -> Path:
    """Return a folder with srvkit in it, and no word about its being installed."""
    shutil.copytree(ROOT / "srvkit", folder / "source/srvkit", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "source"


def script(folder: Path, arguments: str = "") -> list[str]:
    (folder / "start.py").write_text(
        f"import sys\nsys.path.insert(0, {str(checkout(folder))!r})\n"
        f"from srvkit.cli.main import main\nsys.exit(main({arguments}))\n"
    )
    return [str(folder / "start.py")]


STARTED = {
    "zipped": zipped,
    "a script": lambda folder: [*script(folder), "run"],
    "a script that has its words": lambda folder: script(folder, '["run", "srvkit.toml"]'),
    "a checkout": lambda folder: ["-m", "srvkit", "run", str(folder / "srvkit.toml")],
}


@pytest.mark.parametrize("how", STARTED)
def test_the_new_installation_is_asked_in_the_way_this_one_was_started(how, managed):
    """Nothing on the import path but what that way brings along."""
    managed.write(TABLE.format(listen="tcp://127.0.0.1:0"))
    libraries = managed.folder / "libraries"  # those that srvkit needs, without itself
    libraries.mkdir()
    for place in {Path(path) for path in sys.path if path.endswith("site-packages")}:
        for path in place.iterdir():
            if not path.name.startswith(("srvkit", "__editable__")) and path.suffix != ".pth":
                (libraries / path.name).symlink_to(path)
    command = STARTED[how](managed.folder)
    settings = {"folder": checkout(managed.folder)} if how == "a checkout" else {}
    managed.program = managed.start("-S", *command, environ={"PYTHONPATH": str(libraries)}, **settings)
    managed.program.wait_for("listening on ")
    for generation in (2, 3):
        managed.signal(signal.SIGUSR2)
        managed.program.wait_for(f"reloaded: this is generation {generation}$")
    table = (managed.folder / "srvkit.toml").read_text()
    (managed.folder / "srvkit.toml").write_text(table + "wrong = 1\n")
    managed.signal(signal.SIGUSR2)
    managed.program.wait_for("server.a.wrong: unknown key")
    managed.program.wait_for("so nothing is replaced$")
    assert managed.program.end() == 0
