"""Time greedy ordering: the vectorised algorithm against a plain transcription of Algorithm 2, in one run.

    python benchmarks/greedy.py

Random products of the size of the OLMo-1B study (988 queries × 5 candidates × 113 components). The
transcription is timed on a tenth of the queries, and so is the vectorised algorithm for the ratio.
"""

import math
import time

import numpy as np

from tdaexp.influence import EPSILON
from tdaexp.selection.greedy import greedy_order

QUERIES, CANDIDATES, COMPONENTS = 988, 5, 113
LIMIT_S = 2.0


def random_products(queries: int):
    rng = np.random.default_rng(0)
    truth = np.zeros((queries, CANDIDATES), bool)
    truth[:, 0] = True
    dot = rng.normal(size=(queries, CANDIDATES, COMPONENTS)) + 0.1 * truth[:, :, None]
    query_sq = rng.uniform(1, 2, (queries, COMPONENTS))
    return dot, query_sq, rng.uniform(1, 2, (queries, CANDIDATES, COMPONENTS)), truth


def plain(dot, query_sq, train_sq, truth):
    """Algorithm 2 with accumulators, one number at a time."""
    dot, query_sq, train_sq, truth = (part.tolist() for part in (dot, query_sq, train_sq, truth))
    queries, remaining, order = range(len(dot)), list(range(COMPONENTS)), []
    sums = [
        [[0.0] * CANDIDATES for _ in queries],
        [0.0 for _ in queries],
        [[0.0] * CANDIDATES for _ in queries],
    ]
    while remaining:
        best, winner = -math.inf, remaining[0]
        for k in remaining:
            hits = 0
            for i in queries:
                source = rival = -math.inf
                own = math.sqrt(sums[1][i] + query_sq[i][k])
                for j in range(CANDIDATES):
                    norm = math.sqrt(sums[2][i][j] + train_sq[i][j][k])
                    score = (sums[0][i][j] + dot[i][j][k]) / (own * norm + EPSILON)
                    if truth[i][j]:
                        source = max(source, score)
                    else:
                        rival = max(rival, score)
                hits += source > rival
            if hits / len(dot) > best:
                best, winner = hits / len(dot), k
        order.append(winner)
        remaining.remove(winner)
        for i in queries:
            sums[1][i] += query_sq[i][winner]
            for j in range(CANDIDATES):
                sums[0][i][j] += dot[i][j][winner]
                sums[2][i][j] += train_sq[i][j][winner]
    return order


def timed(function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - start


def main() -> None:
    products = random_products(QUERIES)
    for objective in ("accuracy", "fidelity"):
        _, seconds = timed(greedy_order, *products, objective)
        verdict = "ok" if seconds < LIMIT_S else "TOO SLOW"
        print(f"{COMPONENTS} components by {objective:8} {seconds:6.2f} s CPU (limit {LIMIT_S} s: {verdict})")
    small = random_products(QUERIES // 10)
    (order, _), fast = timed(greedy_order, *small)
    slow_order, slow = timed(plain, *small)
    if order.tolist() != slow_order:
        raise SystemExit("the two orders differ")
    print(f"a tenth of the queries: plain {slow:.2f} s, vectorised {fast:.3f} s: {slow / fast:.0f} times")


if __name__ == "__main__":
    main()
