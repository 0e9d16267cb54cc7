"""One experiment file for the paper and for a laptop: what differs stands in its sections `paper` and `toy`.

Hydra knows no sections. Each experiment that has some, or is based on one that has, is put into Hydra's config store
once for each scale, as `NAME-toy` and `NAME-paper`, with the section merged into what the file says for both;
`experiment=NAME scale=paper` is spelt `experiment=NAME-paper` before Hydra sees it. `${scale}` is the scale's name.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaexp.runtime.errors import UserError, unknown

SCALES = ("toy", "paper")
"""The first is taken where nothing is said."""
GROUP = "experiment"


def store_scales(folders: Sequence[Path]) -> dict[str, tuple[Path, Any]]:
    """Put the experiments in these folders into Hydra's store, and tell file and content of each by Hydra's name."""
    files = {file.stem: file for folder in reversed(folders) for file in sorted((folder / GROUP).glob("*.yaml"))}
    texts = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    stored: dict[str, tuple[Path, Any]] = {}
    store = ConfigStore.instance()
    forget_scales()
    contents = {name: content for name, text in texts.items() if (content := _content(text)) is not None}
    scaled = {name for name in contents if _is_scaled(name, contents)}
    for name in sorted(scaled):
        package = re.search(r"^#\s*@package\s+(\S+)", texts[name], re.MULTILINE)
        for scale in SCALES:
            node = _merged(_content(texts[name].replace("${scale}", scale)) or {}, scale, scaled)
            stored[f"{GROUP}/{name}-{scale}"] = (files[name], node)
            store.store(f"{name}-{scale}", node, GROUP, package[1] if package else None)
    return stored


def forget_scales() -> None:
    """Take out of Hydra's store what was put there from folders that were opened before."""
    ConfigStore.instance().repo.pop(GROUP, None)


def spelt(overrides: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """The overrides with `scale=` said in the experiment's name; `known` are the names of `store_scales`.

    Raises:
        UserError: a scale that there is not, or no experiment that has it.
    """
    given = [text for text in overrides if text.partition("=")[0] == "scale"]
    scales = given[-1].partition("=")[2].split(",") if given else [SCALES[0]]
    for scale in scales:
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES, f"option '{given[-1]}'")
    found, used = [], False
    for text in overrides:
        key, _, value = text.partition("=")
        if key == GROUP:
            names = [spelling for name in value.split(",") for spelling in _named(name, scales, known)]
            used = used or any(f"{GROUP}/{name}" in known for name in names)
            found.append(f"{GROUP}={','.join(names)}" if used else text)
        elif key != "scale":
            found.append(text)
    if found != list(overrides) and not given:
        print(
            f"experiment: scale={SCALES[0]}, for a laptop, is taken; the paper's is scale={SCALES[1]}", file=sys.stderr
        )
    if given and not used:
        chosen = [text for text in overrides if text.startswith(f"{GROUP}=")]
        lacks = f"{chosen[-1]} has one size" if chosen else "no experiment is chosen"
        raise UserError(f"option '{given[-1]}': says which size of an experiment is run, and {lacks}; leave it out")
    return found


def _named(name: str, scales: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    name = name.strip("'\"")
    there = [f"{name}-{scale}" for scale in scales]
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


def _is_scaled(name: str, contents: Mapping[str, dict[str, Any]], above: tuple[str, ...] = ()) -> bool:
    content = contents.get(name)
    if content is None or name in above:
        return False
    has = any(isinstance(content.get(scale), dict) for scale in SCALES)
    return has or any(_is_scaled(base, contents, (*above, name)) for base in _bases(content))


def _merged(content: dict[str, Any], scale: str, scaled: set[str]) -> dict[str, Any]:
    """What the file says at a scale: its own section over what it says for both; its choices of groups last."""
    common = {key: value for key, value in content.items() if key not in SCALES}
    section = dict(content.get(scale) or {})
    entries = [*(common.pop("defaults", None) or []), *(section.pop("defaults", None) or [])]
    bases = [_at_scale(entry, scale, scaled) for entry in entries if not _overrides(entry) and entry != "_self_"]
    merged = OmegaConf.to_container(OmegaConf.merge(common, section), resolve=False)
    assert isinstance(merged, dict)
    return {"defaults": [*bases, "_self_", *filter(_overrides, entries)], **merged}


def _at_scale(entry: Any, scale: str, scaled: set[str]) -> Any:
    name = entry.removeprefix(f"/{GROUP}/") if isinstance(entry, str) else None
    return f"/{GROUP}/{name}-{scale}" if name in scaled else entry


def _overrides(entry: Any) -> bool:
    return isinstance(entry, dict) and any(str(key).startswith("override ") for key in entry)
