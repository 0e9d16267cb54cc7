"""Tables that other programs keep in columns: parquet and arrow files, folders that `datasets` saved, hub data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.quiet import quiet
from tdaexp.runtime.reading import reason

TABLES = (".parquet", ".arrow")
FOLDER_OF_TABLES = "a folder that `datasets` saved (save_to_disk)"
PARTS, WHOLE = "dataset_dict.json", "state.json"
"""What a saved folder has: one of several splits, and one of one."""
AT_ONCE = 1024
"""Rows that are made of columns at a time."""
INSTALL = "pip install 'tdaexp[hub]'"


def is_saved(path: Path) -> bool:
    """Whether a folder is what `datasets` saves."""
    return any((path / name).is_file() for name in (PARTS, WHOLE))


def table_values(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a parquet or arrow file, or of a saved folder (its `split`, where it has several).

    Raises:
        UserError: what reads them is not installed, or the file is damaged.
    """
    if path.is_dir():
        return iter(saved_values(path, split))
    return _file_values(path)


def _file_values(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{path}: needs the package 'pyarrow'; {INSTALL}") from error
    try:
        if path.suffix == ".parquet":
            for batch in pq.ParquetFile(path).iter_batches(AT_ONCE):
                yield from batch.to_pylist()
            return
        with pa.memory_map(str(path)) as source:
            for batch in batches_of(opened_arrow(source)):
                for start in range(0, len(batch), AT_ONCE):
                    yield from batch.slice(start, AT_ONCE).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: is no {path.suffix[1:]} file, or damaged ({reason(error)}); write it again"
        ) from error


def opened_arrow(source: Any) -> Any:
    """The reader of an open arrow file, of the stream's or the file's format."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source)


def batches_of(reader: Any) -> Iterator[Any]:
    """The batches of an arrow file's reader, one at a time."""
    if hasattr(reader, "num_record_batches"):  # of the file's format
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def saved_values(path: Path, split: str) -> Iterable[dict[str, Any]]:
    """Rows of a folder that `datasets` saved.

    Raises:
        UserError: `datasets` is not installed, the folder is damaged, or it has several splits and not this one.
    """
    datasets = _datasets(str(path))
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{path}: is damaged as {FOLDER_OF_TABLES} ({first_line(error)}); save it again") from error
    if not isinstance(found, dict):
        rows: Iterable[dict[str, Any]] = found
        return rows
    if split not in found:
        raise unknown("split", split, found, f"dataset.split of {path}")
    part: Iterable[dict[str, Any]] = found[split]
    return part


def hub_values(name: str, config: str | None, split: str, revision: str | None = None) -> Iterable[dict[str, Any]]:
    """Rows of one split of a hub data set, downloaded or from the hub's cache; `revision` is a branch, tag or commit.

    Raises:
        UserError: `datasets` is not installed, or the data set cannot be reached or does not exist.
    """
    datasets = _datasets(f"dataset.hub={name}")
    options = {} if revision is None else {"revision": revision}
    try:
        with quiet("huggingface_hub", "datasets"):  # they announce each of their retries
            rows: Iterable[dict[str, Any]] = datasets.load_dataset(name, config, split=split, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"dataset.hub={name}: cannot load split '{split}' ({first_line(error)}); check name, network and "
            "`hf auth login`, or give a local file with dataset.path"
        ) from error
    return rows


def _datasets(where: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{where}: needs the package 'datasets'; {INSTALL}") from error
    return datasets


def first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
