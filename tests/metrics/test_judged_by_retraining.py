"""LDS, leave-one-out, removal, brittleness, keeping: against trainings by hand, and scores with a known answer."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr
from small_bank import EXAMPLES, QUERIES, SETTINGS, by_hand, evidence, log_likelihoods, small_corpus

from tdaexp.metrics import retrained
from tdaexp.metrics.brittleness import judge_brittleness
from tdaexp.metrics.intervals import Interval
from tdaexp.metrics.judging_settings import Brittleness, Keeping, Lds, LeaveOneOut, Removal, Retraining
from tdaexp.metrics.keeping import ALL, gain, halved, judge_keeping
from tdaexp.metrics.lds import ceiling, judge_lds, subset
from tdaexp.metrics.leave_one_out import judge_leave_one_out, left_out
from tdaexp.metrics.removal import chance_interval, judge_removal, loss_interval, without
from tdaexp.metrics.retrained import CEILING, best_rows
from tdaexp.metrics.settings import MetricSettings
from tdaexp.objectives.classes import Classes
from tdaexp.runtime.errors import UserError

EVERYONE = np.ones(EXAMPLES, dtype=bool)
TARGETS = small_corpus().test.targets.numpy()


@pytest.fixture(scope="module")
def settings() -> MetricSettings:
    return MetricSettings(
        bootstrap=200,
        lds=Lds(subsets=40, left_out=0.1, ceiling=0),
        leave_one_out=LeaveOneOut(examples=25),
        removal=Removal(share=0.05, queries=QUERIES, random=4),
        brittleness=Brittleness(shares=[0.05, 0.1, 0.2, 0.3], queries=QUERIES, random=2),
        keeping=Keeping(share=0.75, repeats=2, random=4),
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory, settings):
    """The evidence, whose bank all tests share."""
    return evidence(tmp_path_factory.mktemp("cache"), settings)


@pytest.fixture(scope="module")
def effects() -> np.ndarray:
    """What each example does for each query [Q, N], by hand."""
    whole = log_likelihoods(EVERYONE)
    return np.stack([whole - log_likelihoods(without(EXAMPLES, np.array([row]))) for row in range(EXAMPLES)], axis=1)


def values(judged, metric: str) -> dict[str, Interval]:
    return {one.label: one.interval for one in judged if one.metric == metric}


def test_the_models_are_those_by_hand(found):
    members = [EVERYONE, without(EXAMPLES, np.array([3, 4, 17]))]
    outputs = found.outputs([found.variant(member, "same", 0) for member in members], "test")
    np.testing.assert_allclose(outputs, [log_likelihoods(member) for member in members], atol=2e-6)


def test_answers_are_of_the_problems_objective(found):
    """What was kept of one is not given for another."""

    class Doubled(Classes):
        def losses(self, *arguments):
            return 2 * super().losses(*arguments)

    variants = [found.variant(EVERYONE, "same", 0)]
    plain = found.outputs(variants, "test")
    other = dataclasses.replace(found, problem=dataclasses.replace(found.problem, objective=Doubled()))
    np.testing.assert_allclose(other.outputs(variants, "test"), 2 * plain)


def test_a_measurement_of_ones_own_that_was_edited_is_asked_again(tmp_path, settings, monkeypatch):
    one = evidence(tmp_path, settings)
    for source in ("def mine(): 1", "def mine(): 1", "def mine(): 2"):
        monkeypatch.setattr(retrained, "sources", lambda name, source=source: [source])
        one.outputs([one.variant(EVERYONE, "same", 0)], "all")
    assert len(list((tmp_path / "retrained").glob("*.npz"))) == 2


def test_a_damaged_file_of_answers_is_named(tmp_path, settings):
    one = evidence(tmp_path, settings)
    variants = [one.variant(EVERYONE, "same", 0)]
    one.outputs(variants, "test")
    (file,) = (tmp_path / "retrained").glob("[!.]*.npz")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=rf"{file.name}: damaged .*; delete it and run again"):
        one.outputs(variants, "test")


def test_lds_is_scipys_of_trainings_by_hand(found, effects):
    members = np.stack([subset(EXAMPLES, 0.9, 0, number) for number in range(40)])
    outputs = np.stack([log_likelihoods(member) for member in members])
    judged = values(judge_lds(found, {"effects": effects, "wrong": -effects}), "lds_same")
    wanted = np.mean([spearmanr(members @ effects[q], outputs[:, q]).statistic for q in range(QUERIES)])
    assert judged["effects"].value == pytest.approx(wanted, abs=1e-3) and wanted > 0.95
    assert judged["wrong"].value == pytest.approx(-judged["effects"].value)


def test_planted_noise_gives_the_known_lds(found):
    """Scores whose sums are the retrained measurement plus noise of its size: ρ = 6/π asin(1/√8)."""
    members = np.stack([subset(EXAMPLES, 0.9, 0, number) for number in range(40)])
    outputs = found.outputs([found.variant(member, "same", j) for j, member in enumerate(members)], "test")
    generator = np.random.default_rng(3)

    def planted(noise: float) -> np.ndarray:
        wanted = outputs + noise * outputs.std(0) * generator.standard_normal(outputs.shape)
        return (np.linalg.pinv(members.astype(float)) @ wanted).T

    scores = {"exact": planted(0), "noisy": planted(1), "chance": generator.standard_normal((QUERIES, EXAMPLES))}
    judged = values(judge_lds(found, scores), "lds_same")
    assert judged["exact"].value > 0.9999
    assert judged["noisy"].low < 6 / np.pi * np.arcsin(1 / np.sqrt(8)) < judged["noisy"].high
    assert judged["chance"].low < 0 < judged["chance"].high and judged["noisy"].low > judged["chance"].value


def test_the_noise_ceiling_is_what_the_signal_reaches():
    """Of signal and noise of the same size the ceiling is the rank correlation of the signal with their sum."""
    signal, noise = np.random.default_rng(1).standard_normal((2, 20_000))
    assert ceiling(noise.var()[None], (signal + noise).var()[None])[0] == pytest.approx(
        spearmanr(signal, signal + noise).statistic, abs=0.02
    )
    assert ceiling(np.zeros(1), np.ones(1))[0] == pytest.approx(1) and ceiling(np.ones(1), np.ones(1))[0] == 0


def test_own_starts_have_a_ceiling(found, settings, effects):
    own = dataclasses.replace(
        settings, lds=Lds(subsets=8, left_out=0.3, ceiling=4), retraining=Retraining(starts=["own"])
    )
    judged = values(judge_lds(dataclasses.replace(found, settings=own), {"effects": effects}), "lds_own")
    assert 0 <= judged[CEILING].value <= 1 and np.isnan(judged[CEILING].low)
    assert -1 <= judged["effects"].value <= 1


def test_leave_one_out_of_trainings_by_hand(found, effects):
    noise = np.random.default_rng(0).standard_normal(effects.shape)
    judged = values(
        judge_leave_one_out(found, {"exact": effects, "wrong": -effects, "chance": noise}), "leave_one_out_same"
    )
    assert judged["exact"].value > 0.999 and judged["wrong"].value == -judged["exact"].value
    rows = left_out(EXAMPLES, 25, 0)
    assert len(set(rows)) == 25 and (np.diff(rows) > 0).all()
    wanted = np.mean([spearmanr(noise[q, rows], effects[q, rows]).statistic for q in range(QUERIES)])
    assert judged["chance"].value == pytest.approx(wanted, abs=1e-2)
    assert judged["chance"].low < wanted < judged["chance"].high


def test_removal_of_trainings_by_hand(found, effects):
    judged = values(judge_removal(found, {"exact": effects, "wrong": -effects}), "removal_same")
    generator = np.random.default_rng([0, 3])  # 5 % of 60
    by_chance = np.mean(
        [log_likelihoods(without(EXAMPLES, generator.choice(EXAMPLES, 3, replace=False))) for _ in range(4)], axis=0
    )
    for label, scores in (("exact", effects), ("wrong", -effects)):
        left = [log_likelihoods(without(EXAMPLES, np.argsort(-scores[q])[:3]))[q] for q in range(QUERIES)]
        assert judged[label].value == pytest.approx(np.mean(by_chance - left), abs=2e-6)
        assert judged[label].low <= judged[label].value <= judged[label].high
    assert judged["exact"].low > 0 > judged["wrong"].high
    assert judged["exact"].value > judged["random"].value > judged["wrong"].value


def test_intervals_of_removal():
    """Equal queries leave the chance of random removals alone, equal removals that of queries: σ/√n of each."""
    generator, settings = np.random.default_rng(0), MetricSettings(bootstrap=2000)
    removals = np.tile(generator.standard_normal(100)[:, None], (1, 5))
    one = loss_interval(removals, np.full(5, 2.0), settings)
    assert one.value == pytest.approx(removals.mean() - 2)
    assert one.high - one.low == pytest.approx(2 * 1.96 * removals[:, 0].std() / 10, rel=0.1)
    queries = generator.standard_normal(100)
    two = loss_interval(np.zeros((3, 100)), queries, settings)
    assert two.value == pytest.approx(-queries.mean())
    assert two.high - two.low == pytest.approx(2 * 1.96 * queries.std() / 10, rel=0.1)
    chance = chance_interval(np.array([[1.0, 1.0], [3.0, 7.0]]), settings)
    assert chance.value == ((3 - 1) + (1 - 7)) / 2


def test_brittleness_of_trainings_by_hand(found, settings, effects):
    judged = judge_brittleness(found, {"exact": effects, "wrong": -effects})
    shares, sizes = settings.brittleness.shares, [3, 6, 12, 18]
    right = np.flatnonzero(by_hand(EVERYONE).argmax(1) == TARGETS)
    assert 0 < len(right) < QUERIES  # some are not asked
    for label, scores in (("exact", effects), ("wrong", -effects)):
        smallest = []
        for q in right:
            order = np.argsort(-scores[q])
            flips = [by_hand(without(EXAMPLES, order[:size]))[q].argmax() != TARGETS[q] for size in sizes]
            smallest.append(flips.index(True) if any(flips) else len(sizes))
        wanted = np.array([*shares, shares[-1]])[smallest].mean()
        assert values(judged, "brittleness_same")[label].value == pytest.approx(wanted)
        assert values(judged, "flipped_same")[label].value == np.mean(np.array(smallest) < len(sizes))
        assert [one.queries for one in judged if one.label == label] == [len(right)] * 2
    assert values(judged, "flipped_same")["exact"].value > values(judged, "flipped_same")["wrong"].value
    assert values(judged, "brittleness_same")["exact"].value < values(judged, "brittleness_same")["random"].value


def test_keeping_of_trainings_by_hand(found, effects):
    """One half of the queries decides by its mean score, the other is asked."""
    judged = values(judge_keeping(found, {"exact": effects, "wrong": -effects}), "keeping_same")
    deciding, judging = halved(np.arange(QUERIES), "test", 0)
    assert sorted([*deciding, *judging]) == list(range(QUERIES)) and len(deciding) == len(judging)
    generator = np.random.default_rng([0, 45])  # 75 % of 60
    drawn = [only(generator.choice(EXAMPLES, 45, replace=False)) for _ in range(4)]
    by_chance = np.mean([log_likelihoods(member)[judging] for member in drawn])
    for label, scores in (("exact", effects), ("wrong", -effects)):
        kept = only(np.argsort(-scores[deciding].mean(0), kind="stable")[:45])
        assert judged[label].value == pytest.approx(log_likelihoods(kept)[judging].mean() - by_chance, abs=2e-6)
        assert judged[label].low <= judged[label].value <= judged[label].high
    assert judged[ALL].value == pytest.approx(log_likelihoods(EVERYONE)[judging].mean() - by_chance, abs=2e-6)
    assert judged["exact"].value > judged["wrong"].value


def test_what_judges_decides_nothing(found, effects):
    """Other scores of the queries that judge keep the same rows."""
    _, judging = halved(np.arange(QUERIES), "test", 0)
    other = effects.copy()
    other[judging] = -other[judging]
    one = values(judge_keeping(found, {"a": effects, "b": other}), "keeping_same")
    assert one["a"] == one["b"]


def test_keeping_with_own_starts_repeats_its_trainings(found, settings, effects, caplog):
    own = dataclasses.replace(
        settings, keeping=Keeping(share=0.5, repeats=3, random=2), retraining=Retraining(starts=["own"])
    )
    with caplog.at_level("INFO"):
        judged = values(judge_keeping(dataclasses.replace(found, settings=own), {"a": effects}), "keeping_own")
    assert "8 models are trained again" in caplog.text and set(judged) == {"a", ALL}


def test_keeping_asks_for_two_queries(found, effects):
    alone = np.full_like(effects, np.nan)
    alone[2] = effects[2]
    with pytest.raises(UserError, match=r"metric.keeping: test: fewer than two queries that every run answers"):
        judge_keeping(found, {"one": alone})


def test_intervals_of_keeping():
    """Of queries, trainings and random rows: σ/√n of what varies."""
    generator, settings = np.random.default_rng(0), MetricSettings(bootstrap=2000)
    queries = generator.standard_normal(100)
    one = gain(np.tile(queries, (3, 1)), np.zeros((2, 100)), settings)
    assert one.value == pytest.approx(queries.mean())
    assert one.high - one.low == pytest.approx(2 * 1.96 * queries.std() / 10, rel=0.1)
    rows = np.tile(generator.standard_normal(100)[:, None], (1, 4))
    two = gain(np.ones((3, 4)), rows, settings)
    assert two.value == pytest.approx(1 - rows.mean())
    assert two.high - two.low == pytest.approx(2 * 1.96 * rows[:, 0].std() / 10, rel=0.1)


def only(rows: np.ndarray) -> np.ndarray:
    return ~without(EXAMPLES, rows)


def test_best_rows():
    scores = np.array([1.0, np.nan, 3, 3, -1])
    assert best_rows(scores, 3).tolist() == [2, 3, 0] and best_rows(scores, 9).tolist() == [2, 3, 0, 4]


def test_a_constant_measurement(tmp_path, settings, effects):
    still = dataclasses.replace(SETTINGS, steps=0)
    for judge, key in ((judge_lds, "lds"), (judge_leave_one_out, "leave_one_out")):
        with pytest.raises(UserError, match=f"metric.{key}: the log_likelihood of every query is the same"):
            judge(evidence(tmp_path, settings, still), {"effects": effects})


def test_scores_of_other_queries(found, effects):
    other = np.full_like(effects, np.nan)
    for judge in (judge_removal, judge_brittleness):
        with pytest.raises(UserError, match=r"name runs of the same queries"):
            judge(found, {"one": effects, "other": other})


def test_a_removal_that_leaves_a_class_empty(found, settings, effects):
    by_class = np.where(small_corpus().train.targets.numpy() == TARGETS[:, None], 1.0, 0.0)
    wide = dataclasses.replace(
        found, settings=dataclasses.replace(settings, brittleness=Brittleness(shares=[0.05, 0.4]))
    )
    with pytest.raises(UserError, match=r"brittleness, 24 rows: leaves no example of class \d; leave fewer out"):
        judge_brittleness(wide, {"class": by_class})
    wide = dataclasses.replace(found, settings=dataclasses.replace(settings, removal=Removal(share=0.34)))
    with pytest.raises(UserError, match="removal of 20 rows, same start: leaves no example of class"):
        judge_removal(wide, {"class": by_class})
