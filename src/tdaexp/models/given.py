"""A language model that is in memory already: somebody's own object, explained as it is and left as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from tdaexp.models.hub import CLASSIFIES, class_names, load_skeleton, load_tokenizer
from tdaexp.models.kinds import check_kind
from tdaexp.models.loaded import LoadedModel, check_finite, check_vocabulary
from tdaexp.models.pretrained import Pretrained, model_length
from tdaexp.models.source import Source, locate
from tdaexp.runtime.behaviour import behaviour, structure, tensors
from tdaexp.runtime.code import code_identity
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

NO_TOKENIZER = (
    "tokenizer: a language model's texts need one; give tokenizer=AutoTokenizer.from_pretrained(…), or loss=FUNCTION "
    "for a module that reads no text"
)
UNREAD = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Keys of a configuration that decide no number beside the tensors, whose type is looked at by itself."""


@dataclass(frozen=True)
class Given:
    """A model of transformers and its tokenizer, in the words of a model's configuration (`Pretrained`).

    `name` is a short label, `template` as for `Pretrained`.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str = "given"
    template: str = "auto"
    finetuned: None = None
    checkpoints: list[str] = field(default_factory=list)

    @property
    def needs_training(self) -> bool:
        """False: it has weights."""
        return False

    @property
    def folder(self) -> Path | None:
        """The folder that the model says it was read from, where it is there."""
        name = str(getattr(self.model, "name_or_path", "") or "")
        return Path(name) if name and Path(name).is_dir() else None

    def start_fingerprint(self) -> str:
        """That of the folder where the model is still what is in there, so that commands share its cache; else a digest
        of its tensors, its structure and the tokenizer.
        """
        source = None if self.folder is None else locate(str(self.folder), None, "model.name_or_path")
        words = self._words()
        if source is not None and self._as_read(source):
            return Pretrained(source.name).start_fingerprint()
        return fingerprint(
            code_identity(Given), tensors(self.model), _settings(self.model), structure(self.model), words
        )

    def load(self, device: Any = None, dtype: Any = None, classifier: bool = False) -> LoadedModel:
        """The model where it is and in its type; `classifier` says nothing: its class does.

        Errors (UserError): no tokenizer, or one of another model; NaN in its weights; a kind that predicts neither the
        next token nor one of several classes.
        """
        classes = class_names(self.model.config, "model") if classifies(self.model) else None
        if classes is None:
            check_kind(self.model.config, "model")
        check_finite(self.model, "model")
        check_vocabulary(self.model, self.tokenizer, "tokenizer")
        longest = model_length(self.model.config, self.tokenizer)
        return LoadedModel(self.model, self.tokenizer, self.start_fingerprint(), self.template, longest, classes)

    def _words(self) -> Any:
        return words_of(self.tokenizer)

    def _as_read(self, source: Source) -> bool:
        """Whether model and tokenizer are what reading the folder again would give."""
        try:
            fresh = load_skeleton(source, trust_remote_code=False, dtype=self.model.dtype)
            words = words_of(load_tokenizer(source, trust_remote_code=False))
        except UserError:
            return False
        same = words == self._words() and all(
            told(fresh) == told(self.model) for told in (_settings, structure, _ties, _buffers)
        )
        return same and _holds(self.model, Path(source.name))


def given(model: PreTrainedModel, tokenizer: Any, name: str) -> Given:
    """The model with its tokenizer, else that of the model's folder. Errors (UserError): there is none."""
    found = Given(model, tokenizer, name)
    if tokenizer is None:
        if found.folder is None:
            raise UserError(NO_TOKENIZER)
        words = load_tokenizer(locate(str(found.folder), None, "model.name_or_path"), trust_remote_code=False)
        found = Given(model, words, name)
    return found


def classifies(model: PreTrainedModel) -> bool:
    """Whether a model's class is one for sequence classification."""
    return any(one.__name__.endswith(CLASSIFIES) for one in type(model).__mro__)


def words_of(tokenizer: Any) -> Any:
    """All that decides which tokens a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = behaviour(tokenizer) if backend is None else backend.to_str()
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    starts = tokenizer("a")["input_ids"]
    return [type(tokenizer).__name__, whole, special, starts, tokenizer.chat_template, tokenizer.model_max_length]


def _settings(model: PreTrainedModel) -> Any:
    """The model's configuration, and the attention that it computes with."""
    plain = {key: value for key, value in model.config.to_dict().items() if key not in UNREAD}
    return [plain, getattr(model.config, "_attn_implementation", None)]


def _ties(model: PreTrainedModel) -> list[list[str]]:
    """Names of parameters, those that are one tensor together."""
    found: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(value), []).append(name)
    return [*found.values()]


def _buffers(model: PreTrainedModel) -> str:
    """What is computed when a model is made, such as the frequencies of its positions."""
    return behaviour(dict(model.named_buffers(remove_duplicate=False)))


def _holds(model: PreTrainedModel, folder: Path) -> bool:
    """Whether each parameter has the values of a tensor of its name in the folder's safetensors files, all in one type.

    A model that is read from a folder has one type; where it has several, it is not told which reading gives them.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    if len({value.dtype for value in known.values()}) > 1:
        return False
    left = {id(value) for value in known.values()}  # a tied one has several names, and stands under one or all of them
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                mine = known[name].detach().cpu() if name in known else None
                if mine is None or not torch.equal(opened.get_tensor(name).to(mine.dtype), mine):
                    return False
                left.discard(id(known[name]))
    return not left
