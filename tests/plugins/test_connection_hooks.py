"""Each hook of a connection is called when, where and with what its specification says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import trustme

from tests.conftest import Connect
from tests.plugins.conftest import Ask, Notes, Watched

MODELS = ["serial", "threading", "pool", "forking"]
GEVENT = pytest.param(
    "gevent", marks=pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
)
LOOPS = ["event", "asyncio", GEVENT]


@pytest.mark.parametrize("model", MODELS)
def test_hook_verify_request(model, watched, worker, notes, ask):
    """Any False refuses; called in the loop's thread, before anything exists for the connection."""
    program = watched(
        """
        count = 0
        loop = set()

        @hookimpl
        def srvkit_server_start():
            loop.add(threading.get_ident())

        @hookimpl
        def srvkit_verify_request(server, request, client_address):
            global count
            count += 1
            note("verify", server.name, os.getpid(), threading.get_ident() in loop, request.family.name)
            if count == 2:
                return False
            if count == 3:
                raise LookupError("cannot say")
            return None if count == 1 else 0

        @hookimpl
        def srvkit_connection_open():
            note("open")

        @hookimpl
        def srvkit_error(error):
            note("error", type(error).__name__)
        """,
        model,
    )
    pid = worker(program)
    answers = []
    for _ in range(4):
        try:
            answers.append(ask(b"hello\n"))
        except ConnectionError:  # closed with what was sent unread
            answers.append(b"")
    assert answers == [b"hello\n", b"", b"", b"hello\n"]
    assert program.end() == 0
    verify = ["verify", "a", pid, "True", "AF_UNIX"]
    assert notes() == [verify, ["open"], verify, verify, ["error", "LookupError"], verify, ["open"]]
    assert "LookupError: cannot say" in program.log


def test_hook_verify_request_is_asked_before_the_handshake(
    watched: Watched, notes: Notes, client: Connect, tmp_path: Path
) -> None:
    """The client has said nothing yet, so nothing of TLS can have begun."""
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    program = watched(
        """
        @hookimpl
        def srvkit_verify_request(client_address):
            note(*client_address)
            return False
        """,
        listen="tcp://127.0.0.1:0",
        more='tls.cert = "cert.pem"',
    )
    (address,) = program.addresses("a")
    with client(address) as sock:
        host, port = sock.getsockname()
        assert sock.recv(1) == b""
    assert program.end() == 0
    assert notes() == [[host, str(port)]]


def test_hook_verify_request_refuses_a_datagram(
    watched: Watched, ask: Ask, notes: Notes, client: Connect, tmp_path: Path
) -> None:
    program = watched(
        """
        @hookimpl
        def srvkit_verify_request(request):
            note(request[0].decode())
            return request[0] == b"yes"
        """,
        listen="unixgram:a.sock",
    )
    program.addresses("a")
    with client("unixgram:a.sock", tmp_path) as refused:
        refused.send(b"no")
        assert ask(b"yes", "unixgram:a.sock") == b"yes\n"
        refused.setblocking(False)
        with pytest.raises(BlockingIOError):
            refused.recv(100)
    assert program.end() == 0
    assert notes() == [["no"], ["yes"]]


@pytest.mark.parametrize("model", [*MODELS, *LOOPS])
def test_hooks_of_a_connection_know_its_client(
    model: str, watched: Watched, notes: Notes, client: Connect
) -> None:
    program = watched(
        """
        @hookimpl
        def srvkit_verify_request(client_address):
            note("verify", *client_address)

        @hookimpl
        def srvkit_connection_open(client_address):
            note("open", *client_address)

        @hookimpl
        def srvkit_error(client_address):
            note("error", *client_address)

        @hookimpl
        def srvkit_connection_close(client_address):
            note("close", *client_address)
        """,
        model,
        listen="tcp://127.0.0.1:0",
    )
    (address,) = program.addresses("a")
    with client(address) as sock:
        host, port = sock.getsockname()
        sock.sendall(b"fail\n")
        assert sock.recv(1) == b""
    assert program.end() == 0
    assert notes() == [[hook, host, str(port)] for hook in ("verify", "open", "error", "close")]


@pytest.mark.parametrize("model", LOOPS)
def test_hooks_of_a_connection_are_called_where_the_loop_runs(
    model: str, watched: Watched, notes: Notes, ask: Ask
) -> None:
    """A task and a greenlet are of the loop's thread."""
    program = watched(
        """
        def where(*what):
            note(*what, os.getpid(), threading.get_ident())

        @hookimpl
        def srvkit_server_start():
            where("start")

        @hookimpl
        def srvkit_verify_request():
            where("verify")

        @hookimpl
        def srvkit_connection_open():
            where("open")

        @hookimpl
        def srvkit_error(error):
            where("error")

        @hookimpl
        def srvkit_connection_close(outcome):
            where("close")
        """,
        model,
    )
    program.addresses("a")
    assert ask(b"fail\n") == b""
    assert program.end() == 0
    (_, *loop), *others = notes()
    assert others == [[hook, *loop] for hook in ("verify", "open", "error", "close")]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("handler", ["watched", "blocking"])
