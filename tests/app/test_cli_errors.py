"""A mistake on the command line or in a file: one line that names it, exit code 2, nothing run."""

from importlib.util import find_spec

import pytest

OPTIONS = [
    (["budgte=1"], ["option 'budgte=1'", "did you mean 'budget'", "choices:", "products"]),
    (["metod=select"], ["option 'metod=select'", "did you mean 'method'"]),
    (["method=selct"], ["option 'method=selct'", "did you mean 'select'", "choices: full, project, select"]),
    (["-m", "method=select,proect"], ["proect", "did you mean 'project'"]),
    (["method.ordr=single"], ["option 'method.ordr=single'", "did you mean 'order'", "budget, names, order"]),
    (["+method.ordr=single"], ["option '+method.ordr=single'", "did you mean 'order'"]),
    (["method.order=sngle"], ["method.order", "did you mean 'single'", "option 'method.order=sngle'"]),
    (["trainer.fit.stps=3"], ["option 'trainer.fit.stps=3'", "did you mean 'steps'"]),
    (["trainer.fit.steps=many"], ["option 'trainer.fit.steps=many'", "an integer", "'many'"]),
    (["trainer.fit.lr=-1"], ["trainer.fit.lr", "must be a positive number"]),
    (["trainer.tokens_per_batch=0"], ["trainer.tokens_per_batch=0", "at least 1"]),
    (["logger.mode=onlin"], ["logger.mode", "did you mean 'online'"]),
    (["trainer.precision=float23"], ["trainer.precision", "did you mean 'float32'", "bfloat16"]),
    (["trainer.accelerator=cudaa"], ["trainer.accelerator", "did you mean 'cuda'", "auto"]),
    (["trainer.fit=5"], ["option 'trainer.fit=5'", "a set of keys"]),
    (["trainer=5"], ["option 'trainer=5'", "unknown trainer '5'", "choices: ddp, default, fsdp"]),
    (["budget=much"], ["option 'budget=much'", "a number or null"]),
    (["budget=2"], ["budget=2", "above 0 and at most 1", "(option 'budget=2')"]),
    (["-m", "budget=0.1,0"], ["budget=0", "above 0 and at most 1"]),
    (["seed=null"], ["option 'seed=null'", "an integer"]),
    (["logger.tags=a"], ["option 'logger.tags=a'", "a list, e.g. [a,b]"]),
    (["dataset.provider=local"], ["option 'dataset.provider=local'", "the keys of a Provider"]),
    (["method.names=3"], ["option 'method.names=3'", "a list"]),
    (["dataset=lost"], ["conf/dataset/lost.yaml", "dataset.path", "no value", "dataset.path=VALUE"]),
    (["experiment=wid"], ["option 'experiment=wid'", "did you mean 'wide'"]),
    (["seed"], ["option 'seed'", "key=value"]),
    (["a=[1"], ["option 'a=[1'", "key=value"]),
    (["seed=1,2"], ["option 'seed=1,2'", "-m"]),
    (["-m", "seed=1,x"], ["option 'seed=x'", "an integer"]),
    (["-m", "seed=1,2", "--cfg", "job"], ["--cfg", "leave out -m"]),
    (["--frobnicate"], ["--frobnicate", "--help"]),
    (["--config-dir", "nowhere"], ["--config-dir", "nowhere"]),
    (["--config-name", "atribute"], ["atribute", "did you mean 'attribute'"]),
    (["hydra.jb.name=x"], ["hydra.jb.name"]),
    (["hydra.searchpath=[x]"], ["--config-dir"]),
    (["hydra/launcher=jobllib"], ["hydra/launcher", "did you mean 'joblib'"]),
    (["~seeds"], ["seeds"]),
    (["~method"], ["conf/attribute.yaml", "key 'method' is missing; give method=VALUE"]),
    (["budget=${nothing}"], ["option 'budget=${nothing}'", "nothing"]),
    (["method=full", "budget=0.1"], ["option 'budget=0.1'", "method 'full' does not read budget"]),
    (["method._target_=os.system"], ["option 'method._target_=os.system'", "refused"]),
    (["method._target_=standin.Selct"], ["unknown class 'Selct'", "did you mean 'Select'"]),
    (["method._target_=tdaexp.methds.X"], ["unknown module", "did you mean 'tdaexp.methods'"]),
    (["method._target_=standin.UserError"], ["unknown class 'UserError'"]),
]


