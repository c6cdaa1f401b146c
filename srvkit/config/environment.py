"""Variables in a configuration's strings: ${NAME}, ${NAME:-default}, and $${ for a plain ${.

Knows nothing of keys and their types; takes the environment as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from srvkit.config.problems import Problems
from srvkit.config.toml import Key

_DEEPEST = 32  # levels; no table of srvkit has more than four, and a stack is finite
_MARK = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?")


def expand(value: Any, environ: Mapping[str, str] | None, problems: Problems, key: Key = ()) -> Any:
    """Return a copy of the value, with variables put in everywhere inside it where there is an environment.

    A variable that is unset or empty takes its default, as in a shell. One without a value is a
    problem, and its key is noted as broken. What came from the environment is noted, so that no
    message shows it.
    """
    if len(key) >= _DEEPEST and isinstance(value, (dict, list, tuple)):
        problems.add(key, "nested too deeply")
        problems.source.broken.add(key)
        return ""
    if isinstance(value, dict):
        return {part: expand(child, environ, problems, (*key, part)) for part, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [expand(child, environ, problems, (*key, place)) for place, child in enumerate(value)]
    if isinstance(value, str) and environ is not None and "${" in value:
        return _expanded(value, environ, problems, key)
    return value


def _expanded(text: str, environ: Mapping[str, str], problems: Problems, key: Key) -> str:
    source = problems.source

    def replacement(mark: re.Match[str]) -> str:
        name, default = mark["name"], mark["default"]
        if mark[0] == "$${":
            return "${"
        if name is None:
            source.broken.add(key)
            problems.add(key, "no variable after ${, write ${NAME} or ${NAME:-default}; $${ is a plain ${")
            return ""
        if mark[0] == text:
            source.whole[key] = f"${{{name}}}"
        if name in environ and (environ[name] or default is None):
            if environ[name]:
                source.variables.setdefault(key, {})[name] = environ[name]
            return environ[name]
        if default is None:
            source.broken.add(key)
            problems.add(key, f"environment variable {name} is not set, and ${{{name}}} gives no default")
            return ""
        return str(default)

    return _MARK.sub(replacement, text)
