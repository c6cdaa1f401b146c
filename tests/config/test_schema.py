"""The JSON Schema accepts what srvkit accepts and finds the usual mistakes: validated by jsonschema."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from srvkit.config import schema as schema_module
from srvkit.config import toml
from srvkit.config.loader import from_table
from srvkit.config.model import settings_table
from srvkit.config.schema import DIALECT, field_of, schema
from srvkit.contracts import Duration, setting
from srvkit.plugins.manager import make_manager

ROOT = Path(__file__).resolve().parents[2]
README_TABLES = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
EVERYTHING = """
    [srvkit]
    plugins = ["handlers"]
    block = "${BLOCKED}"
    user = "srv"
    drain_timeout = "1m"
    ready_timeout = 2.5
    heartbeat_timeout = "${SECONDS}s"
    [logging]
    level = "${LEVEL:-debug}"
    connections = "${LOG}"
    [server."echo-2.x"]
    listen = ["tcp://127.0.0.1:0", "unix:x"]
    handler = { name = "own", motd = "hello" }
    concurrency = { name = "pool", threads = 32 }
    workers = "auto"
    framing = { name = "length-prefix", size = 4, max_message = "1MiB" }
    [server."echo-2.x".limits]
    max_connections = "${MANY}"
    when_full = "close"
    idle_timeout = "250ms"
    max_message = "64KiB"
    max_rss = 5
    [server."echo-2.x".socket]
    nodelay = false
    receive_buffer = "1 MiB"
    mode = "0660"
    [server.other]
    listen = "udp://[::]:1"
    handler = "package.module:Class"
    concurrency = "somebodys"
