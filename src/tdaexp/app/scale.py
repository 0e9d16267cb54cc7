"""One experiment file for the paper and for a laptop, and for every command.

Hydra knows no sections `paper` and `toy`. Each experiment that has some, or is based on one that has, is put into
Hydra's config store once for each scale, as `NAME-toy` and `NAME-paper`, with the section merged into what the file
says for both; `experiment=NAME scale=paper` is spelt `experiment=NAME-paper` before Hydra sees it. `${scale}` is the
scale's name.

A command that lacks some groups and keys of attribute.py (train.py has no method) gets each experiment without those:
what is stored then are the parts that it reads, of an experiment of one size as `NAME-part`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaexp.runtime.errors import UserError, unknown

SCALES = ("toy", "paper")
"""The first is taken where nothing is said."""
GROUP = "experiment"
PART = "part"


class Stored(NamedTuple):
    """An experiment in Hydra's store: its file, what it says, and what of the file the command does not read."""

    file: Path
    content: Any
    unread: list[str]


def store_scales(folders: Sequence[Path], unread: Collection[str] = ()) -> dict[str, Stored]:
    """Put the experiments in these folders into Hydra's store, without the groups and keys `unread`; by their names."""
    files = {file.stem: file for folder in reversed(folders) for file in sorted((folder / GROUP).glob("*.yaml"))}
    texts = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    stored: dict[str, Stored] = {}
    store = ConfigStore.instance()
    forget_scales()
    contents = {name: content for name, text in texts.items() if (content := _content(text)) is not None}
    sizes: dict[str, tuple[str, ...]] = {name: SCALES for name in contents if _lineage(name, contents, _sections)}
    cut = {name: there for name in contents if (there := _lineage(name, contents, lambda one: _cut(one, unread)[1]))}
    sizes |= {name: (PART,) for name in cut.keys() - sizes.keys()}
    for name in sorted(sizes):
        package = re.search(r"^#\s*@package\s+(\S+)", texts[name], re.MULTILINE)
        for size in sizes[name]:
            said = contents[name] if size == PART else _content(texts[name].replace("${scale}", size)) or {}
            node, _ = _cut(_merged(said, size, sizes), unread)
            stored[f"{GROUP}/{name}-{size}"] = Stored(files[name], node, sorted(set(cut.get(name, ()))))
            store.store(f"{name}-{size}", node, GROUP, package[1] if package else None)
    return stored


def forget_scales() -> None:
    """Take out of Hydra's store what was put there from folders that were opened before."""
    ConfigStore.instance().repo.pop(GROUP, None)


def spelt(overrides: Sequence[str], known: Mapping[str, Stored]) -> list[str]:
    """The overrides with `scale=` said in the experiment's name; `known` are the names of `store_scales`.

    Raises:
        UserError: a scale that there is not, or no experiment that has it.
    """
    given = [text for text in overrides if text.partition("=")[0] == "scale"]
    scales = given[-1].partition("=")[2].split(",") if given else [SCALES[0]]
    for scale in scales:
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES, f"option '{given[-1]}'")
    found, used = [], set()
    for text in overrides:
        key, _, value = text.partition("=")
        if key == GROUP:
            names = [spelling for name in value.split(",") for spelling in _named(name, scales, known)]
            there = {name for name in names if f"{GROUP}/{name}" in known}
            found.append(f"{GROUP}={','.join(names)}" if there else text)
            used |= there
        elif key != "scale":
            found.append(text)
    sized = any(not name.endswith(f"-{PART}") for name in used)
    if sized and not given:
        print(
            f"experiment: scale={SCALES[0]}, for a laptop, is taken; the paper's is scale={SCALES[1]}", file=sys.stderr
        )
    if given and not sized:
        chosen = [text for text in overrides if text.startswith(f"{GROUP}=")]
        lacks = f"{chosen[-1]} has one size" if chosen else "no experiment is chosen"
        raise UserError(f"option '{given[-1]}': says which size of an experiment is run, and {lacks}; leave it out")
    if unread := sorted({one for name in used for one in known[f"{GROUP}/{name}"].unread}):
        print(f"experiment: not read by this command: {', '.join(unread)}", file=sys.stderr)
    return found


