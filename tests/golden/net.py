"""Runs the cases and remembers what they leave: variables of `influence.zarr` and numbers of `metrics.json`."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from cases import CASES, RECORDED, Case
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from matplotlib.figure import Figure
from parsing import parsed_once
from problems import write_problems

from tdaexp import influence
from tdaexp.app import main
from tdaexp.planning import plan

REPOSITORY = Path(__file__).resolve().parents[2]
VALUES = Path(__file__).with_name("values.npz")
DIGITS = 12
LEFT_OVER = re.compile(r"residual|replay_error|/(kl|error|error_std|relative_error|relative_error_max|missing)$")
"""What is nothing but rounding where all is well: compared as if it were of the size of what it is left over from."""
ESTIMATE = re.compile(r"(^|/)entry_error$")
ENTRIES = 0.01
"""The difference of two decompositions over the size of their entries, 1e-5 and more. Where these are float32 its own
rounding is 4e-7 of that size (measured between AVX2 and AVX-512), so that it counts as large as 0.01: with `RECORDED`
it may differ by 2e-6 of the entries' size, whatever it is itself."""
CHANCE = re.compile(r"_(low|high)$|seconds|bytes|cost|^iterations$|^trust/")
"""Intervals, what a run took, and how many steps a solver needs until its residual is small: one more or less."""
Found = dict[str, "Entry"]


class Entry:
    """A variable: its dimensions, and exact values (names, counts, truths) or numbers that are compared by size."""

    def __init__(self, dims: list[str], values: np.ndarray) -> None:
        self.dims, self.values = dims, values

    def difference(self, other: Entry, least: float = 0.0) -> float:
        """Largest difference, relative to the largest number of `other`; infinite where they cannot be compared.

        What is smaller than `least` counts as large as that.
        """
        mine, theirs = self.values, other.values
        if (
            self.dims != other.dims
            or mine.shape != theirs.shape
            or (mine.dtype.kind == "f") != (theirs.dtype.kind == "f")
        ):
            return np.inf
        if mine.dtype.kind != "f":
            return 0.0 if mine.tolist() == theirs.tolist() else np.inf
        there = np.isfinite(theirs)
        if not np.array_equal(np.isfinite(mine), there) or not np.array_equal(mine[~there], theirs[~there], True):
            return np.inf
        scale = np.abs(theirs[there]).max(initial=least)
        return float(np.abs(mine[there] - theirs[there]).max(initial=0.0) / (scale or 1.0))


class Net:
    """The problems' files in a folder, and the runs made there, each once; `cache` is the commands' cache folder."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        folder.mkdir(parents=True, exist_ok=True)
        write_problems(folder)

    def run(self, name: str) -> Path:
        """The folder of a case's run."""
        place = self.folder / "runs" / name
        if not place.exists():
            case = CASES[name]
            arguments = [self._filled(argument) for argument in case.arguments]
            own = [f"cache_dir={self.cache}", f"hydra.run.dir={place}"]
            own += ["trust=false"] if case.stage == "attribute" else []
            with contextlib.chdir(self.folder), quick():
                code = main(case.stage, REPOSITORY / "conf", [f"{case.stage}.py", *arguments, *own])
            if code:
                raise RuntimeError(f"{name}: python {case.stage}.py {' '.join(arguments)} ended with {code}")
        return place

    def found(self, name: str) -> Found:
        """What a case leaves."""
        place = self.run(name)
        metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in sorted(metrics.items()) if not CHANCE.search(key)}
        entries = {f"metric {key}": Entry([], np.asarray(float(value))) for key, value in kept.items()}
        if (place / "influence.zarr").exists():
            store = influence.load(place / "influence.zarr")
            entries |= {str(key): _entry(store[key]) for key in store.variables if not CHANCE.search(str(key))}
        return entries

    def _filled(self, argument: str) -> str:
        def put(match: re.Match[str]) -> str:
            kind, name = match.groups()
            return str(self.run(name) if kind == "run" else _trained(self.run(name)))

        return re.sub(r"\{(run|model):([^}]*)\}", put, argument)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Leave out what takes most of a tiny run's time and no number comes from: drawing, costs, reading conf/ again."""

    def blank(self: Figure, file: Any, **_: Any) -> None:
        file.write(b'<svg xmlns="http://www.w3.org/2000/svg"/>')

    with (
        mock.patch.object(Hydra, "get_mode", lambda *_, **__: RunMode.RUN),
        parsed_once(),
        mock.patch.object(Figure, "savefig", blank),
        mock.patch.object(plan, "plan_of", lambda *_: SimpleNamespace(line=lambda: "plan: none", problems=[])),
    ):
        yield


