"""Classification metrics against scikit-learn, closed forms, and what a reader relies on."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from jointdiff.evaluate.bootstrap import group_weights, percentile_interval
from jointdiff.evaluate.classification import (
    JOINT,
    PER_FINDING,
    Cases,
    certainty_of_class,
    conformal_bound,
    read_cost,
    read_predictions,
    score_predictions,
    youden_threshold,
)
from jointdiff.evaluate.scores import parse_protocol
from tests.properties import examples

RUN = {
    "spec": {"dataset": "phantom", "labels": "50", "variant": "joint", "seed": 0, "size": 32},
    "code_version": "c0de",
    "config_digest": "c0nf",
    "run_id": "r0",
}


def write_predictions(path: Path, scores, labels, groups=None, role=None, names=("nodule", "effusion"), **metadata):
    """Write a predictions.parquet of arrays (N, K)."""
    n, names = len(scores), names[: np.shape(scores)[1]]
    columns = {
        "sample_id": [f"s{i:05d}" for i in range(n)],
        "group": [str(g) for g in (range(n) if groups is None else groups)],
        "role": ["test"] * n if role is None else list(role),
        **{f"score:{name}": np.asarray(scores)[:, k].astype(np.float32) for k, name in enumerate(names)},
        **{f"label:{name}": np.asarray(labels)[:, k].astype(np.float32) for k, name in enumerate(names)},
    }
    table = pa.table(columns).replace_schema_metadata({k: v.encode() for k, v in metadata.items()})
    pq.write_table(table, path)
    return path


def rows_by(rows):
    return {(row["metric"], row["finding"]): row for row in rows}


@st.composite
def weighted_cases(draw):
    """Scores with many ties, labels of both kinds, whole-number weights that leave both kinds present."""
    n = draw(st.integers(2, 40))
    scores = np.array(draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))) / 12
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), float)
    labels[:2] = 0, 1
    weights = np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), float)
    weights[:2] = np.maximum(weights[:2], 1)
    return Cases(scores, labels, scores >= 0.5), weights


@examples(150)
@given(weighted_cases())
def test_metrics_equal_scikit_learn_with_sample_weights(sample):
    cases, weights = sample
    both = np.stack([weights, np.ones_like(weights)], axis=1)
    y, p, called = cases.labels, cases.scores, cases.decided
    for column, w in enumerate(both.T):
        expected = {
            "auroc": reference.roc_auc_score(y, p, sample_weight=w),
            "average_precision": reference.average_precision_score(y, p, sample_weight=w),
            "accuracy": reference.accuracy_score(y, called, sample_weight=w),
            "balanced_accuracy": reference.balanced_accuracy_score(y, called, sample_weight=w),
            "f1": reference.f1_score(y, called, sample_weight=w),
            "sensitivity": reference.recall_score(y, called, sample_weight=w),
            "specificity": reference.recall_score(1 - y, ~called, sample_weight=w),
            "brier": reference.brier_score_loss(y, p, sample_weight=w),
            "nll": reference.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7), sample_weight=w),
        }
        for metric, value in expected.items():
            ours = PER_FINDING[metric](cases, both)[column]
            assert ours == pytest.approx(value, abs=1e-9 if metric != "nll" else 1e-6), metric


@examples(50)
@given(st.integers(0, 10_000))
def test_one_of_k_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, scores = rng.integers(0, 3, 30), rng.dirichlet(np.ones(3), 30)
    truth[:3] = 0, 1, 2
    cases = Cases(scores, np.eye(3)[truth], scores.argmax(1)[:, None] == np.arange(3))
    weights = rng.integers(1, 4, (30, 1)).astype(float)
    guess, w = scores.argmax(1), weights[:, 0]
    expected = {
        "accuracy": reference.accuracy_score(truth, guess, sample_weight=w),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, guess, sample_weight=w),
        "nll": reference.log_loss(truth, scores, sample_weight=w),
        "brier": np.average(((scores - np.eye(3)[truth]) ** 2).sum(1), weights=w),
    }
    for metric, value in expected.items():
        assert JOINT[metric](cases, weights)[0] == pytest.approx(value, abs=1e-9), metric


def test_calibration_error_and_risk_coverage_equal_their_definitions():
    rng = np.random.default_rng(0)
    p, y, w = rng.random(200), rng.integers(0, 2, 200).astype(float), rng.integers(0, 3, 200).astype(float)
    cases = Cases(p, y, p >= 0.5)
    error = 0.0
    for b in range(15):
        inside = (p >= b / 15) & (p < (b + 1) / 15)
        error += abs((w[inside] * (y[inside] - p[inside])).sum()) / w.sum()
    assert PER_FINDING["ece"](cases, w[:, None])[0] == pytest.approx(error, abs=1e-12)
    order = np.argsort(-np.abs(p - 0.5))
    wrong = (cases.decided != (y > 0.5))[order]
    w_sorted, area = w[order], 0.0
    for i in range(200):
        if w_sorted[: i + 1].sum():
            area += w_sorted[i] * np.average(wrong[: i + 1], weights=w_sorted[: i + 1])
    assert PER_FINDING["aurc"](cases, w[:, None])[0] == pytest.approx(area / w.sum(), abs=1e-12)


@examples(60)
@given(weighted_cases(), st.sampled_from([0.9, 0.8, 0.7, 0.5]))
def test_the_accuracy_of_the_surest_cases_counts_each_case_as_often_as_it_weighs(sample, share):
    cases, weights = sample
    times = weights.astype(int)
    certainty, right = (
        np.repeat(values, times) for values in (np.abs(cases.scores - 0.5), cases.decided == (cases.labels > 0.5))
    )
    needed = math.ceil(share * len(right) - 1e-9)
    kept = certainty >= np.sort(certainty)[::-1][needed - 1]
    ours = PER_FINDING[f"accuracy_kept_{share:g}"](cases, weights[:, None])[0]
    assert ours == pytest.approx(right[kept].mean(), abs=1e-12)


def test_the_surest_classes_are_those_of_the_risk_coverage_curve():
    rng = np.random.default_rng(3)
    p, truth = rng.dirichlet(np.ones(4), 50), rng.integers(0, 4, 50)
    cases = Cases(p, np.eye(4)[truth], np.eye(4, dtype=bool)[p.argmax(1)])
    surest = np.argsort(stats.entropy(p, axis=1))
    for share in (0.9, 0.5):
        expected = (p.argmax(1) == truth)[surest[: round(50 * share)]].mean()
        assert JOINT[f"accuracy_kept_{share:g}"](cases, np.ones((50, 1)))[0] == pytest.approx(expected)


def test_a_conformal_bound_is_the_rank_that_its_definition_asks_for():
    truth = np.linspace(0.05, 0.95, 19)  # 19 cases: the ceil(20 * .9) = 18th smallest of 1 - p
    assert conformal_bound(truth) == pytest.approx(np.sort(1 - truth)[17])
    assert conformal_bound(truth[:9]) == pytest.approx(1 - truth[0]), "nine cases: the largest"
    assert conformal_bound(truth[:8]) == math.inf, "eight cannot promise nine tenths"


def test_prediction_sets_by_hand():
    scores = np.array([0.95, 0.6, 0.2])
    cases = Cases(scores, np.array([1.0, 0.0, 1.0]), scores >= 0.5, conformal=0.45)
    ones = np.ones((3, 1))
    # .95: {present}, true; .6: {present}, though absent; .2: {absent}, though present.
    assert PER_FINDING["conformal_coverage"](cases, ones)[0] == pytest.approx(1 / 3)
    assert PER_FINDING["conformal_size"](cases, ones)[0] == pytest.approx(1.0)
    wide = Cases(scores, cases.labels, cases.decided, conformal=0.6)
    # .6 is now in doubt: {absent, present}.
    assert PER_FINDING["conformal_coverage"](wide, ones)[0] == pytest.approx(2 / 3)
    assert PER_FINDING["conformal_size"](wide, ones)[0] == pytest.approx(4 / 3)
    p = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    classes = Cases(p, np.eye(3)[[0, 1]], np.eye(3, dtype=bool)[[0, 0]], conformal=0.62)
    assert JOINT["conformal_coverage"](classes, np.ones((2, 1)))[0] == 0.5
    assert JOINT["conformal_size"](classes, np.ones((2, 1)))[0] == 1.0


def test_prediction_sets_hold_the_truth_as_often_as_they_promise(tmp_path):
    """Of 400 exchangeable draws, coverage is Beta(l, n + 1 - l) over calibrations (Vovk 2012), of mean l / (n + 1)."""
    rng = np.random.default_rng(0)
    calibrated, tested, covered = 30, 200, []
    for _ in range(400):
        truth = rng.beta(3, 2, calibrated + tested)  # how probable a miscalibrated model finds the true state
        covered.append((1 - truth[calibrated:] <= conformal_bound(truth[:calibrated])).mean())
    rank = math.ceil((calibrated + 1) * 0.9)
    expected = stats.betabinom(tested, rank, calibrated + 1 - rank)
    error = 4 * expected.std() / tested / math.sqrt(400)
    assert np.mean(covered) == pytest.approx(expected.mean() / tested, abs=error)
    assert np.std(covered) == pytest.approx(expected.std() / tested, rel=0.2)


def test_sets_are_calibrated_on_validation_cases_with_known_labels(tmp_path):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (60, 1)).astype(float), rng.random((60, 1)).astype(np.float32)
    labels[:5] = np.nan
    role = ["validation"] * 40 + ["test"] * 20
    cell = read_predictions(write_predictions(tmp_path / "p.parquet", scores, labels, role=role))
    truth = np.where(labels == 1, scores, 1 - scores)[5:40, 0]
    assert cell.conformal == (pytest.approx(conformal_bound(truth)),) and cell.validated == 40
    coverage = cell.macro("conformal_coverage", np.ones((20, 1)))[0]
    inside = 1 - np.where(labels == 1, scores, 1 - scores)[40:, 0] <= conformal_bound(truth)
    assert coverage == pytest.approx(inside.mean())


def test_of_classes_the_surest_case_is_that_of_the_least_entropy():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 50)
    np.testing.assert_allclose(certainty_of_class(p), 1 - stats.entropy(p, base=4, axis=1), atol=1e-8)
    votes = np.array([[0.6, 0.4, 0.0, 0.0], [0.0, 0.4, 0.0, 0.6], [0.6, 0.2, 0.1, 0.1]])
    sure = certainty_of_class(votes)
    assert sure[0] == sure[1] > sure[2], "where two are left, more is known than where all are"
    labels = np.eye(4)[rng.integers(0, 4, 50)]
    cases = Cases(p, labels, np.eye(4, dtype=bool)[p.argmax(1)])
    wrong = (p.argmax(1) != labels.argmax(1))[np.argsort(stats.entropy(p, axis=1))]
    area = np.mean([wrong[: i + 1].mean() for i in range(50)])
    assert JOINT["aurc"](cases, np.ones((50, 1)))[0] == pytest.approx(area, abs=1e-12)


def test_all_draws_at_once_equal_one_draw_at_a_time():
    rng = np.random.default_rng(1)
    scores, labels = rng.random(60).round(1), rng.integers(0, 2, 60).astype(float)
    cases = Cases(scores, labels, scores >= 0.5)
    weights = next(group_weights(np.repeat(np.arange(20), 3), draws=25))
    for name, metric in PER_FINDING.items():
        one_by_one = [metric(cases, weights[:, b : b + 1])[0] for b in range(25)]
        np.testing.assert_allclose(metric(cases, weights), one_by_one, atol=1e-12, err_msg=name)


def test_a_draw_repeats_whole_groups_and_is_the_same_for_everybody():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    weights = np.concatenate(list(group_weights(groups, draws=50)), axis=1)
    assert weights.shape == (6, 50)
    for name in "abc":
        assert (weights[groups == name] == weights[groups == name][0]).all()
    per_group = np.stack([weights[groups == name][0] for name in "abc"])
    assert (per_group.sum(0) == 3).all()
    np.testing.assert_array_equal(weights, np.concatenate(list(group_weights(groups, draws=50)), axis=1))


def test_blocks_of_draws_do_not_change_them(monkeypatch):
    groups = np.arange(40)
    whole = np.concatenate(list(group_weights(groups, draws=30)), axis=1)
    monkeypatch.setattr("jointdiff.evaluate.bootstrap.MAX_CELLS", 200)
    pieces = list(group_weights(groups, draws=30))
    assert len(pieces) == 6
    np.testing.assert_array_equal(whole, np.concatenate(pieces, axis=1))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        sample = rng.random(80)
        weights = next(group_weights(rng.permutation(80).astype(str), draws=300))
        low, high = percentile_interval(sample @ weights / 80, 0.9)
        covered += low <= 0.5 <= high
    assert 0.82 <= covered / 200 <= 0.96


def test_rows_of_a_multi_label_cell(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300, 2)).astype(float)
    scores = 0.4 * labels + rng.random((300, 2)) * 0.6
    role = ["validation"] * 100 + ["test"] * 200
    path = write_predictions(
        tmp_path / "p.parquet", scores, labels, np.arange(300) // 2, role, cost='{"ms_per_image": 2.5}'
    )
    rows = rows_by(score_predictions(path, RUN, bootstrap=200))
    row = rows["auroc", "nodule"]
    test = labels[100:, 0], scores[100:, 0].astype(np.float32)
    assert row["value"] == pytest.approx(reference.roc_auc_score(*test), abs=1e-9)
    assert row["ci_low"] < row["value"] < row["ci_high"] and row["n"] == 200
    facts = parse_protocol(row["protocol"])
    assert facts["groups"] == "100" and facts["threshold_from"] == "validation" and facts["size"] == "32"
    both = [rows["auroc", name]["value"] for name in ("nodule", "effusion")]
    assert rows["auroc", "macro"]["value"] == pytest.approx(np.mean(both))
    threshold = float(facts["threshold"])
    assert rows["sensitivity", "nodule"]["value"] == pytest.approx(
        reference.recall_score(test[0], test[1] >= threshold), abs=0.02
    )
    assert (row["dataset"], row["labels"], row["method"], row["seed"], row["run_id"]) == (
        "phantom",
        "50",
        "joint",
        0,
        "r0",
    )
    assert read_cost(path) == {"ms_per_image": 2.5}


def test_one_of_k_is_decided_by_the_largest_score(tmp_path):
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 4, 200), rng.dirichlet(np.ones(4), 200)
    path = write_predictions(tmp_path / "p.parquet", scores, np.eye(4)[truth], names=("a", "b", "c", "d"))
    assert read_predictions(path).kind == "one_of_k"
    rows = rows_by(score_predictions(path, RUN, bootstrap=20))
    kept = scores.astype(np.float32)
    assert rows["accuracy", "macro"]["value"] == pytest.approx((kept.argmax(1) == truth).mean())
    assert rows["auroc", "macro"]["value"] == pytest.approx(
        np.mean([reference.roc_auc_score(truth == k, kept[:, k]) for k in range(4)])
    )
    assert ("accuracy", "a") not in rows and ("auroc", "a") in rows
    assert rows["f1", "macro"]["value"] == pytest.approx(reference.f1_score(truth, kept.argmax(1), average="macro"))


def test_metadata_says_which_kind_when_labels_cannot(tmp_path):
    labels = np.eye(2)[[0, 1, 0, 1]]
    path = write_predictions(tmp_path / "p.parquet", np.full((4, 2), 0.5), labels, kind="multi_label")
    assert read_predictions(path).kind == "multi_label"


def test_a_finding_without_positives_is_a_gap_with_its_reason(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(0, 2, 50), np.zeros(50)], axis=1).astype(float)
    path = write_predictions(tmp_path / "p.parquet", rng.random((50, 2)), labels)
    rows = rows_by(score_predictions(path, RUN, bootstrap=20))
    gap = rows["auroc", "effusion"]
    assert math.isnan(gap["value"]) and parse_protocol(gap["protocol"])["reason"] == "no positives"
    assert rows["auroc", "macro"]["value"] == rows["auroc", "nodule"]["value"]
    assert parse_protocol(rows["auroc", "macro"]["protocol"])["findings"] == "1 of 2"
    assert rows["specificity", "effusion"]["value"] >= 0


def test_unknown_labels_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (80, 2)).astype(float), rng.random((80, 2)).astype(np.float32)
    labels[:30, 0] = np.nan
    rows = rows_by(score_predictions(write_predictions(tmp_path / "p.parquet", scores, labels), RUN, bootstrap=20))
    assert rows["auroc", "nodule"]["n"] == 50
    assert rows["auroc", "nodule"]["value"] == pytest.approx(reference.roc_auc_score(labels[30:, 0], scores[30:, 0]))


def test_the_threshold_maximises_youdens_index_on_validation():
    labels = np.array([0, 0, 0, 1, 1, 1.0])
    assert youden_threshold(np.array([0.1, 0.2, 0.3, 0.4, 0.8, 0.9]), labels) == pytest.approx(0.35)
    assert youden_threshold(np.array([0.1, 0.3, 0.6, 0.5, 0.8, 0.9]), labels) == pytest.approx(0.4)
    assert youden_threshold(np.array([0.1, 0.2, np.nan]), np.array([1, 1, np.nan])) == 0.5


@examples(100)
@given(weighted_cases())
def test_no_other_threshold_separates_better(sample):
    cases, _ = sample

    def gain(threshold):
        called = cases.scores >= threshold
        return called[cases.labels > 0].mean() - called[cases.labels == 0].mean()

    best = gain(youden_threshold(cases.scores, cases.labels))
    assert best >= max(gain(cut) for cut in [*cases.scores, 2.0]) - 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["group"]), "lacks the column 'group'"),
        (lambda t: t.set_column(2, "role", pa.array(["validation"] * 4)), "role 'test'"),
        (lambda t: t.set_column(3, "score:nodule", pa.array([0.1, 2.0, 0.3, 0.4])), "outside \\[0, 1\\]"),
        (lambda t: t.set_column(3, "score:nodule", pa.array([0.1, math.nan, 0.3, 0.4])), "outside \\[0, 1\\]"),
        (lambda t: t.select(["sample_id", "group", "role"]), "no column 'score:"),
    ],
)
def test_a_broken_table_is_one_clear_message(tmp_path, change, message):
    path = write_predictions(tmp_path / "p.parquet", np.full((4, 2), 0.5), np.zeros((4, 2)))
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def test_the_same_predictions_give_the_same_rows(tmp_path):
    rng = np.random.default_rng(0)
    path = write_predictions(tmp_path / "p.parquet", rng.random((40, 2)), rng.integers(0, 2, (40, 2)))
    assert json.dumps(score_predictions(path, RUN, bootstrap=50)) == json.dumps(
        score_predictions(path, RUN, bootstrap=50)
    )


def test_a_thousand_draws_take_less_than_three_seconds(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (600, 3)).astype(float)
    scores = np.clip(labels * 0.3 + rng.random((600, 3)) * 0.7, 0, 1)
    path = write_predictions(tmp_path / "p.parquet", scores, labels, names=("a", "b", "c"))
    start = time.process_time()
    assert len(score_predictions(path, RUN)) == 4 * len(PER_FINDING)
    assert time.process_time() - start < 3
