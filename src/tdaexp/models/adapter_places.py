"""Where an adapter and its base are read from: one beside the other, or one that names the other.

An adapter is a folder or a hub repository as peft writes them: `adapter_config.json`, which names the base, and
`adapter_model.safetensors`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdaexp.models.lora import NEW
from tdaexp.models.source import (
    ADAPTER,
    TRAINED,
    WEIGHTS,
    Source,
    check_seal,
    check_tensors,
    first_line,
    hub_file,
    locate,
    mend,
)
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import file_fingerprint, fingerprint

WORDS = "tokenizer_config.json"
TENSORS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Places:
    """Where the weights of a model are read from, those of its adapter (None: it has none), and its tokenizer."""

    weights: Source
    adapter: Source | None
    words: Source


def places(pretrained: str, revision: str | None, tokenizer: str | None, adapter: str | None) -> Places:
    """Where a model is read from, by its config's keys; an adapter that is yet to be trained is nowhere.

    `revision` is that of what `pretrained` names. Errors (UserError): two adapters, a base that is missing or another
    model than the adapter says.
    """
    named = None if adapter in (None, NEW) else adapter
    weights, own = _located(pretrained, revision)
    if own is not None and adapter is not None:
        base = stated_base(note_of(own), Path(pretrained).expanduser()) or "BASE"
        raise UserError(
            f"model.adapter={adapter}: model.pretrained={pretrained} holds an adapter itself ({ADAPTER}); name its "
            f"base, model.pretrained={base}, or leave model.adapter out"
        )
    if named is not None:
        own = locate(named, None, "model.adapter", ADAPTER)
        if own.folder:
            check_adapter(own.folder)
    if weights is None:
        assert own is not None  # one of the two was found
        weights = _base_of(own, pretrained)
    elif own is not None:
        _check_base(own, weights)
    if own is not None:
        _check_trained_on(own, weights)
    return Places(weights, own, _words(tokenizer, own, weights))


def _located(name: str, revision: str | None) -> tuple[Source | None, Source | None]:
    """The model and the adapter in what `model.pretrained` names: None for the one that is not there.

    Errors (UserError): there is neither.
    """
    where, folder = "model.pretrained", Path(name).expanduser()
    if folder.is_dir():
        found = locate(name, revision, where)
        if not (folder / ADAPTER).is_file():
            return found, None
        check_adapter(folder)
        return found if (folder / "config.json").is_file() else None, found
    try:
        weights = locate(name, revision, where)
    except UserError:
        if hub_file(name, ADAPTER, revision) is None:
            raise
        return None, locate(name, revision, where, ADAPTER)
    return weights, None if hub_file(name, ADAPTER, weights.revision) is None else weights


def folders(pretrained: str, tokenizer: str | None, adapter: str | None) -> tuple[Path, Path, Path | None]:
    """As `places`, of what lies on this disk, for plans: base, tokenizer, adapter; what is on the hub is no folder.

    Errors (UserError): an adapter without a readable config.
    """
    base = Path(pretrained).expanduser()
    own = Path(str(adapter)).expanduser() if adapter not in (None, NEW) else base
    if not (own / ADAPTER).is_file():
        return base, Path(tokenizer or pretrained).expanduser(), None
    if own == base and not (base / "config.json").is_file():
        base = Path(stated_base(_read(own / ADAPTER), own) or "").expanduser()
    words = own if (own / WORDS).is_file() else base
    return base, Path(tokenizer).expanduser() if tokenizer else words, own


def note_of(adapter: Source) -> dict[str, Any]:
    """What an adapter's config says."""
    file = adapter.folder / ADAPTER if adapter.folder else hub_file(adapter.name, ADAPTER, adapter.revision)
    if file is None:
        raise UserError(f"{adapter.name}: no {ADAPTER}; it is no adapter in peft's format")
    return _read(file)


def check_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter whose files are missing, damaged or not those that were written."""
    note = folder / ADAPTER
    if not note.is_file():
        raise UserError(f"{folder}: no {ADAPTER}; model.adapter must be a folder as peft writes it")
    _read(note)
    check_seal(folder)
    files = [folder / name for name in TENSORS if (folder / name).is_file()]
    if not files:
        raise UserError(f"{folder}: no weights of the adapter ({' or '.join(TENSORS)}); {_again(folder)}")
    check_tensors(files[0], _again(folder))


def stated_base(note: dict[str, Any], folder: Path) -> str | None:
    """The base that an adapter names: a folder, relative to the adapter's or to where we are, or a hub id."""
    stated = str(note.get("base_model_name_or_path") or "")
    if not stated:
        return None
    beside = folder / Path(stated).expanduser()
    return str(beside) if beside.is_dir() else stated


def _base_of(adapter: Source, name: str) -> Source:
    """The base that an adapter alone names."""
    note = note_of(adapter)
    base = stated_base(note, adapter.folder or Path())
    advice = f"give it: model.pretrained=BASE model.adapter={name}"
    if base is None:
        raise UserError(f"model.pretrained={name}: an adapter whose {ADAPTER} names no base; {advice}")
    try:
        return locate(base, note.get("revision"), "model.pretrained")
    except UserError as error:
        raise UserError(f"model.pretrained={name}: an adapter whose base is missing ({error}); {advice}") from error


def _check_base(adapter: Source, weights: Source) -> None:
    """Refuse a base whose weights are not those of the folder that the adapter names, where that is here."""
    base = stated_base(note_of(adapter), adapter.folder or Path())
    folder = None if base is None else Path(base).expanduser()
    if folder is None or weights.folder is None or not folder.is_dir() or folder.samefile(weights.folder):
        return
    if _bytes(folder) != _bytes(weights.folder):
        raise UserError(
            f"{adapter.name}: an adapter to {base}, and the weights in model.pretrained={weights.name} are others; set "
            f"model.pretrained={base}, or correct base_model_name_or_path in its {ADAPTER}"
        )


def _check_trained_on(adapter: Source, base: Source) -> None:
    """Refuse a base that was changed since an adapter was trained on it here."""
    note = None if adapter.folder is None else adapter.folder / TRAINED
    if note is None or not note.is_file():
        return
    before = _read(note).get("base")
    if before not in (None, base.identity):
        raise UserError(
            f"{adapter.name}: an adapter that was trained on other files than those of {base.name} now; name its base "
            f"(model.pretrained=BASE model.adapter={adapter.name}), or train it anew (model.adapter={NEW})"
        )


def _words(tokenizer: str | None, adapter: Source | None, weights: Source) -> Source:
    """The tokenizer's place: the one that is named, else the adapter's own, else that of the base."""
    if tokenizer:
        return locate(tokenizer, None, "model.tokenizer")
    if adapter is None:
        return weights
    if adapter.folder is None:
        has = hub_file(adapter.name, WORDS, adapter.revision) is not None
    else:
        has = (adapter.folder / WORDS).is_file()
    return adapter if has else weights


def _bytes(folder: Path) -> str:
    """Digest of the weights in a folder, whatever their files are called."""
    return fingerprint(sorted(file_fingerprint(file) for pattern in WEIGHTS for file in folder.glob(pattern)
                              if file.name not in TENSORS))  # fmt: skip


def _read(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{note}: not readable ({first_line(error)}); {_again(note.parent)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{note}: not a set of keys; {_again(note.parent)}")
    return found


def _again(folder: Path) -> str:
    return mend(folder, "fetch the adapter again")
