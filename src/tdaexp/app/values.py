"""What every value of a configuration must be, whatever its key: text that can be written, numbers that exist."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tdaexp.app.origin import Origin
from tdaexp.runtime.errors import UserError, is_control, printable

LARGEST, LARGEST_SEED = 2**63 - 1, 2**32 - 1  # what torch and numpy take
LONGEST = 100_000  # letters


def expanded(value: Any) -> Any:
    """Values with the home folder in the place of a leading `~/`, in every text of them."""
    if isinstance(value, dict):
        return {key: expanded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [expanded(one) for one in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def check_values(value: Any, origin: Origin, path: tuple[str, ...] = ()) -> None:
    """Refuse NaN, integers that no library takes, seeds that are none, and texts with control characters.

    Raises:
        UserError: it names the key, and the file or option that set it.
    """
    if isinstance(value, dict):
        for key, one in value.items():
            check_values(one, origin, (*path, str(key)))
    elif isinstance(value, list):
        for one in value:
            check_values(one, origin, path)
    elif (reason := _unfit(value, path[-1] if path else "")) is not None:
        shown = printable(str(value))[:60]
        raise UserError(f"{origin(path)}: '{'.'.join(path)}' must be {reason}, not {shown}")


def _unfit(value: Any, key: str) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        if key == "seed" and not 0 <= value <= LARGEST_SEED:
            return f"an integer from 0 to {LARGEST_SEED}"
        return None if abs(value) <= LARGEST else "an integer of at most 64 bits"
    if isinstance(value, float):
        return "a number" if math.isnan(value) else None
    if isinstance(value, str):
        if any(is_control(letter) and letter not in "\n\r\t" for letter in value):
            return "text without control characters"
        return None if len(value) <= LONGEST else f"text of at most {LONGEST} letters"
    return None
