"""What the metrics that are judged by retraining, by another step or by known faults are called, and what they say."""

from __future__ import annotations

TITLES = {
    "lds_same": "LDS, same start",
    "lds_own": "LDS, own start",
    "leave_one_out_same": "leave-one-out, same start",
    "leave_one_out_own": "leave-one-out, own start",
    "removal_same": "removal in nats, same start",
    "removal_own": "removal in nats, own start",
    "brittleness_same": "smallest share that flips an answer, same start",
    "brittleness_own": "smallest share that flips an answer, own start",
    "flipped_same": "answers that flip, same start",
    "flipped_own": "answers that flip, own start",
    "keeping_same": "kept rows against random ones in nats, same start",
    "keeping_own": "kept rows against random ones in nats, own start",
    "tail_patch": "tail-patch in nats",
    "mislabelled_auc": "faulty rows by self-influence, AUC",
    "mislabelled_found": "faulty rows among the first looked at",
    "duplicate_found": "queries whose best row is their own copy",
    "duplicates_apart": "scores of copies apart",
    "linearity": "how smooth the training is: share of a real change that the exact derivative misses",
}
"""What each metric is called for people."""
OWN_START = "The same with models that have starts and batches of their own, whose doing is noise to every score."
EXPLAINED = {
    "lds_same": (
        "Linear datamodeling score: rank correlation, over random subsets of the training examples, of a "
        "method's summed scores with what a model answers that was trained on the subset, from the explained start in "
        "its batches."
    ),
    "lds_own": (
        "The same with models that have starts and batches of their own; no score can foretell what those do to an "
        "answer, and the noise ceiling is what a perfect one would reach."
    ),
    "leave_one_out_same": (
        "Rank correlation, over single examples, of their scores with how much less likely the answer is of a model "
        "that was trained without the one."
    ),
    "leave_one_out_own": OWN_START,
    "removal_same": (
        "How much less likely an answer is of a model that was trained without the rows that the method holds for the "
        "best, against models without as many random rows. Above 0: those rows carried more of the answer."
    ),
    "removal_own": OWN_START,
    "brittleness_same": (
        "The smallest share of the rows, best ones first, without which a model answers otherwise; the lower, the "
        "better. An answer that no share flips counts the largest one that was tried."
    ),
    "brittleness_own": OWN_START,
    "flipped_same": "The share of the answers that flip without any of these shares of the rows.",
    "flipped_own": OWN_START,
    "keeping_same": (
        "How much likelier answers are of a model that was trained on the rows alone that the method holds for the "
        "best, against models on as many random rows. Half of the queries decided which rows are kept, the other half "
        "is asked."
    ),
    "keeping_own": OWN_START,
    "tail_patch": (
        "How much likelier an answer is after one more step of plain gradient descent on one of the method's best "
        "rows. Above 0: the step helps."
    ),
    "mislabelled_auc": (
        "The probability that a row that is known to be faulty has more self-influence than a sound one; 0.5 is chance."
    ),
    "mislabelled_found": "The share of the faulty rows among the first by self-influence.",
    "duplicate_found": "The share of the queries that repeat a training row whose highest score is their copy's.",
    "duplicates_apart": (
        "How far scores of a row and its repetition are apart, as a share of how far those of random rows are."
    ),
    "linearity": (
        "What the sums of the exact derivative's scores miss of the change of real trainings without some of the "
        "examples, as a share of it. The nearer to 0 the smoother is the training; beyond 1, zeros foretell better."
    ),
}
