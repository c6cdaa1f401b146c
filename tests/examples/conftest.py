"""What tests of the examples share: an example started as a user would, and its own clients."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.conftest import Program, Start

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE = 60  # seconds before a client counts as hung
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `model` under each of its module's MODELS, which the README names too."""
    if "model" in metafunc.fixturenames:
        metafunc.parametrize("model", metafunc.module.MODELS)


class Example:
    """An example that runs, in a copy of its folder."""

    def __init__(self, program: Program, started: Callable[..., Program]) -> None:
        self.program = program
        self.folder = program.folder
        self._started = started

    @property
    def log(self) -> str:
        return self.program.log

    def address(self, server: str) -> str:
        """Wait until the server listens; return its first address."""
        return self.program.addresses(server)[0]

    def ports(self, *servers: str) -> list[str]:
        """Wait until these servers listen; return their ports, as a client takes them."""
        found = [address for server in servers for address in self.program.addresses(server)]
        return [address.rsplit(":", 1)[1] for address in found if "//" in address]

    def client(self, *arguments: str, said: str = "", program: str = "client.py", status: int = 0) -> str:
        """Run the example's client to its end with this input; return what it printed."""
        done = subprocess.run(
            [sys.executable, program, *arguments],
            cwd=self.folder,
            env=ENVIRONMENT,
            input=said,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == status, f"{done.stdout}{done.stderr}\nthe server's log:\n{self.log}"
        return done.stdout if status == 0 else done.stderr

    def client_that_stays(self, *arguments: str, program: str = "client.py") -> Program:
        """Start a client to talk to: `log` is what it prints, `say()` what one types."""
        return self._started(program, *arguments, folder=self.folder, stdin=subprocess.PIPE)

    def srvkit(self, *words: str) -> str:
        """Run another command of srvkit beside; return what it printed."""
        return subprocess.run(
            [sys.executable, "-m", "srvkit", *words],
            cwd=self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        ).stdout


def overrides(config: Path, model: str, servers: tuple[str, ...] | None) -> Iterator[str]:
    """Yield what differs from the file as it is: free ports, and the model of these servers (or of all)."""
    for name, table in tomllib.loads(config.read_text())["server"].items():
        listen = [table["listen"]] if isinstance(table["listen"], str) else table["listen"]
        free = [re.sub(r":\d+$", ":0", address) if "//" in address else address for address in listen]
        yield f"server.{name}.listen={free}"
        if model and (servers is None or name in servers):
            key = "concurrency.name" if isinstance(table.get("concurrency"), dict) else "concurrency"
            yield f"server.{name}.{key}={model}"


class RunExample(Protocol):
    def __call__(self, model: str = "", *more: str, servers: tuple[str, ...] | None = None) -> Example: ...


@pytest.fixture
def run_example(
    request: pytest.FixtureRequest, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunExample]:
    """`run_example(model)`: `srvkit run` in a copy of the folder that this test's file is named for.

    At the end of the test it is stopped: with status 0, and no traceback in its log.
    """
    name = request.path.stem.removeprefix("test_").replace("_", "-")
    with contextlib.ExitStack() as stack:

        def started(*command: str, **settings: Any) -> Program:
            return stack.enter_context(start(*command, **settings))

        def run(model: str = "", *more: str, servers: tuple[str, ...] | None = None) -> Example:
            if model == "gevent" and importlib.util.find_spec("gevent") is None:
                assert os.environ.get("SRVKIT_REQUIRE_TOOLS") != "1", "gevent is not installed"
                pytest.skip("gevent is not installed")
            folder = tmp_path_factory.mktemp("example")  # short: a Unix socket's path has 107 bytes
            shutil.copytree(EXAMPLES / name, folder, dirs_exist_ok=True)
            settings = [*overrides(folder / "srvkit.toml", model, servers), *more]
            command = [word for setting in settings for word in ("--set", setting)]
            example = Example(started("-m", "srvkit", "run", *command, folder=folder), started)
            for server in tomllib.loads((folder / "srvkit.toml").read_text())["server"]:
                example.address(server)  # who is stopped before it has started ends in another way
            stack.callback(end, example)
            return example

        yield run


def end(example: Example) -> None:
    """Stop it, as a user would by Ctrl-C."""
    assert example.program.end() == 0, example.log
    assert "Traceback" not in example.log, example.log
