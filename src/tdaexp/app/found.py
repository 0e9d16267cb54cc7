"""What `evaluate.py` looks at: the stores that `runs` names or that are of its subject, and jobs without a result."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tdaexp import influence
from tdaexp.app.sweep import PLANNED, STORE, Planned, Row, read_row, rows
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
ROOTS = ("outputs", "multirun")
NAMED = 5  # subjects in an error
LONGEST = 120  # letters of a job's error


@dataclass(frozen=True)
class Found:
    """Stores, in order and without repetition, and in words each job of the same sweeps that has no result (yet)."""

    stores: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def find_stores(
    patterns: Sequence[str], subject: str, choices: dict[str, str] | None = None, *, studies: bool = False
) -> Found:
    """The influence stores that `runs` names; those of runs that are not done are left out, and told.

    Args:
        patterns: folders or globs of runs, sweeps or stores; empty = finished attribute runs of `subject`.
        subject: fingerprint of the configured model and data set.
        choices: what these are called (`model`, `dataset`), for an error that names the nearest others.
        studies: whether `subject` stands for all its models (of several seeds), or for that of the newest run.

    Raises:
        UserError: a pattern that leads to no store, or no finished run at all.
    """
    if not patterns:
        return _of_subject(subject, choices or {}, studies)
    stores: list[Path] = []
    known: list[Row] = []
    planned: list[Planned] = []
    for pattern in patterns:
        folders = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        found = [store for folder in folders for store in _stores(folder)]
        mine = [row for folder in folders if folder.suffix != ".zarr" for row in rows(folder)]
        jobs = [one for folder in folders for one in _planned(folder)]
        if not found and (unfinished := _unfinished(mine, jobs)):
            raise UserError(f"runs: '{pattern}' has no finished run yet: {'; '.join(unfinished[:NAMED])}")
        if not found:
            raise UserError(f"runs: '{pattern}' leads to no {STORE}; name folders of runs, sweeps or stores")
        stores, known, planned = stores + found, known + mine, planned + jobs
    return Found(list(dict.fromkeys(stores)), _unfinished(known, planned))


def _stores(folder: Path) -> list[Path]:
    """Stores in or below a folder, but for those of runs that are not done."""
    if folder.suffix == ".zarr":
        return [folder]
    found = sorted(folder.rglob(STORE))
    return [store for store in found if (row := read_row(store.parent)) is None or row.status == "done"]


def _planned(folder: Path) -> list[Planned]:
    """The jobs of all sweeps in or below a folder."""
    found = []
    for file in sorted(folder.rglob(PLANNED)):
        try:
            found += [Planned(**one) for one in json.loads(file.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            log.warning("%s: cannot be read, so jobs of its sweep that have not started are not told", file)
    return found


def _unfinished(known: Iterable[Row], planned: Iterable[Planned]) -> list[str]:
    """In words, the attribute jobs that have no result; a job that was run again elsewhere and ended has one."""
    begun = {row.fingerprint: row for row in known if row.stage == "attribute"}
    done = {row.fingerprint for row in known if row.status == "done"}
    asked = {key: row.overrides.split(" ") for key, row in begun.items()}
    asked |= {one.fingerprint: one.overrides for one in planned if one.stage == "attribute"}
    common = set.intersection(*map(set, asked.values())) if len(asked) > 1 else set()
    told = []
    for key, overrides in asked.items():
        if key not in done:
            own = " ".join(text for text in overrides if text not in common) or "with the defaults"
            told.append(f"{own}: {_state(begun.get(key))}")
    return told


def _state(row: Row | None) -> str:
    if row is None:
        return "not started"
    error = row.error if len(row.error) <= LONGEST else f"{row.error[: LONGEST - 1]}…"  # sweep.csv has all of it
    return f"{row.status} ({error})" if error else row.status


def _of_subject(subject: str, choices: dict[str, str], every_study: bool) -> Found:
    """The newest store of every finished attribute run of the subject; of its sweeps the jobs without one.

    Runs with other seeds or training settings have other models: the study of the newest run is taken, or all of them.
    """
    newest: dict[str, Path] = {}
    every = [row for root in ROOTS for row in rows(Path(root)) if row.stage == "attribute"]
    mine = [row for row in every if row.subject == subject]
    for row in mine:
        store = Path(row.folder) / STORE
        if row.status == "done" and store.exists():
            known = newest.get(row.fingerprint)
            if known is None or known.stat().st_mtime < store.stat().st_mtime:
                newest[row.fingerprint] = store
    planned = [one for root in ROOTS for one in _planned(Path(root)) if one.subject == subject]
    missing = _unfinished([row for row in mine if row.job is not None or row.status == "done"], planned)
    if not newest:
        raise UserError(
            "runs: no finished run of this model and dataset under outputs/ or multirun/"
            + (f" yet: {'; '.join(missing[:NAMED])}" if missing else f"; run attribute.py{_nearest(every, choices)}")
        )
    stores = sorted(newest.values(), key=lambda store: store.stat().st_mtime)
    studies = {store: influence.attributes(store).get("study") for store in stores}
    others = [store for store in stores if studies[store] != studies[stores[-1]]]
    if every_study:
        return Found(sorted(stores), missing)
    if others:
        log.warning(
            "left out %d runs of another model or other queries (name them in runs=[…], or average them: over=seed)",
            len(others),
        )
    return Found(sorted(set(stores) - set(others)), missing)


def _nearest(every: Iterable[Row], choices: dict[str, str]) -> str:
    """In words, which finished runs there are, those of the same model and data set (with other keys) first."""
    subjects: dict[tuple[str, str], set[str]] = {}
    for row in every:
        if row.status == "done" and (Path(row.folder) / STORE).exists():
            key = (row.choices.get("model", ""), row.choices.get("dataset", ""))
            subjects.setdefault(key, set()).add(row.choices.get("method", row.name))
    if not subjects:
        return ""
    wanted = (choices.get("model"), choices.get("dataset"))

    def far(one: tuple[str, str]) -> tuple[int, str]:
        return -sum(name == other for name, other in zip(one, wanted, strict=True)), " ".join(one)

    told = []
    for one in sorted(subjects, key=far)[:NAMED]:
        keys = " (with other keys)" if one == wanted else ""
        about = f"model={one[0]} dataset={one[1]}{keys}" if any(one) else "products=FILE"
        told.append(f"{about}: {', '.join(sorted(subjects[one]))}")
    more = f" and {len(subjects) - NAMED} more" if len(subjects) > NAMED else ""
    return f", or name finished runs, by runs=[FOLDER,…] or the options that they had: {'; '.join(told)}{more}"
