"""Configurations in less time: commands that run in a test's own process read the same files again and again."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import yaml
from hydra.core.config_store import ConfigStore

_PARSED: dict[tuple[str | bytes, str], Any] = {}


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Within it `yaml.load` knows the texts that it has parsed before; those with mistakes are read as ever.

    And Hydra's store, with all experiments at all scales, is not copied for each composition: nothing changes the copy.
    """
    plain = yaml.load

    def load(stream: Any, Loader: Any) -> Any:
        text = stream if isinstance(stream, (str, bytes)) else stream.read()
        key = (text, Loader.__name__)  # OmegaConf makes a new class each time
        if key not in _PARSED:
            if text is not stream:
                stream.seek(0)  # for its name, which mistakes are told with
            _PARSED[key] = plain(stream, Loader)
        return copy.deepcopy(_PARSED[key])

    def itself(store: ConfigStore, _: Any) -> ConfigStore:
        return store

    with mock.patch.object(yaml, "load", load), mock.patch.object(ConfigStore, "__deepcopy__", itself, create=True):
        yield
