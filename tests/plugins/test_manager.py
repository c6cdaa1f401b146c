"""Plugins are found, imported, checked and asked; whatever is wrong with one is said in one line."""

from __future__ import annotations

import os
import signal
import sys
import time as standard_time
from pathlib import Path

import pytest

from srvkit.plugins.manager import Offer, make_manager
from srvkit.protocol.framing import Lines
from tests.plugins.conftest import Install, Make, Write
from tests.plugins.plugin_sources import installed_offering, offering, refused


class TestFinding:
    def test_a_manager_without_plugins_offers_srvkits_own_models_and_framings(self) -> None:
        plugins = make_manager()
        assert {"serial", "threading", "pool", "forking"} <= set(plugins.models)
        assert set(plugins.framings) == {
            "raw", "lines", "delimiter", "length-prefix", "netstring", "fixed-size",
        }  # fmt: skip
        assert plugins.framings["lines"] == Offer("lines", Lines, "srvkit")

    def test_every_python_file_of_a_folder_is_a_plugin_named_by_its_path(
        self, write: Write, make: Make
    ) -> None:
        write("plugs/two.py", offering("second"))
        write("plugs/one.py", offering("first"))
        plugins = make("plugs")
        assert plugins.handlers["first"].plugin == "plugs/one.py"
        assert plugins.handlers["second"].plugin == "plugs/two.py"
        assert plugins.implementers("srvkit_handlers")[-2:] == ["plugs/one.py", "plugs/two.py"]

    @pytest.mark.parametrize("name", ["_private.py", "test_one.py", "conftest.py", "notes.txt", ".x.py"])
    def test_other_files_of_a_folder_are_no_plugins(self, name, write, make):
        write("plugs/one.py", offering("first"))
        write(f"plugs/{name}", "@hookimpl\ndef srvkit_no_hook_at_all(): ...\n")
        assert "first" in make("plugs").handlers

    def test_a_file_is_a_plugin(self, write: Write, make: Make) -> None:
        write("deep/er/one.py", offering("first"))
        offer = make("deep/er/one.py").handlers["first"]
        assert (offer.plugin, offer.cls.__module__) == ("deep/er/one.py", "deep.er.one")

    def test_an_import_name_is_a_plugin(self, write: Write, make: Make) -> None:
        write("my_pkg/my_plugin.py", offering("first"))
        assert make("my_pkg.my_plugin").handlers["first"].plugin == "my_pkg.my_plugin"

    def test_a_folder_outside_the_configurations_folder_is_found(
        self, write: Write, make: Make, project: Path
    ) -> None:
        write("../shared/one.py", offering("first"))
        assert make("../shared").handlers["first"].plugin == "../shared/one.py"
        assert make(str(project.parent / "shared")).handlers["first"].plugin.endswith("/shared/one.py")

    @pytest.mark.parametrize("entry", ["absent/folder", "absent.py", "absent", "absent.module"])
    def test_what_is_not_there_is_refused_with_the_place_that_was_searched(self, entry, make, project):
        assert f"{project}/{entry}" in refused(make, entry)

    def test_an_entry_that_names_a_plugin_again_is_refused(self, write: Write, make: Make) -> None:
        write("plugs/one.py", offering("first"))
        message = refused(make, "plugs", "./plugs/one.py")
        assert message == "plugin plugs/one.py: named twice, by 'plugs' and by './plugs/one.py'"

    def test_a_module_that_two_entries_reach_is_refused(self, write: Write, make: Make) -> None:
        write("plugs/one.py", offering("first"))
        assert "is the same as plugin plugs/one.py" in refused(make, "plugs", "plugs.one")

    def test_an_installed_plugin_is_named_by_its_distribution(self, install: Install, make: Make) -> None:
        install("acme", "rocket = acme_rocket", acme_rocket=installed_offering("rocket"))
        assert make().handlers["rocket"].plugin == "acme 1.2: rocket"

    def test_two_entry_points_for_one_module_are_refused(self, install: Install, make: Make) -> None:
        install("acme", "a = acme_rocket\nb = acme_rocket", acme_rocket=installed_offering("rocket"))
        assert refused(make) == "plugin acme 1.2: b: is the same as plugin acme 1.2: a: name it once"


