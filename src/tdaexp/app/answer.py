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
from tdaexp.app.stages import answering
from tdaexp.app.stages.answering import beside, checks_beside, keep, texts_beside
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.answers import top_rows
from tdaexp.report.itself import suspects
from tdaexp.report.loggers import RunLogger
from tdaexp.report.texts import Texts
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import SELF_INFLUENCE, write_text
from tdaexp.runtime.reading import read_settings
from tdaexp.trust.check import table

STORE, CONFIG = "influence.zarr", "config.yaml"
SHOWN = 3
"""Queries that a notebook shows."""
LETTERS = 120
"""Of a text in a notebook's table."""


@dataclass(frozen=True, repr=False)
class Saved:
    """What a call gave: `kept` has the stores, seconds by stage and the texts; `config` the configuration's values."""

    kept: answering.Answer
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> Texts | None:
        """Texts of queries and training rows by id; None where they are not known."""
        return self.kept.texts

    def save(self, folder: str | Path) -> Path:
        """Write the folder that `attribute.py` would have left, its page and metrics too; returns its path.

        Errors (UserError): there is something else at that place.
        """
        place = Path(folder)
        ours = any((place / name).exists() for name in (STORE, SELF_INFLUENCE))
        if place.exists() and not (place.is_dir() and (ours or not any(place.iterdir()))):
            raise UserError(f"{place}: is there already and holds no run; name a new folder")
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / CONFIG, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        settings = MetricSettings(**self.config.get("metric", {}))
        with contextlib.redirect_stdout(io.StringIO()):  # the table of a command
            keep(settings, place, RunLogger(), self.kept)
        return place


class Answer(Saved):
    """The influence of training rows on queries."""

    @property
    def dataset(self) -> xr.Dataset:
        """The labelled influence tensor, as in `influence.zarr` (`tdaexp.influence`)."""
        assert self.kept.store is not None
        return self.kept.store

    @property
    def trust(self) -> pd.DataFrame:
        """The checks of the answer (`trust.check.COLUMNS`); where the value is NaN `says` has why it is not known."""
        return table(self.kept.trust)

    def top(self, k: int = 5) -> pd.DataFrame:
        """The k most helpful and the k most harmful rows of each query, as `report.answers.top_rows` tells them."""
        return top_rows(self.dataset, self.texts, k)

    def __repr__(self) -> str:
        return _told(self, self.dataset)

    def _repr_html_(self) -> str:
        """A table for notebooks: the best rows of the first queries."""
        first = self.dataset.isel(query=slice(SHOWN))
        more = self.dataset.sizes["query"] - first.sizes["query"]
        rest = f"<p>and {more} more {'query' if more == 1 else 'queries'}: .top(5)</p>" if more else ""
        return f"{_table(top_rows(first, self.texts, 5))}{rest}"


class SelfInfluence(Saved):
    """What training rows do for themselves."""

    @property
    def dataset(self) -> xr.Dataset:
        """`self_influence` [train, component], as in `self_influence.zarr`."""
        assert self.kept.itself is not None
        return self.kept.itself

    def top(self, k: int = 20) -> pd.DataFrame:
        """The k rows that support themselves most, as `report.itself.suspects` tells them."""
        return suspects(self.dataset, self.texts).head(k)

    def __repr__(self) -> str:
        return _told(self, self.dataset)

    def _repr_html_(self) -> str:
        """A table for notebooks: the first rows."""
        return _table(self.top())


def _told(answer: Saved, dataset: xr.Dataset) -> str:
    sizes = ", ".join(f"{name} {size}" for name, size in dataset.sizes.items())
    return f"<tdaexp.{type(answer).__name__} of {dataset.attrs['label']}: {sizes}; .top(k), .dataset, .save(folder)>"


def _table(rows: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", LETTERS):
        return str(rows.to_html(index=False))


def load(folder: str | Path) -> Answer | SelfInfluence:
    """Read what `save` or `attribute.py` left in a folder: the answer, or where nothing was asked self-influence alone.

    Errors (UserError): no store, or a damaged one.
    """
    place = Path(folder)
    store = place if place.suffix == ".zarr" else place / STORE
    own, file = store.parent / SELF_INFLUENCE, store.parent / CONFIG
    config = read_settings(file) if file.exists() else {}
    texts = texts_beside(store)
    itself = influence.load(own) if own.exists() else None
    found = influence.load(store) if store.exists() or itself is None else None
    known = texts if any(texts.values()) else None
    kept = answering.Answer(found, beside(store, "cost.json"), known, itself=itself, trust=checks_beside(store))
    return SelfInfluence(kept, config) if found is None else Answer(kept, config)
