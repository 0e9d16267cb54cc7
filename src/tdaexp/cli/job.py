"""One checked job: its configuration as plain values and as objects, its fingerprint and its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tdaexp.cli.check import Checker
from tdaexp.cli.compose import Composer, resolve
from tdaexp.cli.origin import OriginOf
from tdaexp.config import NOT_PART_OF_THE_RUN, REPLACED_BY_PRODUCTS, ROOTS
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

SUBJECT = ("model", "dataset")
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
        """Hash of all that decides what the job computes."""
        products = self.values.get("products") is not None
        skip = (*NOT_PART_OF_THE_RUN, *(REPLACED_BY_PRODUCTS if products else ()))
        return fingerprint({key: value for key, value in self.values.items() if key not in skip})

    @property
    def name(self) -> str:
        """The choices that name the run, e.g. toy_gpt-biographies-select."""
        groups = ("method",) if self.values.get("products") is not None else (*SUBJECT, "method")
        return slug("-".join(self.choices[group] for group in groups if self.choices.get(group)))

    @property
    def subject(self) -> str:
        """Hash of the model and the data set that the job is about."""
        return subject(self.values)


def check(composer: Composer, stage: str, overrides: list[str], packages: tuple[str, ...]) -> Job:
    """Compose one job, check it and build its objects."""
    config = composer.compose(overrides)
    choices = {str(k): v for k, v in config.hydra.runtime.choices.items() if isinstance(v, str)}
    return build(stage, overrides, config, choices, packages, composer.origin(overrides))


def build(
    stage: str,
    overrides: list[str],
    config: DictConfig,
    choices: dict[str, str],
    packages: tuple[str, ...],
    origin: OriginOf,
) -> Job:
    """Check a composed configuration against the stage's schema and build its objects."""
    raw = OmegaConf.to_container(config, resolve=False)
    _refuse_unread(raw, choices, origin)
    values = resolve(config, origin)
    return Job(overrides, values, Checker(origin, packages).build(ROOTS[stage], values), choices)


def subject(values: dict[str, Any]) -> str:
    """Hash of the model and data set that are configured, or of the products in their place."""
    products = values.get("products")
    return fingerprint(
        [values.get(group) for group in SUBJECT] if products is None else ["products", products]
    )


def slug(text: str) -> str:
    """Turn overrides into a part of a path: letters, digits, `=.+-_`, at most 80 characters."""
    plain = re.sub(r"[^\w.=+-]+", "_", re.sub(r"(^|,)\+\+?", r"\1", text)).strip("_")
    return plain if len(plain) <= NAME_LIMIT else f"{plain[: NAME_LIMIT - 9]}-{fingerprint(text)[:8]}"


def _refuse_unread(raw: Any, choices: dict[str, str], origin: OriginOf) -> None:
    """A budget that the method's configuration does not mention would be ignored in silence."""
    method = raw.get("method")
    if raw.get("budget") is None or method is None or "${budget}" in str(method):
        return
    raise UserError(
        f"{origin(('budget',))}: method '{choices.get('method')}' does not read budget; leave it out or choose "
        "a method that does (select, project)"
    )
