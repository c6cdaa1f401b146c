"""How this program was started, so that it can be started once more in the very same way.

Whatever that was: an installed command, `python -m`, a zipped application, a script of somebody's that
extends the import path. All of them come to `cli.main` in the end, and there hear what to do instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress

from srvkit.config.paths import current_folder
from srvkit.errors import SrvkitError
from srvkit.net.closing import close_one

VARIABLE = "SRVKIT_INSTEAD"
FORMAT = 1  # of what `replacement` hands over; a program that knows another one does not take over
FOLDER = current_folder()  # by its name, which may be a link that is turned later


def command() -> list[str]:
    """Return the words that start this program again, the interpreter first."""
    return [sys.executable, *sys.orig_argv[1:]]


def instead(words: Sequence[str]) -> dict[str, str]:
    """Return what, in the environment, makes the program run another command of srvkit when started again."""
    import json

    return {VARIABLE: json.dumps({"format": FORMAT, "words": list(words)})}


def told_instead(environ: MutableMapping[str, str] = os.environ) -> list[str] | None:
    """Return the words to run in place of those on the command line; None where there are none.

    Raises SrvkitError where whoever says so hands over in a way that this version does not know.
    """
    text = environ.pop(VARIABLE, "")
    if not text:
        return None
    import json

    told = json.loads(text)
    refuse_unless_known(told["format"])
    words: list[str] = told["words"]
    return words


def refuse_unless_known(number: int) -> None:
    """Raise SrvkitError unless this version can take over with a table of this format."""
    if number != FORMAT:
        raise SrvkitError(f"what runs hands over in format {number}, this version knows {FORMAT} only")


@contextmanager
def in_folder() -> Iterator[None]:
    """Be where the program was started, as far as there is such a folder; and back again afterwards."""
    back = -1
    with suppress(OSError):
        back = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        os.chdir(FOLDER)
    try:
        yield
    finally:
        if back >= 0:
            with suppress(OSError):
                os.fchdir(back)
            close_one(back)
