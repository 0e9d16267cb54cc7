"""A decomposition over checkpoints by parameter type and by depth (ExPLAIND, figures 6, 14 and 15).

Values are changes of the loss, in the paper's sign: negative is learning. The store's own sign is the opposite.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp.metrics.selection import describe
from tdaexp.runtime.errors import UserError

PARTS = ("influence", "regularisation", "first_moment")
VIEWS = ("type", "depth")


def loss_changes(store: xr.Dataset) -> pd.DataFrame:
    """One row per part, component and step: its change of the loss, summed over groups (columns part, component, type,
    depth, step, loss_change). Depth is the layer's number; other components have their own name there.

    Errors (UserError): the store does not tell components apart.
    """
    if "component" not in store.dims:
        raise UserError("influence store: components were summed; run attribute.py with method.keep=[step,component]")
    names = [str(name) for name in store["component"].values]
    kinds = describe(names, store["size"].values)
    depth = [name if np.isnan(at) else f"layer {at:.0f}" for name, at in zip(names, kinds["depth"], strict=True)]
    frames = []
    for part in PARTS:
        values = store[part].sum([axis for axis in store[part].dims if axis not in ("component", "step")])
        changes = -values.transpose("component", "step").values
        for place, name in enumerate(names):
            columns = {"part": part, "component": name, "type": kinds["type"][place], "depth": depth[place]}
            steps = {"step": store["step"].values, "loss_change": changes[place]}
            frames.append(pd.DataFrame({**columns, **steps}))
    return pd.concat(frames, ignore_index=True)


def grouped(changes: pd.DataFrame, part: str, view: str) -> pd.DataFrame:
    """Steps × groups of a view (`type` or `depth`), in the model's order: the summed changes of the loss of a part."""
    own = changes[changes["part"] == part]
    table = own.pivot_table(index="step", columns=view, values="loss_change", aggfunc="sum", sort=False)
    return table[list(dict.fromkeys(own[view]))]
