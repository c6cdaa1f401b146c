"""The completion scripts, read by the shells that they are for."""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import shlex
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from srvkit.cli import completion

PATIENCE = 60
SHELLS = ["bash", "zsh", "fish"]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts, in a folder of their own, by shell."""
    folder = tmp_path_factory.mktemp("scripts")
    found = {}
    for shell in SHELLS:
        done = subprocess.run(
            [sys.executable, "-m", "srvkit", "completion", shell], capture_output=True, text=True, check=True
        )
        found[shell] = folder / shell
        found[shell].write_text(done.stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.toml").touch()
    (tmp_path / "other.txt").touch()
    (tmp_path / "run").mkdir()
    return tmp_path


def in_bash(line: str, script: Path, folder: Path) -> list[str]:
    words = line.split(" ")
    code = (
        f"set -u; source {shlex.quote(str(script))}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); "
        f"COMP_CWORD={len(words) - 1}; _srvkit; "
        'printf "%s\\n" ${COMPREPLY[@]+"${COMPREPLY[@]}"}'
    )
    command = ["bash", "--norc", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(done.stdout.split())


def in_fish(line: str, script: Path, folder: Path) -> list[str]:
    code = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=PATIENCE,
        env=os.environ | {"HOME": str(folder)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(found.split("\t")[0] for found in done.stdout.splitlines())


COMPLETIONS = {
    "srvkit expl": ["explain"],
    "srvkit re": ["reload"],
    "srvkit completion ": ["bash", "fish", "zsh"],
    "srvkit new --kind a": ["async"],
    "srvkit new thing --ki": ["--kind"],
    "srvkit serve echo tcp://127.0.0.1:1 --concurrency th": ["threading"],
    "srvkit serve ec": ["echo"],
    "srvkit explain idle": ["idle_timeout"],
    "srvkit explain socket.gr": ["socket.group"],
    "srvkit explain length": ["length-prefix"],
    "srvkit check ": ["one.toml", "run"],
    "srvkit run o": ["one.toml"],
    "srvkit systemd --output ": ["run"],
    "srvkit run --set ": [],
    "srvkit run --single --set a=b o": ["one.toml"],
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_bash_completes(line, scripts, folder):
    assert in_bash(line, scripts["bash"], folder) == COMPLETIONS[line]


def test_bash_completes_options_and_commands(scripts, folder):
    assert in_bash("srvkit -", scripts["bash"], folder) == ["--help", "--version", "-V", "-h"]
    assert in_bash("srvkit status -", scripts["bash"], folder) == ["--help", "--json", "-h"]
    assert in_bash("srvkit ", scripts["bash"], folder) == sorted(
        ["--help", "--version", "-V", "-h", *commands()]
    )
    assert in_bash("srvkit kill 12 one", scripts["bash"], folder) == ["one.toml"]
    assert in_bash("srvkit kill ", scripts["bash"], folder) == []


@pytest.mark.parametrize("line", COMPLETIONS)
def test_fish_completes(line, scripts, folder, tool):
    tool("fish")
    found = [one.rstrip("/") for one in in_fish(line, scripts["fish"], folder)]
    if "one.toml" in COMPLETIONS[line]:  # fish offers what ends with .toml first, and the rest behind it
        found.remove("other.txt")
    assert found == COMPLETIONS[line]


def test_fish_completes_commands(scripts, folder, tool):
    tool("fish")
    assert in_fish("srvkit ", scripts["fish"], folder) == commands()


@pytest.mark.parametrize(
    ("typed", "ran"),
    [
        ("srvkit expl\tidle_t\t", "explain idle_timeout"),
        ("srvkit chec\to\t", "check one.toml"),
        ("srvkit new --ki\tdat\t", "new --kind datagram"),
        ("srvkit systemd --outp\trun/\t", "systemd --output run/"),
        ("srvkit serve ech\ttcp://x --concurrency asy\t", "serve echo tcp://x --concurrency asyncio"),
    ],
)
@pytest.mark.parametrize("way", ["sourced", "fpath"])
def test_zsh_completes(way, typed, ran, scripts, folder, tool):
    """Typed into a shell in which `srvkit` tells what it was called with."""
    tool("zsh")
    if way == "fpath":
        (folder / "functions").mkdir()
        (folder / "functions" / "_srvkit").write_text(scripts["zsh"].read_text())
    begin = f"fpath=({folder}/functions $fpath); autoload -Uz compinit; compinit -u -D; PS1=; unsetopt beep"
    if way == "sourced":
        begin += f"; source {scripts['zsh']}"
    (folder / ".zshrc").write_text(f'{begin}\nsrvkit() {{ print -r -- "<<$*>>"; exit }}\n')
    written = in_zsh(typed, folder)
    found = re.search(r"^<<(.*)>>", written, re.M)
    assert found, written
    assert found[1].strip() == ran


def in_zsh(typed: str, folder: Path) -> str:
    controller, screen = pty.openpty()
    termios.tcsetwinsize(screen, (50, 200))
    process = subprocess.Popen(
        ["zsh", "--no-global-rcs", "-i"],
        cwd=folder,
        env=os.environ | {"ZDOTDIR": str(folder), "HOME": str(folder), "TERM": "dumb"},
        stdin=screen,
        stdout=screen,
        stderr=screen,
        start_new_session=True,
    )
    os.close(screen)
    os.write(controller, f"{typed}\r".encode())
    written = b""
    with open(controller, "rb", buffering=0) as file, contextlib.suppress(OSError):  # how a pty ends
        while data := file.read(65536):
            written += data
    process.wait(PATIENCE)
    return written.decode().replace("\r", "")


def parsers():
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    one = subparsers.add_parser("one", help="it's the [first]: of two")
    one.add_argument("-x", "--extra", metavar="N", choices=["1", "2"], help="100 %% of\n  it (%(default)s)")
    one.add_argument("files", metavar="PATH", nargs="+")
    subparsers.add_parser("two", help="the second")
    return subparsers


def commands() -> list[str]:
    usage = subprocess.run([sys.executable, "-m", "srvkit", "--help"], capture_output=True, text=True).stdout
    return sorted(re.findall(r"^    (\w+) ", usage, re.M))


def test_what_the_parsers_know_is_described():
    one, two = completion.commands_of(parsers())
    assert (one.name, one.help) == ("one", "it's the [first]: of two")
    assert [option.flags for option in one.options] == [("-h", "--help"), ("-x", "--extra")]
    assert one.options[1].words == ("1", "2")
    assert [(one.metavar, one.files, one.repeats) for one in one.positionals] == [("PATH", "any", True)]
    assert two.positionals == ()


def test_any_help_text_is_quoted(capsys, tmp_path, tool, folder):
    for shell in SHELLS:
        assert completion.command(parsers(), argparse.Namespace(shell=shell)) == 0
        script = tmp_path / f"{shell}.script"
        script.write_text(capsys.readouterr().out)
        tool(shell)
        done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert in_bash("srvkit one --extra ", tmp_path / "bash.script", folder) == ["1", "2"]
    assert "other.txt" in in_bash("srvkit one -x 1 a b o", tmp_path / "bash.script", folder)


def test_an_unknown_shell_is_refused(srvkit):
    done = srvkit("completion", "tcsh")
    assert done.returncode == 2
    assert "choose from" in done.stderr
