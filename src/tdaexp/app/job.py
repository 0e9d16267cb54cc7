"""One checked job: its configuration as plain values and as objects, its fingerprint and its name."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaexp.app.check import Checker, places
from tdaexp.app.compose import Composer
from tdaexp.app.config import REPLACED_BY_PRODUCTS, ROOTS
from tdaexp.app.gate import check_secrets
from tdaexp.app.origin import Origin, one_line
from tdaexp.app.values import check_values, expanded
from tdaexp.data.token_file import sidecar_of
from tdaexp.metrics.labels import GROUPS
from tdaexp.runtime.code import code_identity
from tdaexp.runtime.errors import UserError, nearest
from tdaexp.runtime.fingerprint import deciding, file_fingerprint, fingerprint
from tdaexp.runtime.own_module import look_in

SUBJECT = ("model", "dataset")
FILES = (
    *("run", "path", "offsets", "query_path", "finetune_path"),
    *("paraphrases", "sentences", "facts", "questions", "partition"),
    *("pretrained", "tokenizer", "adapter", "checkpoints", "encoder", "products", "scores", "selection", "leaderboard"),
)
"""Keys that may name a file or a folder, or several."""
NAME_LIMIT = 80


@dataclass(frozen=True)
class Job:
    """One checked job: `overrides` as typed, `values` resolved, `config` the objects, `choices` per group."""

    overrides: list[str]
    values: dict[str, Any]
    config: Any
    choices: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of what is asked: the values, and the contents of files that they name."""
        unread = () if self.values.get("products") is None else REPLACED_BY_PRODUCTS
        values = {key: value for key, value in deciding(self.values).items() if key not in unread}
        return fingerprint(values, _contents(values))

    @property
    def code(self) -> str:
        """Identity of the code that it is asked of."""
        return code_identity(*_classes(self.config))

    @property
    def name(self) -> str:
        """The choices that name the run, e.g. toy_gpt-biographies-select; stores that are named may be of any model."""
        if self.values.get("runs") and not self.choices.get("analysis"):
            return "runs"
        groups = ("method",) if self.values.get("products") is not None else (*SUBJECT, "method", "analysis")
        return slug("-".join(self.choices[group] for group in groups if self.choices.get(group)))

    @property
    def chosen(self) -> dict[str, str]:
        """The choice of each group that says what is asked, and of whom."""
        unread = () if self.values.get("products") is None else REPLACED_BY_PRODUCTS
        return {name: self.choices[name] for name in GROUPS if name in self.choices and name not in unread}

    @property
    def subject(self) -> str:
        """Hash of the model and the data set that the job is about."""
        return subject(self.values)


def check(composer: Composer, stage: str, overrides: list[str], config: DictConfig, packages: tuple[str, ...]) -> Job:
    """Check the configuration that was composed with the overrides, and build its objects."""
    lookup = functools.cache(lambda: composer.origin(overrides))  # costs a composition

    def origin(path: tuple[str, ...]) -> str:
        return lookup()(path)

    return build(stage, overrides, config, packages, origin)


def build(
    stage: str,
    overrides: list[str],
    config: DictConfig,
    packages: tuple[str, ...],
    origin: Origin,
    runtime: DictConfig | None = None,
) -> Job:
    """Check a composed configuration against the stage's schema and build its objects.

    `runtime` is Hydra's own node where `config` does not hold it any more (in a job that runs).
    """
    hydra = config.hydra if runtime is None else runtime
    choices = {str(k): v for k, v in hydra.runtime.choices.items() if isinstance(v, str)}
    raw = OmegaConf.to_container(config, resolve=False)
    _refuse_unread(raw, choices, origin)
    values = expanded(resolve(config, origin))
    check_secrets(values, origin)
    check_values(values, origin)
    root = ROOTS[stage]
    look_in(_folders(hydra))
    checker = Checker(origin, packages, places(root))
    return Job(overrides, values, checker.build(root, values), choices)


def _folders(hydra: Any) -> list[Path]:
    """Where modules of the user's own may lie: the folders of configurations, and those that hold them."""
    found = [Path(one.path) for one in hydra.runtime.config_sources if one.schema == "file"]
    return [folder for place in found for folder in (place, place.parent)]


def subject(values: dict[str, Any]) -> str:
    """Hash of the configured model and data set, or of the products in their place."""
    products = values.get("products")
    return fingerprint([values.get(group) for group in SUBJECT] if products is None else ["products", products])


def _contents(values: dict[str, Any]) -> dict[str, str]:
    """What the files hold that the values name: another content makes another job.

    Folders and patterns count by sizes and times.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": text for name, text in _contents(value).items()}
        elif key in FILES:
            named = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
            named += [str(beside) for one in named if (beside := sidecar_of(Path(one))) is not None]
            found |= {f"{key}={one}": _content(Path(one)) for one in named if Path(one).exists() or has_magic(one)}
        elif key == "measurement" and isinstance(value, str) and ":" in value:
            from tdaexp.objectives.measurements import sources

            found[key] = sources(value)[0]
    return found


def _classes(config: Any) -> list[type]:
    """The classes that a configuration is built of, whichever depth they stand at."""
    if not dataclasses.is_dataclass(config):
        return []
    parts = [_classes(getattr(config, one.name)) for one in dataclasses.fields(config)]
    return [type(config), *itertools.chain(*parts)]


def _content(path: Path) -> str:
    if path.is_file():
        return file_fingerprint(path)
    root = path if path.is_dir() else path.parent  # names within it: another place is not another content
    within = path.rglob("*") if path.is_dir() else map(Path, glob(str(path), recursive=True))
    states = ((file, file.stat()) for file in sorted(within) if file.is_file())
    return fingerprint([[os.path.relpath(file, root), state.st_size, state.st_mtime_ns] for file, state in states])


def slug(text: str) -> str:
    """Turn overrides into a part of a path: letters, digits, `=.+-_`, at most 80 characters."""
    plain = re.sub(r"[^\w.=+-]+", "_", re.sub(r"(^|,)\+\+?", r"\1", text)).strip("_")
    return plain if len(plain) <= NAME_LIMIT else f"{plain[: NAME_LIMIT - 9]}-{fingerprint(text)[:8]}"


def _refuse_unread(raw: Any, choices: dict[str, str], origin: Origin) -> None:
    """A budget that the method's configuration does not mention would be ignored in silence."""
    method = raw.get("method")
    if raw.get("budget") is None or method is None or "${budget}" in str(method):
        return
    raise UserError(
        f"{origin(('budget',))}: method '{choices.get('method')}' does not read budget; leave it out, "
        "or choose a method that does (select, project)"
    )


def resolve(config: DictConfig, origin: Origin) -> dict[str, Any]:
    """Return the configuration without Hydra's node, interpolations replaced by their values.

    `${hydra:…}` refers to Hydra's node in `config` where there is one, else to that of the running job.
    """
    previous = HydraConfig.instance().cfg
    if "hydra" in config:
        HydraConfig.instance().set_config(config)
    try:
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return OmegaConf.to_container(own, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        path = tuple(str(error.full_key or "").split("."))
        text = f"{origin(path)}: '{'.'.join(path)}': {one_line(error)}"
        missing = re.search(r"Interpolation key '(\w+)' not found", str(error))
        near = nearest(missing[1], map(str, config)) if missing else None
        hint = f"; {origin((near,))} has '{near}', did you mean '{missing[1]}' there?" if missing and near else ""
        raise UserError(text + hint) from error
    finally:
        HydraConfig.instance().cfg = previous
