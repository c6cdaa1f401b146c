"""The house keeps its order: floors, doors, and names that are not used. Read off the source alone."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "srvkit"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path != PACKAGE / "__init__.py"]

# Bottom up; the two wings share a level and do not see each other.
FLOORS = {
    "errors": 0,
    "fork": 0,
    "contracts": 1,
    "protocol": 2,
    "net": 3,
    "server": 4,
    "concurrency": 4,
    "plugins": 5,
    "config": 6,
    "process": 7,
    "cli": 8,
    "testing": 8,
    "pytest_plugin": 9,
    "__main__": 9,
}

DOORS = {
    "pluggy": {"plugins"},
    "tomli": {"config"},
    "tomllib": set(),
    "msgspec": {"config"},
    "ssl": {"net"},
    "asyncio": {"concurrency"},
    "gevent": {"concurrency"},
    "uvloop": {"concurrency"},
    "socketserver": set(),
    "pytest": {"testing"},
    # forks resets what a child inherits; sources puts back what a plugin changed when it was imported.
    "signal": {"process", "cli", "concurrency/forks.py", "plugins/sources.py"},
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of every import, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.lineno, node.module or ""
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def floor_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_imports_go_down_only(path: Path) -> None:
    """A floor imports from those below it, and a wing never from the other."""
    own = floor_of(path)
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "srvkit":
            continue
        assert len(parts) > 1, f"{short(path)}:{line} imports from srvkit itself"
        other = parts[1]
        assert other in FLOORS, f"{short(path)}:{line} imports {name}, which is on no floor"
        assert own == other or FLOORS[own] > FLOORS[other], f"{short(path)}:{line} imports {name} from above"


@pytest.mark.parametrize("path", sorted((PACKAGE / "protocol").glob("*.py")), ids=short)
def test_what_bytes_mean_needs_no_socket_clock_or_thread(path: Path) -> None:
    outside = {"asyncio", "os", "select", "selectors", "signal", "socket", "ssl", "threading", "time"}
    pure = {"os.fsdecode", "socket.AF_INET", "socket.AF_INET6", "socket.inet_ntop", "socket.inet_pton"}
    found = list(imports(path))
    for line, name in found:
        module = name.split(".")[0]
        if module in outside:
            taken = {other for where, other in found if where == line} - {module}
            assert taken and taken <= pure, f"{short(path)}:{line} imports {name}"


def test_every_module_has_a_floor() -> None:
    assert {floor_of(path) for path in MODULES} <= set(FLOORS)


def test_no_module_imports_itself_by_a_circle() -> None:
    """No circles, not even inside functions."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
    }
    edges = {name: {found for _, found in imports(path) if found in names} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in names:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=short)
def test_each_foreign_thing_has_one_door(path: Path) -> None:
    for line, name in imports(path):
        allowed = DOORS.get(name.split(".")[0])
        if allowed is not None:
            where = f"{short(path)}:{line} imports {name}"
            assert floor_of(path) in allowed or short(path) in allowed, where


@pytest.mark.parametrize("path", FILES, ids=short)
def test_there_is_one_way_to_fork(path: Path) -> None:
    assert path == PACKAGE / "fork.py" or not re.search(r"\bos\.fork(pty)?\b", path.read_text())


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=short)
def test_a_folders_init_is_a_plate_and_no_door(path: Path) -> None:
    """It says what lives there and what it must not know, and re-exports nothing."""
    if path.parent == PACKAGE:
        return
    (docstring,) = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert "Must not know" in ast.literal_eval(docstring.value)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{short(path)} has no docstring"


def test_no_file_is_named_for_nothing() -> None:
    for path in FILES:
        assert not re.search(r"(^|_)(utils?|helpers?|common|core|misc)(_|\.|$)", path.name), path


@pytest.mark.parametrize("path", FILES, ids=short)
def test_sentences_are_such_as_operators_read(path: Path) -> None:
    """Subject, verb, what to do; these phrases hide one of them."""
    found = re.findall(r"\b(?:(?:be|been) had|of late|at hand)\b", path.read_text())
    assert not found, f"{short(path)}: {found}"


def test_every_folder_is_in_the_wheel() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES if path.name == "__init__.py"}
    assert {name for name in listed if name.split(".")[0] == "srvkit"} == folders - {"srvkit.testing.entry"}


def test_the_top_level_holds_what_it_should() -> None:
    allowed = {
        "pyproject.toml", "README.md", "srvkit", "handlers", "tests", "examples", "srvkit.toml",
        "CHANGELOG.md", "LICENSE",
    }  # fmt: skip
    made_by_tools = {"build", "dist", "srvkit.egg-info"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".sock"}
    assert found - made_by_tools <= allowed
