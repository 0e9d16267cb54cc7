"""What an analysis is: evidence in, findings out; `python evaluate.py analysis=NAME`. One analysis is one file.

Write a dataclass here that derives from `Analysis`, and `conf/analysis/NAME.yaml` with its `_target_` and values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import xarray as xr

from tdaexp.building.tasks import load_task
from tdaexp.metrics.labels import distinct_labels
from tdaexp.report.findings import Findings
from tdaexp.runtime import cache as cache_folder
from tdaexp.runtime.code import Work
from tdaexp.runtime.errors import UserError
from tdaexp.training.task import TrainedTask, check_pair


@dataclass(frozen=True)
class Evidence:
    """What an analysis may look at: the checked configuration (model, dataset, trainer, seed, cache_dir) and stores.

    `stores` are those of `runs`, in their order; each carries the attributes `method`, `label`, `config` and `cost`.
    """

    config: Any
    stores: list[xr.Dataset] = field(default_factory=list)

    @cached_property
    def task(self) -> TrainedTask:
        """The configured classification task, trained now where the cache has none.

        Errors (UserError): model and data are not both of a task.
        """
        check_pair(self.config.model, self.config.dataset)
        return load_task(self.config)

    def labelled(self) -> dict[str, xr.Dataset]:
        """The stores by labels that tell them apart."""
        return dict(zip(distinct_labels(self.stores), self.stores, strict=True))

    def find(self, *, need: str, **attributes: Any) -> xr.Dataset:
        """The last store whose attributes have these values; `need` says in words which one, and how it is made.

        Errors (UserError): there is none.
        """
        for store in reversed(self.stores):
            if all(store.attrs.get(name) == value for name, value in attributes.items()):
                return store
        raise UserError(f"runs: no store has {need}")

    def cache(self, kind: str, *depends_on: Any, by: Work) -> Path:
        """Folder for what `by` computes, one for each value of `depends_on`."""
        return cache_folder.entry(Path(self.config.cache_dir), kind, *depends_on, by=[by])


@dataclass
class Analysis(ABC):
    """One study; a subclass's fields are the keys of its YAML file.

    `needs_runs`: it cannot start without stores; `needs_task`: it is about a classification task.
    """

    needs_runs: ClassVar[bool] = True
    needs_task: ClassVar[bool] = False

    @abstractmethod
    def run(self, evidence: Evidence) -> Findings:
        """Do the work, resumably, and say what was found."""
