"""What `--help` prints: examples, groups with their choices, and keys. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

PURPOSE = {
    "train": "Train the configured model on the configured data set and keep its checkpoint.",
    "attribute": "Score which training examples and which components made the model answer as it does.",
    "evaluate": "Compare influence stores, or another program's scores, on the data's truth.",
}

EXAMPLES = {
    "train": [
        (
            "python train.py",
            "the small default model on the built-in biographies, a minute or two on a laptop",
        ),
        ("python train.py trainer.fit.steps=2000 trainer.fit.lr=1e-3", "longer, and more slowly"),
        ("python train.py -m seed=0,1,2", "three models, one row each in multirun/…/sweep.csv"),
    ],
    "attribute": [
        ("python attribute.py", "greedy component selection on the built-in example, to report.html"),
        (
            "python attribute.py method=select,project -m budget=0.01,0.05",
            "four jobs, one row each in sweep.csv",
        ),
        (
            "python attribute.py method=select products=FILE.npz",
            "the selection study on stored dot products, without a model",
        ),
    ],
    "evaluate": [
        ("python evaluate.py", "every finished run of the default model and data, in one table"),
        ("python evaluate.py 'runs=[outputs/attribute/*,multirun/attribute-*]'", "runs and sweeps by folder"),
        ("python evaluate.py over=seed", "runs that differ in the seed alone as one row, their mean"),
        ("python evaluate.py scores=FILE.json", "judge scores that another program wrote; needs no run"),
    ],
}

FLAGS = """\
  scale=paper        the size that an experiment has in the paper; without it, scale=toy: a laptop's
  -m                 one job for every combination of comma-separated values
  -m hydra/launcher=joblib   the same, jobs side by side
  --cfg job          print the configuration instead of running it
  --config-dir DIR   also look for configuration files in DIR (your own method/*.yaml, ...)
  --hydra-help       the options of Hydra itself"""


def show(stage: str, conf: Path, called: str) -> str:
    """Return the help text of a stage whose configuration files are in `conf`, and which is `called` so."""
    import yaml

    root = conf / f"{stage}.yaml"
    text = root.read_text(encoding="utf-8")
    defaults = [entry for entry in yaml.safe_load(text)["defaults"] if isinstance(entry, dict)]
    own = [(g, chosen) for entry in defaults for g, chosen in entry.items()]
    groups = {g: chosen for g, chosen in own if not g.startswith(("override ", "optional "))}
    width = max(map(len, groups))
    lines = [
        f"{PURPOSE[stage]}",
        "",
        f"usage: {called} [GROUP=CHOICE ...] [KEY=VALUE ...] [-m]",
        "",
        "examples:",
    ]
    for command, meaning in EXAMPLES[stage]:
        lines += [f"  {command.replace(f'python {stage}.py', called)}", f"      {meaning}"]
    lines += ["", "groups, the default first:"]
    for group, chosen in groups.items():
        found = sorted(file.stem for file in (conf / group).glob("*.yaml") if not file.stem.startswith("_"))
        ordered = [name for name in (chosen or "null", *found) if name == "null" or name in found]
        lines.append(f"  {group:<{width}}  {', '.join(dict.fromkeys(ordered))}")
    keys = text.split("\n\n", 1)[1].strip().splitlines()
    lines += [
        "",
        f"keys (every key of a choice too, as GROUP.KEY=VALUE; see {root.parent.name}/GROUP/CHOICE.yaml):",
    ]
    return "\n".join([*lines, *(f"  {key}" for key in keys), "", "options:", FLAGS])
