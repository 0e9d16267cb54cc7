import pytest
import torch

from tdaexp.models.scratch import Scratch

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SMALL = {
    "olmo": SIZES,
    "llama": SIZES,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neox": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    },
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
}
TEXTS = [
    "Where was Ada Keller born? Ada Keller was born in Lisbon.",
    "Where was Otto Brandt born? Otto Brandt was born in Krakow.",
    "What does Ada Keller do? Ada Keller is a baker.",
    "What does Otto Brandt do? Otto Brandt is a judge in Lisbon.",
]


@pytest.fixture(scope="session")
def small_config():
    """Make a small `Scratch` config of any architecture."""

    def make(architecture="olmo", **keys):
        return Scratch(**{"architecture": architecture, "config": SMALL[architecture], "vocab_size": 300, **keys})

    return make


@pytest.fixture(scope="session")
def small_start(small_config):
    """Build a small untrained model of any architecture, by default with its own texts."""

    def make(architecture="olmo", **keys):
        return small_config(architecture, **keys).start(TEXTS)

    return make


@pytest.fixture
def hub_folder(small_start, tmp_path):
    """A folder in hub format with a small model."""
    from tdaexp.models.loaded import quiet_transformers

    start = small_start()
    with quiet_transformers():
        start.model.save_pretrained(tmp_path / "hub")
        start.tokenizer.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def double(monkeypatch):
    """Models that compute some of their parts in float32, whatever they are in, compute them in float64."""
    plain = torch.Tensor.to

    def to(self, *arguments, **named):
        kinds = [torch.float64 if one is torch.float32 else one for one in arguments]
        return plain(self, *kinds, **{k: torch.float64 if v is torch.float32 else v for k, v in named.items()})

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch.Tensor, "to", to)
