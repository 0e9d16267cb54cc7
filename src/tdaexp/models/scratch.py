"""Models that are built here: any causal architecture of transformers, small, randomly initialised, then
trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tdaexp.data import templates
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.stated import checked_config
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.hub import from_config
from tdaexp.runtime.names import check_name

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tdaexp.models.loaded import LoadedModel


@dataclass
class Scratch:
    """A causal language model with random weights and a tokenizer of its own, to be trained on the data set.

    Keys: `architecture` a causal model type of transformers (`olmo`, `llama`, `gpt2`, `gpt_neox`, `bloom`,
    …); `config` values of that type's config (hidden_size, …); `vocab_size` of the byte-level BPE
    tokenizer, at most; `seed` of the initial weights; `context` longest sequence in tokens; `template` how
    prompt and completion become tokens; `name` a short label; `pretrained` a folder with trained weights:
    nothing is trained then; `finetuned` a folder or hub id of the same model after a second training stage.
    """

    architecture: str = "olmo"
    config: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 1024
    seed: int = 0
    context: int = 128
    template: str = "plain"
    name: str = "scratch"
    pretrained: str | None = None
    finetuned: str | None = None

    def __post_init__(self) -> None:
        """Refuse a context that holds no prediction."""
        check_name("model.name", self.name)
        if self.context < 2:
            raise UserError(f"model.context={self.context}: must be at least 2 tokens")
        templates.check(self.template, "model.template")

    @property
    def needs_training(self) -> bool:
        """True unless a folder with trained weights is named."""
        return self.pretrained is None

    @property
    def stated(self) -> bool:
        """Whether the architecture is known without a download."""
        return self.pretrained is None or Pretrained(self.pretrained).stated

    def start_fingerprint(self) -> str:
        """Identity of everything, beside the texts, that decides the initial weights, tokenizer and template."""
        from tdaexp.runtime.fingerprint import fingerprint

        if self.pretrained is not None:
            return fingerprint(Pretrained(self.pretrained).start_fingerprint(), self.context, self.template)
        return fingerprint([self.architecture, self.config, self.vocab_size, self.seed, self.context, self.template])

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
        """Load the folder that `pretrained` names; a programming error where there is none (see
        `needs_training`).
        """
        if self.pretrained is None:
            raise RuntimeError("a model from scratch must be trained before it is loaded")
        loaded = Pretrained(self.pretrained, name=self.name, template=self.template).load(device, dtype)
        return replace(loaded, max_length=min(self.context, loaded.max_length))

    def planned(self, texts: list[str]) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
        """Architecture and tokenizer (trained on `texts` where there are no weights yet): what a plan needs."""
        from tdaexp.models.size import count_parameters
        from tdaexp.models.tokenizer import train_tokenizer

        if self.pretrained is not None:
            return Pretrained(self.pretrained).planned(texts)
        tokenizer = train_tokenizer(texts, self.vocab_size)
        config = _model_config(self.architecture, self.config, tokenizer, self.context)
        count_parameters(config)
        return config, tokenizer

    def planned_adapter(self) -> LoraConfig | None:
        """That of the folder that `pretrained` names; None without one."""
        return None if self.pretrained is None else Pretrained(self.pretrained).planned_adapter()

    def start(self, texts: list[str]) -> LoadedModel:
        """Train the tokenizer on `texts` and initialise the model, in float32 on the CPU: where training
        starts.
        """
        from tdaexp.models.loaded import LoadedModel, check_vocabulary, freeze
        from tdaexp.models.tokenizer import train_tokenizer
        from tdaexp.runtime.fingerprint import fingerprint

        if self.pretrained is not None:
            return self.load()
        tokenizer = train_tokenizer(texts, self.vocab_size)
        model = build_model(self.architecture, self.config, tokenizer, context=self.context, seed=self.seed)
        check_vocabulary(model, tokenizer, "model.vocab_size")
        identity = fingerprint(self.start_fingerprint(), tokenizer.backend_tokenizer.to_str())
        return LoadedModel(freeze(model), tokenizer, identity, self.template, self.context)


def build_model(
    architecture: str, values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, context: int, seed: int
) -> PreTrainedModel:
    """Initialise a causal model of type `architecture` in float32 from `seed`; the global random state is
    left alone.

    The tokenizer decides vocabulary and special tokens, `context` the number of positions; dropout is off.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tdaexp.models.loaded import quiet_transformers
    from tdaexp.models.size import check_trainable

    config = _model_config(architecture, values, tokenizer, context)
    check_trainable(config, "model.config")
    try:
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            torch.manual_seed(seed)
            model: PreTrainedModel = from_config(
                AutoModelForCausalLM, config, trust_remote_code=False, dtype=torch.float32
            )
    except (ValueError, RuntimeError, TypeError) as error:  # of what draws the weights
        raise UserError(f"model.config: {architecture} cannot be built from these values: {error}") from error
    model.eval()
    return model


def _model_config(
    architecture: str, values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, context: int
) -> PretrainedConfig:
    """The config that the values state for this tokenizer: one of which a model can be built."""
    ours = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return checked_config(architecture, values, ours, context=context)
