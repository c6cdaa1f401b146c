"""TOML text: parse it, take a statement's key from its value, find lines of keys, write it.

The only module that knows the parser. It knows nothing of what the keys mean.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import tomli

Key = tuple[str | int, ...]  # a path from the top of the file; an int counts in a list
SyntaxProblem = tomli.TOMLDecodeError  # has .msg, .lineno, .colno (both from 1)

parse = tomli.loads

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_CLOSERS = tuple("".join(pair) for size in (0, 1, 2) for pair in itertools.product("]}", repeat=size))
_REFINED_LINES = 500  # of one file, in values of several lines: looking into each costs a few parses


def dotted(key: Key) -> str:
    """Write a key path as TOML does, quoted where needed: server."a b".listen[1]."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        name = part if len(part) <= 60 else f"{part[:57]}..."
        if not _BARE.fullmatch(name):
            name = json.dumps(name, ensure_ascii=not name.isprintable())
        text += f".{name}" if text else name
    return text


def literal(value: Any) -> str:
    """Write a value as it could stand in a TOML file."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(literal, value))}]"
    return json.dumps(value, ensure_ascii=False)


def split_statement(text: str) -> tuple[Key, str, str] | None:
    """Split `key = value` into the key's path, the key's text and the value's text.

    None where the text is no such thing. A "=" may stand inside a quoted key: the first one that
    leaves a whole key before it is the right one, and it is the parser that knows.
    """
    position = text.find("=")
    while position >= 0:
        try:
            found = parse(f"{text[:position]}=0")
        except (ValueError, RecursionError):
            position = text.find("=", position + 1)
            continue
        path, end = _single_path(found)
        return (path, text[:position], text[position + 1 :]) if end == 0 else None
    return None


def value_of(text: str) -> Any:
    """Return what the text means as a TOML value, else the text itself."""
    try:
        found = parse(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def key_lines(text: str) -> dict[Key, int]:
    """Map each key path of a valid TOML text to the line (from 1) of the statement that names it first.

    Each statement is parsed on its own; the parser decides where it ends, so strings of several
    lines, quoted keys and arrays of tables are right. Takes time in proportion to the text.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    found: dict[Key, int] = {}
    counts: dict[Key, int] = {}  # of the tables in each array of tables so far, less one
    table: Key = ()
    refinable = _REFINED_LINES
    start = 0
    while start < len(lines):
        end = start + 1
        if (statement := split_statement(lines[start])) is None:
            table = _table_after(lines[start], table, counts)
            _note(found, table, start)
        else:
            end = _end_of(statement[1], lines, start)
            refinable -= end - start if end - start > 1 else 0
            _note_values(found, table, lines, start, end, refined=refinable >= 0)
        start = end
    return found


def _single_path(found: Any) -> tuple[Key, Any]:
    path: Key = ()
    while isinstance(found, (dict, list)) and found:
        part, found = next(iter(found.items())) if isinstance(found, dict) else (0, found[0])
        path += (part,)
    return path, found


def _table_after(line: str, table: Key, counts: dict[Key, int]) -> Key:
    """Return the table in which the statements after this line stand: only a header changes it."""
    written = _single_path(parse(f"{line}\n_=0"))[0][:-1]  # a statement put after it shows where it leads
    if not written:
        return table
    table = ()
    for part, following in itertools.pairwise((*written, "")):
        if isinstance(part, int):
            continue
        table += (part,)
        if isinstance(following, int):
            counts[table] = counts.get(table, -1) + 1
        if table in counts:
            table += (counts[table],)
    return table


def _end_of(key_text: str, lines: list[str], start: int) -> int:
    """Return the line after the statement that starts at `start`.

    A second value for a key is refused where that value ends: so one is put before it.
    """
    if _is_whole(lines[start]):
        return start + 1
    size = 2
    while True:
        document = "\n".join((f"{key_text}=0", *lines[start : start + size]))
        try:
            parse(document)
        except SyntaxProblem as error:
            if error.pos < len(document) or start + size >= len(lines):
                return start + error.lineno - 1
        size *= 2


def _is_whole(line: str) -> bool:
    try:
        parse(line)
    except SyntaxProblem:
        return False
    return True


def _note(found: dict[Key, int], key: Key, line: int) -> None:
    for length in range(1, len(key) + 1):
        found.setdefault(key[:length], line + 1)


def _note_values(
    found: dict[Key, int], table: Key, lines: list[str], start: int, end: int, refined: bool
) -> None:
    """Note the statement's keys, and those inside its value: by the lines on which they begin.

    A value of several lines is cut after each line and closed with brackets: a key begins on the
    line after the last cut that parsed without it.
    """
    began = start
    for cut in range(start + 1, end + 1) if refined else (end,):
        text = "\n".join(lines[start:cut])
        for closer in _CLOSERS if cut < end else ("",):
            try:
                value = parse(f"{text}\n{closer}")
            except SyntaxProblem:
                continue
            _note_all(found, table, value, began)
            began = cut
            break


def _note_all(found: dict[Key, int], key: Key, value: Any, line: int) -> None:
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        _note(found, key, line)
        if isinstance(value, (dict, list)):
            inside = value.items() if isinstance(value, dict) else enumerate(value)
            waiting.extend(((*key, part), child) for part, child in inside)
