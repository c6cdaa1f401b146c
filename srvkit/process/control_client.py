"""Ask a srvkit that is running, over its control socket: the client's side of `control`."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from srvkit.errors import SrvkitError
from srvkit.net import unixpath


class ControlError(SrvkitError):
    """A running srvkit did not do what it was asked for."""


class NotRunning(ControlError):
    """Nobody listens on the control socket."""

    exit_status = 3


def ask(
    path: Path, request: dict[str, Any], timeout: float | None = None, *, until_gone: bool = False
) -> dict[str, Any]:
    """Send a request to the srvkit that listens at `path` and return its answer, an "error" included.

    Waits `timeout` seconds, None: without end. `until_gone` then waits for the other side to let go of
    the connection, however long. Raises NotRunning, ControlError.
    """
    deadline = None if timeout is None else monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.settimeout(timeout)
            _connect(sock, path)
            with suppress(ConnectionError):  # it was refused before it was said: the answer is there
                sock.sendall(json.dumps(request).encode() + b"\n")
            line = _receive_line(sock, deadline)
        except (TimeoutError, BlockingIOError):
            waited = "" if timeout is None else f" within {timeout:g} s"
            raise ControlError(f"srvkit does not answer{waited} ({path})") from None
        except OSError as error:
            raise ControlError(f"srvkit cannot be asked at {path}: {error.strerror or error}") from None
        if until_gone:
            sock.settimeout(None)
            with suppress(ConnectionError):
                while sock.recv(4096):
                    pass
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        what = "ended before it answered" if not line else "gave an answer that makes no sense"
        raise ControlError(f"srvkit {what} ({path})")
    return answer


def _connect(sock: socket.socket, path: Path) -> None:
    try:
        unixpath.connect(sock, path)
    except FileNotFoundError:
        reason = f"no control socket at {path}"
    except ConnectionRefusedError:
        reason = f"nobody listens at {path} any more"
    except PermissionError:
        raise ControlError(f"{path} is another user's: ask as that user, or as root") from None
    else:
        return
    raise NotRunning(f"srvkit is not running with this configuration ({reason})")


def _receive_line(sock: socket.socket, deadline: float | None) -> bytes:
    """Return what comes before the first newline or the end."""
    pieces: list[bytes] = []
    while True:
        if deadline is not None:
            sock.settimeout(max(0.001, deadline - monotonic()))
        try:
            data = sock.recv(256 * 1024)
        except ConnectionError:
            data = b""
        line, newline, _ = data.partition(b"\n")
        pieces.append(line)
        if newline or not data:
            return b"".join(pieces)
