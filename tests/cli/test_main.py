"""The command as such: its help, its statuses, and its manners towards the shell around it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


def test_the_module_is_the_command(srvkit):
    done = srvkit("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: srvkit [-h]")
    for word in ("run", "serve", "check", "plugins", "new", "exit statuses: 0 clean; 1 "):
        assert f"\n    {word} " in done.stdout or word in done.stdout


def test_the_version_is_told(srvkit):
    assert srvkit("--version").stdout.startswith("srvkit ")


@pytest.mark.parametrize("words", [[], ["rnu"], ["run", "--sett"], ["serve", "echo"]])
def test_a_command_that_is_wrong_is_refused_with_its_usage(words, srvkit):
    done = srvkit(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: srvkit ")
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom srvkit.cli import main\n"
        "try:\n    main.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print({name.split('.')[0] for name in sys.modules} & {'msgspec', 'pluggy', 'tomli', "
        "'asyncio', 'ssl'},"
        " 'importlib.metadata' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "set() False"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["plugins"], ["check", "--explain"]])
def test_a_reader_that_has_gone_is_no_error(words, srvkit, tmp_path):
    (tmp_path / "srvkit.toml").write_text('[server.e]\nlisten = "unix:e.sock"\nhandler = "echo"\n')
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = srvkit(*words, stdout=writing, stderr=subprocess.PIPE, capture_output=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_cannot_be_written_is_an_error_of_one_line(srvkit):
    with open("/dev/full", "w") as full:
        done = srvkit("plugins", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, done.stderr) == (1, "srvkit: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("words", [["plugins"], ["check"], ["rnu"]])
def test_closed_standard_files_are_no_obstacle(words, srvkit, tmp_path):
    (tmp_path / "srvkit.toml").write_text('[server.e]\nlisten = "unix:e.sock"\nhandler = "echo"\n')
    settings = {"capture_output": False, "preexec_fn": lambda: [os.close(fd) for fd in range(3)]}
    assert srvkit(*words, **settings).returncode == (2 if words == ["rnu"] else 0)


def test_an_interrupt_ends_a_command_quietly(srvkit, tmp_path):
    (tmp_path / "plugin.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["plugin.py"]\n')
    # Shells start what runs in the background with interrupts ignored, and so may these tests be.
    done = srvkit("plugins", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
