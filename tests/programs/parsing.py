"""Configurations in less time: commands that run in a test's own process read the same files again and again."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import yaml
from commands import REPOSITORY
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

_PARSED: dict[tuple[str | bytes, str], Any] = {}
_LISTED: dict[tuple[str, ...], list[str]] = {}


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Within it `yaml.load` knows the texts that it has parsed before; those with mistakes are read as ever.

    What there is to choose from in conf/, which no test changes, is listed once. And Hydra's store, with all
    experiments at all scales, is not copied for each composition: nothing changes the copy. What a defaults list chose
    so far is put together only for a list that refers to it.
    """
    plain, listed, chosen = yaml.load, ConfigLoaderImpl.get_group_options, defaults_list._create_interpolation_map

    def load(stream: Any, Loader: Any) -> Any:
        text = stream if isinstance(stream, (str, bytes)) else stream.read()
        key = (text, Loader.__name__)  # OmegaConf makes a new class each time
        if key not in _PARSED:
            if text is not stream:
                stream.seek(0)  # for its name, which mistakes are told with
            _PARSED[key] = plain(stream, Loader)
        return copy.deepcopy(_PARSED[key])

    def options(loader: ConfigLoaderImpl, *arguments: Any, **keywords: Any) -> list[str]:
        places = [str(one.path).removeprefix("file://") for one in loader.get_search_path().get_path()]
        key = (*places, str(arguments), str(keywords))
        if str(REPOSITORY / "conf") not in places or "searchpath" in str(keywords):
            return list(listed(loader, *arguments, **keywords))
        if key not in _LISTED:
            _LISTED[key] = list(listed(loader, *arguments, **keywords))
        return list(_LISTED[key])

    def choices(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
        if any("${" in str(vars(one)) for one in defaults):
            return chosen(overrides, defaults, self_added)
        return OmegaConf.create()

    def itself(store: ConfigStore, _: Any) -> ConfigStore:
        return store

    with (
        mock.patch.object(yaml, "load", load),
        mock.patch.object(ConfigLoaderImpl, "get_group_options", options),
        mock.patch.object(defaults_list, "_create_interpolation_map", choices),
        mock.patch.object(ConfigStore, "__deepcopy__", itself, create=True),
    ):
        yield
