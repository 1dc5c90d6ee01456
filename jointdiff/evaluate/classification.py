"""Classification scores with bootstrap intervals. Light: numpy and pyarrow, no torch, no scikit-learn.

A metric is one function of cases and weights. ``weights`` is (n, B): column b says how often each case counts in
bootstrap draw b, so that a thousand draws are scored at once; the plain score has one column of ones. To add a metric,
write one function here and put ``@per_finding`` or ``@joint`` above it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jointdiff.arrow import read_parquet
from jointdiff.evaluate.bootstrap import percentile_interval, resample
from jointdiff.evaluate.scores import MACRO, NOWHERE, Identity, Row, format_protocol, score_row
from jointdiff.evaluate.voting import entropy

CALIBRATION_BINS = 15
SURE = (0.9, 0.8, 0.7, 0.5)  # shares of the cases that are kept when the most uncertain ones are left out
CONFORMAL_ERROR = 0.1  # how often a prediction set may miss the truth
CLIP = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm


@dataclass(frozen=True)
class Cases:
    """What a metric sees: (n,) for one finding, (n, K) for all classes of one-of-K together."""

    scores: np.ndarray  # probabilities in [0, 1]
    labels: np.ndarray  # 0 or 1, float
    decided: np.ndarray  # bool: the finding is called present
    conformal: float = math.inf  # a state is in the prediction set if it is at most so much less probable than 1


Metric = Callable[[Cases, np.ndarray], np.ndarray]  # weights (n, B) -> values (B,), NaN where undefined

PER_FINDING: dict[str, Metric] = {}  # on one finding, or one class against the rest; their mean is the macro score
JOINT: dict[str, Metric] = {}  # on all classes of one-of-K at once, in place of the one above


def per_finding(metric: Metric) -> Metric:
    """Register a metric of one finding under its function's name."""
    PER_FINDING[metric.__name__] = metric
    return metric


def joint(metric: Metric) -> Metric:
    """Register a metric of one-of-K classes under its function's name, less the suffix ``_joint``."""
    JOINT[metric.__name__.removesuffix("_joint")] = metric
    return metric


# --- Ranking ----------------------------------------------------------------------------------------------------------


