"""How far each metric lies from an independent computation of it, at most, over many random inputs.

    uv run python benchmarks/metric_checks.py

The tests hold the same metrics to the same references; this prints the table of docs/metrics.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from cleanfid import fid as clean_fid
from scipy import stats
from sklearn import metrics as sk
from sklearn.neighbors import NearestNeighbors
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from jointdiff.evaluate.classification import JOINT, PER_FINDING, Cases, conformal_bound
from jointdiff.evaluate.distances import density_coverage, frechet_distance, kernel_distance, nearest, precision_recall
from jointdiff.explain.localisation import box_iobb, box_iou, cout, iou, pixel_ap, pixel_auroc, pointing
from jointdiff.report.ranks import critical_difference, friedman, rank
from jointdiff.report.statistics import holm

TIMES = 200
Pair = tuple[float, float]  # ours and the reference


def findings(rng: np.random.Generator) -> Iterator[tuple[str, str, Pair]]:
    """Yield metrics of one finding on weighted cases with ties."""
    n = int(rng.integers(20, 200))
    y, w = rng.integers(0, 2, n).astype(float), rng.integers(0, 4, n).astype(float)
    y[:2], w[:2] = (0, 1), 1
    p = np.clip(np.round(0.3 * y + 0.7 * rng.random(n), 2), 0.01, 0.99)
    cases = Cases(p, y, p >= 0.5)
    references: dict[str, Callable[[], float]] = {
        "auroc": lambda: sk.roc_auc_score(y, p, sample_weight=w),
        "average_precision": lambda: sk.average_precision_score(y, p, sample_weight=w),
        "accuracy": lambda: sk.accuracy_score(y, cases.decided, sample_weight=w),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(y, cases.decided, sample_weight=w),
        "f1": lambda: sk.f1_score(y, cases.decided, sample_weight=w),
        "sensitivity": lambda: sk.recall_score(y, cases.decided, sample_weight=w),
        "specificity": lambda: sk.recall_score(1 - y, ~cases.decided, sample_weight=w),
        "brier": lambda: sk.brier_score_loss(y, p, sample_weight=w),
        "nll": lambda: sk.log_loss(y, p, sample_weight=w),
    }
    for metric, reference in references.items():
        yield metric, "scikit-learn", (PER_FINDING[metric](cases, w[:, None])[0], reference())
    probability, times = rng.random(n), w.astype(int)  # without ties at the edges of bins
    sure = Cases(probability, y, probability >= 0.5)
    confidence, right = torch.tensor(np.repeat(probability, times)), torch.tensor(np.repeat(y, times)).long()
    error = float(BinaryCalibrationError(n_bins=15, norm="l1")(confidence, right))
    yield "ece", "torchmetrics (P(finding) as confidence)", (PER_FINDING["ece"](sure, w[:, None])[0], error)
    wrong = np.repeat(sure.decided != (y > 0.5), times)[np.argsort(-np.repeat(np.abs(probability - 0.5), times))]
    if len(np.unique(np.abs(probability - 0.5))) == n and times.max() > 0:
        ends = np.cumsum(times[np.argsort(-np.abs(probability - 0.5))])
        sizes = np.diff(np.r_[0, ends])
        area = sum(size * wrong[:end].mean() for size, end in zip(sizes, ends, strict=True) if size) / len(wrong)
        yield "aurc", "case by case", (PER_FINDING["aurc"](sure, w[:, None])[0], area)


def classes(rng: np.random.Generator) -> Iterator[tuple[str, str, Pair]]:
    """Yield metrics of all classes at once."""
    truth, p = rng.integers(0, 4, 80), rng.dirichlet(np.ones(4), 80)
    cases = Cases(p, np.eye(4)[truth], np.eye(4, dtype=bool)[p.argmax(1)])
    one = np.ones((80, 1))
    references = {
        "accuracy": sk.accuracy_score(truth, p.argmax(1)),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, p.argmax(1)),
        "nll": sk.log_loss(truth, p, labels=range(4)),
        "brier": ((p - np.eye(4)[truth]) ** 2).sum(1).mean(),
    }
    for metric, value in references.items():
        where = "scikit-learn" if metric != "brier" else "its formula"
        yield f"{metric} (classes)", where, (JOINT[metric](cases, one)[0], value)
    measured = MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")(torch.tensor(p), torch.tensor(truth))
    yield "ece (classes)", "torchmetrics", (JOINT["ece"](cases, one)[0], float(measured))
    surest = np.argsort(stats.entropy(p, axis=1))
    for share in (0.9, 0.8, 0.7, 0.5):
        kept = surest[: math.ceil(80 * share - 1e-9)]
        value = (p.argmax(1) == truth)[kept].mean()
        yield "accuracy_kept (classes)", "scipy's entropy", (JOINT[f"accuracy_kept_{share:g}"](cases, one)[0], value)


def images(rng: np.random.Generator) -> Iterator[tuple[str, str, Pair]]:
    """Yield measures of generated images, in features."""
    a = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    b = rng.normal(size=(60, 5)) * rng.uniform(0.5, 2) + rng.normal(size=5)
    moments = [moment for x in (a, b) for moment in (x.mean(0), np.cov(x, rowvar=False))]
    yield "frechet_distance, fid", "clean-fid", (frechet_distance(a, b), clean_fid.frechet_distance(*moments))
    reference = clean_fid.kernel_distance(a, b, num_subsets=1)
    yield "kernel_distance, kid", "clean-fid (one subset of all)", (kernel_distance(a, b), reference)

    def held(points: np.ndarray, of: np.ndarray, k: int) -> np.ndarray:
        radii = NearestNeighbors(n_neighbors=k + 1).fit(of).kneighbors(of)[0][:, k]
        return np.linalg.norm(points[:, None] - of[None], axis=2) <= radii

    where = "scikit-learn's neighbours"
    for metric, ours, value in zip(
        ("image_precision", "image_recall"),
        precision_recall(a, b),
        (held(a, b, 3).any(1).mean(), held(b, a, 3).any(1).mean()),
        strict=True,
    ):
        yield metric, where, (ours, value)
    inside = held(a, b, 5)
    for metric, ours, value in zip(
        ("image_density", "image_coverage"),
        density_coverage(a, b),
        (inside.sum(1).mean() / 5, inside.any(0).mean()),
        strict=True,
    ):
        yield metric, where, (ours, value)
    apart = NearestNeighbors(n_neighbors=1).fit(b).kneighbors(a)[0][:, 0]
    yield "nearest distance", where, (float(np.abs(nearest(a, b)[0] - apart).max()), 0.0)


def maps(rng: np.random.Generator) -> Iterator[tuple[str, str, Pair]]:
    """Yield measures of maps against regions."""
    heat, region = rng.random((16, 16)), np.zeros((16, 16), dtype=bool)
    y, x, h, w = (*rng.integers(0, 10, 2), *rng.integers(2, 6, 2))
    region[y : y + h, x : x + w] = True
    yield "pixel_auroc", "scikit-learn", (pixel_auroc(heat, region), sk.roc_auc_score(region.ravel(), heat.ravel()))
    average = sk.average_precision_score(region.ravel(), heat.ravel())
    yield "pixel_ap", "scikit-learn", (pixel_ap(heat, region), average)
    hottest = heat >= np.sort(heat.ravel())[-region.sum()]
    yield "iou", "scikit-learn's Jaccard", (iou(heat, region), sk.jaccard_score(region.ravel(), hottest.ravel()))
    yield "pointing", "numpy's argmax", (pointing(heat, region), float(region.ravel()[heat.argmax()]))
    places = np.argwhere(heat > np.sort(heat.ravel())[-round(0.05 * heat.size) - 1])
    (top, left), (down, right) = places.min(0), places.max(0) + 1
    found = np.zeros_like(region)
    found[top:down, left:right] = True
    yield "box_iou", "scikit-learn's Jaccard", (box_iou(heat, region), sk.jaccard_score(region.ravel(), found.ravel()))
    value = sk.precision_score(region.ravel(), found.ravel(), zero_division=0)
    yield "box_iobb", "scikit-learn's precision", (box_iobb(heat, region), value)
    path = rng.random(11)
    area = np.trapezoid(1 - path, dx=0.1) - np.trapezoid(path, dx=0.1)
    yield "cout", "numpy's trapezoid of both areas", (float(cout(path[None])[0]), area)


def comparisons(rng: np.random.Generator) -> Iterator[tuple[str, str, Pair]]:
    """Yield what compares methods."""
    values = rng.integers(0, 9, (5, 7)).astype(float)
    ranks = stats.rankdata(values, axis=0)
    yield "rank", "scipy", (float(np.abs(rank(values) - ranks).max()), 0.0)
    yield "Friedman's p", "scipy", (friedman(rank(values)), stats.friedmanchisquare(*values).pvalue)
    p = rng.random(6)
    order = np.argsort(p)
    stepped = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(6, 0, -1)))
    yield "Holm's p", "cumulative maximum", (float(np.abs(np.array(holm(list(p)))[order] - stepped).max()), 0.0)


def demsar() -> Pair:
    """Return the critical difference of Demšar's example, 4 methods on 14 sets, and that of his text."""
    return critical_difference(4, 14, alpha=0.05), 2.569 * math.sqrt(4 * 5 / (6 * 14))


