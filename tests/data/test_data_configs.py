"""The YAML of every data set, selector and paraphrase provider: its class's keys and defaults."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted([*CONF.glob("dataset/**/*.yaml"), *CONF.glob("candidates/*.yaml")])
OWN = {
    "biographies",
    "biographies_qa",
    "trex",
    "knn",
    "tfidf",
    "text",
    "lima",
    "openai",
    "local",
    "bm25",
    "bm25s",
    "all",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_yaml_holds_its_class_s_keys_and_defaults(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8").replace("${cache_dir}", "cache"))
    module, name = values.pop("_target_").rsplit(".", 1)
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    defaults = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields}
    for stated in (values, defaults):
        stated.pop("assumed", None)  # what a plan takes for data that is not at hand stands in the file alone
    assert values == defaults


def test_every_option_is_there() -> None:
    assert OWN.issubset(path.stem for path in FILES)


def test_a_provider_is_chosen_on_the_command_line() -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=["+dataset=lima", "+dataset/paraphrase=local", "dataset.paraphrase.batch_size=2"])
    assert config.dataset.paraphrase._target_ == "tdaexp.data.paraphrasers.LocalModel"
    assert config.dataset.paraphrase.batch_size == 2
    assert config.dataset.path is None
