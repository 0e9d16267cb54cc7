"""Composing configurations ahead of the run, and knowing which file or option each key came from."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaexp.app.foreign import choice_hint
from tdaexp.app.gate import check_hydra, check_search
from tdaexp.app.origin import OriginOf, one_line, shown
from tdaexp.app.scale import GROUP, Stored, forget_scales, group_of, spelt, store_scales
from tdaexp.app.typed import for_shell
from tdaexp.runtime.errors import UserError, nearest, unknown

WHOLE = "attribute"
"""The root that reads all that experiments say; others ignore what only that one has."""


@dataclass(frozen=True)
class Composer:
    """The configuration files behind one root (`name`), ready to be composed with overrides."""

    name: str
    loader: ConfigLoader
    conf: Path
    extra: list[Path]  # folders searched after the main one
    _files: dict[Path, Any] = field(default_factory=dict)
    _choices: dict[str, list[str]] = field(default_factory=dict)

    @functools.cached_property
    def scaled(self) -> dict[str, Stored]:
        """Experiments by scale (`app.scale`), which reads all of their files: only where experiments matter."""
        return store_scales([self.conf, *self.extra], self._says(WHOLE) - self._says(self.name))

    @property
    def base(self) -> list[str]:
        """Overrides that go into every composition."""
        folders = ",".join(f"'file://{folder.resolve()}'" for folder in self.extra)
        return [f"hydra.searchpath=[{folders}]"] if folders else []

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parse overrides one by one, so that the malformed one is named."""
        parser, parsed = OverridesParser.create(self.loader), []
        for text in overrides:
            try:
                parsed += parser.parse_overrides([text])
            except HydraException as error:
                reason = re.sub(r"\s*See https\S+.*", "", one_line(error))
                key, equals, value = text.partition("=")
                how = f"; a text with such characters is typed as {for_shell(key, value)}" if equals else ""
                raise UserError(f"option '{text}': not of the form key=value ({reason}){how}") from error
        for override in parsed:
            if override.key_or_group == "hydra.searchpath":
                raise UserError(f"option '{override.input_line}': use --config-dir FOLDER instead")
            if override.is_hydra_override() and override.is_sweep_override():
                raise UserError(
                    f"option '{override.input_line}': a sweep cannot be over Hydra's own keys; give one value"
                )
            self._check_choice(override)
        return parsed

    def is_group(self, name: str) -> bool:
        """Whether the name is a config group such as `method` or `hydra/launcher`."""
        return bool(self.choices(name))

    def choices(self, group: str) -> list[str]:
        """The options of a group; none for what is not a group, as no name with a dot is (asking Hydra takes long)."""
        if "." in group:
            return []
        if group not in self._choices:
            with self._user_errors():
                found = self.loader.get_group_options(group, config_name=self.name, overrides=self.base)
            self._choices[group] = [
                name for name in found if not name.startswith("_") and not self._at_scale(f"{group}/{name}")
            ]
        return self._choices[group]

    def spelt(self, overrides: Sequence[str]) -> list[str]:
        """The overrides with `scale=` said in the way of Hydra's store."""
        named = any(text.partition("=")[0] in (GROUP, "scale") for text in overrides)
        return spelt(overrides, self.scaled if named else {})

    def compose(self, overrides: Sequence[str], multirun: bool = False) -> DictConfig:
        """Compose one configuration, Hydra's own node included; a mistake in any file becomes a `UserError`.

        Keys that no file sets are let in: the schema decides about them, not the files.
        """
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        return self._gated(self.opened(overrides), mode, overrides)

    def _gated(self, opened: Sequence[str], mode: RunMode, overrides: Sequence[str]) -> DictConfig:
        """The one way to a configuration: composed, and what it says to Hydra is checked before anybody acts on it."""
        with self._user_errors():
            config = self._loaded([*self.base, *opened], mode)
        lookup = functools.cache(lambda: self.origin(overrides))  # costs a composition
        check_hydra(config, lambda path: lookup()(path))
        return config

    def _loaded(self, overrides: list[str], mode: RunMode) -> DictConfig:
        try:
            return self.loader.load_configuration(self.name, overrides, mode, from_shell=True)
        except MissingConfigException as error:
            if "scaled" in vars(self) or not self._at_scale(str(error.missing_cfg_file)):
                raise
        return self.loader.load_configuration(self.name, overrides, mode, from_shell=True)  # a file named a scale

    def _at_scale(self, name: str) -> bool:
        """Whether Hydra's name of a file is that of an experiment at a scale."""
        return name.startswith(f"{GROUP}/") and name in self.scaled

    def launcher(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The launcher's values for the opened overrides of a sweep."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        plain = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
        config = self._gated(plain, RunMode.MULTIRUN, plain)
        with self._user_errors():
            node: dict[str, Any] = OmegaConf.to_container(config.hydra.launcher, resolve=True)  # type: ignore[assignment]
        return node

    def opened(self, overrides: Sequence[str], keep: Collection[str] = ()) -> list[str]:
        """Spell `key=value` as `++key=value` unless it chooses from a group, speaks to Hydra or is in `keep`."""
        opened = []
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            text = str(override.input_line)
            plain = not (override.is_add() or override.is_force_add() or override.is_delete())
            own = not override.is_hydra_override() and not self.is_group(override.key_or_group)
            opened.append(f"++{text}" if plain and own and override.key_or_group not in keep else text)
        return opened

    def origin(self, overrides: Sequence[str]) -> OriginOf:
        """Return the lookup from a key to the option or file that set it last."""
        with self._user_errors():
            every = [*self.base, *self.opened(overrides)]
            defaults = self.loader.compute_defaults_list(self.name, every, RunMode.RUN).defaults
        options, files = [], []
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if not self.is_group(override.key_or_group):
                options.append((tuple(override.key_or_group.split(".")), str(override.input_line)))
        for default in defaults:
            file = self._file(str(default.config_path))
            if file is not None:
                package = tuple((default.package or "").split(".")) if default.package else ()
                name = str(default.config_path)
                files.append((file, package, self.scaled[name].content if self._at_scale(name) else self._load(file)))
        # the root file first, for a key that no file sets; Hydra's own groups before what refers to them
        files.sort(
            key=lambda one: 0 if one[0].stem == self.name and not one[1] else 1 if one[1][:1] == ("hydra",) else 2
        )
        return OriginOf(options, files)

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turn what Hydra, OmegaConf and YAML say about a configuration into one line."""
        try:
            yield
        except MissingConfigException as error:
            group, _, name = str(error.missing_cfg_file or "").rpartition("/")
            parent = re.match(r"In '([^']+)'", str(error))
            where = self._overriding(group, name) or self._named(parent[1] if parent else self.name)
            if group and not self.is_group(group):
                raise unknown("group", group, self.loader.list_groups(""), where) from error
            there = [one for one in error.options or [] if not self._at_scale(f"{group}/{one}")]
            raise _no_such_choice(group, name, there, where) from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{shown(Path(mark.name))}:{mark.line + 1}" if mark else "a YAML file"
            raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
        except KeyError as error:
            raise UserError(f"hydra.job.env_copy: there is no environment variable {error}; export it first") from error
        except (HydraException, OmegaConfBaseException) as error:
            text = one_line(error if str(error) else error.__cause__ or error) + _spelt(error)
            text = re.sub(r"\w+ raised while composing config:; ", "", text)
            lacking = re.search(r"Could not override '(\w+)'\. No match in the defaults list", text)
            if lacking:
                text += f" {self.name}.py has no group '{lacking[1]}'; it is for another command, such as evaluate.py"
            raise UserError(re.sub(r"In '([^']+)'", lambda m: self._named(m[1]), text, count=1)) from error

    def _file(self, name: str) -> Path | None:
        """Find the file of a configuration that Hydra calls `name`."""
        if self._at_scale(name):
            return self.scaled[name].file
        return next((f for folder in self._folders() if (f := folder / f"{name}.yaml").exists()), None)

    def _named(self, name: str) -> str:
        return shown(self._file(name) or Path(f"{name}.yaml"))

    def _overriding(self, group: str, name: str) -> str | None:
        """Name the file that makes this choice for another one, which Hydra does not tell."""
        group, name = re.escape(group), re.escape(name)
        choice = re.compile(rf"override\s+/?{group}\s*:\s*['\"]?{name}['\"]?\s*(#|$)", re.MULTILINE)
        files = (file for folder in self._folders() for file in sorted(folder.rglob("*.yaml")))
        return next((shown(file) for file in files if choice.search(file.read_text(encoding="utf-8"))), None)

    def _folders(self) -> list[Path]:
        own = [Path(source.path) for source in self.loader.get_sources() if source.scheme() == "file"]
        return [*own, *self.extra]

    def _load(self, file: Path) -> Any:
        if file not in self._files:
            self._files[file] = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        return self._files[file]

    def _says(self, root: str) -> set[str]:
        """The groups and keys of a root configuration; none where there is no such file."""
        file = self.conf / f"{root}.yaml"
        node = (self._load(file) if file.exists() else None) or {}
        return {*map(str, node), *map(group_of, node.get("defaults") or [])}

    def _check_choice(self, override: Override) -> None:
        """Refuse a choice that its group does not have."""
        group = override.key_or_group
        if override.is_delete() or not self.is_group(group):
            return
        value = override.value()
        if override.is_discrete_sweep():
            chosen = list(override.sweep_string_iterator())
        else:
            chosen = [str(one) for one in value] if isinstance(value, list) else [str(value)]
        for name in chosen:
            name = name.strip("'\"")
            known = name in self.choices(group) or self._at_scale(f"{group}/{name}")
            if not known and not (group == GROUP and name in ("null", "None")):
                raise _no_such_choice(group, name, self.choices(group), f"option '{override.input_line}'")


@contextlib.contextmanager
def open_composer(name: str, conf: Path, extra: Path | None = None) -> Iterator[Composer]:
    """Open the folder `conf` (and one more, searched after it) to compose the root configuration `name`."""
    for folder in (conf, extra):
        if folder is not None and not folder.is_dir():
            raise UserError(f"--config-dir: no such folder: {folder}")
    if not (conf / f"{name}.yaml").exists():
        raise unknown("configuration", name, [f.stem for f in conf.glob("*.yaml")], f"{conf}")
    check_search(conf / f"{name}.yaml")
    with initialize_config_dir(str(conf.resolve()), job_name=name, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        others = [extra] if extra else []
        forget_scales()
        yield Composer(name, loader, conf, others)


def _spelt(error: BaseException | None) -> str:
    """The nearest key to one that Hydra's schema does not have, for the end of a message."""
    while error is not None:
        key, node = getattr(error, "key", None), getattr(error, "parent_node", None)
        if isinstance(error, OmegaConfBaseException) and key is not None and isinstance(node, DictConfig):
            near = nearest(str(key), [str(one) for one in node])
            return f"; did you mean '{near}'?" if near and near != key else ""
        error = error.__cause__ or error.__context__
    return ""


def _no_such_choice(group: str, name: str, choices: list[str], where: str) -> UserError:
    plugin = "submitit"
    installed = any(choice.startswith(plugin) for choice in choices)
    if group == "hydra/launcher" and name.startswith(plugin) and not installed:
        return UserError(f"{where}: launcher '{name}' needs a plugin; pip install 'tdaexp[cluster]'")
    return unknown(group or "configuration", name, choices, where, hint=choice_hint(group, name))
