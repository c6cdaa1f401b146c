"""Who asks over the control socket: nobody is there, or something that is no srvkit."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from srvkit.process.control_client import ControlError, NotRunning, ask

PATIENCE = 30


def test_asking_where_nobody_is(tmp_path: Path) -> None:
    with pytest.raises(NotRunning) as refused:
        ask(tmp_path / "c.sock", {"do": "status"})
    said = f"srvkit is not running with this configuration (no control socket at {tmp_path}/c.sock)"
    assert (str(refused.value), refused.value.exit_status) == (said, 3)
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(tmp_path / "c.sock"))
    with pytest.raises(NotRunning, match="nobody listens at"):
        ask(tmp_path / "c.sock", {"do": "status"})


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (b"", "ended before it answered"),
        (b"[]\n", "gave an answer that makes no sense"),
        (b"{", "gave an answer that makes no sense"),
        (None, r"does not answer within 0\.05 s"),
    ],
)
def test_asking_something_that_is_no_srvkit(says, error, tmp_path):
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as stack:
        listening.bind(str(tmp_path / "c.sock"))
        listening.listen()

        def respond() -> None:
            sock = stack.enter_context(listening.accept()[0])
            if says is not None:
                sock.recv(1000)
                sock.sendall(says)
                sock.close()

        thread = threading.Thread(target=respond)
        thread.start()
        with pytest.raises(ControlError, match=error) as refused:
            ask(tmp_path / "c.sock", {"do": "status"}, 0.05 if says is None else PATIENCE)
        assert refused.value.exit_status == 1
        thread.join(PATIENCE)
