"""Root is given up for good, before any code of a plugin runs; what cannot be done is found first."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable
from typing import Any

import pytest

from srvkit.process.privileges import check

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

USER = "daemon"  # there is one everywhere
NO_ACCOUNT = "54321"  # a number that has none

# Imported first: the folders of the interpreter may be root's alone.
BECOME = f"""
import os, srvkit.process.privileges
os.setgid({NO_ACCOUNT})
os.setuid({NO_ACCOUNT})
"""
DROP = """
import os
from srvkit.process.privileges import PrivilegeError, drop, is_needed
user, group = {user!r}, {group!r}
print("needed", is_needed(user, group))
drop(user, group)
for line in open("/proc/self/status"):
    print(line, end="")
print("env", [os.environ.get(name) for name in ("HOME", "USER", "LOGNAME")])
for back in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        back()
    except PermissionError:
        print("no way back")
"""


@pytest.fixture
def dropped(run_code: Callable[..., Any]) -> Callable[..., dict[str, str]]:
    """`dropped(user, group)`: what a process says of itself afterwards, /proc/PID/status first of all."""

    def dropped(user: str, group: str = "", before: str = "") -> dict[str, str]:
        program = run_code(before + DROP.format(user=user, group=group))
        assert program.ended() == 0, program.log
        said = dict(re.findall(r"^(\w+)[: ]\s*(.*)$", program.log, re.M))
        return said | {"ways": str(program.log.count("no way back"))}

    return dropped


@needs_root
def test_all_ids_and_groups_are_the_users_and_there_is_no_way_back(dropped: Any) -> None:
    account = pwd.getpwnam(USER)
    said = dropped(USER)
    assert said["needed"] == "True"
    assert said["Uid"].split() == [str(account.pw_uid)] * 4
    assert said["Gid"].split() == [str(account.pw_gid)] * 4
    groups = os.getgrouplist(USER, account.pw_gid)
    assert sorted(map(int, said["Groups"].split())) == sorted(groups)
    assert said["NoNewPrivs"] == "1"
    assert {said[kind] for kind in ("CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert said["env"] == str([account.pw_dir, USER, USER])
    assert said["ways"] == "3"


@needs_root
def test_the_group_may_be_another(dropped: Any) -> None:
    said = dropped(USER, "nogroup")
    number = grp.getgrnam("nogroup").gr_gid
    assert said["Uid"].split()[0] == str(pwd.getpwnam(USER).pw_uid)
    assert said["Gid"].split() == [str(number)] * 4
    assert str(number) in said["Groups"].split()
    assert "0" not in said["Groups"].split()


@needs_root
def test_numbers_do_without_an_account(dropped: Any) -> None:
    said = dropped(NO_ACCOUNT, NO_ACCOUNT)
    assert said["Uid"].split() == said["Gid"].split() == [NO_ACCOUNT] * 4
    assert said["Groups"].split() == [NO_ACCOUNT]
    assert said["env"] == str(["/", NO_ACCOUNT, NO_ACCOUNT])


@needs_root
def test_a_number_is_as_good_as_the_name_that_it_has(dropped: Any) -> None:
    account = pwd.getpwnam(USER)
    said = dropped(str(account.pw_uid))
    assert said["Gid"].split() == [str(account.pw_gid)] * 4
    assert said["env"] == str([account.pw_dir, USER, USER])


@needs_root
def test_a_group_alone_leaves_the_user(dropped: Any) -> None:
    said = dropped("", "nogroup", "import os; os.environ['USER'] = 'kept'\n")
    number = str(grp.getgrnam("nogroup").gr_gid)
    assert said["Uid"].split() == ["0"] * 4
    assert said["Gid"].split() == [number] * 4
    assert said["Groups"].split() == [number]
    assert "'kept'" in said["env"]


@needs_root
def test_nothing_is_done_for_who_is_that_user_already(dropped: Any) -> None:
    said = dropped(NO_ACCOUNT, NO_ACCOUNT, BECOME)
    assert said["needed"] == "False"
    assert said["NoNewPrivs"] == "0"


@needs_root
def test_a_way_back_that_is_open_is_an_error(run_code: Any) -> None:
    """As where the capabilities of root outlive root."""
    program = run_code(
        "import ctypes\n"
        "PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 28, 1 << 2\n"
        "assert ctypes.CDLL(None).prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0\n"
        + DROP.format(user=USER, group="")
    )
    assert program.ended() == 1
    assert f"became user '{USER}', but the way back to root is open" in program.log


@needs_root
def test_what_only_root_can_do_is_found_before_it_is_tried(run_code: Any) -> None:
    account = pwd.getpwnam("nobody")
    program = run_code(
        "import os\n"
        "from srvkit.process.privileges import check\n"
        f"os.setgid({account.pw_gid}); os.setuid({account.pw_uid})\n"
        f"for user, group in (({USER!r}, ''), ('', {USER!r}), ('nobody', ''), ('nobody', {USER!r})):\n"
        "    print(check(user, group), check(user, group, names_only=True))\n"
    )
    assert program.ended() == 0, program.log
    refused = f"only root can become {USER!r}, and srvkit is started by 'nobody'"
    assert program.log.splitlines() == [
        f"{[('user', refused)]} []",
        f"{[('group', refused)]} []",
        "[] []",
        f"{[('group', refused)]} []",
    ]


@pytest.mark.parametrize(
    ("user", "group", "reasons"),
    [
        ("", "", []),
        ("root", "root", []),
        ("no-such-user", "", [("user", "there is no user 'no-such-user'")]),
        ("root", "no-such-group", [("group", "there is no group 'no-such-group'")]),
        (
            NO_ACCOUNT,
            "",
            [("user", f"no user has the number {NO_ACCOUNT}, so that a group must be given as well")],
        ),
        ("4294967295", "0", [("user", "there is no user '4294967295'")]),
        ("-1", "0", [("user", "there is no user '-1'")]),
        ("9" * 5000, "0", [("user", f"there is no user '{'9' * 5000}'")]),
        ("a\0", "0", [("user", "there is no user 'a\\x00'")]),
        ("root", "a\0", [("group", "there is no group 'a\\x00'")]),
    ],
)
def test_names_that_nobody_has_are_found_by_anybody(
    user: str, group: str, reasons: list[tuple[str, str]]
) -> None:
    assert check(user, group, names_only=True) == reasons


@pytest.mark.parametrize("command", ["run", "check"])
def test_an_unknown_user_is_a_problem_of_the_configuration(start: Any, tmp_path: Any, command: str) -> None:
    """With its line, before anything is bound."""
    (tmp_path / "srvkit.toml").write_text(
        "[srvkit]\nuser = 'no-such-user'\n[server.s]\nlisten = 'unix:a.sock'\nhandler = 'echo'\n"
    )
    with start("-m", "srvkit", command, folder=tmp_path) as program:
        assert program.ended() == 2
    assert "srvkit.toml:2: srvkit.user: there is no user 'no-such-user'" in program.log
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize("mode", [(), ("--single",)], ids=["supervised", "single"])
def test_other_problems_of_the_file_are_told_with_an_unknown_user(
    start: Any, tmp_path: Any, mode: tuple[str, ...]
) -> None:
    (tmp_path / "srvkit.toml").write_text(
        "[srvkit]\nuser = 'no-such-user'\ndrain_timeout = 'soon'\n"
        "[server.s]\nlisten = 'unix:a.sock'\nhandler = 'echo'\n"
    )
    with start("-m", "srvkit", "run", *mode, folder=tmp_path) as program:
        assert program.ended() == 2
    first, second = program.log.splitlines()
    assert first.startswith("srvkit: srvkit.toml:2: srvkit.user: there is no user ")
    assert second.startswith("srvkit: srvkit.toml:3: srvkit.drain_timeout: ")


def test_root_imports_no_plugin_that_was_meant_for_another(start: Any, tmp_path: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has something to lose")
    (tmp_path / "srvkit.toml").write_text(
        "[srvkit]\nuser = 'no-such-user'\nplugins = ['plugin.py']\n"
        "[server.s]\nlisten = 'unix:a.sock'\nhandler = 'echo'\n"
    )
    (tmp_path / "plugin.py").write_text("open('imported', 'w')\n")
    with start("-m", "srvkit", "run", folder=tmp_path) as program:
        assert program.ended() == 2
    assert not (tmp_path / "imported").exists()
