"""What a forked child has of a listening socket that it leaves to its parent."""

from __future__ import annotations

from typing import Any


class ParentSocket:
    """A socket that is closed in this process, and still knows its name; a handler may ask for that."""

    def __init__(self, sock: Any) -> None:
        self._name = sock.getsockname()
        self._socket = sock
        sock.close()

    def __repr__(self) -> str:
        return f"<left to the parent: {self._name}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def getsockname(self) -> Any:
        return self._name
