"""What Hydra's own node of a configuration may hold: Hydra's, joblib's and submitit's classes, and nothing else.

Hydra turns any `_target_` below `hydra:` into an object, and any class in its logging's set-up; a YAML file of a
`--config-dir`, an experiment or an option can put one there. Every composed configuration passes here first.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import typing
from pathlib import Path
from typing import Any

import yaml
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaexp.app.origin import Origin, one_line, shown
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.names import check_name
from tdaexp.runtime.secrets import holds_secret

CORE, PLUGINS = "hydra._internal.core_plugins", "hydra_plugins"
CLASSES = (
    f"{CORE}.basic_launcher.BasicLauncher",
    f"{CORE}.basic_sweeper.BasicSweeper",
    f"{PLUGINS}.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    f"{PLUGINS}.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    f"{PLUGINS}.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra.experimental.callbacks.LogJobReturnCallback",
    "hydra.experimental.callbacks.PickleJobInfoCallback",
)
LOGGING = (
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.Formatter",
    "logging.handlers.RotatingFileHandler",
    "colorlog.ColoredFormatter",
    "tdaexp.app.logs.AsTyped",
    "tdaexp.app.logs.Plain",
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOADERS = re.compile(r"(LD|DYLD|PYTHON)\w*|PATH|HOME|SHELL|BASH_ENV", re.IGNORECASE)


def check_hydra(config: DictConfig, origin: Origin) -> None:
    """Refuse a node `hydra` that names a class of anybody else, or a name that leads out of the run folder.

    Raises:
        UserError: it names the key, the file or option that set it, and what may stand there.
    """
    for part in ("launcher", "sweeper", "run", "sweep", "job"):
        if not isinstance(config.hydra.get(part), DictConfig):
            raise UserError(
                f"{origin(('hydra', part))}: 'hydra.{part}' must be a set of keys, not {config.hydra.get(part)}"
            )
    verbose = config.hydra.get("verbose")
    if not isinstance(verbose, (bool, str, ListConfig)):
        raise UserError(f"{origin(('hydra', 'verbose'))}: 'hydra.verbose' must be true, false or names of loggers")
    _check_keys(config.hydra, HydraConf, ("hydra",), origin)
    for part in ("launcher", "sweeper", "callbacks"):
        _check_targets(_plain(config, part, origin), ("hydra", part), origin)
    for part in ("job_logging", "hydra_logging"):
        _check_logging(_plain(config, part, origin), ("hydra", part), origin)
    job = _plain(config, "job", origin)
    for key in ("name", "config_name"):
        if isinstance(job.get(key), str) and job[key] != "???":
            check_name(f"hydra.job.{key}", job[key])
    if isinstance(config.hydra.get("output_subdir"), str):
        check_name("hydra.output_subdir", str(config.hydra.output_subdir).removeprefix("."))
    for name in job.get("env_set") or {}:
        if LOADERS.fullmatch(str(name)):
            path = ("hydra", "job", "env_set", str(name))
            raise UserError(
                f"{origin(path)}: '{'.'.join(path)}' decides which code is run; export it yourself where you need it"
            )
    check_secrets(job.get("env_set"), origin, ("hydra", "job", "env_set"))
    for part in ("launcher", "sweeper", "run", "sweep"):
        check_secrets(_plain(config, part, origin), origin, ("hydra", part))
    _check_sweep(config, origin)


def check_search(root: Path) -> None:
    """Refuse a root file that looks for configurations in a Python package: Hydra would import it."""
    try:
        node = yaml.safe_load(root.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return  # the composition has the words for it
    hydra = node.get("hydra") if isinstance(node, dict) else None
    for place in hydra.get("searchpath") or [] if isinstance(hydra, dict) else []:
        if not str(place).startswith("file://"):
            raise UserError(
                f"{shown(root)}: hydra.searchpath: '{place}' is refused; name folders, as in file:///FOLDER"
            )


def _check_sweep(config: DictConfig, origin: Origin) -> None:
    """A sweep's parameters speak of the jobs, not of Hydra, and its jobs' folders lie in the sweep's."""
    for key in _plain(config, "sweeper", origin).get("params") or {}:
        if re.match(r"[+~]*hydra\b", str(key)):
            where = ("hydra", "sweeper", "params", str(key))
            raise UserError(f"{origin(where)}: a sweep cannot change Hydra's own '{key}'; set it under hydra: instead")
    subdir = str(OmegaConf.to_container(config.hydra.sweep, resolve=False).get("subdir"))  # type: ignore[union-attr]
    if subdir.startswith(("/", "~")) or ".." in re.split(r"[/\\]", subdir):
        path = ("hydra", "sweep", "subdir")
        raise UserError(f"{origin(path)}: hydra.sweep.subdir={subdir}: leads out of the sweep's folder; name one in it")


