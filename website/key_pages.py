"""The reference of all configuration keys: pages of the three commands, of each group and of the experiments."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import prose
import yaml_keys
from method_pages import key_table, keys_said
from tdaexp.app.config import ROOTS, Logger, Trainer
from tdaexp.metrics import judging_settings
from tdaexp.metrics.settings import MetricSettings
from tdaexp.training.settings import FitSettings

INTRODUCTION = """Every key and value, as the configuration files and the classes behind them say. On the command line a
key of a choice is `GROUP.KEY=VALUE`; a misspelt one is one line that names the nearest."""
WHAT = {
    "method": "How an answer is attributed; [a page for each](../../methods/index.md) says more.",
    "model": "What is explained: [bring a model](../../models.md), [classifiers](../../classifiers.md).",
    "dataset": "What it was trained on, and what it is asked: [your own data](../../data.md).",
    "candidates": "Which training rows a question is scored with.",
    "decoding": "How the model completes a prompt, for queries that it writes itself.",
    "metric": "How scores are judged: [by retrieval, by retraining](../../judging.md).",
    "trainer": "Where and how passes are run, and how a model is trained: [several processes](../../distributed.md).",
    "recipe": "How the model of that name is trained where nothing else is said: keys of `trainer`.",
    "logger": "Where a run is mirrored: [wandb](../../wandb.md).",
    "analysis": "Studies beyond the table of methods: `python evaluate.py analysis=NAME`.",
}
TYPED = {
    "trainer": {"trainer": Trainer, "trainer.fit and trainer.finetune": FitSettings},
    "logger": {"logger": Logger},
    "metric": {"metric": MetricSettings, "metric.retraining": judging_settings.Retraining},
}
"""Groups whose keys are typed by classes of the program, not by one that the file names."""


def pages(conf: Path) -> dict[str, str]:
    """Every page by its path under `reference/keys`."""
    listed = [
        "- [The three commands](commands.md): keys of their own",
        *(f"- [`{group}`]({group}.md): {what}" for group, what in WHAT.items()),
        "- [`experiment`](experiments.md): papers' tables and figures, and cases, each with its commands",
    ]
    return {
        "index.md": f"# Configuration keys\n\n{INTRODUCTION}\n\n" + "\n".join(listed) + "\n",
        "commands.md": _commands(conf),
        "experiments.md": _experiments(conf),
        **{f"{group}.md": _group(conf / group) for group in WHAT},
    }


def _commands(conf: Path) -> str:
    lines = ["# The three commands"]
    for stage, kind in ROOTS.items():
        text = (conf / f"{stage}.yaml").read_text(encoding="utf-8")
        lines += [f"## {stage}.py", key_table(text), prose.markdown(inspect.getdoc(kind) or "")]
    return "\n\n".join(lines) + "\n"


def _group(folder: Path) -> str:
    lines, said = [f"# {folder.name}", WHAT[folder.name]], dict[str, str]()
    for name, kind in TYPED.get(folder.name, {}).items():
        lines += [f"## Keys of {name}", key_table("", kind), prose.markdown(inspect.getdoc(kind) or "")]
    for file in sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file)):
        lines += _choice(file, folder.name, said)
    return "\n\n".join(one for one in lines if one) + "\n"


def _choice(file: Path, group: str, said: dict[str, str]) -> list[str]:
    """One file of a group; a class whose keys were described above is not described again."""
    name = file.stem if file.parent.name == group else f"{file.parent.name}={file.stem}"
    text = file.read_text(encoding="utf-8")
    lines = [f"## {name}", prose.escaped(" ".join(yaml_keys.header(text).split()))]
    target = yaml_keys.target(text)
    kind = _class(target) if target else _judged(file.stem) if group == "metric" else object
    lines.append(key_table(text, kind if target else object))
    if kind is not object and kind.__name__ in said:
        return [*lines, f"What they mean: [{said[kind.__name__]}](#{said[kind.__name__]})."]
    said[kind.__name__] = name
    return [*lines, *(keys_said(kind) or [prose.markdown(inspect.getdoc(kind) or "")] if kind is not object else [])]


def _class(target: str) -> type:
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    return found


def _judged(name: str) -> type:
    """The settings of a metric, which are called as its file is."""
    found = getattr(judging_settings, "".join(word.capitalize() for word in name.split("_")), object)
    assert isinstance(found, type)
    return found


def _experiments(conf: Path) -> str:
    scales = "`scale=paper` takes the paper's size where there are two."
    lines = ["# Experiments", f"`python attribute.py experiment=NAME`; {scales}"]
    for file in sorted((conf / "experiment").glob("*.yaml")):
        lines += [f"## {file.stem}", _told(yaml_keys.header(file.read_text(encoding="utf-8")).split("\n"))]
    return "\n\n".join(lines) + "\n"


def _told(lines: list[str]) -> str:
    """The head of an experiment: indented lines are commands, others are text."""
    written: list[tuple[bool, list[str]]] = []
    for line in lines:
        command = line.startswith("  ")
        if not written or written[-1][0] != command:
            written.append((command, []))
        written[-1][1].append(line.strip())
    shown = (
        "```bash\n" + "\n".join(said) + "\n```" if code else prose.escaped(" ".join(said)) for code, said in written
    )
    return "\n\n".join(shown)
