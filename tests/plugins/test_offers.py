"""What plugins offer: which hooks say so, whose name wins, and handlers that are named by their import."""

from __future__ import annotations

from pathlib import Path

import pytest

from srvkit.errors import PluginError
from tests.plugins.conftest import Install, Make, Write
from tests.plugins.plugin_sources import installed_offering, offering, refused

OFFERING_HOOKS = [
    ("srvkit_handlers", "handlers", "handler"),
    ("srvkit_concurrency", "models", "concurrency model"),
    ("srvkit_framings", "framings", "framing"),
]


@pytest.mark.parametrize(("hook", "attribute", "kind"), OFFERING_HOOKS)
class TestOffering:
    def test_a_plugin_offers_classes_by_name(self, hook, attribute, kind, write, make):
        write("plugs/one.py", offering("a.b-c_9", hook))
        offer = getattr(make("plugs"), attribute)["a.b-c_9"]
        assert (offer.name, offer.plugin, offer.cls.__name__) == ("a.b-c_9", "plugs/one.py", "Thing")

    @pytest.mark.parametrize(
        ("value", "what"),
        [
            ("None", "returned None, not a dict"),
            ("['x']", "returned an object of type list, not a dict"),
            ("{'x': Thing()}", "'x' is an object of type Thing, not a class"),
            ("{'a:b': Thing}", "'a:b' is no name"),
            ("{'Big': Thing}", "'Big' is no name"),
            ("{'': Thing}", "'' is no name"),
            ("{7: Thing}", "7 is no name"),
        ],
    )
    def test_anything_else_is_refused(self, hook, attribute, kind, value, what, write, make):
        write("plugs/one.py", offering("x", hook).replace("{'x': Thing}", value))
        assert refused(make, "plugs").startswith(f"plugin plugs/one.py: {hook}: {what}")

    def test_an_exception_is_refused_with_file_and_line(self, hook, attribute, kind, write, make):
        file = write("plugs/one.py", f"@hookimpl\ndef {hook}():\n    return {{'x': absent}}\n")
        what = f"{hook} failed: NameError: name 'absent' is not defined ({file}:4)"
        assert refused(make, "plugs") == f"plugin plugs/one.py: {what}"

    def test_a_wrapper_is_refused(self, hook, attribute, kind, write, make):
        write("plugs/one.py", f"@hookimpl(wrapper=True)\ndef {hook}():\n    return (yield)\n")
        assert f"{hook} cannot be a wrapper" in refused(make, "plugs")

    def test_one_name_from_two_plugins_is_refused(self, hook, attribute, kind, write, make):
        write("plugs/one.py", offering("x", hook))
        write("plugs/two.py", offering("x", hook))
        what = f"offers {kind} 'x', and so does plugin plugs/one.py: block or rename one of them"
        assert refused(make, "plugs") == f"plugin plugs/two.py: {what}"


class TestWinning:
    def test_one_name_from_two_installed_plugins_is_refused(self, install: Install, make: Make) -> None:
        install("acme", "rocket = acme_rocket", acme_rocket=installed_offering("rocket"))
        install("bcme", "rocket = bcme_rocket", bcme_rocket=installed_offering("rocket"))
        message = refused(make)
        assert "acme 1.2: rocket" in message
        assert "bcme 1.2: rocket" in message

    def test_a_plugin_of_the_configuration_wins_over_an_installed_one_and_says_so(
        self, install: Install, write: Write, make: Make
    ) -> None:
        install("acme", "rocket = acme_rocket", acme_rocket=installed_offering("rocket"))
        write("plugs/one.py", offering("rocket"))
        plugins = make("plugs")
        assert plugins.handlers["rocket"].plugin == "plugs/one.py"
        assert plugins.notes == [
            "handler 'rocket' of plugin plugs/one.py is used instead of the installed one (acme 1.2: rocket)"
        ]

    def test_a_plugin_of_the_configuration_wins_over_srvkits_own_and_says_so(
        self, write: Write, make: Make
    ) -> None:
        write("plugs/one.py", offering("lines", "srvkit_framings"))
        plugins = make("plugs")
        assert plugins.framings["lines"].plugin == "plugs/one.py"
        assert plugins.notes == ["framing 'lines' of plugin plugs/one.py is used instead of srvkit's own"]

    def test_an_installed_plugin_does_not_win_over_srvkits_own(self, install: Install, make: Make) -> None:
        source = (
            installed_offering("x").replace("'x'", "'lines'").replace("srvkit_handlers", "srvkit_framings")
        )
        install("acme", "rocket = acme_rocket", acme_rocket=source)
        assert "offers framing 'lines', and so does plugin srvkit" in refused(make)

    def test_an_installed_folder_that_the_configuration_names_too_needs_no_note(
        self, install: Install, write: Write, make: Make, tmp_path: Path
    ) -> None:
        file = write("plugs/one.py", offering("rocket"))
        install("acme", "rocket = acme_rocket")
        (tmp_path / "site" / "acme_rocket.py").symlink_to(file)
        plugins = make("plugs")
        assert plugins.handlers["rocket"].plugin == "plugs/one.py"
        assert plugins.notes == []


class TestImportHandler:
    def test_a_class_is_imported_by_reference(self, write: Write, make: Make) -> None:
        write("my_pkg/server.py", offering("first"))
        plugins = make()
        assert plugins.import_handler("my_pkg.server:Thing").__name__ == "Thing"
        assert plugins.import_handler("my_pkg.server:Thing.Inner").__qualname__ == "Thing.Inner"

    def test_a_class_of_a_plugin_is_the_same_class(self, write: Write, make: Make) -> None:
        write("plugs/one.py", offering("first"))
        plugins = make("plugs")
        assert plugins.import_handler("plugs.one:Thing") is plugins.handlers["first"].cls

    @pytest.mark.parametrize(
        ("reference", "what"),
        [
            ("server", 'not of the form "package.module:Class"'),
            ("server:", 'not of the form "package.module:Class"'),
            (":Thing", 'not of the form "package.module:Class"'),
            ("../server:Thing", 'not of the form "package.module:Class"'),
            ("absent.server:Thing", "there is no module 'absent.server' on the import path"),
            ("server:Thign", "{file} has no class 'Thign', did you mean 'Thing'?"),
            ("server:Thing.Outer", "{file} has no class 'Thing.Outer'"),
            ("server:number", "'number' in {file} is an object of type int, not a class"),
            ("broken:Thing", "cannot be imported: ZeroDivisionError: division by zero ({broken}:2)"),
            (
                "needy:Thing",
                "cannot be imported: ModuleNotFoundError: No module named 'absent_module' ({needy}:2)",
            ),
        ],
    )
    def test_what_cannot_be_imported_is_refused(self, reference, what, write, make):
        files = {
            "file": write("server.py", "number = 7\n" + offering("first")),
            "broken": write("broken.py", "1 / 0\n"),
            "needy": write("needy.py", "import absent_module\n"),
        }
        plugins = make()
        with pytest.raises(PluginError) as caught:
            plugins.import_handler(reference)
        assert str(caught.value) == f"plugin {reference}: {what.format(**files)}"
