"""Models that exist already: a folder in hub format, or a repository on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdaexp.data import templates
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.names import check_name

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tdaexp.models.loaded import LoadedModel
    from tdaexp.models.source import Source

MISSING_STATE = ("refuse", "fresh")
FALLBACK_LENGTH = 2048  # tokens, for models without a positional limit (BLOOM's ALiBi), and its training length


@dataclass
class Pretrained:
    """A causal language model from a folder or from the hub.

    Keys: `pretrained` hub id or folder; `name` a short label; `revision` branch, tag or commit of a hub id; `tokenizer`
    hub id or folder when it is not the model's own; `template` how prompt and completion become tokens (`plain`,
    `olmo`, `chat`, …); `max_length` in tokens, null = what the model allows; `attn_implementation` as transformers
    names it, null = its choice; `expected_components` the number of components that the model must have, null = any;
    `trust_remote_code` runs Python code that comes with the model; `finetuned` hub id or folder of the same model after
    a second training stage, which may have taught it to classify texts (a checkpoint for sequence classification);
    `checkpoints` of its training, oldest first: folders or revisions of the hub id; `missing_state` what to do about
    one without its optimiser's state, `refuse` it or assume a `fresh` optimiser; `shape` the architecture and sizes of
    the model in the words of its transformers config, for plans that download nothing (a folder's own config.json
    counts instead).
    """

    pretrained: str
    name: str = "pretrained"
    revision: str | None = None
    tokenizer: str | None = None
    template: str = "plain"
    max_length: int | None = None
    attn_implementation: str | None = None
    expected_components: int | None = None
    trust_remote_code: bool = False
    finetuned: str | None = None
    checkpoints: list[str] = field(default_factory=list)
    missing_state: str = "refuse"
    shape: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a length that holds no prediction and an unknown template."""
        check_name("model.name", self.name)
        templates.check(self.template, "model.template")
        if self.missing_state not in MISSING_STATE:
            raise unknown("value", self.missing_state, MISSING_STATE, "model.missing_state")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"model.max_length={self.max_length}: must be at least 2 tokens, or null")

    @property
    def needs_training(self) -> bool:
        """False: these weights exist."""
        return False

    @property
    def stated(self) -> bool:
        """Whether the architecture is known without a download."""
        return bool(self.shape) or Path(self.pretrained).expanduser().is_dir()

    def start_fingerprint(self) -> str:
        """Identity of the weights and tokenizer that a training run or an explanation starts from."""
        return self._identity(*self._locate())

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, classifier: bool = False
    ) -> LoadedModel:
        """Load weights and tokenizer, frozen, on `device` in `dtype` (None: float32).

        With `classifier` the checkpoint may be one for sequence classification.

        Every way in which this can fail on the user's side is a `UserError`: no such folder, no network, a gated or
        unknown repository, damaged or missing files, a tokenizer that does not belong to the model.
        """
        import torch

        from tdaexp.models.hub import check_causal, classes_of, load_tokenizer, load_weights
        from tdaexp.models.loaded import LoadedModel, check_finite, check_vocabulary, freeze, moved
        from tdaexp.models.source import check_folder

        weights, words = self._locate()
        if weights.folder:
            check_folder(weights.folder)
        classes, kind = classes_of(weights, self.trust_remote_code) if classifier else None, dtype or torch.float32
        if classes is None:
            check_causal(weights, self.trust_remote_code)
        tokenizer = load_tokenizer(words, self.trust_remote_code)
        model = load_weights(
            weights, kind, self.trust_remote_code, self.attn_implementation, device, classifier=classes is not None
        )
        check_vocabulary(model, tokenizer, weights.name)
        check_finite(model, weights.name)
        self._check_components(model)
        longest = self._length(model_length(model.config, tokenizer))
        identity = self._identity(weights, words)
        return LoadedModel(freeze(moved(model, device)), tokenizer, identity, self.template, longest, classes)

    def planned(self, texts: list[str]) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
        """Architecture and, where it lies on this disk, tokenizer: what a plan needs. `texts` have no say in it.

        Errors (UserError): neither a folder nor a `shape`.
        """
        from tdaexp.models.empty import folder_config
        from tdaexp.models.hub import load_tokenizer
        from tdaexp.models.source import locate, refuse_adapter
        from tdaexp.models.stated import stated_config

        refuse_adapter(Path(self.pretrained).expanduser())
        folder, words = Path(self.pretrained).expanduser(), Path(self.tokenizer or self.pretrained).expanduser()
        # the config first: a folder of another kind of model may have no tokenizer that can be read
        config = folder_config(folder, self.trust_remote_code) if folder.is_dir() else None
        tokenizer = None
        if words.is_dir():
            tokenizer = load_tokenizer(locate(str(words), None, "model.tokenizer"), self.trust_remote_code)
        if config is not None:
            return config, tokenizer
        if not self.shape:
            raise UserError(
                f"model.shape: a plan downloads nothing, so the sizes of {self.pretrained} must be stated, as in "
                "conf/model/olmo1b.yaml; or set model.pretrained=FOLDER"
            )
        return stated_config(self.shape, "model.shape"), tokenizer

    def start(self, texts: list[str]) -> LoadedModel:
        """What fine-tuning starts from: these weights in float32 on the CPU (`texts` have no say in it)."""
        return self.load()

    def _length(self, longest: int) -> int:
        """The configured length, which may not exceed what the model allows."""
        if self.max_length is not None and self.max_length > longest:
            raise UserError(f"model.max_length={self.max_length}: {self.pretrained} takes {longest} tokens at most")
        return self.max_length or longest

    def _check_components(self, model: PreTrainedModel) -> None:
        from tdaexp.models.components import component_map

        expected = self.expected_components
        found = len(component_map(model).components) if expected is not None else None
        if found != expected:
            raise UserError(
                f"model.expected_components={expected} but {self.pretrained} has {found}; it is another "
                "model than the config means: check model.pretrained, or set model.expected_components=null"
            )

    def _locate(self) -> tuple[Source, Source]:
        """Where the weights and where the tokenizer are read from."""
        from tdaexp.models.source import locate

        weights = locate(self.pretrained, self.revision, "model.pretrained")
        return weights, locate(self.tokenizer, None, "model.tokenizer") if self.tokenizer else weights

    def _identity(self, weights: Source, words: Source) -> str:
        """Of what is read, and how: whose code computes, and in which attention."""
        from tdaexp.runtime.code import code_identity
        from tdaexp.runtime.fingerprint import fingerprint

        how = [self.trust_remote_code, self.attn_implementation]
        return fingerprint(code_identity(Pretrained), weights.identity, words.identity, how)


def trusts(model: Any) -> bool:
    """Whether the config of a model lets Python code run that comes with it; models from scratch have none."""
    return bool(getattr(model, "trust_remote_code", False))


def model_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest sequence in tokens: the model's positions, else the tokenizer's limit, else 2,048."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        return int(positions)
    limit = tokenizer.model_max_length  # transformers writes "no limit" as 1e30
    return int(limit) if limit < 1_000_000 else FALLBACK_LENGTH