def _check_keys(node: Any, schema: type, path: tuple[str, ...], origin: Origin) -> None:
    """Refuse keys that Hydra's own schema does not have: from a file that fills `hydra` it takes any without a word."""
    hints = typing.get_type_hints(schema) | ({"env": Any} if schema is HydraConf else {})  # a group of Hydra's own
    for key in node:
        if key not in hints:
            raise unknown("key", str(key), hints, f"{origin((*path, str(key)))}: in '{'.'.join(path)}'")
        part = None if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key) else node[key]
        if dataclasses.is_dataclass(hints[key]) and isinstance(part, DictConfig):
            _check_keys(part, hints[key], (*path, str(key)), origin)
    for part in ("launcher", "sweeper") if schema is HydraConf else ():
        known = _plugin_keys(part, node[part])
        for key in node[part] if known else ():
            if key not in known:
                raise unknown("key", str(key), known, f"{origin((*path, part, str(key)))}: in 'hydra.{part}'")


def _plugin_keys(part: str, node: Any) -> set[str]:
    """The keys of the plugin whose class a launcher or sweeper names; none where it is not known."""
    registered = ConfigStore.instance().repo["hydra"].get(part, {}).values()
    return {str(key) for one in registered if one.node.get("_target_") == node.get("_target_") for key in one.node}


def _plain(config: DictConfig, part: str, origin: Origin) -> dict[str, Any]:
    """One part of Hydra's node as plain values; what a run fills in later (`???`) stays as it is."""
    node = config.hydra.get(part)
    if node is None:
        return {}
    try:
        found = OmegaConf.to_container(node, resolve=part != "job", throw_on_missing=False)
    except OmegaConfBaseException:  # refers to what only a run knows, e.g. its folder: then look at what is written
        found = OmegaConf.to_container(node, resolve=False)
    if not isinstance(found, dict):
        raise UserError(
            f"{origin(('hydra', part))}: 'hydra.{part}' must be a set of keys, not {one_line(Exception(found))}"
        )
    return {str(key): value for key, value in found.items()}


def _check_targets(node: Any, path: tuple[str, ...], origin: Origin) -> None:
    for key, value, where in _walk(node, path):
        if key == "_target_" and str(value) not in CLASSES:
            raise UserError(
                f"{origin(where)}: '{'.'.join(where)}={value}' is refused; under hydra: only Hydra's own "
                "classes and the launchers of joblib and submitit can be named"
            )
        if key in ("_recursive_", "_convert_", "_partial_", "_args_"):
            raise UserError(f"{origin(where)}: '{'.'.join(where)}' is refused; leave it out")


def _check_logging(node: Any, path: tuple[str, ...], origin: Origin) -> None:
    for part in ("formatters", "handlers", "filters", "loggers", "root"):
        whole = node.get(part) or {}
        if not isinstance(whole, dict) or (part != "root" and not all(isinstance(one, dict) for one in whole.values())):
            raise UserError(
                f"{origin((*path, part))}: '{'.'.join((*path, part))}' must be a set of keys, not {whole!r}"
            )
    for name, place in ((name, "handlers") for name in (node.get("root") or {}).get("handlers") or ()):
        if name not in (node.get(place) or {}):
            raise unknown(
                "handler", str(name), node.get(place) or {}, f"{origin((*path, 'root'))}: '{'.'.join(path)}.root'"
            )
    for key, value, where in _walk(node, path):
        text = str(value)
        if key == "level" and not isinstance(value, int) and text not in logging.getLevelNamesMapping():
            raise unknown("level", text, logging.getLevelNamesMapping(), f"{origin(where)}: '{'.'.join(where)}'")
        if key in ("class", "()") and text not in LOGGING:
            raise unknown("class", text, LOGGING, f"{origin(where)}: '{'.'.join(where)}'")
        if text.startswith(("ext://", "cfg://")) and text not in STREAMS:
            raise unknown("stream", text, STREAMS, f"{origin(where)}: '{'.'.join(where)}'")


def _walk(node: Any, path: tuple[str, ...]) -> Any:
    """Every key with a plain value below a node: the key, the value, and the path that leads there."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        where = (*path, str(key))
        if isinstance(value, (dict, list, tuple)):
            yield from _walk(value, where)
        else:
            yield str(key), value, where


def check_secrets(values: Any, origin: Origin, path: tuple[str, ...] = ()) -> None:
    """Refuse a configuration that holds a password or a key: it is kept in run folders, tables and mirrors."""
    for key, value, where in _walk(values, path):
        if holds_secret(key, value):
            raise UserError(
                f"{origin(where)}: '{'.'.join(where)}' holds a password or a key, and configurations are kept in run "
                "folders; export it as an environment variable and name that (api_key_env), or log in beforehand"
            )
