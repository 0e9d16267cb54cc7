"""What a plan needs to know of training records that are kept in a store: a few of them are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tdaexp.data.record_store import RecordStore
from tdaexp.data.records import Record
from tdaexp.data.sizes import COUNTED, Sizes


def sizes_of_stored(records: RecordStore, sized: Callable[[list[Record]], Sizes]) -> Sizes:
    """Sizes of all examples of the records from those of `COUNTED` records: the longest, and others for all the rest.

    `sized` gives the sizes of the examples that some records become.
    """
    if len(records) <= COUNTED:
        return sized(list(records))
    order = np.argsort(-records.characters, kind="stable")
    longest, rest = np.split(order, [COUNTED // 2])
    some = np.random.default_rng(0).permutation(rest)[: COUNTED - len(longest)]
    known, others = (sized([records[int(place)] for place in places]) for places in (longest, some))
    count = round(len(others) * len(rest) / len(some))
    return Sizes.joined([known, Sizes(np.resize(others.tokens, count), np.resize(others.predicted, count))])