def _one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(("arguments", "parts"), OPTIONS, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_in_an_option_is_one_line(program, arguments, parts):
    code, err = program(*arguments)
    assert code == 2
    assert _one_line(err), err
    for part in parts:
        assert part in err
    assert not program.calls()


FILES = [
    ("attribute.yaml", "\nbudgte: 1\n", ["conf/attribute.yaml", "budgte", "did you mean 'budget'"]),
    ("attribute.yaml", "\nseed: 1\n", ["conf/attribute.yaml:", "duplicate key seed"]),
    ("method/select.yaml", "ordr: single\n", ["conf/method/select.yaml", "ordr", "did you mean 'order'"]),
    ("method/select.yaml", "order: sngle\n", ["conf/method/select.yaml", "did you mean 'single'"]),
    ("method/select.yaml", "names: 3\n", ["conf/method/select.yaml", "method.names", "a list"]),
    ("method/select.yaml", "order: ${ordr}\n", ["conf/method/select.yaml", "ordr"]),
    ("method/select.yaml", "order: [\n", ["conf/method/select.yaml:", "not valid YAML"]),
    ("method/select.yaml", "order: single\norder: greedy\n", ["conf/method/select.yaml:", "duplicate key"]),
    ("dataset/biographies.yaml", "people: ???\n", ["conf/dataset/biographies.yaml", "dataset.people"]),
    ("trainer/default.yaml", "treads: 2\n", ["conf/trainer/default.yaml", "did you mean 'threads'"]),
    ("trainer/default.yaml", "  stps: 2\n", ["conf/trainer/default.yaml", "did you mean 'steps'"]),
    ("metric/retrieval.yaml", "fold: 2\n", ["conf/metric/retrieval.yaml", "did you mean 'folds'"]),
    ("metric/retrieval.yaml", "\n- 2\n", ["conf/metric/retrieval.yaml", "not valid YAML"]),
    ("logger/none.yaml", "mod: online\n", ["conf/logger/none.yaml", "did you mean 'mode'"]),
    ("candidates/auto.yaml", "bb: 2\n", ["conf/candidates/auto.yaml", "unknown key 'bb'", "choices: b"]),
]


@pytest.mark.parametrize(("name", "text", "parts"), FILES, ids=[f"{n}-{t.strip()[:12]}" for n, t, _ in FILES])
def test_a_mistake_in_a_file_names_the_file(program, name, text, parts):
    file = program.conf / name
    file.write_text(file.read_text() + text)
    code, err = program()
    assert code == 2
    assert _one_line(err), err
    for part in parts:
        assert part in err
    assert not program.calls()


REPLACED = [
    ("budget: null", "budget: 3", ["budget=3", "above 0 and at most 1", "(conf/attribute.yaml)"]),
    ("budget: null", "budgte: null", ["conf/attribute.yaml has 'budgte'", "did you mean 'budget' there?"]),
    (
        "  - dataset: biographies",
        "  - datset: biographies",
        ["conf/attribute.yaml", "unknown group 'datset'", "did you mean 'dataset'"],
    ),
]


@pytest.mark.parametrize(("before", "after", "parts"), REPLACED, ids=[after.strip() for _, after, _ in REPLACED])
def test_a_mistake_in_the_root_file_names_it(program, before, after, parts):
    text = (program.conf / "attribute.yaml").read_text()
    assert before in text
    program.write("attribute.yaml", text.replace(before, after))
    code, err = program()
    assert code == 2
    assert _one_line(err), err
    for part in parts:
        assert part in err


def test_a_mistake_in_a_files_sweep_names_the_file(program):
    text = (program.conf / "experiment/sweep.yaml").read_text()
    program.write("experiment/sweep.yaml", text.replace("budget:", "budgit:"))
    code, err = program("experiment=sweep")
    assert code == 2 and _one_line(err), err
    assert "conf/experiment/sweep.yaml: 'budgit=0.1'" in err and "did you mean 'budget'" in err
    code, err = program("experiment=sweep", "budgit=0.7")
    assert code == 2 and "option 'budgit=0.7'" in err


EXPERIMENTS = [
    ("seeed: 3\n", ["conf/experiment/x.yaml", "did you mean 'seed'"]),
    ("method:\n  ordr: single\n", ["conf/experiment/x.yaml", "did you mean 'order'"]),
    ("trainer:\n  fit:\n    steps: many\n", ["conf/experiment/x.yaml", "an integer"]),
    ("hydra:\n  jb: 1\n", ["error: conf/experiment/x.yaml: Key 'jb' not in"]),
    ("defaults:\n  - override /modl: wide\n", ["conf/experiment/x.yaml", "modl"]),
    ("defaults:\n  - override /model: wied\n", ["conf/experiment/x.yaml", "did you mean 'wide'"]),
    ("method: {}\nmodle: {width: 3}\n", ["conf/experiment/x.yaml", "did you mean 'model'"]),
    (
        "defaults:\n  - override /method: full\nbudget: 0.3\n",
        ["conf/experiment/x.yaml", "does not read budget"],
    ),
]


@pytest.mark.parametrize(("text", "parts"), EXPERIMENTS)
def test_a_mistake_in_an_experiment_names_the_file(program, text, parts):
    program.write("experiment/x.yaml", f"# @package _global_\n{text}")
    code, err = program("experiment=x")
    assert code == 2
    assert _one_line(err), err
    for part in parts:
        assert part in err


def test_a_nested_class_is_checked_and_built(program):
    code, err = program("dataset=nested", "dataset.paraphrase.retris=3")
    assert code == 2 and "did you mean 'retries'" in err and "option 'dataset.paraphrase.retris=3'" in err
    code, err = program("dataset=nested", "dataset.paraphrase.retries=3")
    assert code == 0, err


def test_a_choice_from_the_users_own_folder(program, tmp_path):
    own = tmp_path / "own" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: standin.Select\nordr: single\n")
    code, err = program("--config-dir", "own", "method=mine")
    assert code == 2 and "own/method/mine.yaml" in err and "did you mean 'order'" in err
    (own / "mine.yaml").write_text("_target_: standin.Select\norder: single\n")
    code, err = program("--config-dir", "own", "method=mine")
    assert code == 0, err
    assert "toy_gpt-biographies-mine" in program.calls()[0]


@pytest.mark.skipif(find_spec("submitit") is not None, reason="the plugin is installed")
def test_a_launcher_without_its_plugin_says_what_to_install(program):
    for launcher in ("slurm", "submitit_slurm"):
        code, err = program("-m", "seed=1,2", f"hydra/launcher={launcher}")
        assert code == 2 and _one_line(err), err
        assert "tdaexp[cluster]" in err


def test_options_and_overrides_in_any_order(program):
    code, err = program("method=select,project", "-m", "budget=0.1,0.2")
    assert code == 0, err
    assert len(program.calls()) == 4


def test_keys_that_no_file_sets_are_known_from_the_schema(program):
    code, err = program("method.order=single", "model.pretrained=folder")
    assert code == 0, err
    config = (program.folder / program.calls()[0] / "config.yaml").read_text()
    assert "order: single" in config and "pretrained: folder" in config


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["method=full", "-m", "budget=0.1,0.2"], ["budget", "method 'full' does not read budget"]),
        (["method=select,full", "-m", "budget=0.1,0.2"], ["method 'full' does not read budget"]),
        (["-m", "seed=1,1"], ["jobs 0 and 1", "same run"]),
        (["-m", "products=x.npz", "model=toy_gpt,wide"], ["sweep over model", "same run"]),
        (["-m", "logger.mode=online,offline"], ["sweep over logger.mode", "same run"]),
    ],
)
def test_a_sweep_of_equal_jobs_is_refused(program, arguments, parts):
    code, err = program(*arguments)
    assert code == 2
    assert _one_line(err), err
    for part in parts:
        assert part in err
    assert not program.calls() and not (program.folder / "multirun").exists()
