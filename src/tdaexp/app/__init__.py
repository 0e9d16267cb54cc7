"""The command line of the three stages: check everything first, then let Hydra run it.

Exit codes: 0 done; 1 a fault of the program, a full disk, or a failed job in a sweep; 2 a mistake in the
options, the configuration files or the data; 130 interrupted (Ctrl-C), 143 stopped by SIGTERM, 129 by SIGHUP:
what is finished is kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.quiet import unheard_warnings
from tdaexp.runtime.silence import never_silent
from tdaexp.runtime.stop import INTERRUPTED, exit_code, heard

MISTAKE = 2


def called(program: str) -> tuple[str, ...]:
    """The words that call a program: (`python`, `attribute.py`), (`tdaexp`, `attribute`)."""
    return ("python", program) if program.endswith(".py") else tuple(program.split(" "))


def main(
    stage: str,
    conf: Path,
    argv: Sequence[str] | None = None,
    *,
    packages: tuple[str, ...] = ("tdaexp",),
    module: str = "tdaexp.app.stages",
) -> int:
    """Run one stage as a program and return its exit code.

    Args:
        stage: `train`, `attribute` or `evaluate`, a root configuration and a function in `module`.
        conf: folder with the configuration files.
        argv: program and arguments, `sys.argv` by default; a program that is no file of Python is named as it is
            called (`tdaexp train`).
        packages: whose dataclasses a `_target_` may name.
        module: where the stages are functions `(config, folder, logger) -> metrics`.
    """
    # Waiting OpenMP threads that spin make a busy machine many times slower. To be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    program, *arguments = sys.argv if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        from tdaexp.app.help import show

        print(show(stage, conf, " ".join(called(f"{stage}.py" if program.endswith(".py") else program))))
        return 0
    try:
        from tdaexp.app.program import run

        with heard(), never_silent(), unheard_warnings():
            return run(stage, conf, program, arguments, packages, module)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as error:
        print(
            f"{str(error) or INTERRUPTED}: what is finished is kept; the same command goes on where it stopped",
            file=sys.stderr,
        )
        return exit_code(error)
