"""`srvkit schema` prints a schema that names the plugins of the configuration, and nothing else."""

from __future__ import annotations

import json

PARROT = """
from srvkit import MessageHandler, hookimpl
class Parrot(MessageHandler): ...
@hookimpl
def srvkit_handlers():
    return {"parrot": Parrot}
"""


def names(done):
    server = json.loads(done.stdout)["properties"]["server"]["additionalProperties"]
    return server["properties"]["handler"]["anyOf"][0]["examples"]


def test_handlers_of_the_configuration_are_suggested(srvkit, tmp_path):
    done = srvkit("schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert "echo" in names(done)
    assert "parrot" not in names(done)
    (tmp_path / "parrot.py").write_text(PARROT)
    (tmp_path / "zoo.toml").write_text('[srvkit]\nplugins = ["parrot.py"]\n[server.x]\nlisten = 7\n')
    assert "parrot" in names(srvkit("schema", "zoo.toml"))


def test_a_plugin_that_cannot_be_used_is_an_error(refused, tmp_path):
    (tmp_path / "srvkit.toml").write_text('[srvkit]\nplugins = ["absent.py"]\n')
    (line,) = refused(3, "schema")
    assert "there is no file" in line