def _trained(run: Path) -> str:
    """The folder that a training says it wrote."""
    (found,) = re.findall(r"checkpoint: (.*)", (run / "run.log").read_text(encoding="utf-8"))
    return str(found)


def _entry(variable: Any) -> Entry:
    values = variable.values
    values = values.astype(np.float64) if values.dtype.kind == "f" else values.astype(object)
    return Entry([str(dim) for dim in variable.dims], values)


def save(found: dict[str, Found], path: Path = VALUES) -> None:
    """Numbers go into one array, all else into JSON that says where they are; what is equal is kept once."""
    numbers: list[np.ndarray] = []
    places: dict[bytes, int] = {}
    known: dict[str, int] = {}
    exact: list[Any] = []
    index: dict[str, dict[str, Any]] = {}
    end = 0
    for case, entries in found.items():
        for name, entry in entries.items():
            if entry.values.dtype.kind == "f":
                flat = rounded(entry.values).ravel()
                if flat.tobytes() not in places:
                    places[flat.tobytes()] = end
                    numbers.append(flat)
                    end += flat.size
                said = [entry.dims, list(entry.values.shape), places[flat.tobytes()]]
            else:
                text = json.dumps(entry.values.tolist())
                if text not in known:
                    known[text] = len(exact)
                    exact.append(entry.values.tolist())
                said = [entry.dims, list(entry.values.shape), None, known[text]]
            index.setdefault(case, {})[name] = said
    text = json.dumps({"index": index, "exact": exact}, separators=(",", ":"))
    np.savez_compressed(path, numbers=np.concatenate(numbers), rest=np.frombuffer(text.encode(), dtype=np.uint8))


def load(path: Path = VALUES) -> dict[str, Found]:
    """What was kept, by case and variable."""
    with np.load(path) as stored:
        numbers, rest = stored["numbers"], json.loads(stored["rest"].tobytes())
    found: dict[str, Found] = {}
    for case, entries in rest["index"].items():
        found[case] = {}
        for name, (dims, shape, start, *other) in entries.items():
            size = int(np.prod(shape, dtype=int))
            if start is not None:
                values = numbers[start : start + size].reshape(shape)
            else:
                values = np.empty(shape, dtype=object)
                values[...] = np.array(rest["exact"][other[0]], dtype=object).reshape(shape)
            found[case][name] = Entry(dims, values)
    return found


def rounded(values: np.ndarray) -> np.ndarray:
    """Cut to so many significant digits."""
    return np.array([float(f"{value:.{DIGITS - 1}e}") for value in values.ravel()]).reshape(values.shape)


def differences(case: Case, found: Found, kept: Found) -> list[str]:
    """One line for each variable that is missing, new or different."""
    lines = [f"{name}: is missing" for name in kept if name not in found]
    lines += [f"{name}: is new" for name in found if name not in kept]
    for name, size in sizes(found, kept, case.tolerance).items():
        if not size <= case.tolerance:
            lines.append(f"{name}: differs by {size:.3g} of its largest value, more than {case.tolerance:g}")
    return sorted(lines)


def sizes(found: Found, kept: Found, tolerance: float) -> dict[str, float]:
    """How much each variable differs that is in both, of a case with this tolerance."""
    whole = float(np.abs(kept["change"].values).max()) if "change" in kept else 1.0

    def least(name: str) -> float:
        if ESTIMATE.search(name) and tolerance == RECORDED:
            return ENTRIES
        return whole if LEFT_OVER.search(name) else 0.0

    return {name: found[name].difference(kept[name], least(name)) for name in kept if name in found}
