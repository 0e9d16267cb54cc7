"""Finished runs of analysis=grokking, as they lie on disk."""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tdaexp.metrics.labels import differing, flat_config
from tdaexp.runtime.errors import UserError

MADE = "python evaluate.py analysis=grokking"


@dataclass(frozen=True)
class Study:
    """One run: its `setting` (`MODEL BETA1 BETA2`) and seed, what it was `trained` with beside seeds (keys of model,
    data and fit, flat), the keys of its analysis, its metrics, and its curves.

    `accuracy` has the columns step, train, test; `importance` step, kernel, regularisation; None where it made none.
    """

    setting: str
    seed: int
    trained: dict[str, Any]
    analysis: dict[str, Any]
    numbers: dict[str, float]
    accuracy: pd.DataFrame | None
    importance: pd.DataFrame | None


def studies_in(places: Sequence[str]) -> list[Study]:
    """The runs in folders or globs, by setting and seed. Errors (UserError): none there; one seed twice;
    runs of one setting that were trained in other ways.
    """
    folders = sorted(
        {Path(one) for place in places for one in glob.glob(place) if (Path(one) / "metrics.json").exists()}
    )
    if not folders:
        named = ", ".join(places) or "nothing"
        raise UserError(f"analysis.studies: {named} has no finished run; make some with {MADE}, one for each seed")
    found = sorted((_study(folder) for folder in folders), key=lambda one: (one.setting, one.seed))
    for one, other in itertools.pairwise(found):
        if one.setting != other.setting:
            continue
        if one.seed == other.seed:
            raise UserError(
                f"analysis.studies: model.seed={one.seed} of '{one.setting}' is there twice; name one of them"
            )
        if keys := differing([one.trained, other.trained]):
            raise UserError(
                f"analysis.studies: runs of '{one.setting}' differ in more than seeds, {', '.join(keys)}; give those "
                "that belong together, or a setting of its own another model.name"
            )
    return found


def _study(folder: Path) -> Study:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        model, betas = config["model"], config["trainer"]["fit"]["betas"]
        analysis = config["analysis"]
        setting = " ".join([model["name"], *(f"{beta:g}" for beta in betas)])
        seed, _ = int(model["seed"]), analysis["grafts"]
        asked = flat_config({"model": model, "dataset": config.get("dataset", {}), "fit": config["trainer"]["fit"]})
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"analysis.studies: {folder} is no run of analysis=grokking ({error!r})") from error
    known = {name: float("nan") if value is None else float(value) for name, value in numbers.items()}
    trained = {key: value for key, value in asked.items() if key.rpartition(".")[2] != "seed"}
    return Study(setting, seed, trained, analysis, known, _table(folder, "accuracy"), _table(folder, "importance"))


def _table(folder: Path, name: str) -> pd.DataFrame | None:
    file = folder / f"{name}.csv"
    return pd.read_csv(file) if file.exists() else None
