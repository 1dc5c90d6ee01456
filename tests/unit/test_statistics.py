"""Summaries and comparisons against closed forms and simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.evaluate.classification import Predictions
from jointdiff.evaluate.scores import Identity, format_protocol, score_row
from jointdiff.report.statistics import (
    Scores,
    compare_with_base,
    compare_with_best,
    holm,
    risk_at,
    summarise,
    two_sided_p,
)


def row(value, seed=0, reason=None, **changes):
    identity = Identity("phantom", changes.pop("labels", "50"), changes.pop("method", "joint"), seed, "c", "d", "r")
    settings = {
        "metric": changes.pop("metric", "auroc"),
        "value": value,
        "interval": (value - 0.1, value + 0.1),
        "n": 10,
    }
    return score_row(identity, **settings, protocol=format_protocol(reason=reason, **changes))


def predictions(skill, *, seed=0, n=300, noise=0):
    """Make one finding whose score is its label times ``skill`` plus noise shared by all methods."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 1)).astype(float)
    own = np.random.default_rng(1000 + noise).normal(size=(n, 1))
    scores = 1 / (1 + np.exp(-(skill * (2 * labels - 1) + rng.normal(size=(n, 1)) + 0.3 * own)))
    groups = np.array([f"{seed}-{i // 2}" for i in range(n)])
    ids = np.array([f"{seed}-{i}" for i in range(n)])
    return Predictions(
        ("a",), "multi_label", ids, groups, scores, labels, scores >= 0.5, (0.5,), "validation", (math.inf,), 0
    )


def test_a_summary_is_the_mean_and_sample_deviation_over_seeds():
    summary = summarise([row(0.8, 0), row(0.9, 1)])
    assert summary.mean == pytest.approx(0.85) and summary.sd == pytest.approx(0.1 / math.sqrt(2))
    assert (summary.low, summary.high) == pytest.approx((0.75, 0.95)) and summary.seeds == 2 and not summary.reason
    assert math.isnan(summarise([row(0.8)]).sd)


def test_a_gap_keeps_its_reason_and_is_never_a_zero():
    gap = summarise([row(math.nan, 0, "weights absent"), row(math.nan, 1, "weights absent")])
    assert math.isnan(gap.mean) and gap.reason == "weights absent" and gap.seeds == 0
    partly = summarise([row(0.8, 0), row(math.nan, 1, "training diverged")])
    assert partly.mean == 0.8 and partly.reason == "1 of 2 seeds: training diverged"
    assert "few images" in summarise([row(0.8, flag="few images")]).reason


def test_budgets_leave_out_all_unless_it_is_the_only_one():
    assert Scores([row(0.5), row(0.5, labels="200"), row(0.5, labels="all")]).budgets("phantom") == ["50", "200"]
    assert Scores([row(0.5, labels="all")]).budgets("phantom") == ["all"]


def test_methods_named_first_keep_their_order_and_others_follow_by_name():
    scores = Scores([row(0.5, method=name) for name in ("random", "fixmatch", "joint")])
    assert scores.ordered(("joint",)) == ["joint", "fixmatch", "random"]


def test_rows_of_one_metric_are_parted_by_their_facts():
    rows = [row(0.1 * n, metric="vote_calls", rule=rule, trials=n) for rule in ("race", "mean") for n in (1, 5)]
    scores = Scores([*rows, row(0.7, map="grad_cam"), row(0.9, method="other"), row(0.5, 1, method="other")])
    assert scores.summary("phantom", "50", "joint", "vote_calls", rule="race", trials="5").mean == 0.5
    assert scores.summary("phantom", "50", "joint", "auroc", map="grad_cam").mean == 0.7
    assert math.isnan(scores.summary("phantom", "50", "joint", "vote_calls").mean)
    assert scores.trials("phantom", "50", "joint") == {"race": [1, 5], "mean": [1, 5]}
    assert scores.places("phantom", "50", "joint", "auroc") == ["grad_cam"]
    assert scores.trials("phantom", "50", "other") == {}


def test_a_difference_of_rows_is_over_the_seeds_that_both_have():
    values = {"joint": (0.9, 0.8, 0.1), "other": (0.7, 0.7)}
    scores = Scores([row(v, seed, method=m) for m, column in values.items() for seed, v in enumerate(column)])
    gap = scores.difference("phantom", "50", "joint", "other", "auroc")
    assert gap.mean == pytest.approx(0.15) and gap.sd == pytest.approx(0.1 / math.sqrt(2)) and gap.seeds == 2
    assert math.isnan(scores.difference("phantom", "50", "joint", "nobody", "auroc").mean)


