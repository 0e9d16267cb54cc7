"""`python evaluate.py`: runs, and scores of other programs, in one report."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.app.config import EvaluateConfig
from tdaexp.app.stages.answering import beside, checks_beside, texts_beside
from tdaexp.app.stages.dashboard import runs_in_wandb, show_comparison
from tdaexp.app.stages.retraining import judged_by_retraining
from tdaexp.building.pairs import pairs_of, pairs_of_products
from tdaexp.metrics.averaging import mean_retrained
from tdaexp.metrics.comparable import same_pairs
from tdaexp.metrics.external import read_scores
from tdaexp.metrics.grouping import groups_of
from tdaexp.metrics.labels import distinct_labels
from tdaexp.metrics.stores import by_query_set, same_study
from tdaexp.report.findings import write_findings
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.report.retrained import frame, retrained_findings
from tdaexp.report.tables import partial
from tdaexp.report.texts import Texts
from tdaexp.runtime import ranks
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import doing

log = logging.getLogger(__name__)


def compared(config: EvaluateConfig, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Judge the stores that were found and the files of `scores` in one report; returns the metrics."""
    mirrored = runs_in_wandb(config) if config.dashboard == "workspace" else []
    missing = config.found.missing
    if missing:
        log.warning("%s; the page says of which", partial(missing))
    every = {store: influence.load(store) for store in config.found.stores}
    pairs = [store for store, dataset in every.items() if "candidate" in dataset.dims]
    found, texts = [every[store] for store in pairs], _told(pairs, every)
    if config.scores:
        found += _scored(config, found, texts)
    if config.dashboard is not None and not found:
        raise UserError(f"dashboard={config.dashboard}: is of runs that score pairs, and these decompose trainings")
    decomposed = [dataset for store, dataset in every.items() if store not in pairs]
    labels = distinct_labels([*found, *decomposed])
    labelled = dict(zip(labels, [*found, *decomposed], strict=True))
    folders = {label: store.parent for label, store in zip(labels, pairs, strict=False)}
    again = _judged_again(config, labelled, folders)
    if not ranks.current().first:
        return {}
    _tell_left_out(every, pairs, bool(found) or again is not None, again is not None)
    if not found and again is not None:
        return write_findings(folder, retrained_findings(again), labelled, logger)
    datasets = {label: labelled[label] for label in labels[: len(found)]}
    trust = {label: checks_beside(store) for label, store in zip(labels, pairs, strict=False)}
    metrics = write_report(
        folder,
        datasets,
        texts,
        config.metric,
        logger,
        judged_again=again,
        trust=trust,
        over=config.over,
        missing=missing,
    )
    if config.dashboard is not None:
        show_comparison(config, folder, logger, mirrored, metrics, datasets)
    return metrics


def _told(stores: list[Path], every: dict[Path, xr.Dataset]) -> Texts:
    """The texts of the runs of these stores; what each run cost becomes an attribute of its store."""
    texts: Texts = {"query": {}, "train": {}}
    for store in stores:
        every[store].attrs["cost"] = beside(store, "cost.json")
        if same_study(every[store], every[stores[0]]):  # other models write other texts under the same ids
            _add(texts, texts_beside(store))
    return texts


def _judged_again(
    config: EvaluateConfig, labelled: dict[str, xr.Dataset], folders: dict[str, Path]
) -> pd.DataFrame | None:
    """What models that are trained again say of the stores, model by model where runs are means; None: nobody asked."""
    if not config.over:
        judged = judged_by_retraining(config, labelled, folders=folders)
        return frame(judged) if judged else None
    studies: dict[str | None, dict[str, xr.Dataset]] = {}
    for label, store in labelled.items():
        studies.setdefault(store.attrs.get("study"), {})[label] = store
    single = [one for stores in studies.values() for one in judged_by_retraining(config, stores, folders=folders)]
    groups = groups_of(labelled, config.over) if single else {}
    return mean_retrained(frame(single), groups, config.metric.confidence) if single else None


def _scored(config: EvaluateConfig, found: list[xr.Dataset], texts: Texts) -> list[xr.Dataset]:
    """The files of `scores`, on the pairs of the first of the named runs, or on those of the configuration."""
    pairs = found[0] if config.runs and found else _pairs(config, found, texts)
    stems = [Path(file).stem for file in config.scores]
    return [
        read_scores(Path(file), pairs, label=stem if stems.count(stem) == 1 else file)
        for file, stem in zip(config.scores, stems, strict=True)
    ]


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


def _tell_left_out(every: dict[Path, xr.Dataset], pairs: list[Path], ranked: bool, judged: bool) -> None:
    """Say of a decomposition of a training that its own run judges it. Errors (UserError): there is nothing else."""
    if not ranked:
        raise UserError(
            f"runs: {next(iter(every))} decomposes a training and scores no pairs, so there is nothing to rank; its "
            "run's metrics.json says how complete it is; add runs of ekfac, dot or random, or judge it by retraining "
            "(metric=lds)"
        )
    for store in set(every) - set(pairs):
        if not judged:
            log.warning("%s: left out, it decomposes a training and scores no pairs", store)
