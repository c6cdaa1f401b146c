"""What a reload has made of each server, in words that the supervisor, its log and the command share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT, REPLACED, ADDED, REMOVED = "kept", "replaced", "added", "removed"


def told(changes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return it in lines for people: who was kept, added and removed, and who was replaced for what."""
    lines = []
    for word in (KEPT, ADDED, REMOVED):
        names = [name for name, change in changes.items() if change["change"] == word]
        if names:
            lines.append(f"{word}: {', '.join(names)}")
    for name, change in changes.items():
        if change["change"] == REPLACED:
            keys = change.get("keys") or ()
            lines.append(f"{REPLACED}: {name}" + f" ({', '.join(keys)})" * bool(keys))
    return lines