def test_holm_equals_the_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.6])[0] == 1.0 and math.isnan(holm([0.5, math.nan, 0.6])[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(c >= p and c <= 1 for c, p in zip(corrected, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(corrected)[order]) >= 0)


def test_the_p_value_counts_draws_on_the_smaller_side():
    assert two_sided_p(np.array([1.0, 2.0, 3.0, -1.0])) == pytest.approx(2 * 2 / 5)
    assert two_sided_p(np.ones(999)) == pytest.approx(2 / 1000)
    assert two_sided_p(np.zeros(99)) == 1
    assert math.isnan(two_sided_p(np.array([math.nan])))


def test_a_clear_difference_is_seen_and_none_is_not_invented():
    cells = {}
    for seed in (0, 1):
        cells["good", seed] = predictions(1.5, seed=seed)
        cells["twin", seed] = predictions(1.5, seed=seed, noise=1)
        cells["bad", seed] = predictions(0.2, seed=seed, noise=2)
    found = compare_with_best(cells, "auroc", methods=["bad", "twin", "good"], draws=300)
    best = found["good"].other
    assert best in ("good", "twin") and found[best].difference == 0 and not found[best].different
    assert found["bad"].different and found["bad"].p < 0.02 and found["bad"].difference > 0.1
    twin = next(name for name in ("good", "twin") if name != best)
    assert not found[twin].different


def test_the_best_of_an_error_is_the_smallest():
    cells = {("good", 0): predictions(1.5), ("bad", 0): predictions(0.2)}
    assert compare_with_best(cells, "brier", methods=["bad", "good"], draws=50)["bad"].other == "good"


def test_equal_predictions_are_never_different():
    cells = {("a", 0): predictions(1.0), ("b", 0): predictions(1.0)}
    found = compare_with_best(cells, "auroc", methods=["a", "b"], draws=50)
    assert found["b"].p == 1 and found["b"].difference == 0


def test_a_variant_is_compared_with_its_base_alone():
    cells = {}
    for seed in (0, 1):
        cells["base", seed] = predictions(1.0, seed=seed)
        cells["twin", seed] = predictions(1.0, seed=seed, noise=1)
        cells["worse", seed] = predictions(0.3, seed=seed, noise=2)
        cells["best", seed] = predictions(2.5, seed=seed, noise=3)
    bases = {"twin": "base", "worse": "base", "absent": "base"}
    found = compare_with_base(cells, "auroc", bases=bases, draws=300)
    assert set(found) == {"twin", "worse"}
    worse = found["worse"]
    assert (
        worse.different and worse.low < worse.difference < worse.high < 0 and (worse.other, worse.seeds) == ("base", 2)
    )
    assert not found["twin"].different and found["twin"].low < 0 < found["twin"].high
    back = compare_with_base(cells, "auroc", bases={"base": "worse"}, draws=300)["base"]
    assert back.difference == pytest.approx(-worse.difference) and back.low == pytest.approx(-worse.high)
    # The sign is that of the number, whichever way is better.
    assert compare_with_base(cells, "brier", bases={"worse": "base"}, draws=50)["worse"].difference > 0


def test_the_intervals_of_differences_hold_their_level():
    """Twins differ by nothing: about one interval of twenty misses zero."""
    missed = 0
    for seed in range(60):
        cells = {("a", 0): predictions(0.8, seed=seed, n=120, noise=seed)}
        cells["b", 0] = predictions(0.8, seed=seed, n=120, noise=500 + seed)
        found = compare_with_base(cells, "auroc", bases={"b": "a"}, draws=200)["b"]
        missed += not found.low <= 0 <= found.high
    assert missed / 60 <= 0.15


def test_the_comparison_holds_its_level():
    """Two methods of equal skill differ at level .05 in about one of twenty data sets."""
    wrong = 0
    for seed in range(60):
        cells = {("a", 0): predictions(0.8, seed=seed, n=120, noise=seed)}
        cells["b", 0] = predictions(0.8, seed=seed, n=120, noise=500 + seed)
        wrong += sum(c.different for c in compare_with_best(cells, "auroc", methods=["a", "b"], draws=200).values())
    assert wrong / 60 <= 0.15


def test_a_method_with_fewer_seeds_is_compared_on_those_it_has():
    cells = {("a", 0): predictions(1.5), ("a", 1): predictions(1.5, seed=1), ("b", 0): predictions(0.2)}
    found = compare_with_best(cells, "auroc", methods=["a", "b"], draws=100)
    assert found["b"].different and set(found) == {"a", "b"}


def test_other_test_cases_are_refused():
    with pytest.raises(ValueError, match="b was tested on other cases"):
        compare_with_best({("a", 0): predictions(1.0), ("b", 0): predictions(1.0, n=200)}, "auroc", methods=["a", "b"])


def test_nothing_to_compare_is_no_comparison():
    assert compare_with_best({}, "auroc", methods=["a"]) == {}


def test_the_mean_risk_over_all_shares_is_the_area_that_is_scored():
    findings = predictions(1.0, n=60)
    findings = replace(findings, scores=findings.scores.round(1))  # with ties
    every = np.arange(1, 61) / 60
    assert risk_at(findings, every).mean() == pytest.approx(findings.macro("aurc", np.ones((60, 1)))[0])
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(4), 60)
    labels, decided = np.eye(4)[rng.integers(0, 4, 60)], np.eye(4, dtype=bool)[scores.argmax(1)]
    classes = replace(findings, names=tuple("abcd"), kind="one_of_k", scores=scores, labels=labels, decided=decided)
    assert risk_at(classes, every).mean() == pytest.approx(classes.macro("aurc", np.ones((60, 1)))[0])
    assert risk_at(classes, np.array([1.0]))[0] == pytest.approx(1 - classes.macro("accuracy", np.ones((60, 1)))[0])


def test_what_is_unknown_takes_no_part_in_the_risk():
    cell = predictions(1.0, n=40)
    labels = cell.labels.copy()
    labels[20:] = np.nan
    known = replace(cell, scores=cell.scores[:20], labels=cell.labels[:20], decided=cell.decided[:20])
    share = np.array([0.3, 1.0])
    assert risk_at(replace(cell, labels=labels), share) == pytest.approx(risk_at(known, share))
    assert np.isnan(risk_at(replace(cell, labels=np.full((40, 1), np.nan)), share)).all()
