"""Names for people, where a run is listed beside others: `ekfac budget=0.05 seed=1`, without hashes and classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

HEADS = {"train": ("model", "dataset"), "attribute": ("method",), "evaluate": ("analysis",)}
"""Groups whose choices a run's name begins with."""
ABOUT_WATCHING = ("logger", "cache_dir", "resume", "plan", "runs", "dashboard", "hydra")
"""Keys that tell nothing of what a run computes, and `runs`, which may be long."""
LIMIT = 128  # wandb's


def run_name(stage: str, choices: Mapping[str, str], overrides: Iterable[str], swept: Sequence[str] = ()) -> str:
    """The choices that matter most, then what was typed beside them; of a sweep's job only the `swept` keys, as all
    jobs have the rest.
    """
    heads = [choices[group] for group in HEADS[stage] if choices.get(group)] or ["comparison"]
    typed = [(key, text) for key, text in _typed(overrides) if key not in HEADS[stage]]
    return _short([*heads, *(text for key, text in typed if not swept or _is_of(key, swept))])


def sweep_name(stage: str, overrides: Iterable[str], swept: Sequence[str]) -> str:
    """The stage and what was typed, first what was swept: `attribute method=select,project budget=0.01,0.05`."""
    typed = sorted(_typed(overrides), key=lambda one: not _is_of(one[0], swept))  # stable
    return _short([stage, *(text for _, text in typed)])


def choices_told(choices: Mapping[str, str]) -> dict[str, str]:
    """What was chosen in each group of the configuration, for a mirror, which sees classes' names otherwise."""
    return {group: name for group, name in choices.items() if not any(sign in group for sign in "/@")}


def _is_of(key: str, swept: Sequence[str]) -> bool:
    """Whether a key is swept; Hydra knows `group@place` by its group."""
    return key in swept or key.partition("@")[0] in swept


def _typed(overrides: Iterable[str]) -> list[tuple[str, str]]:
    """Keys and texts of the overrides that tell something of what is computed."""
    found: dict[str, str] = {}
    for text in overrides:
        plain = text.lstrip("+")
        key = plain.partition("=")[0]
        if key.split(".")[0].split("/")[0] not in ABOUT_WATCHING:
            found[key] = plain  # the last one counts
    return list(found.items())


def _short(parts: list[str]) -> str:
    name = " ".join(parts)
    return name if len(name) <= LIMIT else f"{name[: LIMIT - 1]}…"