class TestImporting:
    def test_files_import_each_other_and_get_the_same_classes(self, write: Write, make: Make) -> None:
        write("plugs/one.py", offering("first"))
        write(
            "plugs/a_two.py",
            "from plugs.one import Thing\n" + offering("second").replace("class Thing", "class Own"),
        )
        plugins = make("plugs")
        assert plugins.handlers["second"].cls is plugins.handlers["first"].cls

    def test_a_class_imported_before_is_the_one_that_is_offered(
        self, write: Write, make: Make, project: Path
    ) -> None:
        write("plugs/one.py", offering("first"))
        sys.path.insert(0, str(project))
        from plugs.one import Thing  # type: ignore[import-not-found]

        assert make("plugs").handlers["first"].cls is Thing

    def test_the_package_of_a_folder_is_imported_first(self, write: Write, make: Make) -> None:
        write("plugs/__init__.py", "value = 'first'\n")
        write("plugs/one.py", "import plugs\n" + offering("x").replace("'x'", "plugs.value"))
        assert "first" in make("plugs").handlers

    def test_the_configurations_folder_leads_the_import_path(
        self, write: Write, make: Make, project: Path
    ) -> None:
        write("neighbour.py", "value = 'first'\n")
        write("plugs/one.py", "import neighbour\n" + offering("x").replace("'x'", "neighbour.value"))
        assert "first" in make("plugs").handlers
        assert sys.path[0] == str(project)
        make("plugs")
        assert sys.path.count(str(project)) == 1

    @pytest.mark.parametrize(
        ("entry", "file"), [("plugs", "plugs/time.py"), ("time.py", "time.py"), ("email", "email/one.py")]
    )
    def test_a_name_of_the_standard_library_hides_nothing(self, entry, file, write, make):
        write(file, offering("first"))
        import email

        before = email
        assert "first" in make(entry).handlers
        assert sys.modules["time"] is standard_time
        assert sys.modules["email"] is before

    def test_a_folder_hides_no_module_of_the_standard_library_that_is_not_imported_yet(
        self, write: Write, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, "colorsys", raising=False)
        write("colorsys/one.py", offering("first"))
        assert "first" in make("colorsys").handlers
        import colorsys

        assert colorsys.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)

    def test_two_folders_of_one_name_stay_apart(self, write: Write, make: Make) -> None:
        write("plugs/one.py", offering("first"))
        write("more/plugs/one.py", offering("second"))
        write("../plugs/one.py", offering("third"))
        handlers = make("plugs", "more/plugs", "../plugs").handlers
        modules = [handlers[name].cls.__module__ for name in ("first", "second", "third")]
        assert modules == ["plugs.one", "more.plugs.one", "plugs_2.one"]

    def test_a_later_manager_takes_the_name_over_from_another_folder(
        self, write: Write, make: Make, project: Path
    ) -> None:
        write("a/plugs/one.py", offering("first"))
        write("b/plugs/one.py", offering("second"))
        for folder, name in (("a", "first"), ("b", "second")):
            made = make_manager(["plugs"], folder=project / folder)
            assert made.handlers[name].cls.__module__ == "plugs.one"

    @pytest.mark.parametrize(
        ("source", "what"),
        [
            ("import absent_module", "ModuleNotFoundError: No module named 'absent_module'"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("def f(:", "SyntaxError: invalid syntax"),
            ("raise SystemExit(3)", "SystemExit: 3"),
            (
                "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})",
                "Mute: <exception str() failed>",
            ),
            ("raise BaseException('two\\nlines')", "BaseException: two lines"),
            ("assert False", "AssertionError"),
        ],
    )
    @pytest.mark.parametrize("entry", ["plugs", "plugs/one.py", "plugs.one"])
    def test_a_failing_import_names_plugin_error_file_and_line(self, entry, source, what, write, make):
        file = write("plugs/one.py", f"\n\n{source}\n")
        name = "plugs.one" if entry == "plugs.one" else "plugs/one.py"
        line = len(file.read_text().splitlines())
        assert refused(make, entry) == f"plugin {name}: cannot be imported: {what} ({file}:{line})"
        assert "plugs.one" not in sys.modules

    def test_the_line_is_the_plugins_own_where_the_error_is_below_it(self, write: Write, make: Make) -> None:
        write("plugs/_below.py", "def fail():\n    raise OSError('below')\n", header="")
        file = write("plugs/one.py", "from plugs._below import fail\ndef call():\n    fail()\ncall()\n")
        assert f"OSError: below ({file}:4)" in refused(make, "plugs")

    def test_an_installed_plugin_that_cannot_be_imported_is_named(self, install: Install, make: Make) -> None:
        install("acme", "rocket = acme_rocket", acme_rocket="x = 1\nraise ValueError('no fuel')\n")
        message = refused(make)
        assert message.startswith("plugin acme 1.2: rocket: cannot be imported: ValueError: no fuel (")
        assert message.endswith("acme_rocket.py:2)")

    def test_a_keyboard_interrupt_is_not_the_plugins(self, write: Write, make: Make) -> None:
        write("plugs/one.py", "raise KeyboardInterrupt\n")
        with pytest.raises(KeyboardInterrupt):
            make("plugs")

    @pytest.mark.parametrize("then", ["", "raise ValueError\n"])
    def test_a_change_of_the_current_folder_is_undone_and_refused(self, then, write, make):
        write("plugs/one.py", "import os\nos.chdir('/')\n" + then + offering("first"))
        before = os.getcwd()
        message = refused(make, "plugs")
        assert os.getcwd() == before
        assert "plugin plugs/one.py: cannot be imported: " in message
        assert "ValueError" in message if then else "changes the current folder" in message

    def test_a_change_of_a_signal_handler_is_undone_and_refused(self, write: Write, make: Make) -> None:
        write("plugs/one.py", "import signal\nsignal.signal(signal.SIGUSR2, print)\n" + offering("first"))
        before = signal.getsignal(signal.SIGUSR2)
        assert "changes the handler of SIGUSR2" in refused(make, "plugs")
        assert signal.getsignal(signal.SIGUSR2) == before != print

    def test_an_insertion_into_the_import_path_is_undone_and_refused(
        self, write: Write, make: Make, project: Path
    ) -> None:
        write("plugs/one.py", "import sys\nsys.path.insert(0, '/absent')\n" + offering("first"))
        assert "changes the beginning of sys.path" in refused(make, "plugs")
        assert sys.path[0] == str(project)

    def test_appending_to_the_import_path_is_allowed(self, write: Write, make: Make) -> None:
        write("plugs/one.py", "import sys\nsys.path.append('/absent')\n" + offering("first"))
        assert "first" in make("plugs").handlers
        assert sys.path[-1] == "/absent"

    def test_what_a_plugin_prints_is_printed(
        self, write: Write, make: Make, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write("plugs/one.py", "print('hello')\n" + offering("first"))
        make("plugs")
        assert capsys.readouterr().out == "hello\n"


class TestBlocking:
    @pytest.mark.parametrize("entry", ["plugs/one.py", "one.py"])
    def test_a_blocked_file_is_not_imported(self, entry, write, make):
        write("plugs/one.py", "raise ValueError\n")
        write("plugs/two.py", offering("second"))
        assert "second" in make("plugs", block=[entry]).handlers

    @pytest.mark.parametrize("entry", ["acme 1.2: rocket", "rocket"])
    def test_a_blocked_installed_plugin_is_not_imported(self, entry, install, make):
        install("acme", "rocket = acme_rocket", acme_rocket="raise ValueError\n")
        assert "rocket" not in make(block=[entry]).handlers

    def test_blocking_what_is_not_there_is_refused_with_a_suggestion(self, write: Write, make: Make) -> None:
        write("plugs/rocket.py", offering("first"))
        message = refused(make, "plugs", block=["rockit.py"])
        assert message == "plugin rockit.py: there is no such plugin to block, did you mean 'rocket.py'?"


class TestHooks:
    def test_a_misspelt_hook_is_refused_with_the_right_one(self, write: Write, make: Make) -> None:
        file = write("plugs/one.py", "@hookimpl\ndef srvkit_handler():\n    return {}\n")
        message = refused(make, "plugs")
        hint = "unknown hook 'srvkit_handler', did you mean 'srvkit_handlers'?"
        assert message == f"plugin plugs/one.py: {hint} ({file}:2)"

    def test_an_optional_hook_may_be_unknown(self, write: Write, make: Make) -> None:
        write("plugs/one.py", "@hookimpl(optionalhook=True)\ndef srvkit_of_tomorrow(): ...\n")
        assert make("plugs").implementers("srvkit_handlers") is not None

    def test_an_argument_that_the_hook_does_not_have_is_refused(self, write: Write, make: Make) -> None:
        file = write("plugs/one.py", "@hookimpl\ndef srvkit_configure(configuration): ...\n")
        what = "srvkit_configure takes 'configuration', the hook's arguments are only config"
        assert refused(make, "plugs") == f"plugin plugs/one.py: {what} ({file}:2)"

    @pytest.mark.parametrize(
        ("arguments", "what"),
        [
            ("config=None", "gives 'config' a default, so it would never be given anything else"),
            ("*, config", "takes 'config' behind a *, where it would not be handed over"),
        ],
    )
    def test_an_argument_that_would_not_be_handed_over_is_refused(self, arguments, what, write, make):
        file = write("plugs/one.py", f"@hookimpl\ndef srvkit_configure({arguments}): ...\n")
        assert refused(make, "plugs") == f"plugin plugs/one.py: srvkit_configure {what} ({file}:2)"

    def test_a_default_for_something_of_ones_own_is_no_matter(self, write: Write, make: Make) -> None:
        write("plugs/one.py", "@hookimpl\ndef srvkit_configure(config, seen=[]): ...\n")
        assert make("plugs").implementers("srvkit_configure") is not None

    def test_a_named_pipe_is_no_plugin_and_not_waited_for(self, write: Write, make: Make) -> None:
        pipe = write("plugs/one.py", offering("first")).with_name("pipe.py")
        os.mkfifo(pipe)
        assert refused(make, "plugs") == f"plugin plugs/pipe.py: {pipe} is no file"

    def test_a_hook_without_its_mark_is_refused(self, write: Write, make: Make) -> None:
        file = write("plugs/one.py", "def srvkit_handlers():\n    return {}\n")
        expected = f"plugin plugs/one.py: srvkit_handlers is not marked with @hookimpl ({file}:2)"
        assert refused(make, "plugs") == expected

    def test_a_wrapper_that_is_no_generator_is_refused(self, write: Write, make: Make) -> None:
        write("plugs/one.py", "@hookimpl(wrapper=True)\ndef srvkit_configure(config): ...\n")
        assert "srvkit_configure" in refused(make, "plugs")

    def test_a_file_of_a_folder_without_hooks_is_noted(self, write: Write, make: Make) -> None:
        write("plugs/helper.py", "")
        write("plugs/one.py", offering("first"))
        plugins = make("plugs")
        assert plugins.notes == ["plugs/helper.py implements no hook, it is no plugin: name it _… to say so"]

    @pytest.mark.parametrize("entry", ["plugs/one.py", "plugs.one"])
    def test_a_file_that_is_named_itself_must_implement_a_hook(self, entry, write, make):
        write("plugs/one.py", "")
        assert "implements no hook" in refused(make, entry)

    def test_implementers_of_a_hook_that_nobody_implements_are_none(self, write: Write, make: Make) -> None:
        assert make().implementers("srvkit_connection_open") == []
        write("plugs/one.py", "@hookimpl\ndef srvkit_connection_open(server): ...\n")
        assert make("plugs").implementers("srvkit_connection_open") == ["plugs/one.py"]
