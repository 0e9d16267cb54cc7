"""The package wandb-workspaces, an extra: imported where it is needed, and where views go: into a file, or to wandb."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdaexp.report.mirrored import Mirrored
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import write_json

log = logging.getLogger(__name__)
FILE = "dashboard.json"
INSTALL = "pip install 'tdaexp[dashboards]'"


def check_installed(key: str) -> None:
    """Refuse `key` in one line where the package is missing."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(f"{key}: needs the package wandb-workspaces; {INSTALL}")


def workspaces() -> Any:
    """The module of workspaces and their sections."""
    return _imported("wandb_workspaces.workspaces")


def reports() -> Any:
    """The module of reports, which has the panels too."""
    return _imported("wandb_workspaces.reports.v2")


def expressions() -> Any:
    """The module of filters and orderings."""
    return _imported("wandb_workspaces.expr")


def these_runs(runs: Sequence[Mirrored]) -> Any:
    """The filter that lets these runs through and no others."""
    ex = expressions()
    return ex.And(ex.Metric("ID").isin([run.id for run in runs]))


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pydantic's, about the package
        return importlib.import_module(name)


def specification(view: Any) -> dict[str, Any]:
    """A workspace or a report as wandb's server takes it, plain values; nothing is sent."""
    found: dict[str, Any] = view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


def deliver(view: Any, told: Mirrored, folder: Path) -> None:
    """Write a view's specification into the run folder and, of a run that is sent, save it in wandb.

    Errors (UserError): wandb refuses it.
    """
    write_json(folder / FILE, specification(view))
    if told.offline:
        log.info(
            "%s: written, nothing was sent; `wandb sync` the runs, then the same command with logger.mode=online "
            "opens it in wandb",
            folder / FILE,
        )
        return
    try:
        view.save()
    except Exception as error:  # the package wraps nothing: wandb's errors, the server's, those of its own checks
        reason = " ".join(str(error).split())
        raise UserError(f"dashboard: wandb did not take it ({reason}); {folder / FILE} holds it") from error
    log.info("dashboard: %s", view.url)
