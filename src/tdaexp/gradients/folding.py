"""An example that is several rows of a batch: its gradient is the sum over its rows.

With G = Σ_t δ_t a_tᵀ a sum over positions, rows that belong together are one row that is as many times as long: their
positions, one behind the other. What is summed over positions already is summed over the rows too.
"""

from __future__ import annotations

from torch import Tensor

from tdaexp.gradients.assembly import Consumer
from tdaexp.gradients.factors import EmbeddingFactors, Factors, LinearFactors, TiedFactors, VectorFactors
from tdaexp.models.components import Component


def folding(consume: Consumer, rows: int) -> Consumer:
    """A consumer of batches with `rows` rows for each example, one behind the other."""

    def take(components: list[Component], factors: list[Factors]) -> None:
        shared: dict[int, Tensor] = {}  # components that read the same input still share one tensor
        consume(components, [folded(one, rows, shared) for one in factors])

    return take


def folded(factors: Factors, rows: int, shared: dict[int, Tensor]) -> Factors:
    """Factors of N examples from those of N × rows rows; `shared` remembers the inputs that were folded."""
    if isinstance(factors, VectorFactors):
        return VectorFactors(factors.gradient.unflatten(0, (-1, rows)).sum(1))
    if isinstance(factors, TiedFactors):
        embedding, head = folded(factors.embedding, rows, shared), folded(factors.head, rows, shared)
        assert isinstance(embedding, EmbeddingFactors) and isinstance(head, LinearFactors)
        return TiedFactors(embedding, head)
    if isinstance(factors, EmbeddingFactors):
        return EmbeddingFactors(
            _side_by_side(factors.ids, rows), _side_by_side(factors.deltas, rows), factors.vocabulary
        )
    inputs = shared.setdefault(id(factors.inputs), _side_by_side(factors.inputs, rows))
    return LinearFactors(inputs, _side_by_side(factors.deltas, rows), factors.bias)


def _side_by_side(values: Tensor, rows: int) -> Tensor:
    """[N rows, T, …] as [N, rows T, …]."""
    found: Tensor = values.unflatten(0, (-1, rows)).flatten(1, 2)
    return found