def conformal() -> Pair:
    """Return the mean coverage of prediction sets and what exchangeability makes it: l / (n + 1)."""
    rng, n, covered = np.random.default_rng(1), 60, []
    for _ in range(4000):
        truth = rng.beta(3, 2, n + 100)
        covered.append((1 - truth[n:] <= conformal_bound(truth[:n])).mean())
    return float(np.mean(covered)), math.ceil(0.9 * (n + 1)) / (n + 1)


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    rng, worst = np.random.default_rng(0), dict[tuple[str, str], float]()
    for _ in range(TIMES):
        for of in (findings, classes, images, maps, comparisons):
            for metric, reference, (ours, value) in of(rng):
                key = metric, reference
                worst[key] = max(worst.get(key, 0.0), abs(float(ours) - float(value)))
    print(f"| metric | held against | largest deviation in {TIMES} random cases |")
    print("|---|---|--:|")
    for (metric, reference), deviation in worst.items():
        print(f"| {metric} | {reference} | {deviation:.1e} |")
    ours, value = demsar()
    print(f"| critical difference | q of Demšar 2006, table 5, to its 3 digits | {abs(ours - value):.1e} |")
    ours, value = conformal()
    print(f"| conformal_coverage | l / (n + 1) of exchangeable cases, 4,000 times | {abs(ours - value):.1e} |")


if __name__ == "__main__":
    main()
