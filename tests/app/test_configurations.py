"""Every file in conf/ composes and passes the schema, and wandb's sweep file does what it says."""

import itertools
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tdaexp.app.compose import open_composer
from tdaexp.app.plan import plan
from tdaexp.app.scale import store_scales
from tdaexp.runtime.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("model", "dataset", "candidates", "decoding", "method", "metric", "trainer", "logger", "experiment")
PLAIN_TEXT = ("single", "table1", "table1_solvers", "table1_baselines", "fig1", "fig1_lissa")
PLAIN = ["dataset.path=FILE", "dataset.query_path=QUERIES", "dataset.text_column=text"]
# what these choices leave open on purpose: the user has to say it
NEEDED = {
    "model=hub": ["model.pretrained=FOLDER", "trainer.precision=float32"],
    "dataset=text": ["dataset.path=FILE", "dataset.text_column=text"],
    "dataset=trex": ["dataset.hub=NAME"],
    "candidates=best": ["method=project"],
    "candidates=found": ["candidates.run=FOLDER"],
    "experiment=verses": ["dataset.path=FILE"],
    "experiment=verses_smollm2": ["dataset.path=FILE"],
    "experiment=msif_verses": ["dataset.path=FILE"],
    "experiment=pruning_verses": ["dataset.path=FILE", "dataset.query_path=QUERIES"],
    "experiment=eurollm-paper": ["dataset.path=FILE"],
    "experiment=explaind_eurollm-paper": ["dataset.path=FILE"],
    **{f"experiment=msif_{name}-paper": PLAIN for name in PLAIN_TEXT},
    "experiment=msif_fig3-paper": ["dataset.finetune_path=FILE"],
    "experiment=msif_fig3_baselines-paper": ["dataset.finetune_path=FILE"],
    "experiment=msif_case_study-paper": [f"dataset.{key}=FILE" for key in ("path", "query_path", "finetune_path")],
}
OF_EVALUATE = ("experiment=leaderboard",)
SCALED = sorted(store_scales([CONF]))  # experiment/NAME-SCALE
CHOICES = [f"{group}={file.stem}" for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
CHOICES = [one for one in CHOICES if f"{one.replace('=', '/')}-toy" not in SCALED]
CHOICES += [one.replace("/", "=") for one in SCALED]


def _plan(stage, overrides, multirun=False):
    with open_composer(stage, CONF) as composer:
        return plan(composer, stage, overrides, multirun, ("tdaexp",))


@pytest.mark.parametrize("stage", ["train", "attribute", "evaluate"])
def test_the_defaults_pass(stage):
    (job,) = _plan(stage, []).jobs
    assert job.choices["model"] == "toy_gpt" and job.choices["dataset"] == "biographies"
    assert job.config.logger.mode == "offline"


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_passes(choice):
    stage = "evaluate" if choice in OF_EVALUATE else "attribute"
    planned = _plan(stage, [choice, *NEEDED.get(choice, [])])
    assert planned.jobs
    group, name = choice.split("=")
    assert all(job.choices[group] == name for job in planned.jobs)


def test_training_reads_its_part_of_an_experiment_and_says_which_it_does_not(capsys):
    (job,) = _plan("train", ["experiment=tampered"]).jobs
    (whole,) = _plan("attribute", ["experiment=tampered"]).jobs
    assert (job.config.model, job.config.trainer) == (whole.config.model, whole.config.trainer)
    assert job.config.model.adapter == "new" and job.config.dataset == whole.config.dataset
    assert capsys.readouterr().err == "experiment: not read by this command: candidates, method, metric\n"
    with pytest.raises(UserError, match="experiment=tampered has one size"):
        _plan("train", ["experiment=tampered", "scale=paper"])


def test_a_sweep_over_what_training_does_not_read_is_one_training(capsys):
    planned = _plan("train", ["experiment=msif_fig1", "scale=paper", *PLAIN])  # based on msif_single, which has scales
    (job,) = planned.jobs
    assert not planned.multirun and job.choices["model"] == "ptb_neox" and job.config.trainer.fit.steps == 5000
    assert capsys.readouterr().err == "experiment: not read by this command: candidates, method\n"


def test_comparing_takes_an_experiments_model_and_data():
    (job,) = _plan("evaluate", ["experiment=tampered"]).jobs
    assert job.choices["dataset"] == "instructions" and job.config.metric.top_k == 20


def test_the_sweep_of_the_papers_surrogates():
    planned = _plan("attribute", ["method=select,project", "budget=0.01,0.05"], multirun=True)
    assert [(j.choices["method"], j.values["budget"]) for j in planned.jobs] == [
        ("select", 0.01), ("select", 0.05), ("project", 0.01), ("project", 0.05)
    ]  # fmt: skip
    assert len({job.fingerprint for job in planned.jobs}) == 4


def test_wandbs_sweep_file_composes_every_job_of_its_grid():
    file = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert file["method"] == "grid"
    grid = {name: parameter["values"] for name, parameter in file["parameters"].items()}
    seen = []
    for values in itertools.product(*grid.values()):
        arguments = create_sweep_command_args({"args": {k: {"value": v} for k, v in zip(grid, values, strict=True)}})
        command = []
        for part in create_sweep_command(file["command"]):
            if part == "${program}":
                command.append(file["program"])
            elif part == "${args_no_hyphens}":
                command += arguments["args_no_hyphens"]
            else:
                command.append(part)
        python = command.index("python")
        assert command[python : python + 2] == ["python", "attribute.py"]
        (job,) = _plan("attribute", command[python + 2 :]).jobs
        assert job.config.logger.kind == "wandb" and job.config.logger.mode == "online"
        seen.append(tuple(job.choices[k] if k in job.choices else job.values[k] for k in grid))
    assert seen == list(itertools.product(*grid.values())) and len(seen) == 4


def test_a_method_for_two_stages_brings_data_that_has_them(capsys):
    (job,) = _plan("attribute", ["method=multistage"]).jobs
    assert job.choices["dataset"] == "biographies_qa" and job.config.trainer.finetune.steps == 100
    assert "experiment=toy_msif is taken" in capsys.readouterr().err
    (job,) = _plan("attribute", ["method=multistage", "dataset=trex", "dataset.hub=NAME"]).jobs
    assert job.choices["dataset"] == "trex" and job.choices["model"] == "toy_gpt"


@pytest.mark.parametrize("stage", ["attribute", "evaluate"])
@pytest.mark.parametrize("metric", sorted(file.stem for file in (CONF / "metric").glob("*.yaml")))
def test_what_all_metrics_share_is_set_whichever_is_chosen(stage, metric):
    (job,) = _plan(stage, [f"metric={metric}", "seed=3", "metric.bootstrap=7"]).jobs
    assert job.config.metric.seed == 3 and job.config.metric.bootstrap == 7
