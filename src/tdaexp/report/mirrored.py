"""What wandb was told of a run, by name: a dashboard is made of that, and of nothing that only the run folder has."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import write_json

FILE = Path("wandb", "mirrored.json")


@dataclass
class Mirrored:
    """A run in wandb: its `id`, `project`, `entity` (None: the account's own), `name` and `group`, its `config`, nested
    as wandb has it, its final `metrics`, and the names of its `tables` and `images`. `offline`: it lies in a file.
    """

    id: str
    project: str
    entity: str | None
    name: str
    group: str | None
    offline: bool
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Keep it in a run folder."""
        write_json(folder / FILE, dataclasses.asdict(self))


def read_mirrored(folder: Path) -> Mirrored | None:
    """What wandb was told of the run in a folder; None where the run was not mirrored to its end.

    Errors (UserError): a file that cannot be read.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        return Mirrored(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: damaged; delete it, and run the job again with logger=wandb") from error
