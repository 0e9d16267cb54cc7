import json

import pytest
import torch
from safetensors.torch import load_file

import tdaexp.training.module as module
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.scratch import Scratch
from tdaexp.training.batches import batch_indices
from tdaexp.training.fit import fit
from tdaexp.training.settings import FitSettings

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="session")
def records():
    """Ten short records; with batches of four an epoch ends inside a batch."""
    cities = ["Lisbon", "Krakow", "Oslo", "Quito", "Perth", "Graz", "Turin", "Bergen", "Ghent", "Porto"]
    return [Record(f"r{i}", f"Where was person {i} born?", f"In {city}.") for i, city in enumerate(cities)]


@pytest.fixture(scope="session")
def config():
    """A model that trains in a second."""
    return Scratch("olmo", SMALL, vocab_size=280, context=64, name="small")


@pytest.fixture
def start(config, records):
    """A new untrained model."""
    return config.start([record.text for record in records])


@pytest.fixture
def examples(start, records):
    """The records as tokens."""
    return tokenise(records, start.tokenizer, template="plain", max_length=64)


@pytest.fixture(scope="session")
def settings():
    """Seven steps, a checkpoint after 2, 4 and 6."""
    return FitSettings(steps=7, batch_size=4, lr=1e-2, warmup=2, checkpoint_every=2)


@pytest.fixture
def straight(start, examples, settings, tmp_path):
    """The result of an undisturbed run."""
    return fit(start, examples, settings, folder=tmp_path / "straight", seed=3)


@pytest.fixture(scope="session")
def weights():
    """Read a result's tensors by name."""
    return lambda folder: load_file(folder / "model.safetensors")


@pytest.fixture(scope="session")
def same(weights):
    """Whether two results have the same weights, bit for bit."""

    def compare(one, two):
        a, b = weights(one), weights(two)
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return compare


@pytest.fixture(scope="session")
def losses():
    """Read a result's loss curve."""
    return lambda folder: json.loads((folder / "training.json").read_text())["loss"]


class Killed(BaseException):
    """As abrupt as a signal: nothing catches it."""


@pytest.fixture
def kill_at(monkeypatch):
    """Make the training stop dead when it asks for the batch of a step; returns the exception to expect."""

    def arm(step, patch=monkeypatch):
        def indices(asked, **keys):
            if asked == step:
                raise Killed
            return batch_indices(asked, **keys)

        patch.setattr(module, "batch_indices", indices)
        return Killed

    return arm
