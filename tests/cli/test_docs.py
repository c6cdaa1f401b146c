"""`srvkit docs`: chapters by name, a search in them, and a pager where there is a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = {path.stem: path.read_text() for path in sorted((ROOT / "srvkit" / "docs").glob("*.md"))}
TEXT = CHAPTERS["architecture"]
PATIENCE = 60  # seconds before a command counts as hung


class Screen:
    """A command on a terminal that it controls; `seen` is what was written there so far."""

    def __init__(self, words: list[str], folder: Path, environ: dict[str, str | None]) -> None:
        usual: dict[str, str | None] = {
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "PAGER": None,
            "LC_ALL": "C",
        }
        wanted = {**os.environ, **usual, **environ}
        self._controller, screen = pty.openpty()
        self._written = b""
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={name: value for name, value in wanted.items() if value is not None},
            start_new_session=True,
            pass_fds=[screen],
            preexec_fn=lambda: [
                os.login_tty(screen),
                signal.signal(signal.SIGINT, signal.SIG_DFL),  # which may be ignored here
            ],
        )
        os.close(screen)

    @property
    def seen(self) -> str:
        return self._written.decode().replace("\r\n", "\n")

    def wait_for(self, text: str) -> None:
        while text not in self.seen:
            assert self._read(), self.seen

    def type(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    def end(self) -> int:
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        os.close(self._controller)  # which hangs up on whoever is left
        self.process.wait(PATIENCE)

    def _read(self) -> bool:
        assert select.select([self._controller], [], [], PATIENCE)[0], self.seen
        with contextlib.suppress(OSError):  # how a pty ends
            data = os.read(self._controller, 65536)
            self._written += data
            return bool(data)
        return False


Terminal = Callable[..., Screen]


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Terminal]:
    """`screen("docs", PAGER="cat")`: the command on a terminal."""
    with contextlib.ExitStack() as opened:

        def start(*words: str, **environ: str | None) -> Screen:
            made = Screen(["-m", "srvkit", *words], tmp_path, environ)
            opened.callback(made.close)
            return made

        yield start


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """`script("echo ready")`: the path of a program that does so."""

    def write(code: str, name: str = "pager") -> str:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        return str(path)

    return write


# ---- chapters


def test_the_chapters_are_listed_with_a_line_each(srvkit):
    done = srvkit("docs")
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert head == "CHAPTERS"
    titles = {name: text.splitlines()[0].removeprefix("# ") for name, text in CHAPTERS.items()}
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in lines} == titles


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_printed_as_it_is_where_there_is_no_terminal(name, srvkit, script, monkeypatch):
    monkeypatch.setenv("PAGER", script("echo paged"))
    done = srvkit("docs", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, CHAPTERS[name], "")


@pytest.mark.parametrize("name", ["../docs/architecture", "architecture.md", "/etc/passwd", "", "."])
def test_a_chapter_is_a_name_and_no_path(name, refused, tmp_path):
    (line,) = refused(2, "docs", name)
    assert line.startswith(f"there is no chapter {name!r}")
    assert line.endswith(f"(there are {', '.join(CHAPTERS)})")


@pytest.mark.parametrize("name", ["architectur", "Architecture", "ARCHITECTURE.MD"])
def test_a_chapter_that_is_nearly_right_is_named(name, refused):
    (line,) = refused(2, "docs", name, "--search", "worker")
    assert line.startswith(f"there is no chapter {name!r}, did you mean 'architecture'? (there are ")


# ---- searching


@pytest.mark.parametrize("words", [[], ["architecture"]])
def test_a_search_prints_chapter_line_and_text(words, srvkit):
    done = srvkit("docs", *words, "--search", "HANDLE_message")
    assert (done.returncode, done.stderr) == (0, "")
    searched = {name: CHAPTERS[name] for name in words} or CHAPTERS
    expected = [
        f"{name}:{number}: {line}"
        for name, text in searched.items()
        for number, line in enumerate(text.splitlines(), 1)
        if "handle_message" in line.lower()
    ]
    assert done.stdout.splitlines() == expected
    assert len(expected) > 3


def test_a_search_is_of_the_words_as_they_stand(srvkit):
    assert srvkit("docs", "--search", "w.rker").returncode == 1


def test_a_search_in_vain_is_told_in_one_line(refused):
    assert refused(1, "docs", "architecture", "--search", "Zwölf\n") == [
        "no line of architecture has 'Zwölf\\n'"
    ]


def test_a_search_needs_no_pager(screen, script):
    shown = screen("docs", "--search", "heartbeat", PAGER=script("echo paged"))
    assert shown.end() == 0
    assert "architecture:" in shown.seen
    assert "paged" not in shown.seen


# ---- the pager


def test_a_terminal_has_the_pager_that_is_asked_for(screen, script, tmp_path):
    pager = script('for word; do echo "<$word>"; done; cat; echo "$LESSSECURE"', "my pager")
    shown = screen("docs", "architecture", PAGER=f"'{pager}' -x '*' ; touch\\ file", LESSSECURE="0")
    assert shown.end() == 0
    assert shown.seen == f"<-x>\n<*>\n<;>\n<touch file>\n{TEXT}1\n"


def test_less_is_the_pager_where_nothing_else_is_said(screen, script, tmp_path):
    folder = Path(script('echo "$* $LESSSECURE"', "less")).parent
    shown = screen("docs", "architecture", PATH=str(folder))
    assert (shown.end(), shown.seen) == (0, "-R 1\n")


@pytest.mark.parametrize(
    "environ",
    [{"PAGER": ""}, {"PAGER": " "}, {"PATH": "/nowhere"}, {"TERM": "dumb"}, {"TERM": None}],
    ids=str,
)
def test_there_may_be_no_pager(environ, screen, script):
    folder = Path(script("echo paged", "less")).parent
    shown = screen("docs", "architecture", **({"PATH": str(folder)} | environ))
    assert (shown.end(), shown.seen) == (0, TEXT)


@pytest.mark.parametrize(
    ("pager", "why"),
    [
        ("/nowhere/less -R", "cannot run the pager '/nowhere/less': No such file or directory"),
        ("/etc", "cannot run the pager '/etc': Permission denied"),
        ("less '-R", 'PAGER is "less \'-R": No closing quotation'),
    ],
)
def test_a_pager_that_is_missing_is_told_and_the_text_shown(pager, why, screen):
    shown = screen("docs", "architecture", PAGER=pager)
    assert (shown.end(), shown.seen) == (0, f"srvkit: {why}\n{TEXT}")


@pytest.mark.parametrize(
    ("code", "how"), [("exit 3", "ended with status 3"), ("kill -KILL $$", "was killed by SIGKILL")]
)
def test_a_pager_that_fails_is_an_error_of_one_line(code, how, screen, script):
    pager = script(code)
    shown = screen("docs", "architecture", PAGER=pager)
    assert shown.end() == 1
    assert shown.seen == f"srvkit: the pager '{pager}' {how}; PAGER= shows the text without one\n"


def test_a_pager_may_be_left_before_it_has_read_all(tmp_path):
    """More than a pipe holds, so that the rest cannot be written."""
    code = "import sys; from srvkit.cli import pager; sys.exit(pager.show('a line\\n' * 1_000_000))"
    shown = Screen(["-c", code], tmp_path, {"PAGER": "head -1"})
    try:
        assert (shown.end(), shown.seen) == (0, "a line\n")
    finally:
        shown.close()


def test_an_interrupt_is_the_pagers(screen, script):
    pager = script(
        "trap 'echo interrupted' INT; cat > /dev/null; echo ready\n"
        "until read line < /dev/tty; do :; done; echo the end"
    )
    shown = screen("docs", "architecture", PAGER=pager)
    shown.wait_for("ready")
    shown.type("\x03")
    shown.wait_for("interrupted")
    assert shown.process.poll() is None
    shown.type("q\n")
    assert shown.end() == 0
    assert shown.seen.endswith("the end\n")


def test_a_pager_that_an_interrupt_ends_ends_the_command_quietly(screen, script):
    shown = screen("docs", "architecture", PAGER=script("cat > /dev/null; echo ready; read line < /dev/tty"))
    shown.wait_for("ready\n")
    shown.type("\x03")
    assert shown.end() == 130
    assert shown.seen in ("ready\n", "ready\n^C")


# ---- the package


def test_other_commands_do_not_pay_for_it():
    """What it needs is imported when it runs, so that `srvkit run` starts as fast as without it."""
    code = "import sys, srvkit.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "srvkit.cli.docs" in loaded
    assert not loaded & {"srvkit.cli.pager", "subprocess", "shlex", "difflib", "importlib.resources"}


def test_completion_knows_the_chapters(srvkit):
    code = f"""{srvkit("completion", "bash").stdout}
COMP_WORDS=(srvkit docs arch) COMP_CWORD=2; _srvkit; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(srvkit docs --search arch) COMP_CWORD=3; _srvkit; echo "<${{COMPREPLY[@]}}>"
"""
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("architecture\n<>\n", "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, made of a copy, so that nothing is left behind in the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source)
    for name in ("srvkit", "handlers"):
        copytree(ROOT / name, source / name, ignore=ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", "wheels", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode:
        offline = "No matching distribution found for setuptools" in done.stderr
        if os.environ.get("SRVKIT_REQUIRE_TOOLS") != "1" and (
            offline or "No module named pip" in done.stderr
        ):
            pytest.skip("pip cannot get what builds a wheel")
        raise AssertionError(done.stderr)
    (made,) = (source / "wheels").glob("*.whl")
    return made


def test_the_wheel_has_every_chapter(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        found = {Path(name).stem for name in archive.namelist() if name.startswith("srvkit/docs/")}
    assert found == set(CHAPTERS)
    for name, text in CHAPTERS.items():
        done = subprocess.run(
            [sys.executable, "-m", "srvkit", "docs", name],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(wheel)},  # which is an archive that Python can import from
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == text
