"""What a Python call gives back: an answer to look at, and to keep in a folder as `attribute.py` does."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
import yaml

from tdaexp import influence
from tdaexp.app.stages import commands
from tdaexp.app.stages.commands import beside, keep, texts_beside
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.answers import top_rows
from tdaexp.report.loggers import RunLogger
from tdaexp.report.texts import Texts
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import write_text
from tdaexp.runtime.reading import read_text

STORE, CONFIG = "influence.zarr", "config.yaml"
SHOWN = 3
"""Queries that a notebook shows."""


@dataclass(frozen=True, repr=False)
class Answer:
    """The influence of training rows on queries, and what is known about both.

    `kept` has the store, seconds by stage and the texts; `config` the run's configuration as plain values.
    """

    kept: commands.Answer
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> xr.Dataset:
        """The labelled influence tensor, as in `influence.zarr` (`tdaexp.influence`)."""
        return self.kept.store

    @property
    def texts(self) -> Texts | None:
        """Texts of queries and training rows by id; None where they are not known."""
        return self.kept.texts

    def top(self, k: int = 5) -> pd.DataFrame:
        """The k most helpful and the k most harmful rows of each query, as `report.answers.top_rows` tells them."""
        return top_rows(self.dataset, self.texts, k)

    def save(self, folder: str | Path) -> Path:
        """Write the folder that `attribute.py` would have left, its page and metrics too; returns its path.

        Errors (UserError): there is something else at that place.
        """
        place = Path(folder)
        if place.exists() and not (place.is_dir() and ((place / STORE).exists() or not any(place.iterdir()))):
            raise UserError(f"{place}: is there already and holds no run; name a new folder")
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / CONFIG, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        settings = MetricSettings(**self.config.get("metric", {}))
        with contextlib.redirect_stdout(io.StringIO()):  # the table of a command
            keep(settings, place, RunLogger(), self.kept)
        return place

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.dataset.sizes.items())
        return f"<tdaexp.Answer of {self.dataset.attrs['label']}: {sizes}; .top(k), .dataset, .save(folder)>"

    def _repr_html_(self) -> str:
        """A table for notebooks: the best rows of the first queries."""
        first = self.dataset.isel(query=slice(SHOWN))
        with pd.option_context("display.max_colwidth", 120):
            table = top_rows(first, self.texts, 5).to_html(index=False)
        more = self.dataset.sizes["query"] - first.sizes["query"]
        rest = f"<p>and {more} more queries: answer.top(5)</p>" if more else ""
        return f"{table}{rest}"


def load(folder: str | Path) -> Answer:
    """Read what `Answer.save` or `attribute.py` left in a folder. Errors (UserError): no store, or a damaged one."""
    place = Path(folder)
    store = place if place.suffix == ".zarr" else place / STORE
    file = store.parent / CONFIG
    config = (yaml.safe_load(read_text(file)) if file.exists() else None) or {}
    texts = texts_beside(store)
    known = texts if any(texts.values()) else None
    return Answer(commands.Answer(influence.load(store), beside(store, "cost.json"), known), config)
