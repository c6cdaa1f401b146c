"""A text of many lines: in the user's pager on a terminal, as it is elsewhere.

Like git and man it asks `PAGER` first. It knows nothing of what the text is about.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from srvkit.errors import SrvkitError

USUAL = ("less", "-R")  # where PAGER does not say otherwise


def show(text: str) -> int:
    """Show the text and return the exit status; raises SrvkitError where the pager fails."""
    command = _command() if sys.stdout.isatty() else []
    status = _page(command, text) if command else None
    if status is None:
        print(text, end="")
    return status or 0


def _command() -> Sequence[str]:
    """Return the words of the pager; none where there is none."""
    import shlex
    import shutil

    wanted = os.environ.get("PAGER")
    if wanted is None:
        is_dumb = os.environ.get("TERM", "dumb") == "dumb"  # less would only warn of it, and wait
        return () if is_dumb or shutil.which(USUAL[0]) is None else USUAL
    try:
        return shlex.split(wanted)
    except ValueError as error:
        _note(f"PAGER is {wanted!r}: {error}")
        return ()


def _page(command: Sequence[str], text: str) -> int | None:
    """Have the pager show the text; return the exit status, None where there is no such pager."""
    import subprocess

    # LESSSECURE: a chapter is no way to a shell for whoever may run srvkit and little else.
    environ = os.environ | {"LESSSECURE": "1"}
    with _interrupts_are_the_pagers():
        try:
            pager = subprocess.Popen(command, stdin=subprocess.PIPE, env=environ)
        except (OSError, ValueError) as error:  # ValueError: a null byte
            _note(f"cannot run the pager {command[0]!r}: {getattr(error, 'strerror', None) or error}")
            return None
        pager.communicate(
            text.encode(sys.stdout.encoding, "backslashreplace")
        )  # it may end before all is read
    if pager.returncode == -signal.SIGINT:
        return 130
    if pager.returncode:
        from srvkit.process.child import ending

        raise SrvkitError(
            f"the pager {command[0]!r} {ending(pager.returncode)}; PAGER= shows the text without one"
        )
    return 0


@contextmanager
def _interrupts_are_the_pagers() -> Iterator[None]:
    """Leave Ctrl-C to the pager, which hears it too; it would lose its terminal if its parent ended."""
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which the pager would inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _note(what: str) -> None:
    print(f"srvkit: {what}", file=sys.stderr)
