import dataclasses
import shutil

import pytest
import torch

import tdaexp.training.trained as module
from tdaexp.runtime.errors import UserError
from tdaexp.training.trained import Tokenisation, trained, trained_folder

TOKENS = Tokenisation(template="plain", max_length=64)


@pytest.fixture
def train(config, records, settings, tmp_path):
    def run(config=config, records=records, settings=settings, tokens=TOKENS, seed=0, **keys):
        return trained(config, records, settings, tokens, cache_dir=tmp_path, seed=seed, **keys)

    return run


def test_a_second_call_loads_what_the_first_one_trained(train, monkeypatch):
    first = train()
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    second = train(dtype=torch.float64)
    assert second.fingerprint == first.fingerprint and second.max_length == first.max_length == 64
    assert second.model.dtype == torch.float64
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=0, atol=0)
        assert not two.requires_grad


def test_the_folder_follows_every_dependency_and_nothing_else(config, records, settings, tmp_path):
    def of(config=config, records=records, settings=settings, tokens=TOKENS, seed=0, precision="float32"):
        return trained_folder(
            config, records, settings, tokens, cache_dir=tmp_path, seed=seed, precision=precision
        ).name

    replace = dataclasses.replace
    last = replace(records[-1], completion="In Rome.")
    different = {
        of(), of(config=replace(config, seed=1)), of(config=replace(config, context=32)),
        of(records=records[:-1]), of(records=[*records[:-1], last]), of(records=records[::-1]),
        of(settings=replace(settings, steps=8)), of(tokens=replace(TOKENS, loss_on="all")),
        of(tokens=replace(TOKENS, append_eos=False)), of(tokens=replace(TOKENS, max_length=32)),
        of(seed=1), of(precision="bfloat16"), of(settings=replace(settings, keep="all")),
    }  # fmt: skip
    assert len(different) == 13
    assert of(records=[replace(r, truth=("x",), meta={"a": 1}) for r in records]) == of()
    assert of(settings=replace(settings, checkpoint_every=3)) == of()
    assert of(config=replace(config, name="renamed")).split("-")[1] == of().split("-")[1]


def test_different_trainings_have_different_identities(train):
    assert train().fingerprint != train(seed=1).fingerprint


def test_a_pretrained_model_is_fine_tuned(train, tmp_path, config):
    from tdaexp.models.pretrained import Pretrained

    base = train()
    folder = next(tmp_path.glob("models/*/model"))
    tuned = train(config=Pretrained(str(folder), name="again"), seed=5)
    assert tuned.fingerprint != base.fingerprint
    assert any(
        not torch.equal(one, two) for one, two in zip(base.model.parameters(), tuned.model.parameters(), strict=True)
    )
    assert tuned.tokenizer("born")["input_ids"] == base.tokenizer("born")["input_ids"]


@pytest.mark.parametrize(
    ("name", "left"), [("model.safetensors", 1000), ("config.json", 5), ("tokenizer.json", 5), ("training.json", 1)]
)
def test_advice_about_a_damaged_result_works(train, weights, tmp_path, name, left):
    train()
    file = next(tmp_path.glob(f"models/*/model/{name}"))
    before = {key: value.clone() for key, value in weights(file.parent).items()}  # not mapped from the file
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(UserError, match=f"{file.parent}.*; delete {file.parent} and run again") as error:
        train()
    assert "\n" not in str(error.value)
    shutil.rmtree(file.parent)
    train()
    after = weights(file.parent)
    assert all(torch.equal(after[key], before[key]) for key in before)