"""
SERVER = {"listen": "tcp://127.0.0.1:0", "handler": "echo"}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    plugins = make_manager()
    offers = (plugins.handlers, plugins.models, plugins.framings)
    return schema(*({name: offer.cls for name, offer in some.items()} for some in offers))


@pytest.fixture(scope="module")
def validator(made: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(made)


def test_it_is_a_schema_of_the_dialect_it_names(made):
    assert made["$schema"] == DIALECT == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    jsonschema.Draft202012Validator.check_schema(made)
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("text", [(ROOT / "srvkit.toml").read_text(), *README_TABLES, EVERYTHING])
def test_what_is_right_passes(text, validator):
    validator.validate(toml.parse(text))


def wrong(**changes: Any) -> dict[str, Any]:
    return {"server": {"echo": SERVER | changes}}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"server": {}},
        {"server": {"a b": SERVER}},
        {"server": {"echo": {"listen": "tcp://127.0.0.1:0"}}},
        {"servers": {"echo": SERVER}, "server": {"echo": SERVER}},
        {"server": {"echo": SERVER}, "srvkit": {"plugin": []}},
        {"server": {"echo": SERVER}, "srvkit": {"heartbeat_timeout": 0.01}},
        {"server": {"echo": SERVER}, "srvkit": {"plugins": "handlers"}},
        {"server": {"echo": SERVER}, "logging": {"level": "loud"}},
        {"server": {"echo": SERVER}, "logging": {"connections": "yes"}},
        wrong(listen=[]),
        wrong(listen=7),
        wrong(handler=""),
        wrong(handler={"motd": "x"}),
        wrong(concurency="pool"),
        wrong(concurrency={"name": "pool", "threads": 0}),
        wrong(concurrency={"name": "pool", "threads": "many"}),
        wrong(concurrency={"name": "asyncio", "loop": "own"}),
        wrong(framing={"name": "length-prefix", "size": "big"}),
        wrong(workers=0),
        wrong(workers="two"),
        wrong(limits={"max_connections": 0}),
        wrong(limits={"idle_timeout": "5 minutes"}),
        wrong(limits={"idle_timeout": -1}),
        wrong(limits={"max_message": "1MB"}),
        wrong(limits={"when_full": "drop"}),
        wrong(socket={"mode": "rw"}),
        wrong(socket={"nodelay": 1}),
    ],
    ids=str,
)
def test_what_is_wrong_fails_and_is_wrong_indeed(data, validator):
    assert not validator.is_valid(data)
    plugins = make_manager()
    _, problems = from_table(data)
    if not problems:  # then it is the options that are wrong, which are looked at later
        from srvkit.config.compose import compose

        config, problems = from_table(data)
        compose(config, plugins, problems)
    assert problems.listed()


def leaves(table: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    found = {}
    for name, one in table["properties"].items():
        if "properties" in one:
            found |= leaves(one, f"{key}.{name}")
        else:
            found[f"{key}.{name}"] = one
            if "properties" in one.get("items", {}):
                found |= leaves(one["items"], f"{key}.{name}[]")
    return found


def test_every_setting_is_there_with_type_documentation_and_default(made):
    tables = dict(made["properties"])
    tables["server.NAME"] = tables.pop("server")["additionalProperties"]
    found = {}
    for key, table in tables.items():
        found |= leaves(table, key)
    for one in settings_table():
        assert found[one.key]["description"] == one.doc
        assert ("default" in found[one.key]) == (bool(one.default) and not one.required), one
        if one.default:
            assert toml.value_of(one.default) == found[one.key]["default"]
        assert set(found[one.key]) & {"type", "anyOf"}, f"{one.key} has no type"
    assert {one.key for one in settings_table()} == set(found)


def test_names_are_suggested_and_their_options_described(made):
    server = made["properties"]["server"]["additionalProperties"]["properties"]
    assert "pool" in server["concurrency"]["anyOf"][0]["examples"]
    assert "echo" in server["handler"]["anyOf"][0]["examples"]
    pool = next(
        one
        for one in server["concurrency"]["anyOf"]
        if one.get("properties", {}).get("name", {}).get("const") == "pool"
    )
    assert pool["properties"]["threads"]["description"] == "requests handled at once"
    assert pool["properties"]["threads"]["default"] == 32


def test_a_handler_of_one_process_is_described_as_one():
    class Room:
        """Talk to all."""

        one_process = True

    made = schema(handlers={"room": Room})
    handler = made["properties"]["server"]["additionalProperties"]["properties"]["handler"]
    (room,) = (one for one in handler["anyOf"] if "description" in one)
    assert room["description"] == "Talk to all. (one process: workers = 1, not under a model that forks)"


@dataclass(frozen=True)
class Sni:
    names: list[str] = setting([], "names of the certificate")
    cert: str = setting("", "its file")


@dataclass(frozen=True)
class Tls:
    """[server.NAME.tls]: encryption."""

    cert: str = setting("", "the file of the certificate")
    handshake_timeout: Duration = setting(10.0, "how long", minimum=1)
    sni: list[Sni] = setting([], "certificates by name")


@dataclass(frozen=True)
class Server:
    tls: Tls | None = setting(None, "encrypt")


def test_tables_that_may_be_absent_and_lists_of_tables(monkeypatch):
    monkeypatch.setitem(schema_module.TABLES, "server", Server)
    validator = jsonschema.Draft202012Validator(schema())
    good = {"cert": "x", "handshake_timeout": "2s", "sni": [{"names": ["a"], "cert": "y"}]}
    assert validator.is_valid({"server": {"a": {"tls": good}, "b": {}}})
    for bad in ({"certs": ""}, {"handshake_timeout": 0}, {"sni": [{"name": "a"}]}, {"sni": {"cert": "a"}}):
        assert not validator.is_valid({"server": {"a": {"tls": bad}}}), bad
    found = field_of("server.NAME.tls.handshake_timeout")
    assert found is not None
    assert found.minimum == 1
    found = field_of("server.NAME.tls.sni[].cert")
    assert found is not None
    assert found.wanted is str
    assert field_of("server.NAME.tls.nothing") is None
    assert field_of("server.NAME.tls.cert.nothing") is None
    assert field_of("nothing.at.all") is None


def test_a_type_that_is_not_known_takes_anything(monkeypatch):
    @dataclass(frozen=True)
    class Odd:
        what: complex = setting(1j, "odd")

    monkeypatch.setitem(schema_module.TABLES, "logging", Odd)
    assert schema()["properties"]["logging"]["properties"] == {"what": {"description": "odd"}}
