"""Give up root for good: become another user, before any code of a plugin is imported.

Knows no sockets and no servers: what needs root is opened before.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import sys
from typing import NamedTuple

from srvkit.errors import SrvkitError

log = logging.getLogger("srvkit.process")

PR_SET_NO_NEW_PRIVS = 38  # <linux/prctl.h>

Reason = tuple[str, str]  # a key of [srvkit], and what is wrong with it


class PrivilegeError(SrvkitError):
    """The process cannot become the user or group that is configured."""

    exit_status = 3


class _Identity(NamedTuple):
    """Whom to become; None means as before."""

    uid: int | None
    gid: int | None
    account: pwd.struct_passwd | None


def check(user: str, group: str, *, names_only: bool = False) -> list[Reason]:
    """Return what `drop` would refuse, as pairs of a key ("user", "group") and a message.

    With `names_only` it does not matter who asks: a configuration may be checked by anybody.
    """
    reasons: list[Reason] = []
    _, gid, _ = identity = _resolve(user, group, reasons)
    if not reasons and not names_only and os.geteuid() != 0:
        who = _name_of(os.geteuid())
        if identity.uid not in (None, os.geteuid()):
            reasons.append(("user", f"only root can become {user!r}, and srvkit is started by {who}"))
        elif group and gid != os.getegid():
            reasons.append(("group", f"only root can become {group!r}, and srvkit is started by {who}"))
    return reasons


def is_needed(user: str, group: str) -> bool:
    """Tell whether `drop` would change who this process is; raises PrivilegeError for unknown names."""
    identity = _resolved(user, group)
    return (os.geteuid() == 0 and bool(user or group)) or (
        identity.uid not in (None, os.geteuid()) or bool(group and identity.gid != os.getegid())
    )


def drop(user: str = "", group: str = "") -> None:
    """Become the user, with that user's groups, and take the group as the main one, with no way back.

    Both are names or numbers; "" leaves the user, or takes the user's own group. Afterwards no program
    started from here can gain rights either. HOME, USER and LOGNAME are the user's. Does nothing where
    the process runs as these already and not as root. Raises PrivilegeError; the process must end then,
    half of it may be done.
    """
    uid, gid, account = _resolved(user, group)
    if not is_needed(user, group):
        return
    _refuse_new_privileges()  # first: the new user may not be able to read what it imports
    try:
        if account is not None and gid is not None:
            os.initgroups(account.pw_name, gid)
        else:
            os.setgroups([] if gid is None else [gid])
        if gid is not None:
            _set_all_three("gid", gid)
        if uid is not None:
            _set_all_three("uid", uid)
    except OSError as error:
        raise PrivilegeError(f"cannot become {_whom(user, group)}: {error.strerror}") from error
    _see_that_it_is_final(user, group, uid, gid)
    if uid is not None:
        name = account.pw_name if account is not None else str(uid)
        os.environ |= {"HOME": account.pw_dir if account is not None else "/", "USER": name, "LOGNAME": name}
    if not os.access(os.__file__, os.R_OK):
        # Whatever is imported from now on will seem not to be there.
        log.warning("%s cannot read %s, where Python is", _whom(user, group), sys.base_prefix)


def _resolve(user: str, group: str, reasons: list[Reason]) -> _Identity:
    uid, gid, account = None, None, None
    if user:
        account = _account(user)
        uid = account.pw_uid if account is not None else _number(user)
        if uid is None:
            reasons.append(("user", f"there is no user {user!r}"))
        elif account is None and not group:
            reasons.append(("user", f"no user has the number {user}, so that a group must be given as well"))
        gid = account.pw_gid if account is not None else None
    if group:
        gid = _group_id(group)
        if gid is None:
            reasons.append(("group", f"there is no group {group!r}"))
    return _Identity(uid, gid, account)


def _resolved(user: str, group: str) -> _Identity:
    reasons: list[Reason] = []
    identity = _resolve(user, group, reasons)
    if reasons:
        raise PrivilegeError("; ".join(f"srvkit.{key}: {message}" for key, message in reasons))
    return identity


def _account(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(user)
    except (KeyError, ValueError):  # with a zero byte it is no name at all
        number = _number(user)
    try:
        return None if number is None else pwd.getpwuid(number)
    except KeyError:
        return None


def _group_id(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        return _number(group)


def _number(text: str) -> int | None:
    # (uid_t) -1 means "as it is" to the system calls.
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    return int(text) if is_number and int(text) < 2**32 - 1 else None


def _name_of(uid: int) -> str:
    try:
        return repr(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return f"the user {uid}"


def _whom(user: str, group: str) -> str:
    named = (f"user {user!r}" if user else "", f"group {group!r}" if group else "")
    return " and ".join(part for part in named if part)


def _set_all_three(kind: str, number: int) -> None:
    """Set the real, the effective and the saved id, as root's plain call does where the other is missing."""
    if setres := getattr(os, f"setres{kind}", None):
        setres(number, number, number)
    else:
        getattr(os, f"set{kind}")(number)


def _see_that_it_is_final(user: str, group: str, uid: int | None, gid: int | None) -> None:
    # A container may keep the capabilities of who ceases to be root.
    for call, number in ((os.setuid, uid), (os.setgid, gid if uid else None)):
        if not number:
            continue
        try:
            call(0)
        except OSError:
            continue
        raise PrivilegeError(f"became {_whom(user, group)}, but the way back to root is open")


def _refuse_new_privileges() -> None:
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise PrivilegeError(f"cannot refuse new privileges: {reason}")