def _named(name: str, scales: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    name = name.strip("'\"")
    there = [f"{name}-{scale}" for scale in scales]
    if f"{GROUP}/{name}-{PART}" in known:
        return [f"{name}-{PART}"]
    return there if f"{GROUP}/{there[0]}" in known else [name]


@functools.cache
def _content(text: str) -> dict[str, Any] | None:
    """What a file says, to be read only; None where it is no set of keys, which Hydra tells when the file is chosen."""
    try:
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException):
        return None
    return content if isinstance(content, dict) else None  # type: ignore[return-value]


def _bases(content: Mapping[str, Any]) -> list[str]:
    """The experiments that this one begins with, at any scale."""
    places = [content, *(content.get(scale) or {} for scale in SCALES)]
    entries = [entry for place in places for entry in place.get("defaults") or []]
    return [entry.removeprefix(f"/{GROUP}/") for entry in entries if isinstance(entry, str)]


def _lineage(
    name: str,
    contents: Mapping[str, dict[str, Any]],
    found: Callable[[dict[str, Any]], list[str]],
    above: tuple[str, ...] = (),
) -> list[str]:
    """What `found` says of an experiment and of those that it begins with."""
    content = contents.get(name)
    if content is None or name in above:
        return []
    bases = [one for base in _bases(content) for one in _lineage(base, contents, found, (*above, name))]
    return [*found(content), *bases]


def _sections(content: dict[str, Any]) -> list[str]:
    return [scale for scale in SCALES if isinstance(content.get(scale), dict)]


def _cut(content: dict[str, Any], unread: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """An experiment without what a command does not read, and the names of what went.

    A sweep over nothing else is one run.
    """
    entries = content.get("defaults") or []
    gone = [*(group_of(entry) for entry in entries), *map(str, content)]
    kept = {key: value for key, value in content.items() if key not in unread}
    if "defaults" in content:
        kept["defaults"] = [entry for entry in entries if group_of(entry) not in unread]
    for scale in _sections(content):
        kept[scale], within = _cut(content[scale], unread)
        gone += within
    hydra = content.get("hydra") or {}
    params = (hydra.get("sweeper") or {}).get("params") or {}
    swept = {key: value for key, value in params.items() if re.split(r"[.@]", str(key))[0] not in unread}
    if len(swept) < len(params):
        gone += [re.split(r"[.@]", str(key))[0] for key in params]
        rest = {key: value for key, value in hydra.items() if key not in ("mode", "sweep", "sweeper")}
        kept["hydra"] = {**hydra, "sweeper": {**hydra["sweeper"], "params": swept}} if swept else rest
    return kept, [name for name in gone if name in unread]


def group_of(entry: Any) -> str:
    """The group that an entry of a list of defaults chooses from; "" of one that names a file."""
    name = str(next(iter(entry))) if isinstance(entry, dict) else ""
    return re.split(r"[/@]", name.split()[-1].lstrip("/"))[0] if name else ""


def _merged(content: dict[str, Any], size: str, sizes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the file says at a scale: its own section over what it says for both; its choices of groups last."""
    common = {key: value for key, value in content.items() if key not in SCALES}
    section = dict(content.get(size) or {})
    entries = [*(common.pop("defaults", None) or []), *(section.pop("defaults", None) or [])]
    bases = [_at_size(entry, size, sizes) for entry in entries if not _overrides(entry) and entry != "_self_"]
    merged = OmegaConf.to_container(OmegaConf.merge(common, section), resolve=False)
    assert isinstance(merged, dict)
    return {"defaults": [*bases, "_self_", *filter(_overrides, entries)], **merged}


def _at_size(entry: Any, size: str, sizes: Mapping[str, Sequence[str]]) -> Any:
    name = entry.removeprefix(f"/{GROUP}/") if isinstance(entry, str) else ""
    return f"/{GROUP}/{name}-{size if size in sizes[name] else sizes[name][0]}" if name in sizes else entry


def _overrides(entry: Any) -> bool:
    return isinstance(entry, dict) and any(str(key).startswith("override ") for key in entry)
