"""Models that exist already: a folder in hub format, or a repository on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tdaexp.data import templates
from tdaexp.models.lora import NEW, Lora
from tdaexp.models.quantised import KINDS as QUANTISED
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.names import as_file_name, check_name

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tdaexp.models.adapter_places import Places
    from tdaexp.models.loaded import LoadedModel

MISSING_STATE = ("refuse", "fresh")
EXPERTS = ("expert", "layer")
FALLBACK_LENGTH = 2048  # tokens, for models without a positional limit (BLOOM's ALiBi), and its training length


@dataclass
class Pretrained:
    """A causal language model from a folder or from the hub.

    Keys: `pretrained` hub id or folder; `name` a short label, null = the last word of that; `revision` branch, tag or
    commit of a hub id; `tokenizer` hub id or folder when it is not the model's; `template` how prompt and completion
    become tokens (`plain`, `olmo`, `chat`, …, or `auto`: chat where the tokenizer has a template for it); `max_length`
    in tokens, null = what the model allows; `attn_implementation` as transformers names it, null = its choice;
    `expected_components` the number of components that the model must have, null = any; `min_coverage` the share of
    parameters that components must cover; `experts` what a component of a mixture of experts is, one matrix of one
    `expert` or all of a `layer`; `trust_remote_code` runs Python code that comes with the model; `finetuned` hub id or
    folder of the same model after a second training stage. Both may classify texts (a checkpoint for sequence
    classification); `checkpoints` of its training, oldest first: folders or revisions of the hub id; `missing_state`
    what to do about one without its optimiser's state, `refuse` it or assume a `fresh` optimiser; `shape` the
    architecture and sizes of the model in the words of its transformers config, for plans that download nothing (a
    folder's own config.json counts instead); `adapter` folder or hub id of an adapter to the model, or `new` to train
    one, as `lora` says (`pretrained` may also name an adapter, alone or beside its base); `merge_adapter` adds it to
    the model's matrices; `quantised` holds the base's in four or eight bits (`nf4`, `int8`) beside an adapter, null: as
    they are stored.
    """

    pretrained: str
    name: str | None = "pretrained"
    revision: str | None = None
    tokenizer: str | None = None
    template: str = "plain"
    max_length: int | None = None
    attn_implementation: str | None = None
    expected_components: int | None = None
    min_coverage: float = 0.9
    experts: str = "expert"
    trust_remote_code: bool = False
    finetuned: str | None = None
    checkpoints: list[str] = field(default_factory=list)
    missing_state: str = "refuse"
    shape: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    lora: Lora = field(default_factory=Lora)
    merge_adapter: bool = False
    quantised: str | None = None

    def __post_init__(self) -> None:
        """Refuse a length that holds no prediction and an unknown template."""
        if not self.pretrained:
            raise UserError("model.pretrained: name a folder in hub format or a hub id (model.pretrained=FOLDER)")
        self.name = as_file_name(self.pretrained) if self.name is None else check_name("model.name", self.name)
        templates.check(self.template, "model.template")
        if self.missing_state not in MISSING_STATE:
            raise unknown("value", self.missing_state, MISSING_STATE, "model.missing_state")
        if self.experts not in EXPERTS:
            raise unknown("value", self.experts, EXPERTS, f"model.experts={self.experts}")
        if self.quantised is not None and self.quantised not in QUANTISED:
            raise unknown("value", self.quantised, QUANTISED, "model.quantised")
        if not 0 <= self.min_coverage <= 1:
            raise UserError(f"model.min_coverage={self.min_coverage}: must be a share from 0 to 1")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"model.max_length={self.max_length}: must be at least 2 tokens, or null")

    @property
    def needs_training(self) -> bool:
        """False, as these weights exist, but for a new adapter."""
        return self.adapter == NEW

    def stored_precision(self, download: bool = True) -> str:
        """The type in which the weights are stored, of those that passes are run in: float16 is run in float32.

        Of a hub id it is what its config says, which is fetched if `download`; float32 where nothing is known.
        """
        from tdaexp.models.hub import stored_types
        from tdaexp.models.source import Source

        folder = self._folders()[0]
        if folder.is_dir():
            source = Source(str(folder), None, "", folder)
        elif download:
            source = self._locate().weights
        else:
            return "float32"
        found = stored_types(source, self.trust_remote_code)
        return next((one for one in ("float64", "float32", "bfloat16") if found == {one}), "float32")

    @property
    def stated(self) -> bool:
        """Whether the architecture is known without a download."""
        base, _, adapter = self._folders()
        return (adapter is not None or self.adapter in (None, NEW)) and (bool(self.shape) or base.is_dir())

    def start_fingerprint(self) -> str:
        """Identity of the weights and tokenizer that a training run or an explanation starts from."""
        return self._identity(self._locate())

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, classifier: bool = False
    ) -> LoadedModel:
        """Load weights and tokenizer, frozen, on `device` in `dtype` (None: float32).

        With `classifier` the checkpoint may be one for sequence classification.

        Every way in which this can fail on the user's side is a `UserError`: no such folder, no network, a gated or
        unknown repository, damaged or missing files, a tokenizer that does not belong to the model.
        """
        if self.adapter == NEW:
            raise RuntimeError("a new adapter must be trained before it is loaded")
        return self._load(self._locate(), device, dtype, classifier)

    def _load(
        self, found: Places, device: torch.device | str, dtype: torch.dtype | None, classifier: bool = False
    ) -> LoadedModel:
        import torch

        from tdaexp.models.adapters import put_new_on, put_on
        from tdaexp.models.hub import check_causal, classes_of, load_tokenizer, load_weights
        from tdaexp.models.loaded import LoadedModel, check_finite, check_vocabulary, freeze, moved
        from tdaexp.models.quantised import as_transformers_says, check_quantised, settle
        from tdaexp.models.source import check_folder

        weights, trust = found.weights, self.trust_remote_code
        if weights.folder:
            check_folder(weights.folder)
        classes, kind = classes_of(weights, trust) if classifier else None, dtype or torch.float32
        if classes is None:
            check_causal(weights, trust)
        tokenizer = load_tokenizer(found.words, trust)
        how: dict[str, Any] = {"attn_implementation": self.attn_implementation}
        how["quantization_config"] = as_transformers_says(self.quantised, kind) if self.quantised else None
        model = load_weights(weights, kind, trust, how, device, classifier=classes is not None)
        adapted = found.adapter is not None or self.adapter == NEW
        check_quantised(settle(model), weights.name, adapted, self.merge_adapter)
        check_vocabulary(model, tokenizer, weights.name)
        check_finite(model, weights.name)
        self._check_components(model)  # of the base: an adapter adds its own
        if found.adapter is not None:
            model = put_on(model, found.adapter, weights, self.merge_adapter)
        elif self.adapter == NEW:
            model = put_new_on(model, self.lora, weights)
        elif self.merge_adapter:
            raise UserError(f"model.merge_adapter=true: {self.pretrained} has no adapter; name one in model.adapter")
        longest = self._length(model_length(model.config, tokenizer))
        identity = self._identity(found)
        return LoadedModel(
            freeze(moved(model, device)),
            tokenizer,
            identity,
            self.template,
            longest,
            classes,
            experts=self.experts,
            min_coverage=self.min_coverage,
            base=weights.identity if adapted else None,
        )

    def planned(self, texts: list[str]) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
        """Architecture and, where it lies on this disk, tokenizer: what a plan needs. `texts` have no say in it.

        Errors (UserError): neither a folder nor a `shape`.
        """
        from tdaexp.models.empty import folder_config
        from tdaexp.models.hub import load_tokenizer
        from tdaexp.models.source import locate
        from tdaexp.models.stated import stated_config

        folder, words, _ = self._folders()
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

    def planned_adapter(self) -> LoraConfig | None:
        """The adapter that the planned model has beside its matrices, as peft describes it; None without one."""
        from tdaexp.models.empty_adapter import described

        if self.adapter == NEW:
            return described(self.lora)
        adapter = self._folders()[2]
        return None if adapter is None or self.merge_adapter else described(adapter)

    def start(self, texts: list[str]) -> LoadedModel:
        """What fine-tuning starts from: these weights in float32 on the CPU (`texts` have no say in it)."""
        return self._load(self._locate(), "cpu", None)

    def _length(self, longest: int) -> int:
        """The configured length, which may not exceed what the model allows."""
        if self.max_length is not None and self.max_length > longest:
            raise UserError(f"model.max_length={self.max_length}: {self.pretrained} takes {longest} tokens at most")
        return self.max_length or longest

    def _check_components(self, model: PreTrainedModel) -> None:
        from tdaexp.models.components import component_map

        expected = self.expected_components
        found = len(component_map(model, self.experts).components) if expected is not None else None
        if found != expected:
            raise UserError(
                f"model.expected_components={expected} but {self.pretrained} has {found}; it is another "
                "model than the config means: check model.pretrained, or set model.expected_components=null"
            )

    def _locate(self) -> Places:
        """Where the weights, an adapter to them and the tokenizer are read from."""
        from tdaexp.models.adapter_places import places

        return places(self.pretrained, self.revision, self.tokenizer, self.adapter)

    def _folders(self) -> tuple[Path, Path, Path | None]:
        """The same of what lies on this disk, without a download: base, tokenizer, adapter."""
        from tdaexp.models.adapter_places import folders

        return folders(self.pretrained, self.tokenizer, self.adapter)

    def _identity(self, found: Places) -> str:
        """Of what is read, and how: whose code computes, in which attention, and with which adapter."""
        from tdaexp.models.quantised import library_version
        from tdaexp.runtime.code import code_identity
        from tdaexp.runtime.fingerprint import fingerprint

        how = [self.trust_remote_code, self.attn_implementation]
        read: list[Any] = [code_identity(Pretrained), found.weights.identity, found.words.identity, how]
        if found.adapter is not None:
            read.append([found.adapter.identity, self.merge_adapter])
        elif self.adapter == NEW:
            read.append(self.lora)
        if self.quantised is not None:
            read.append([self.quantised, library_version()])
        return fingerprint(*read)


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
