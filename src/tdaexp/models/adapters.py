"""Low-rank adapters (LoRA, Hu et al. 2021): W x becomes W x + α/r · B A x with a frozen W.

peft puts the matrices into the model, which stays the class of transformers that it was. A and B are linear layers like
others: their gradients are captured from what they read and what comes back to them, the factor α/r included. What peft
can do besides (DoRA, adapted embeddings or experts, layers that were trained whole) has no such gradient and is refused
by name, unless it is merged into the base.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tdaexp.models.adapted import is_matrix
from tdaexp.models.adapter_places import note_of, stated_base
from tdaexp.models.loaded import check_finite, quiet_transformers
from tdaexp.models.lora import Lora
from tdaexp.models.quantised import LINEAR as QUANTISED_LINEAR
from tdaexp.models.source import Source, first_line
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNREAD = {"bias": "none", "use_dora": False}
"""Keys of an adapter's config whose other values change the base, or are not read by transformers."""
MERGE = "model.merge_adapter=true explains the model that it makes of its base, as a whole"


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Inside the block peft corrects a config without a word, and transformers shows no bars."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"peft\.")
        yield


def require_peft(what: str) -> None:
    """Refuse in one line where peft is not installed; `what` is the key that needs it."""
    try:
        with quiet("bitsandbytes"):  # peft brings it, and it tells of a kernel that nothing here needs
            import peft  # noqa: F401
    except ImportError as error:
        raise UserError(f"{what}: adapters need the package peft; pip install 'tdaexp[adapters]'") from error


def put_on(model: PreTrainedModel, adapter: Source, base: Source, merge: bool) -> PreTrainedModel:
    """Load an adapter onto its base, in the base's dtype, or merge it into that.

    Errors (UserError): it belongs to another model, is damaged, or is of a kind whose gradients are not captured.
    """
    require_peft(adapter.name)
    dtype, note = model.dtype, note_of(adapter)
    for key, plain in UNREAD.items():
        if note.get(key, plain) != plain:
            raise UserError(
                f"{adapter.name}: an adapter with {key}={note[key]}, more than two matrices beside each layer; "
                "merge it with its base by peft (merge_and_unload, then save_pretrained) and name that folder"
            )
    try:
        with quiet_peft():
            told = model.load_adapter(adapter.name, adapter_kwargs={"revision": adapter.revision or "main"})
    except Exception as error:  # peft and transformers have many classes for the same mistake
        raise _misfit(adapter, base, _reason(error)) from error
    wrong: dict[str, set[Any]] = {
        "lacks": told.missing_keys,
        "has besides": told.unexpected_keys,
        "misshapes": told.mismatched_keys,
    }
    for verb, names in wrong.items():
        if names:
            first = sorted(map(str, names))[0]
            raise _misfit(adapter, base, f"it {verb} {len(names)} tensors, {first} among them")
    for name, parameter in model.named_parameters():
        if is_matrix(name):  # the model's buffers have types of their own
            parameter.data = parameter.data.to(dtype)
    check_finite(model, adapter.name)
    if merge:
        model.name_or_path = adapter.name
        return _merged(model)
    _check_captured(model, adapter.name)
    return _named(model, adapter.name, base)


def put_new_on(model: PreTrainedModel, lora: Lora, base: Source) -> PreTrainedModel:
    """Give a model an adapter with random A and zero B, so that it computes what it did.

    Errors (UserError): it has no such layers.
    """
    require_peft("model.adapter=new")
    try:
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(lora.seed)
            model.add_adapter(lora.config())
    except Exception as error:
        named = ", ".join(lora.target_modules)
        raise UserError(f"model.lora.target_modules=[{named}]: no adapter for {base.name}: {_reason(error)}") from error
    _check_captured(model, "model.lora.target_modules")
    return _named(model, base.name, base)


def _named(model: PreTrainedModel, name: str, base: Source) -> PreTrainedModel:
    """Tell the model what it was read from, and its adapter where the base lies, which it says when it is saved."""
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path = str(base.folder.resolve()) if base.folder else base.name
    config.revision = base.revision
    model.name_or_path = name
    return model


def _merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapter's products added to the matrices of the base, and nothing else left of it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            model.set_submodule(path, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(path, module.modules_to_save["default"])
    model._hf_peft_config_loaded = False
    del model.peft_config
    return model


def _check_captured(model: PreTrainedModel, where: str) -> None:
    """Refuse an adapter that is more than two matrices beside linear layers."""
    from peft.tuners.lora.layer import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise UserError(f"{where}: '{path}' was trained whole, which is no part of a low-rank adapter; {MERGE}")
        if isinstance(module, BaseTunerLayer) and not isinstance(module, nn.ModuleDict):
            known = type(module) is Linear or type(module).__name__ in QUANTISED_LINEAR
            plain = known and not getattr(module, "lora_variant", None)
            if not plain:
                kind = f"{type(module).__module__.rpartition('.')[0]}.{type(module).__name__}"
                raise UserError(
                    f"{where}: the adapter of '{path}' is no plain pair of matrices beside a linear layer ({kind}), "
                    f"and has no captured gradient; {MERGE}"
                )


def _misfit(adapter: Source, base: Source, reason: str) -> UserError:
    stated = stated_base(note_of(adapter), adapter.folder) if adapter.folder else None
    to = f", which is one to {stated}" if stated and stated != base.name else ""
    return UserError(
        f"{adapter.name}: the adapter{to} does not fit {base.name}: {reason}; name its own base "
        f"(model.pretrained=BASE model.adapter={adapter.name})"
    )


def _reason(error: Exception) -> str:
    text = first_line(error)
    return "its matrices have other shapes" if "ignore_mismatched_sizes" in str(error) else text