def test_hook_connection_open(handler, model, watched, worker, notes, ask):
    """Called where the handler runs; what it raises is logged and the connection goes on."""
    program = watched(
        """
        @hookimpl
        def srvkit_connection_open(server, client_address):
            note(server.name, repr(client_address), os.getpid(), threading.get_ident())
            raise LookupError("no matter")

        class Told(Echo):
            def __init__(self, *args):
                note("handler", os.getpid(), threading.get_ident())
                super().__init__(*args)

        class BlockingTold(Blocking):
            def setup(self):
                note("handler", os.getpid(), threading.get_ident())

        @hookimpl(specname="srvkit_handlers")
        def more():
            return {"told-watched": Told, "told-blocking": BlockingTold}
        """,
        model,
        f"told-{handler}",
    )
    pid = worker(program)
    assert ask(b"hello\n") == b"hello\n"
    assert program.end() == 0
    (name, address, *where), (_, *handled) = notes()
    assert (name, address) == ("a", "''")
    assert where == handled
    assert (where[0] == pid) is (model != "forking")
    assert "srvkit_connection_open of plugin watcher.py failed" in program.log


CLOSE = """
@hookimpl
def srvkit_connection_open():
    note("open", os.getpid())

@hookimpl
def srvkit_connection_close(server, client_address, outcome, seconds, bytes_in, bytes_out):
    note("close", os.getpid(), server.name, outcome, 0 <= seconds < 60, bytes_in, bytes_out)
    raise LookupError("no matter")

@hookimpl
def srvkit_error():
    note("error", os.getpid())
"""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("handler", "data", "outcome", "counts"),
    [
        ("watched", b"hello\nyou\n", "eof", ["10", "10"]),
        ("watched", b"hello\nyo", "truncated", ["8", "6"]),
        ("watched", b"fail\n", "error", ["5", "0"]),
        ("blocking", b"hello", "closed", ["5", "5"]),
        ("blocking", b"", "eof", ["0", "0"]),
    ],
)
def test_hook_connection_close(handler, data, outcome, counts, model, watched, worker, notes, ask):
    """Called exactly once for each open, in the same process, with outcome, seconds and bytes."""
    program = watched(CLOSE, model, handler)
    pid = worker(program)
    ask(data)
    assert program.end() == 0
    opened, *errors, closed = notes()
    assert opened[0] == "open"
    assert errors == ([["error", opened[1]]] if outcome == "error" else [])
    assert closed == ["close", opened[1], "a", outcome, "True", *counts]
    assert (opened[1] == pid) is (model != "forking")
    assert "srvkit_connection_close of plugin watcher.py failed" in program.log


@pytest.mark.parametrize("model", MODELS)
def test_hook_connection_close_of_a_datagram(model, watched, notes, ask):
    program = watched(CLOSE, model, listen="unixgram:a.sock")
    program.addresses("a")
    assert ask(b"hello", "unixgram:a.sock") == b"hello\n"
    assert program.end() == 0
    (_, opener), closed = notes()
    assert closed[:5] == ["close", opener, "a", "closed", "True"]
    assert closed[5] == "5"


@pytest.mark.parametrize("model", MODELS)
def test_hook_error(model, watched, notes, ask):
    """Called where the handler ran, with what it raised, and not for what the peer did."""
    program = watched(
        """
        @hookimpl
        def srvkit_connection_open():
            note("open", os.getpid(), threading.get_ident())

        @hookimpl
        def srvkit_error(server, client_address, error):
            note("error", os.getpid(), threading.get_ident(), server.name, type(error).__name__, error)
            raise KeyError("no matter")
        """,
        model,
    )
    program.addresses("a")
    ask(b"cut short")
    ask(b"fail\n")
    assert program.end() == 0
    (_, *_first), (_, *where), (_, *told) = notes()
    if model == "pool":
        where[1] = told[1]  # a message handler's connection is no single thread's there
    assert told == [*where, "a", "LookupError", "as", "wished"]
    assert "LookupError: as wished" in program.log
    assert "srvkit_error of plugin watcher.py failed" in program.log


def test_a_plugin_that_fails_does_not_keep_another_from_being_told(
    watched: Watched, ask: Ask, tmp_path: Path
) -> None:
    (tmp_path / "other.py").write_text(
        "from srvkit import hookimpl\n"
        "@hookimpl\ndef srvkit_connection_close(outcome):\n    open('told', 'a').write(outcome)\n"
    )
    program = watched(
        """
        @hookimpl(tryfirst=True)
        def srvkit_connection_close():
            sys.exit("no matter")
        """,
        also='"other.py"',
    )
    program.addresses("a")
    ask(b"hello\n")
    assert program.end() == 0
    assert (tmp_path / "told").read_text() == "eof"
    assert "SystemExit: no matter" in program.log
