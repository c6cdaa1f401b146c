"""What a handler's class shows of itself before it is made: where it can serve, or that it cannot."""

from __future__ import annotations

import inspect
from typing import Any

from srvkit.contracts import forks
from srvkit.server.blocking_handler import kind_of

ANSWERS_NOBODY = ("MessageHandler.handle_message", "BaseRequestHandler.handle")


def flaw_of(handler: type[Any]) -> str:
    """Return why nobody can be served by this handler, whatever the configuration says; "" for nothing."""
    name = handler.__name__
    if kind_of(handler) == "message":
        for method in ("handle_message", "connected", "disconnected"):
            if _is_coroutine(getattr(handler, method)):
                return _unawaited(name, method)
        return ""
    # By name: a handler may be built on the standard library's classes.
    if "BaseRequestHandler" in {base.__name__ for base in handler.__mro__} and _is_coroutine(handler.handle):
        return _unawaited(name, "handle")
    return ""


def keeps_one_process(handler: type[Any]) -> bool:
    """Tell whether a handler keeps state in its process, so that one process must serve all its clients."""
    return bool(getattr(handler, "one_process", False))


def runs_under(handler: type[Any], model: Any) -> bool:
    """Tell whether a concurrency model can run a handler; packages that are missing do not count."""
    return kind_of(handler) in model.handler_kinds and not (keeps_one_process(handler) and forks(model))


def takes_turns(handler: type[Any], model: Any) -> bool:
    """Tell whether a concurrency model handles the datagrams for a handler one after the other."""
    return kind_of(handler) in getattr(model, "datagrams_in_turn", ())


def doubt_about(handler: type[Any]) -> str:
    """Return what a handler seems to lack, although somebody may want it so; "" for nothing."""
    kind = kind_of(handler)
    method = "handle_message" if kind == "message" else "handle"
    function = inspect.unwrap(getattr(handler, method))
    if kind == "async":
        plain = inspect.isfunction(function) and not _is_coroutine(function)
        return f"{handler.__name__}.handle() is no coroutine: is async def meant?" if plain else ""
    if getattr(function, "__qualname__", "") in ANSWERS_NOBODY:
        return f"{handler.__name__} has no {method}() of its own, and answers nobody"
    return ""


def _is_coroutine(method: Any) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


def _unawaited(name: str, method: str) -> str:
    return f"{name}.{method}() is a coroutine, which nobody awaits: write def, or derive from AsyncHandler"
