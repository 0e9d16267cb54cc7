"""The reference of all configuration keys: a page for the three commands, one for each group, one of the experiments."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import prose
import yaml_keys
from methods import key_rows, keys_said
from tdaexp.app.config import ROOTS, Logger, Trainer
from tdaexp.metrics import judging_settings
from tdaexp.metrics.settings import MetricSettings
from tdaexp.training.settings import FitSettings

GROUPS = ("method", "model", "dataset", "candidates", "decoding", "metric", "trainer", "recipe", "logger", "analysis")
WHAT = {
    "method": "How an answer is attributed; [a page for each](../../methods/index.md) says more.",
    "model": "What is explained: [bring a model](../../models.md), [classifiers](../../classifiers.md).",
    "dataset": "What it was trained on, and what it is asked: [your own data](../../data.md).",
    "candidates": "Which training rows a question is scored with.",
    "decoding": "How the model completes a prompt, for queries that it writes itself.",
    "metric": "How scores are judged: [by retrieval, by retraining](../../judging.md).",
    "trainer": "Where and how passes are run, and how a model is trained: [several processes](../../distributed.md).",
    "recipe": "How a model is trained where nothing else is said: keys of `trainer` that go with `model=` of that name.",
    "logger": "Where a run is mirrored: [wandb](../../wandb.md).",
    "analysis": "Studies beyond the table of methods: `python evaluate.py analysis=NAME`.",
}
SHARED = {
    "trainer": {"trainer": Trainer, "trainer.fit and trainer.finetune": FitSettings},
    "recipe": {},
    "logger": {"logger": Logger},
    "metric": {"metric": MetricSettings},
}
"""Groups whose keys are typed by classes of the program, not by one that the file names."""
JUDGED = {
    "brittleness": "Brittleness", "duplicates": "Duplicates", "lds": "Lds", "leave_one_out": "LeaveOneOut",
    "mislabelled": "Mislabelled", "removal": "Removal", "tail_patch": "TailPatch", "retraining": "Retraining",
}  # fmt: skip


def pages(conf: Path) -> dict[str, str]:
    """Every page by its path under `reference/keys`."""
    made = {"commands.md": _commands(conf), "experiments.md": _experiments(conf)}
    made.update({f"{group}.md": _group(conf / group) for group in GROUPS})
    lines = ["# Configuration keys", "Every key and value, as the configuration files and the classes behind them say. On the"
             " command line a key of a choice is `GROUP.KEY=VALUE`; a misspelt one is one line that names the nearest."]  # fmt: skip
    lines.append("- [The three commands](commands.md): keys of their own")
    lines += [f"- [`{group}`]({group}.md): {WHAT[group].replace('../../', '../../')}" for group in GROUPS]
    lines.append("- [`experiment`](experiments.md): papers' tables and figures, and cases, each with its commands")
    made["index.md"] = "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n"
    return made


def table(text: str, kind: type = object) -> str:
    """The keys of a file, and of its class, as a table; empty where there are none."""
    rows = key_rows(text, kind)
    return "\n".join(["| key | default | |", "|---|---|---|", *rows]) if rows else ""


def _commands(conf: Path) -> str:
    lines = ["# Keys of the three commands"]
    for stage, kind in ROOTS.items():
        text = (conf / f"{stage}.yaml").read_text(encoding="utf-8")
        lines += [f"## {stage}.py", prose.markdown(inspect.getdoc(kind) or ""), table(text)]
    return "\n\n".join(lines) + "\n"


def _group(folder: Path) -> str:
    group = folder.name
    lines = [f"# {group}", WHAT[group]]
    for name, kind in SHARED.get(group, {}).items():
        lines += [f"## Keys of {name}", prose.markdown(inspect.getdoc(kind) or ""), table("", kind)]
    said: dict[str, str] = {}
    for file in sorted(folder.rglob("*.yaml")):
        lines += _choice(file, group, said)
    return "\n\n".join(one for one in lines if one) + "\n"


def _choice(file: Path, group: str, said: dict[str, str]) -> list[str]:
    """One file of a group; a class whose keys stand above is named, and not described again."""
    name = file.stem if file.parent.name == group else f"{file.parent.name}: {file.stem}"
    text, kind = file.read_text(encoding="utf-8"), _kind(file, group)
    lines = [f"## {name}", prose.escaped(" ".join(yaml_keys.header(text).split()))]
    if kind is not object:
        if kind.__name__ in said:
            lines.append(f"Keys as of [{said[kind.__name__]}](#{said[kind.__name__]}).")
        else:
            lines += keys_said(kind) or [prose.markdown(inspect.getdoc(kind) or "")]
            said[kind.__name__] = name
    return [*lines, table(text, kind if yaml_keys.target(text) else object)]


def _kind(file: Path, group: str) -> type:
    target = yaml_keys.target(file.read_text(encoding="utf-8"))
    if target:
        module, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        assert isinstance(found, type)
        return found
    judged = getattr(judging_settings, JUDGED.get(file.stem, ""), None) if group == "metric" else None
    return judged if isinstance(judged, type) else object


def _experiments(conf: Path) -> str:
    lines = [
        "# Experiments",
        "`python attribute.py experiment=NAME`; `scale=paper` takes the paper's size where there are two.",
    ]
    for file in sorted((conf / "experiment").glob("*.yaml")):
        head = yaml_keys.header(file.read_text(encoding="utf-8"))
        said = [line for line in head.split("\n")]
        lines += [f"## {file.stem}", _told(said)]
    return "\n\n".join(lines) + "\n"


def _told(lines: list[str]) -> str:
    """The head of an experiment: indented lines are commands, others are text."""
    written: list[str] = []
    for line in lines:
        command = line.startswith("  ")
        if command and written and written[-1].startswith("```"):
            written[-1] = written[-1].removesuffix("\n```") + f"\n{line.strip()}\n```"
        elif command:
            written.append(f"```bash\n{line.strip()}\n```")
        elif written and not written[-1].startswith("```"):
            written[-1] += " " + prose.escaped(line.strip())
        else:
            written.append(prose.escaped(line.strip()))
    return "\n\n".join(written)
