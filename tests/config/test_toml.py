"""Keys and their lines, found by the parser itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srvkit.config import toml


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (("server", "echo"), "server.echo"),
        (("server", "a.b", "x"), 'server."a.b".x'),
        (("a b", 'q"'), '"a b"."q\\""'),
        (("listen", 1, "x"), "listen[1].x"),
        (("esc\x1b[31m",), '"esc\\u001b[31m"'),
        (("größe",), '"größe"'),
        (("k" * 100,), '"' + "k" * 57 + '..."'),
        ((), ""),
    ],
)
def test_keys_are_written_as_in_toml(key, text):
    assert toml.dotted(key) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=c=d", (("a", "b"), "a.b", "c=d")),
        ('"a=b".c = 1', (("a=b", "c"), '"a=b".c ', " 1")),
        ("'=' = [", (("=",), "'=' ", " [")),
        ("no value", None),
        ("a b=1", None),
        ("[table]", None),
        ("[table] # a=b", None),
        ("# a = b", None),
        ("=1", None),
        ("", None),
    ],
)
def test_a_statement_is_split_where_its_key_ends(text, expected):
    assert toml.split_statement(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("true", True),
        ('"4"', "4"),
        ("{ a = [1] }", {"a": [1]}),
        ("forking", "forking"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("", ""),
        ("1\nb = 2", "1\nb = 2"),
        ("9" * 5000, "9" * 5000),
        ("[" * 3000, "[" * 3000),
    ],
)
def test_a_value_is_toml_or_else_the_text_itself(text, value):
    assert toml.value_of(text) == value


ODD_FILE = '''\
# "listen" = 1
title = "x = 1 @"

[server."a.b"] # [server.c]
listen = [
    "one",
    # "comment",

    "two",
]
text = """
[server.fake]
listen = 1
"""  # ends here
after = 1
  "quoted key" = { x = 1, y = { z = 2 } }
handler = {
    name = "echo",
    names = [
        "n",
        """
        m""",
    ],
    last = 1
}
limits.idle = 5

[[sni]]
cert = 1
[[sni]]
cert = 2
[sni.sub]
deep = 3
[[sni.inner]]
[[sni.inner]]
x = 1
[last]'''.replace("@", "\x85\u2028")  # ends of lines elsewhere, not in TOML


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("title",), 2),
        (("server",), 4),
        (("server", "a.b"), 4),
        (("server", "a.b", "listen"), 5),
        (("server", "a.b", "listen", 0), 6),
        (("server", "a.b", "listen", 1), 9),
        (("server", "a.b", "text"), 11),
        (("server", "fake"), None),
        (("server", "c"), None),
        (("server", "a.b", "after"), 15),
        (("server", "a.b", "quoted key"), 16),
        (("server", "a.b", "quoted key", "y", "z"), 16),
        (("server", "a.b", "handler"), 17),
        (("server", "a.b", "handler", "name"), 18),
        (("server", "a.b", "handler", "names"), 19),
        (("server", "a.b", "handler", "names", 0), 20),
        (("server", "a.b", "handler", "names", 1), 21),
        (("server", "a.b", "handler", "last"), 24),
        (("server", "a.b", "limits", "idle"), 26),
        (("sni", 0), 28),
        (("sni", 0, "cert"), 29),
        (("sni", 1), 30),
        (("sni", 1, "cert"), 31),
        (("sni", 1, "sub", "deep"), 33),
        (("sni", 1, "inner", 0), 34),
        (("sni", 1, "inner", 1, "x"), 36),
        (("last",), 37),
    ],
)
def test_the_line_of_a_key_is_where_it_begins(key, line, newline):
    assert toml.key_lines(ODD_FILE.replace("\n", newline)).get(key) == line


VALUES = [
    "1",
    '"x"',
    "[1, 2]",
    '"""\n[a]\nb = 1\n"""',
    "'''\n\n'''",
    "[\n  1,\n\n  2 ]",
    "{ k = 1,\n l = [\n3] }",
    "{}",
]
STATEMENTS = st.lists(
    st.one_of(
        st.just("# k = 1"),
        st.just(""),
        st.tuples(st.sampled_from(["k{}", "'k = {}'", "k{}.x", '  "k.{}"']), st.sampled_from(VALUES)),
        st.sampled_from(["[t{}]", "[[a]]", "[a.t{}]", "[[a.b]]", '["t = {}".x]']),
    ),
    max_size=12,
)


@given(STATEMENTS)
def test_the_statement_of_a_key_is_the_first_after_which_the_parsed_text_has_it(statements):
    """The definition itself, tried out on each prefix of the text, is far slower and the same."""
    pieces = ["[[a]]"]
    for number, piece in enumerate(statements):
        name, value = piece if isinstance(piece, tuple) else (piece, "")
        pieces.append(name.format(number) + (f" = {value}" if value else ""))
    lines = "\n".join(pieces).split("\n")
    expected: dict[toml.Key, tuple[int, int]] = {}
    began = 0
    for end in range(1, len(lines) + 1):
        try:
            parsed = toml.parse("\n".join(lines[:end]))
        except toml.SyntaxProblem:
            continue
        for key in every_path(parsed):
            expected.setdefault(key, (began + 1, end))
        began = end
    found = toml.key_lines("\n".join(lines))
    assert found.keys() == expected.keys()
    for key, (first, last) in expected.items():
        assert first <= found[key] <= last
        if key[-1] != "l" and not isinstance(key[-1], int):  # these may begin on a later line of their value
            assert found[key] == first


def every_path(value, key=()):
    if key:
        yield key
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for part, child in children:
        yield from every_path(child, (*key, part))


def test_a_value_of_many_lines_is_one_statement():
    text = "list = [\n" + "  1,\n" * 20_000 + "]\nafter = 1"
    found = toml.key_lines(text)
    assert (found["list",], found["list", 19_999], found["after",]) == (1, 1, 20_003)
