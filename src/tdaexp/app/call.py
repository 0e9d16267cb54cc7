"""A run's checked configuration from keywords of a Python call, by the schema and the YAML files of the commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf, open_dict

from tdaexp.app.check import Checker, places
from tdaexp.app.compose import open_composer
from tdaexp.app.config import AttributeConfig
from tdaexp.app.job import resolve
from tdaexp.app.values import check_values
from tdaexp.methods.base import Method
from tdaexp.runtime.errors import UserError, unknown

CONF = Path(__file__).resolve().parents[1] / "conf"


def configured(
    caller: str, method: str | Method, settings: Mapping[str, Any], groups: Mapping[str, str], keys: Mapping[str, Any]
) -> tuple[AttributeConfig, dict[str, Any]]:
    """The configuration of `attribute.py method=METHOD` as objects, and its values.

    `settings` are the method's keys (and `budget`), but for `queries`: all that are handed over are answered. `groups`
    are other choices (`dataset`: `text`), `keys` values by path (`trainer.cache_gb`); `caller` is named in messages.
    Errors (UserError): as of the commands.
    """
    own = dict(settings)
    budget = {"budget": own.pop("budget")} if "budget" in own else {}
    named = method if isinstance(method, str) else "dot"
    choices = {"method": named, "logger": "none", **groups}
    if isinstance(method, str) and isinstance(own.get("on"), str):
        choices["method@method.on"] = own.pop("on")
    if not isinstance(method, str) and (own or budget):
        raise UserError(f"{caller}: a {type(method).__name__} has its settings; leave out {', '.join(settings)}")
    with open_composer("attribute", CONF) as composer:
        for group, name in choices.items():
            known = composer.choices(group.partition("@")[0])
            if name not in known:
                raise unknown(group, name, known, caller)
        config = composer.compose([f"{group}={name}" for group, name in choices.items()])
    with open_dict(config):
        for key, value in {**keys, **budget}.items():
            OmegaConf.update(config, key, plain(value))

    def origin(path: tuple[str, ...]) -> str:
        return caller

    if budget and "${budget}" not in str(OmegaConf.to_container(config.method, resolve=False)):
        raise UserError(f"{caller}: method '{named}' does not read budget; leave it out")
    values = resolve(config, origin)
    _answer_all(values["method"])
    values["method"] |= {key: plain(value) for key, value in own.items()}
    check_values(values, origin)
    found: AttributeConfig = Checker(origin, places=places(AttributeConfig)).build(AttributeConfig, values)
    if not isinstance(method, str):
        found, values["method"] = replace(found, method=method), _described(method)
    return found, values


def _answer_all(method: dict[str, Any]) -> None:
    """What a call asks is what it hands over: no method takes a few of the queries, as costly ones do by command."""
    if "queries" in method:
        method["queries"] = None
    for inner in method.values():
        if isinstance(inner, dict):
            _answer_all(inner)


def plain(value: Any) -> Any:
    """A keyword's value as YAML has it."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _described(method: Method) -> dict[str, Any]:
    cls = type(method)
    keys: dict[str, Any] = asdict(method) if is_dataclass(method) else {}
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **{key: plain(value) for key, value in keys.items()}}
