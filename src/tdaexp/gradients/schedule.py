"""Which examples run together, so that each training example is run as few times as memory allows.

A block is a run of queries whose captured gradients fit in memory together, and all their candidates: these
are run once per block, in batches of their own, sorted by length. Queries are ordered so that a block's
queries share candidates. The number of passes is then Q plus the distinct candidates of every block.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from tdaexp.data.examples import token_budget_batches
from tdaexp.runtime import seal
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import two


@dataclass(frozen=True)
class Block:
    """Batches of query numbers, which are held together, and of the training examples that they need."""

    queries: list[list[int]]
    train: list[list[int]]

    @property
    def members(self) -> list[int]:
        """The queries, in the order in which they are held."""
        return [query for batch in self.queries for query in batch]

    @property
    def rows(self) -> list[slice]:
        """Where the queries of each batch stand among the members."""
        return _consecutive([len(batch) for batch in self.queries])


def kept_plan(path: Path, blocks: list[Block]) -> list[Block]:
    """The blocks that are written down at `path`, or else write down `blocks` there and return them.

    Results may depend in their last bits on which examples share a batch, so a run that is resumed, perhaps
    with other memory, must go on with the plan that it began with.
    """
    if not path.exists():
        seal.write_note(path, [asdict(block) for block in blocks])
    try:
        plan = [Block(**block) for block in seal.read_note(path)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged plan ({error}); delete it and the store beside it") from error
    if sorted(listed(plan)) != sorted(listed(blocks)):
        raise UserError(f"{path}: a plan of another run; delete it and the store beside it")
    return plan


def listed(plan: list[Block]) -> list[int]:
    """The queries of all blocks, in the order in which they are worked on."""
    return [query for block in plan for query in block.members]


def rows_of(plan: list[Block]) -> list[slice]:
    """Where the queries of each block stand among all that are `listed`."""
    return _consecutive([len(block.members) for block in plan])


def _consecutive(lengths: list[int]) -> list[slice]:
    ends = np.cumsum(lengths).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def plan_blocks(
    pairs: np.ndarray,
    query_lengths: np.ndarray,
    train_lengths: np.ndarray,
    query_bytes: np.ndarray,
    tokens_per_batch: int,
    memory: float,
) -> list[Block]:
    """Cut the queries into blocks of at most `memory` bytes, and their candidates into batches.

    `pairs` [Q, C] int64, -1 where there is no candidate; lengths in tokens; `query_bytes` [Q] is what
    holding a query's captured gradient takes. A query that is larger than the memory is a block of its own.
    """
    blocks = []
    for queries in _cut(_query_order(pairs, query_lengths), query_bytes, memory):
        needed = np.unique(pairs[queries])
        needed = needed[needed >= 0]
        blocks.append(
            Block(
                _batches(queries, query_lengths, tokens_per_batch),
                _batches(needed, train_lengths, tokens_per_batch),
            )
        )
    return blocks


def halves(block: Block, pairs: np.ndarray) -> list[Block]:
    """A block in two, and all its batches in two; one block where it has one query, none where nothing can be cut.

    The queries keep their order; each half meets its own candidates.
    """
    members = block.members
    if len(members) == 1 and all(len(batch) == 1 for batch in block.train):
        return []
    middle, found = -(-len(members) // 2), []
    for part in (members[:middle], members[middle:]):
        kept, needed = set(part), set(pairs[part].ravel().tolist()) if part else set()
        if part:
            queries = [[query for query in batch if query in kept] for batch in block.queries]
            train = [[index for index in batch if index in needed] for batch in block.train]
            found.append(Block(_halved(queries), _halved(train)))
    return found


def _halved(batches: list[list[int]]) -> list[list[int]]:
    pieces = [piece for batch in batches for piece in two(batch) or [batch]]
    return [piece for piece in pieces if piece]


def _cut(order: np.ndarray, sizes: np.ndarray, limit: float) -> list[np.ndarray]:
    """Cut `order` into consecutive parts whose sizes add up to at most `limit`."""
    starts, held = [0], 0.0
    for place, index in enumerate(order):
        held += sizes[index]
        if held > limit and place > starts[-1]:
            starts.append(place)
            held = sizes[index]
    return np.split(order, starts[1:])


def _batches(examples: np.ndarray, lengths: np.ndarray, tokens_per_batch: int) -> list[list[int]]:
    """Batches of examples of similar length."""
    order = examples[np.argsort(lengths[examples], kind="stable")]
    return token_budget_batches(lengths, order.tolist(), tokens_per_batch)


def _query_order(pairs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """By length where all queries have all candidates; else the order that clusters shared candidates.

    Reverse Cuthill-McKee on the graph of queries and candidates brings queries with common candidates together.
    """
    queries, used = len(pairs), np.unique(pairs)
    used = used[used >= 0]
    if np.count_nonzero(pairs >= 0) == queries * len(used):
        return np.argsort(lengths, kind="stable")
    rows, columns = np.nonzero(pairs >= 0)
    candidate = np.searchsorted(used, pairs[rows, columns])
    nodes = queries + len(used)
    edges = csr_array((np.ones(len(rows)), (rows, queries + candidate)), shape=(nodes, nodes))
    order = reverse_cuthill_mckee((edges + edges.T).tocsr(), symmetric_mode=True)
    return np.asarray(order[order < queries].astype(np.int64))
