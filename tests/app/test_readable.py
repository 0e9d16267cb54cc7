"""Names for people: what was chosen and typed, no hashes, no classes."""

from tdaexp.app.readable import LIMIT, choices_told, run_name, sweep_name

CHOICES = {
    "model": "toy_gpt",
    "dataset": "biographies",
    "method": "ekfac",
    "logger": "wandb",
    "hydra/launcher": "basic",
}
TYPED = ["method=ekfac", "budget=0.05", "seed=1", "logger=wandb", "logger.mode=online", "cache_dir=c", "+method.rank=2"]


def test_a_run_is_named_by_its_method_and_what_was_typed():
    assert run_name("attribute", CHOICES, TYPED) == "ekfac budget=0.05 seed=1 method.rank=2"
    assert run_name("train", CHOICES, ["model=toy_gpt", "seed=2", "seed=3"]) == "toy_gpt biographies seed=3"
    assert run_name("evaluate", {}, ["runs=[a,b]", "dashboard=report", "metric=lds"]) == "comparison metric=lds"
    assert run_name("evaluate", {"analysis": "grokking"}, ["analysis=grokking"]) == "grokking"


def test_a_job_of_a_sweep_is_named_by_what_is_swept():
    assert run_name("attribute", CHOICES, TYPED, ["method", "seed"]) == "ekfac seed=1"
    nested = ["method@method.on=cg", "budget=1"]
    assert run_name("attribute", CHOICES, nested, ["method"]) == "ekfac method@method.on=cg"


def test_a_sweep_is_named_by_its_command_what_is_swept_first():
    typed = ["model=olmo1b", "method=select,project", "hydra/launcher=joblib", "budget=0.01,0.05"]
    assert sweep_name("attribute", typed, ["method", "budget"]) == (
        "attribute method=select,project budget=0.01,0.05 model=olmo1b"
    )
    assert len(sweep_name("attribute", [f"dataset.path={'x' * 200}"], [])) == LIMIT


def test_choices_are_those_of_plain_groups():
    told = choices_told(CHOICES | {"method@method.on": "cg"})
    assert told == {"model": "toy_gpt", "dataset": "biographies", "method": "ekfac", "logger": "wandb"}
