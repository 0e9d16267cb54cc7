"""How near two checkpoints are, component by component (Bao et al. 2025, section 5.2 and Figure 2).

Multi-stage influence assumes that fine-tuning moves parameters little. Per component: the distance ‖θ_ft − θ_pt‖₂ and
its share of ‖θ_pt‖₂, over weights of linear layers, biases left out, as in the paper.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from tdaexp.metrics.selection import describe
from tdaexp.models.components import Component, component_map
from tdaexp.models.loaded import LoadedModel
from tdaexp.models.parts import Part
from tdaexp.models.successor import shared_components

LINEAR = ("linear", "conv1d", "expert")


def proximity(before: LoadedModel, after: LoadedModel) -> pd.DataFrame:
    """One row per shared linear component inside the blocks: `component`, `type`, `depth`, `size`, `distance`, `norm`
    (of the weights before) and `relative`, distance over norm. Norms are formed in float64.
    """
    shared, _ = shared_components(component_map(before.model), component_map(after.model))
    linear = [one for one in shared.components if one.parts[0].kind in LINEAR and one.name.startswith("layers.")]
    rows = []
    for component in linear:
        old, new = (_weight(loaded.model, component) for loaded in (before, after))
        rows.append({"distance": float((new - old).norm()), "norm": float(old.norm())})
    table = describe([one.name for one in linear], [one.size for one in linear])
    table = pd.concat([table, pd.DataFrame(rows, columns=["distance", "norm"])], axis=1)
    return table.assign(relative=table["distance"] / table["norm"])


def flat_proximity(table: pd.DataFrame) -> dict[str, float]:
    """Of all components together: `proximity/distance_sq`, `proximity/relative`; and the largest relative one."""
    squared = float((table["distance"] ** 2).sum())
    return {
        "proximity/distance_sq": squared,
        "proximity/relative": (squared / float((table["norm"] ** 2).sum())) ** 0.5,
        "proximity/largest_relative": float(table["relative"].max()),
    }


def _weight(model: nn.Module, component: Component) -> Tensor:
    """A component's weights as one vector, float64 on the CPU."""
    return torch.cat([_rows(model.get_submodule(part.module), part) for part in component.parts])


def _rows(module: nn.Module, part: Part) -> Tensor:
    weight = getattr(module, part.parameters[0].rpartition(".")[2] if part.parameters else "weight")
    weight = weight if part.expert is None else weight[part.expert]
    assert isinstance(weight, Tensor)
    matrix = (weight.T if part.kind == "conv1d" else weight).detach().double().cpu()
    return (matrix if part.rows is None else matrix[torch.from_numpy(part.rows)]).flatten()
