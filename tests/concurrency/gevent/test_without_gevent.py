"""What there is of the model where gevent is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from srvkit.config import loader
from srvkit.errors import ConfigError
from tests.conftest import RunCode

pytest.importorskip("gevent")  # one test looks at what is said where it is installed


@pytest.fixture
def without_gevent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent", None)


CONFIG = """\
[server.echo]
listen = "tcp://127.0.0.1:0"
handler = "echo"

concurrency = "gevent"
"""


def test_without_the_package_the_configuration_is_wrong_and_says_what_to_install(
    without_gevent: None, tmp_path: Path
) -> None:
    from srvkit.config.assemble import assemble

    (tmp_path / "srvkit.toml").write_text(CONFIG)
    with pytest.raises(ConfigError) as caught:
        assemble(*loader.read(tmp_path / "srvkit.toml"))
    assert str(caught.value) == (
        f"{tmp_path}/srvkit.toml:5: server.echo.concurrency: "
        "'gevent' needs the package gevent: pip install 'srvkit[gevent]'"
    )


def test_without_the_package_it_is_not_suggested(without_gevent: None, tmp_path: Path) -> None:
    from srvkit.config.assemble import assemble

    text = CONFIG.replace('"gevent"', '"event"').replace('"echo"', '"http.server:SimpleHTTPRequestHandler"')
    (tmp_path / "srvkit.toml").write_text(text)
    with pytest.raises(ConfigError, match="cannot run SimpleHTTPRequestHandler") as caught:
        assemble(*loader.read(tmp_path / "srvkit.toml"))
    assert "threading" in str(caught.value)
    assert "gevent" not in str(caught.value)


@pytest.mark.parametrize("missing", [True, False])
def test_the_list_of_models_says_whether_the_package_is_there(
    missing: bool,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from srvkit.cli.main import main

    if missing:
        request.getfixturevalue("without_gevent")
    monkeypatch.chdir(tmp_path)
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "  gevent     blocking, message" in out
    assert ("gevent is not installed: pip install 'srvkit[gevent]'" in out) is missing


def test_without_the_package_serving_says_what_is_missing(run_code: RunCode) -> None:
    program = run_code(
        "import sys\n"
        "sys.modules['gevent'] = None\n"
        "import srvkit\n"
        "class Server(srvkit.GreenletMixIn, srvkit.TCPServer): pass\n"
        "with Server(('127.0.0.1', 0), srvkit.BaseRequestHandler) as server:\n"
        "    server.serve_forever()\n"
    )
    assert program.ended() == 1
    assert program.log.endswith(
        "ImportError: GreenletMixIn needs the package gevent: pip install 'srvkit[gevent]'\n"
    )
