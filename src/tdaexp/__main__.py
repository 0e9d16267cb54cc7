"""`tdaexp train|attribute|evaluate …`: the three commands where there is no checkout, on the package's configurations.

What `python attribute.py` does, `tdaexp attribute` does, in the folder where it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tdaexp import __version__
from tdaexp.app import MISTAKE
from tdaexp.app import main as run
from tdaexp.app.help import PURPOSE
from tdaexp.runtime.errors import unknown

CONF = Path(__file__).resolve().parent / "conf"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage that the first argument names; returns the exit code. `argv`: as `sys.argv`, the default."""
    _, *arguments = sys.argv if argv is None else argv
    stage = arguments[0] if arguments else "--help"
    if stage in ("-h", "--help"):
        listed = "\n".join(f"  tdaexp {name:<10} {purpose}" for name, purpose in PURPOSE.items())
        print(
            f"usage: tdaexp STAGE [GROUP=CHOICE ...] [KEY=VALUE ...] [-m]\n\n{listed}\n\ntdaexp STAGE --help says more."
        )
        return 0
    if stage == "--version":
        print(f"tdaexp {__version__}")
        return 0
    if stage not in PURPOSE:
        print(f"error: {unknown('stage', stage, PURPOSE, 'tdaexp')}", file=sys.stderr)
        return MISTAKE
    return run(stage, CONF, [f"tdaexp {stage}", *arguments[1:]])


if __name__ == "__main__":
    sys.exit(main())
