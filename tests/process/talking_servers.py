"""Tables of servers with the handler `talk`."""

from __future__ import annotations

TCP = "tcp://127.0.0.1:0"


def server(model: str = "event", name: str = "a", listen: str = TCP, more: str = "") -> str:
    return f'[server.{name}]\nlisten = "{listen}"\nhandler = "talk"\nconcurrency = "{model}"\n{more}\n'
