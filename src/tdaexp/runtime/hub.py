"""The one door to models on disk or on the hub: every `from_pretrained` and `from_config` of the program is here.

Whether a model's own Python code may run is said at each call, and nobody is asked on standard input.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OWN = "sentence_transformers."


def from_hub(auto: Any, name: str | Path, *, trust_remote_code: bool, **options: Any) -> Any:
    """`auto.from_pretrained(name)` of a transformers class; code that comes with the model runs only if trusted."""
    with _nobody_asked():
        return auto.from_pretrained(name, trust_remote_code=bool(trust_remote_code), **options)


def from_config(auto: Any, config: Any, *, trust_remote_code: bool, **options: Any) -> Any:
    """`auto.from_config(config)` of a transformers class; code that comes with the model runs only if trusted."""
    with _nobody_asked():
        return auto.from_config(config, trust_remote_code=bool(trust_remote_code), **options)


def sentence_encoder(name: str) -> SentenceTransformer:
    """A sentence-transformers model, made of that library's own modules.

    Raises:
        UserError: a folder names other modules: the library would import them without asking.
    """
    from sentence_transformers import SentenceTransformer

    listed = Path(name) / "modules.json"
    if listed.is_file():
        for module in json.loads(listed.read_text(encoding="utf-8")):
            kind = str(module.get("type", ""))
            if not kind.startswith(OWN):
                raise UserError(f"{listed}: '{kind}' is Python code of the model's own, and is not run; take another")
    with _nobody_asked():
        return SentenceTransformer(name, trust_remote_code=False)


def runs_own_code(part: Any) -> bool:
    """Whether a model's or a config's class is Python code that came with it: it was trusted when it was loaded."""
    return type(part).__module__.startswith("transformers_modules")


@contextlib.contextmanager
def _nobody_asked() -> Iterator[None]:
    """Inside the block transformers refuses where it would ask on standard input whether to run a model's code."""
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
