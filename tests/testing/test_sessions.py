"""Sessions of pytest with srvkit's fixtures: what fails, what is skipped, and what is imported when."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from srvkit.errors import PluginError
from srvkit.pytest_plugin import srvkit_models
from tests.testing.served_handlers import Coroutine, Echo

pytest_plugins = ["pytester"]

PREAMBLE = """
import pytest, srvkit
from srvkit.pytest_plugin import srvkit_models

class Echo(srvkit.MessageHandler):
    framing = srvkit.Lines()
    def handle_message(self, message):
        if message == b"bad":
            raise LookupError("bad message")
        return message

class Async(srvkit.AsyncHandler):
    async def handle(self):
        self.writer.write(await self.reader.read())

"""


def test_a_server_ends_with_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        PREAMBLE
        + """
address = None

def test_one(srvkit_server):
    global address
    server = srvkit_server(Echo)
    address = server.address
    sock = server.connect()
    sock.sendall(b"hello\\n")
    assert sock.recv(10) == b"hello\\n"

def test_two():
    import socket
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
"""
    )
    pytester.runpytest("-W", "error").assert_outcomes(passed=2)


def test_an_error_that_nobody_expects_fails_the_test_with_the_handlers_own_lines(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        PREAMBLE
        + """
@srvkit_models(Echo, without="forking")
def test_it(srvkit_server):
    srvkit_server(Echo).connect().sendall(b"bad\\n")

def test_two_of_them(srvkit_server):
    server = srvkit_server(Echo)
    for _ in range(2):
        sock = server.connect()
        sock.sendall(b"bad\\n")
        assert sock.recv(10) == b""

def test_none_is_raised(srvkit_server):
    server = srvkit_server(Echo)
    with server.expect(ValueError, timeout=0.01):
        server.exchange(b"good\\n")
"""
    )
    result = pytester.runpytest("-W", "error", "-k", "not gevent")
    result.assert_outcomes(passed=6, errors=6, failed=1)
    result.stdout.fnmatch_lines(['*raise LookupError("bad message")*', "E*LookupError: bad message*"])
    result.stdout.fnmatch_lines(["*the handler raised (2 sub-exceptions)*", "*DID NOT RAISE*ValueError*"])


def test_a_test_is_made_of_each_model_and_one_without_its_package_is_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        PREAMBLE
        + """
from srvkit.concurrency.gevent.model import GreenletMixIn
from srvkit.contracts import Package
GreenletMixIn.needs = classmethod(lambda cls, **_: [Package("no_such_package", "srvkit[gevent]")])

@srvkit_models(Echo, without=["forking", "pool"])
def test_it(srvkit_model, srvkit_server):
    assert srvkit_server(Echo).exchange(srvkit_model.encode()) == b""

@srvkit_models(Async)
def test_async(srvkit_model):
    assert srvkit_model == "asyncio"
"""
    )
    result = pytester.runpytest_subprocess("-v", "-rs", "--strict-markers")
    result.assert_outcomes(passed=5, skipped=1)
    result.stdout.fnmatch_lines(
        ["*test_it[[]asyncio[]] PASSED*", "*gevent needs the package no_such_package: pip install*"]
    )


def test_a_test_that_takes_no_model_is_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PREAMBLE + "@srvkit_models(Echo)\ndef test_it(): ...\n")
    pytester.runpytest().stdout.fnmatch_lines(["*function uses no argument 'srvkit_model'*"])


def models_of(*arguments, **settings):
    return [getattr(one, "values", [one])[0] for one in srvkit_models(*arguments, **settings).mark.args[1]]


def test_a_handler_of_which_models_are_asked_may_be_named() -> None:
    able = ["forking", "pool", "serial", "threading"]
    assert models_of("http.server:BaseHTTPRequestHandler", without="gevent") == able
    assert len(models_of("echo")) == 7
    with pytest.raises(PluginError, match="no installed plugin offers a handler of this name"):
        srvkit_models("no-such")


def test_a_handler_of_one_process_is_not_run_under_forking() -> None:
    class Room(Echo):
        one_process = True

    assert set(models_of(Echo)) - set(models_of(Room)) == {"forking"}


def test_a_model_to_leave_out_that_cannot_run_the_handler_is_an_error() -> None:
    with pytest.raises(ValueError, match="Coroutine runs under asyncio, not under treading"):
        srvkit_models(Coroutine, without="treading")


def test_forking_beside_threads_is_skipped_where_the_model_is_one_of_all(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        PREAMBLE
        + """
import threading

@pytest.fixture(autouse=True)
def mining():
    event = threading.Event()
    thread = threading.Thread(target=event.wait, name="mining")
    thread.start()
    yield
    event.set()
    thread.join()

@srvkit_models(Echo, without=["serial", "threading", "pool", "event", "asyncio", "gevent"])
def test_it(srvkit_server):
    srvkit_server(Echo)

def test_asked_for(srvkit_server):
    with pytest.raises(srvkit.ConfigError, match="forking beside other threads"):
        srvkit_server(Echo, "forking")
"""
    )
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(["*forking beside other threads (*mining*) is not safe*"])


def test_pytest_does_not_import_srvkit_where_nobody_asks_for_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass\n")
    pytester.makeconftest(
        "import sys\ndef pytest_unconfigure():\n"
        "    print({name for name in sys.modules if name.split('.')[0] == 'srvkit'},"
        " 'srvkit_pytest.fixtures' in sys.modules)\n"
    )
    result = pytester.runpytest_subprocess("--co", "-q")
    result.stdout.fnmatch_lines(["set() True"])


def test_pytest_shows_the_fixtures(pytester: pytest.Pytester) -> None:
    lines = ["srvkit_server*", "*Start servers: `srvkit_server(Handler, *"]
    pytester.runpytest("--fixtures").stdout.fnmatch_lines(lines)


def test_only_the_entry_is_loaded_before_srvkit() -> None:
    """Its source stands inside the folder of srvkit, but is installed beside it."""
    code = "import sys, srvkit_pytest.fixtures; print('srvkit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "False\n"


@pytest.mark.parametrize("how", ["-p srvkit", "PYTEST_ADDOPTS", "conftest.py", ""])
def test_a_program_may_import_srvkit_before_pytest_comes(how, tmp_path):
    """pytest rewrites the asserts of all that an installed plugin brings, and warns where it is too late."""
    info = tmp_path / "installed" / "another-1.dist-info"  # names the packages as an installed srvkit does
    info.mkdir(parents=True)
    packages = ("srvkit", "srvkit_handlers", "srvkit_pytest")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1\n")
    (info / "RECORD").write_text("".join(f"{name}/__init__.py,,\n" for name in packages))
    (info / "entry_points.txt").write_text("[pytest11]\nanother = textwrap\n")
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_it.py").write_text("import srvkit\ndef test_it(srvkit_server): pass\n")
    if how == "conftest.py":
        (folder / how).write_text(
            'import srvkit.pytest_plugin as ours\npytest_plugins = ["srvkit", ours.__name__]\n'
        )
    (tmp_path / "program.py").write_text(
        f"import sys, {', '.join(packages)}\n"
        "import srvkit.server.base, srvkit_handlers.echo, srvkit_pytest.fixtures\n"
        "sys.modules['socketserver'] = srvkit\n"
        "import pytest\n"
        "sys.exit(pytest.main(sys.argv[1:]))\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environ["PYTHONPATH"] = str(info.parent)
    if how == "PYTEST_ADDOPTS":
        environ[how] = "-p srvkit.pytest_plugin"
    arguments = how.split() if how.startswith("-p") else []
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", "-W", "error", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