@per_finding
def auroc(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting half."""
    positive, negative = _block_sums(cases.scores, cases.labels, weights, merge=(0, 1))
    below = np.cumsum(negative, axis=0) - negative / 2
    return ratio((positive * below).sum(0), positive.sum(0) * negative.sum(0))


@per_finding
def average_precision(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Average precision: the mean of precision over the steps in recall, without interpolation."""
    positive, negative = _block_sums(-cases.scores, cases.labels, weights, merge=(0,))
    found, called = np.cumsum(positive, axis=0), np.cumsum(positive + negative, axis=0)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return ratio((positive * precision).sum(0), positive.sum(0))


def _block_sums(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, merge: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of label 1 and of label 0 in blocks of rising score, each (blocks, B) of float64.

    A block holds cases of equal score, and also neighbours that all have one of the labels in ``merge``: where a curve
    does not depend on the order among those, this makes the sums over draws several times cheaper.
    """
    if not len(scores):
        return np.zeros((1, weights.shape[1])), np.zeros((1, weights.shape[1]))
    order = np.argsort(scores, kind="stable")
    scores, labels, weights = scores[order], labels[order].astype(weights.dtype), weights[order]
    ties = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    share = np.add.reduceat(labels.astype(np.float64), ties) / np.diff(np.r_[ties, len(labels)])
    starts = ties[np.r_[True, (share[1:] != share[:-1]) | ~np.isin(share[1:], merge)]]
    ones = np.add.reduceat(weights * labels[:, None], starts, axis=0).astype(np.float64)
    return ones, np.add.reduceat(weights, starts, axis=0).astype(np.float64) - ones


# --- Decisions --------------------------------------------------------------------------------------------------------


@per_finding
def sensitivity(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Share of positives that are called."""
    return _mean(cases.decided, weights, where=cases.labels > 0.5)


@per_finding
def specificity(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Share of negatives that are not called."""
    return _mean(~cases.decided, weights, where=cases.labels < 0.5)


@per_finding
def accuracy(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Share of cases decided rightly."""
    return _mean(~(cases.decided ^ (cases.labels > 0.5)), weights)


@joint
def accuracy_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Share of cases whose most probable class is the true one."""
    return _mean(_hits(cases), weights)


@per_finding
def balanced_accuracy(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Mean of sensitivity and specificity."""
    return (sensitivity(cases, weights) + specificity(cases, weights)) / 2


@joint
def balanced_accuracy_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes present of their sensitivity."""
    return mean_defined(np.stack([sensitivity(one, weights) for one in _classes(cases)]))


@per_finding
def f1(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and sensitivity."""
    positive = cases.labels > 0.5
    hits = _sum(cases.decided & positive, weights)
    return ratio(2 * hits, _sum(cases.decided, weights) + _sum(positive, weights))


# --- Probabilities ----------------------------------------------------------------------------------------------------


@per_finding
def ece(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of P(finding): weighted mean of |frequency - probability| over 15 equal bins."""
    return _calibration_error(cases.scores, cases.labels, weights)


@joint
def ece_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the most probable class (Guo et al. 2017, Eq. 3)."""
    return _calibration_error(cases.scores.max(1), _hits(cases), weights)


def _calibration_error(probability: np.ndarray, outcome: np.ndarray, weights: np.ndarray) -> np.ndarray:
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    member = bins == np.arange(CALIBRATION_BINS)[:, None]
    return ratio(np.abs((member * (outcome - probability)) @ weights).sum(0), weights.sum(0, dtype=np.float64))


@per_finding
def brier(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Mean squared error of P(finding), in [0, 1]."""
    return _mean((cases.scores - cases.labels) ** 2, weights)


@joint
def brier_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Mean over cases of the squared error summed over classes, in [0, 2] (Brier 1950)."""
    return _mean(((cases.scores - cases.labels) ** 2).sum(1), weights)


@per_finding
def nll(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of the label, in nats."""
    return _mean(-np.log(np.clip(_truth(cases), CLIP, 1)), weights)


@joint
def nll_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of the true class, in nats."""
    return _mean(-np.log(np.clip((cases.scores * cases.labels).sum(1), CLIP, 1)), weights)


@per_finding
def aurc(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve: mean error of the cases kept, surest first (Geifman & El-Yaniv 2017)."""
    return _area(*_risk_coverage(*_certainty_and_error(cases), weights))


@joint
def aurc_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve, the surest case being that of the least entropy."""
    return _area(*_risk_coverage(*_certainty_and_error_joint(cases), weights))


def _accuracy_kept(share: float) -> None:
    """Register the accuracy of the surest cases, at least this share of them, equals together."""

    def kept(cases: Cases, weights: np.ndarray) -> np.ndarray:
        return _accuracy_at(share, *_risk_coverage(*_certainty_and_error(cases), weights))

    def kept_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
        return _accuracy_at(share, *_risk_coverage(*_certainty_and_error_joint(cases), weights))

    PER_FINDING[f"accuracy_kept_{share:g}"], JOINT[f"accuracy_kept_{share:g}"] = kept, kept_joint


for _share in SURE:
    _accuracy_kept(_share)


def _certainty_and_error(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(cases.scores - 0.5), cases.decided ^ (cases.labels > 0.5)


def _certainty_and_error_joint(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    return certainty_of_class(cases.scores), 1 - _hits(cases)


def certainty_of_class(scores: np.ndarray) -> np.ndarray:
    """Return how sure probabilities (n, K) are of one class, (n,): 1 less their normalised entropy.

    Of a diffusion classifier this is the entropy of its votes. Of one finding it ranks as the distance from 1/2 does.
    """
    return np.round(1 - entropy(scores, kind="one_of_k"), 9)  # the same votes for other classes are equals


def _risk_coverage(certainty: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what has been kept, surest first, and the error among it, each (blocks, B)."""
    errors, right = _block_sums(-certainty, np.asarray(wrong, np.float64), weights, merge=())
    kept = np.cumsum(errors + right, axis=0)
    return kept, np.divide(np.cumsum(errors, axis=0), kept, out=np.zeros_like(kept), where=kept > 0)


def _area(kept: np.ndarray, risk: np.ndarray) -> np.ndarray:
    return ratio((np.diff(kept, axis=0, prepend=0.0) * risk).sum(0), kept[-1])


def _accuracy_at(share: float, kept: np.ndarray, risk: np.ndarray) -> np.ndarray:
    first = (kept >= share * kept[-1] - 1e-9).argmax(0)  # the first block with which enough is kept
    return np.where(kept[-1] > 0, 1 - np.take_along_axis(risk, first[None], axis=0)[0], np.nan)


# --- Prediction sets --------------------------------------------------------------------------------------------------


@per_finding
def conformal_coverage(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Share of cases whose true state, absent or present, is in the split conformal set (Sadinle et al. 2019)."""
    return _mean(1 - _truth(cases) <= cases.conformal, weights)


@joint
def conformal_coverage_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Share of cases whose true class is in the split conformal set."""
    return _mean(1 - (cases.scores * cases.labels).sum(1) <= cases.conformal, weights)


@per_finding
def conformal_size(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Mean number of states in the split conformal set, 0 to 2."""
    states = np.stack([1 - cases.scores, cases.scores])
    return _mean((1 - states <= cases.conformal).sum(0), weights)


@joint
def conformal_size_joint(cases: Cases, weights: np.ndarray) -> np.ndarray:
    """Mean number of classes in the split conformal set, 0 to K."""
    return _mean((1 - cases.scores <= cases.conformal).sum(1), weights)


def conformal_bound(truth: np.ndarray, *, error: float = CONFORMAL_ERROR) -> float:
    """Return by how much what is in a prediction set may fall short of certainty, from calibration cases (n,).

    ``truth`` is the probability that each gives to its true state. The bound is the ceil((n + 1)(1 - error))-th
    smallest of 1 - truth; with fewer cases than that it is infinite, and every state is in the set. Where calibration
    and test cases are exchangeable, sets hold the truth with a probability of at least 1 - error (Vovk et al. 2005).
    """
    rank = math.ceil((len(truth) + 1) * (1 - error) - 1e-9)
    return float(np.sort(1 - truth)[rank - 1]) if rank <= len(truth) else math.inf


# --- Weighted sums ----------------------------------------------------------------------------------------------------


def _sum(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64) @ weights


def _mean(values: np.ndarray, weights: np.ndarray, *, where: np.ndarray | None = None) -> np.ndarray:
    kept = np.ones(len(values)) if where is None else where
    return ratio(_sum(values * kept, weights), _sum(kept, weights))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0)


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of what is defined: (K, B) -> (B,)."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(0), defined.sum(0).astype(float))


def _hits(cases: Cases) -> np.ndarray:
    """Return 1.0 where the class decided on is the true one, (n, K) -> (n,)."""
    return (cases.decided * (cases.labels > 0.5)).sum(1, dtype=np.float64)


def _truth(cases: Cases) -> np.ndarray:
    """Return the probability of the true state of one finding (n,)."""
    return np.where(cases.labels > 0.5, cases.scores, 1 - cases.scores)


def _classes(cases: Cases) -> list[Cases]:
    return [Cases(cases.scores[:, k], cases.labels[:, k], cases.decided[:, k]) for k in range(cases.scores.shape[1])]


# --- Predictions of one cell ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """A cell's probabilities on its test cases, and the decisions that its validation cases suggest."""

    names: tuple[str, ...]
    kind: Literal["one_of_k", "multi_label"]
    sample_ids: np.ndarray  # (n,) str
    groups: np.ndarray  # (n,) str
    scores: np.ndarray  # (n, K) probabilities
    labels: np.ndarray  # (n, K) in {0, 1}, NaN unknown
    decided: np.ndarray  # (n, K) bool
    thresholds: tuple[float, ...]  # (K,) where a multi-label finding is called present; NaN for one-of-K
    threshold_from: str
    conformal: tuple[float, ...]  # (K,) bounds of prediction sets; of one-of-K all are one
    validated: int  # validation cases, which thresholds and bounds come from

    def metrics(self) -> list[str]:
        """Name every metric in the order of its registration."""
        return list(PER_FINDING)

    def values(self, metric: str, weights: np.ndarray) -> np.ndarray:
        """Score cases weighted by (n, B): (K, B) per finding, or (1, B) for a metric of all classes at once."""
        if self.kind == "one_of_k" and metric in JOINT:
            return JOINT[metric](Cases(self.scores, self.labels, self.decided, self.conformal[0]), weights)[None]
        return np.stack([PER_FINDING[metric](*self._finding(k, weights)) for k in range(len(self.names))])

    def macro(self, metric: str, weights: np.ndarray) -> np.ndarray:
        """Return the mean over findings for every column of weights: (B,)."""
        return mean_defined(self.values(metric, weights))

    def _finding(self, k: int, weights: np.ndarray) -> tuple[Cases, np.ndarray]:
        known = ~np.isnan(self.labels[:, k])
        if not known.all():
            weights = weights[known]
        return Cases(self.scores[known, k], self.labels[known, k], self.decided[known, k], self.conformal[k]), weights


def read_predictions(path: Path | str) -> Predictions:
    """Read a cell's predictions.parquet.

    The kind of labels is taken from the file's metadata ("kind"); without it, labels that are one-hot in every row are
    one-of-K.

    Raises:
        ValueError: a column is missing, there is no test case, or a score is no probability; with the file's name.
    """
    table = read_parquet(path)
    names = tuple(c.removeprefix("score:") for c in table.column_names if c.startswith("score:"))
    needed = ["sample_id", "group", "role", *(f"label:{name}" for name in names)]
    if missing := [column for column in needed if column not in table.column_names]:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; delete it so that the images are classified again")
    if not names:
        raise ValueError(f"{path} has no column 'score:<finding>'; delete it so that the images are classified again")
    role = _column(table, "role").astype(str)
    scores = np.stack([_column(table, f"score:{name}") for name in names], axis=1).astype(np.float64)
    labels = np.stack([_column(table, f"label:{name}") for name in names], axis=1).astype(np.float64)
    test, validation = role == "test", role == "validation"
    if not test.any():
        raise ValueError(f"{path} holds no row with role 'test'; delete it so that the images are classified again")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"{path} holds scores outside [0, 1] or NaN: the method's predict() must return probabilities")
    kind = (table.schema.metadata or {}).get(b"kind", b"").decode() or _kind(labels)
    if kind == "one_of_k":
        thresholds, source = [math.nan] * len(names), "argmax"
        decided = scores[test].argmax(1)[:, None] == np.arange(len(names))
        bounds = [conformal_bound((scores[validation] * labels[validation]).sum(1))] * len(names)
    else:
        chosen = [(scores[validation, k], labels[validation, k]) for k in range(len(names))]
        thresholds = [youden_threshold(*one) for one in chosen]
        source, decided = "validation", scores[test] >= np.array(thresholds)
        bounds = [conformal_bound(np.where(y > 0.5, p, 1 - p)[~np.isnan(y)]) for p, y in chosen]
    return Predictions(
        names=names,
        kind="one_of_k" if kind == "one_of_k" else "multi_label",
        sample_ids=_column(table, "sample_id")[test].astype(str),
        groups=_column(table, "group")[test].astype(str),
        scores=scores[test],
        labels=labels[test],
        decided=decided,
        thresholds=tuple(thresholds),
        threshold_from=source,
        conformal=tuple(bounds),
        validated=int(validation.sum()),
    )


def _column(table: Any, name: str) -> np.ndarray:
    return np.array(table.column(name).to_pylist())  # to_numpy would import pandas


def _kind(labels: np.ndarray) -> str:
    one_hot = labels.shape[1] > 1 and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
    return "one_of_k" if one_hot else "multi_label"


def youden_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold of the largest sensitivity + specificity, half way to the next score below it.

    Of equally good ones the nearest to 0.5 is taken; without a positive and a negative case it is 0.5.
    """
    known = ~np.isnan(labels)
    scores, positive = scores[known], labels[known] > 0.5
    if not positive.any() or positive.all():
        return 0.5
    values, index = np.unique(scores, return_inverse=True)
    caught = positive.sum() - np.cumsum(np.bincount(index, weights=positive))
    cleared = np.cumsum(np.bincount(index, weights=~positive))
    gain = np.r_[0.0, caught / positive.sum() + cleared / (~positive).sum() - 1]
    cuts = np.r_[values[0], (values[:-1] + values[1:]) / 2, np.nextafter(values[-1], 2)]
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])


def score_predictions(
    predictions: Path | str, run: Mapping[str, Any], *, bootstrap: int = 1000, confidence: float = 0.95
) -> list[Row]:
    """Score a cell's test predictions: every metric per finding and macro, with intervals over groups.

    ``run`` is the content of the cell's run.json; ``bootstrap`` is the number of draws. A finding without positives or
    without negatives gives a row without value that says so.
    """
    cell, identity = read_predictions(predictions), Identity.from_run(run, scored=predictions)
    known = (~np.isnan(cell.labels)).sum(0)
    positives = np.nansum(cell.labels, axis=0).astype(int)
    shared = {"groups": len(np.unique(cell.groups)), "bootstrap": bootstrap, "size": run["spec"].get("size")}
    shared["validation"] = cell.validated
    rows = []
    for metric, draws in _draws(cell, bootstrap).items():
        point = cell.values(metric, np.ones((len(cell.scores), 1)))
        if len(point) == len(cell.names):
            for k, name in enumerate(cell.names):
                protocol = format_protocol(
                    reason=_reason(point[k, 0], positives[k], known[k]),
                    positives=positives[k],
                    threshold=None if math.isnan(cell.thresholds[k]) else cell.thresholds[k],
                    threshold_from=cell.threshold_from,
                    **shared,
                )
                interval = NOWHERE if np.isnan(point[k, 0]) else percentile_interval(draws[k], confidence)
                rows.append(
                    score_row(
                        identity,
                        metric=metric,
                        finding=name,
                        value=point[k, 0],
                        interval=interval,
                        n=int(known[k]),
                        protocol=protocol,
                    )
                )
        value, defined = mean_defined(point)[0], ~np.isnan(point[:, 0])
        protocol = format_protocol(
            reason="no finding has both positives and negatives" if np.isnan(value) else None,
            findings=f"{defined.sum()} of {len(cell.names)}" if len(point) > 1 and not defined.all() else None,
            threshold_from=cell.threshold_from,
            **shared,
        )
        interval = NOWHERE if np.isnan(value) else percentile_interval(mean_defined(draws[defined]), confidence)
        rows.append(
            score_row(
                identity,
                metric=metric,
                finding=MACRO,
                value=value,
                interval=interval,
                n=len(cell.scores),
                protocol=protocol,
            )
        )
    return rows


def _draws(cell: Predictions, draws: int) -> dict[str, np.ndarray]:
    """Return every metric in every bootstrap draw, each (K or 1, draws)."""
    metrics = cell.metrics()
    sizes = [len(cell.values(metric, np.ones((len(cell.scores), 1)))) for metric in metrics]
    values = resample(
        lambda weights: np.concatenate([cell.values(metric, weights) for metric in metrics]), cell.groups, draws=draws
    )
    return dict(zip(metrics, np.split(values, np.cumsum(sizes)[:-1]), strict=True))


def _reason(value: float, positives: int, known: int) -> str | None:
    if not math.isnan(value):
        return None
    if known == 0:
        return "no test case with a known label"
    return "no positives" if positives == 0 else "no negatives" if positives == known else "undefined"


def read_cost(predictions: Path | str) -> dict[str, float]:
    """Return what a prediction cost, as its file's metadata say: ms_per_image and calls_per_image."""
    import pyarrow.parquet as pq

    return json.loads((pq.read_schema(predictions).metadata or {}).get(b"cost", b"{}"))
