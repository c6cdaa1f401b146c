"""`python -m srvkit` is the command `srvkit`."""

from __future__ import annotations

import sys

from srvkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
