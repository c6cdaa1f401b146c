"""Names in the configuration, and what clients send who mean them."""

from __future__ import annotations

import pytest

from srvkit.net.sni import as_asked, asked_for


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("one.example", ["one.example"]),
        ("ONE.Example", ["one.example"]),
        ("dotted.example.", ["dotted.example"]),
        ("*.wild.example", ["*.wild.example"]),
        ("*.b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example.", ["*.xn--bcher-kva.example"]),
        ("XN--BCHER-KVA.example", ["xn--bcher-kva.example"]),
        ("B\u00dcCHER.example", ["xn--bcher-kva.example"]),
        ("bu\u0308cher.example", ["xn--bcher-kva.example"]),
        ("\u65e5\u672c\u8a9e\u3002jp", ["xn--wgv71a119e.jp"]),
        ("stra\u00dfe.example", ["strasse.example", "xn--strae-oqa.example"]),
        ("\U0001f4a9.example", ["xn--ls8h.example"]),
        ("host_name.example", ["host_name.example"]),
        ("localhost", ["localhost"]),
        (".".join(["x" * 49] * 5) + ".abc", [".".join(["x" * 49] * 5) + ".abc"]),
    ],
)
def test_names_are_taken_as_clients_send_them(written: str, sent: list[str]) -> None:
    assert asked_for(written) == sent


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "it is empty"),
        (".", "it is empty"),
        ("*", "only a whole first label may be"),
        ("*.", "only a whole first label may be"),
        ("a.*.example", "only a whole first label may be"),
        ("w*.example", "only a whole first label may be"),
        ("a..example", "nothing between two of its dots"),
        (".example", "nothing between two of its dots"),
        ("a.example..", "nothing between two of its dots"),
        ("127.0.0.1", "never for addresses"),
        ("::1", "never for addresses"),
        ("[2001:db8::1]", "never for addresses"),
        ("10.1", "its last part is a number"),
        ("1.2.3.0x4", "its last part is a number"),
        ("a.example:443", "without a scheme, a port or a path"),
        ("https://a.example", "without a scheme, a port or a path"),
        ("a.example/", "without a scheme, a port or a path"),
        ("a b.example", "'a b' is no part of a host name"),
        ("a\n.example", "is no part of a host name"),
        ("a@b.example", "is no part of a host name"),
        ("x" * 64 + ".example", "longer than 63 characters"),
        ("\u00fc" * 60 + ".example", "longer than 63 characters"),
        (".".join(["x" * 50] * 5), "253 characters at most"),
    ],
)
def test_what_nobody_asks_for_is_refused(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        asked_for(written)


@pytest.mark.parametrize("sent", ["one.example", "ONE.example", "one.example."])
def test_what_is_sent_compares_without_case_and_final_dot(sent: str) -> None:
    assert [as_asked(sent)] == asked_for("one.example")
