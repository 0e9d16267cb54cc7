"""`python evaluate.py`: runs, and scores of other programs, in one report."""

from __future__ import annotations

import logging
from pathlib import Path

import xarray as xr

from tdaexp import influence
from tdaexp.app.config import EvaluateConfig
from tdaexp.app.stages.answering import beside, texts_beside
from tdaexp.building.pairs import pairs_of, pairs_of_products
from tdaexp.metrics.comparable import same_pairs
from tdaexp.metrics.external import read_scores
from tdaexp.metrics.labels import distinct_labels
from tdaexp.metrics.stores import by_query_set, same_study
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.report.tables import partial
from tdaexp.report.texts import Texts
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import doing

log = logging.getLogger(__name__)


def compared(config: EvaluateConfig, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Judge the stores that were found and the files of `scores` in one table; returns the metrics."""
    if config.found.missing:
        log.warning("%s; the page says of which", partial(config.found.missing))
    stores, found = _pair_stores(config.found.stores, alone=bool(config.runs) or not config.scores)
    texts: Texts = {"query": {}, "train": {}}
    for store, dataset in zip(stores, found, strict=True):
        dataset.attrs["cost"] = beside(store, "cost.json")
        if same_study(dataset, found[0]):  # other models write other texts under the same ids
            _add(texts, texts_beside(store))
    if config.scores:
        pairs = found[0] if config.runs else _pairs(config, found, texts)
        stems = [Path(file).stem for file in config.scores]
        found += [
            read_scores(Path(file), pairs, label=stem if stems.count(stem) == 1 else file)
            for file, stem in zip(config.scores, stems, strict=True)
        ]
    datasets = dict(zip(distinct_labels(found), found, strict=True))
    return write_report(folder, datasets, texts, config.metric, logger, over=config.over, missing=config.found.missing)


def _pairs(config: EvaluateConfig, found: list[xr.Dataset], texts: Texts) -> xr.Dataset:
    """The pairs of the configuration, of the study of a run of the same subject that has the same ones.

    Of several runs, of one with the configured seed; of no study where there is none. `texts` get theirs where no run
    has brought any.
    """
    doing("reading the data")
    if config.products is not None:
        return pairs_of_products(Path(config.products), config.query_set)
    config.dataset.check_source()
    pairs, own = pairs_of(config)
    if pairs.attrs["study"] is None:
        of_seed = sorted(found, key=lambda one: (one.attrs.get("config") or {}).get("seed") != config.seed)
        pairs.attrs["study"] = next((one.attrs.get("study") for one in of_seed if _equal(one, pairs)), None)
    if not found:
        _add(texts, own)
    return pairs


def _add(texts: Texts, more: Texts) -> None:
    for role, known in more.items():
        texts[role] = texts.get(role, {}) | known


def _equal(store: xr.Dataset, pairs: xr.Dataset) -> bool:
    """Whether a store has the same queries, candidates and truth."""
    mine, theirs = by_query_set(store), by_query_set(pairs)
    return list(mine) == list(theirs) and all(
        same_pairs(mine[name], theirs[name]) and same_pairs(theirs[name], mine[name]) for name in mine
    )


def _pair_stores(stores: list[Path], alone: bool) -> tuple[list[Path], list[xr.Dataset]]:
    """The stores that score pairs; a decomposition of a training is judged by its own run, and left out here.

    Errors (UserError): there is no other, and nothing else to compare (`alone`).
    """
    found = [(store, influence.load(store)) for store in stores]
    pairs = [(store, dataset) for store, dataset in found if "candidate" in dataset.dims]
    if alone and not pairs:
        raise UserError(
            f"runs: {stores[0]} decomposes a training and scores no pairs, so there is nothing to rank; its run's "
            "metrics.json says how complete it is; add runs of ekfac, dot or random"
        )
    for store in set(stores) - {store for store, _ in pairs}:
        log.warning("%s: left out, it decomposes a training and scores no pairs", store)
    return [store for store, _ in pairs], [dataset for _, dataset in pairs]
