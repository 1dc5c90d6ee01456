"""Does a map show the right place? Maps against masks and boxes, and what a counterfactual changes. numpy alone.

A map is a non-negative image: the absolute change of a counterfactual as a share of the pixel range, or a saliency map
in any unit. A metric of maps is one function; put it into ``MAP_METRICS`` and it is scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.evaluate.bootstrap import percentile_interval, resample
from jointdiff.evaluate.classification import Cases, auroc, average_precision, mean_defined, ratio
from jointdiff.evaluate.distances import few_images, frechet_distance
from jointdiff.evaluate.scores import MACRO, NOWHERE, Identity, Row, format_protocol, score_row
from jointdiff.explain.archive import CHANGE_MAPS, ENFORCED, FEATURES, INSERTION

NO_REGIONS = "no regions in data set"
THRESHOLD = 0.5  # probability from which a finding counts as seen, before and after the edit
CHANGED = 0.05  # share of the pixel range from which a pixel counts as changed
HOTTEST = 0.05  # share of the pixels around which a box is drawn
OVERLAPS = (0.1, 0.25, 0.5)  # from which such a box is said to have found the region: those of Wang et al. 2017


def change_inside(change: np.ndarray, region: np.ndarray) -> float:
    """Return the mean of a map (H, W) inside the region, in percent of the pixel range."""
    return 100 * float(change[region].mean())


def change_outside(change: np.ndarray, region: np.ndarray) -> float:
    """Return the mean of a map (H, W) outside the region, in percent; NaN where the region is the whole image."""
    return 100 * float(change[~region].mean()) if not region.all() else math.nan


def pointing(heat: np.ndarray, region: np.ndarray) -> float:
    """Return 1 where the hottest pixel lies in the region, else 0; ties give the share of them that do."""
    return float(region[heat == heat.max()].mean())


def pixel_auroc(heat: np.ndarray, region: np.ndarray) -> float:
    """Return the area under the ROC curve of pixels, the region's being positive."""
    return float(auroc(*_pixels(heat, region))[0])


def pixel_ap(heat: np.ndarray, region: np.ndarray) -> float:
    """Return the average precision of pixels, the region's being positive."""
    return float(average_precision(*_pixels(heat, region))[0])


def iou(heat: np.ndarray, region: np.ndarray) -> float:
    """Return the overlap of the region with as many hottest pixels; ties at the edge count by their expectation."""
    size = int(region.sum())
    edge = np.partition(heat.ravel(), -size)[-size]
    above, tied = heat > edge, heat == edge
    shared = (region & above).sum() + (size - above.sum()) * (region & tied).sum() / tied.sum()
    return float(shared / (2 * size - shared))


def box_iou(heat: np.ndarray, region: np.ndarray) -> float:
    """Return the intersection over union of the boxes around the hottest 5 % of a map and around the region."""
    shared, found, wanted = _boxes(heat, region)
    return shared / (found + wanted - shared)


def box_iobb(heat: np.ndarray, region: np.ndarray) -> float:
    """Return which share of the box around the hottest 5 % of a map lies in that around the region.

    It is the intersection over the detected box, a precision (Wang et al. 2017, arXiv 1705.02315).
    """
    shared, found, _ = _boxes(heat, region)
    return shared / found


def _boxes(heat: np.ndarray, region: np.ndarray) -> tuple[int, int, int]:
    """Return how many pixels two boxes share, and how many each has: around the hottest pixels and the region.

    The hottest are at most ``HOTTEST`` of all: ties at that edge are left out, lest a map of a single spot have no box
    but the image. Only where they tie for the maximum do all of them count.
    """
    kept = max(1, round(HOTTEST * heat.size))
    edge = np.partition(heat.ravel(), -kept - 1)[-kept - 1]
    top, down, left, right = _box(heat > edge if heat.max() > edge else heat == edge)
    other_top, other_down, other_left, other_right = _box(region)
    height = max(0, min(down, other_down) - max(top, other_top))
    width = max(0, min(right, other_right) - max(left, other_left))
    return height * width, (down - top) * (right - left), (other_down - other_top) * (other_right - other_left)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the first row and column of a mask, and those behind its last: top, down, left, right."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _above(overlap: Callable[[np.ndarray, np.ndarray], float], least: float) -> Callable[..., float]:
    return lambda heat, region: float(overlap(heat, region) > least)


def _pixels(heat: np.ndarray, region: np.ndarray) -> tuple[Cases, np.ndarray]:
    labels = region.ravel().astype(np.float64)
    return Cases(heat.ravel(), labels, region.ravel()), np.ones((labels.size, 1))


MAP_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pointing": pointing,
    "pixel_auroc": pixel_auroc,
    "pixel_ap": pixel_ap,
    "iou": iou,
    "box_iou": box_iou,
    "box_iobb": box_iobb,
    **{
        f"{name}_above_{least}": _above(overlap, least)
        for name, overlap in (("box_iou", box_iou), ("box_iobb", box_iobb))
        for least in OVERLAPS
    },
}


def score_explanations(
    explanations: Path | str,
    run: Mapping[str, Any],
    names: Sequence[str],
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
) -> list[Row]:
    """Score a cell's explanations.npz per finding and macro, with intervals over groups (images where none are given).

    ``run`` is the content of run.json, ``names`` are the findings, ``bootstrap`` is the number of draws. A data set
    without regions gives rows without value that say so. Images into which a finding was put have rows of their own.

    Raises:
        ValueError: the file's arrays do not fit together, with its name.
    """
    with np.load(explanations, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    seen = {key.removeprefix(FEATURES): arrays.pop(key) for key in list(arrays) if key.startswith(FEATURES)}
    enforced = {key.removeprefix(ENFORCED): arrays.pop(key) for key in list(arrays) if key.startswith(ENFORCED)}
    identity, facts = Identity.from_run(run, scored=explanations), _facts(arrays)

    def scorer_of(cases: Mapping[str, np.ndarray]) -> _Scorer:
        finding = cases["finding"].astype(int)
        for key, values in cases.items():
            if values.ndim and len(values) != len(finding):
                raise ValueError(
                    f"{explanations}: {key!r} holds {len(values)} images where 'finding' holds {len(finding)}; "
                    "delete the file so that the findings are explained again"
                )
        return _Scorer(
            identity,
            facts=facts,
            finding=finding,
            groups=cases.get("group", cases.get("sample", np.arange(len(finding)))),
            names=names,
            draws=bootstrap,
            confidence=confidence,
        )

    rows = _removal_rows(scorer_of(arrays), arrays) + _realism_rows(identity, facts, seen)
    return rows + (_validity_rows(scorer_of(enforced), enforced, present=True) if enforced else [])


def _removal_rows(scorer: _Scorer, arrays: Mapping[str, np.ndarray]) -> list[Row]:
    """Score maps of images with the finding, and the edits that remove it."""
    maps = {key.removeprefix("map:"): arrays[key] for key in arrays if key.startswith("map:")}
    count = len(arrays["finding"])
    region = arrays.get("region", np.zeros((count, 1, 1), bool))
    found = np.asarray(region.reshape(count, -1).any(1))
    rows = []
    if found.any():
        rows += scorer.rows({"pointing_floor": _per_image(lambda r: float(r.mean()), found, region)}, map="uniform")
        for name, heat in maps.items():
            values = {metric: _per_image(score, found, heat, region) for metric, score in MAP_METRICS.items()}
            inside = _per_image(change_inside, found, heat, region)
            outside = _per_image(change_outside, found, heat, region)
            if name in CHANGE_MAPS:
                values |= {"change_inside": inside, "change_outside": outside}
            rows += scorer.rows(values, map=name)
            rows += scorer.rows({"change_ratio": inside}, divided_by=outside, map=name)
    else:
        gap = {metric: np.full(count, math.nan) for metric in ("pointing_floor", *MAP_METRICS, "change_ratio")}
        for name in maps:
            rows += scorer.rows(gap, map=name)
    # All that is said of an edit as a whole stands under one map.
    rows += scorer.rows(_sizes(arrays), map=CHANGE_MAPS[0])
    return rows + _validity_rows(scorer, arrays, present=False)


def _sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Say how much an edit changes, per image: in percent of the pixel range, or as a share of the pixels."""
    whole, edit = (f"map:{name}" for name in CHANGE_MAPS)
    values = {}
    for metric, key in (("proximity", whole), ("edit_size", edit), ("spread", "spread")):
        if key in arrays:
            values[metric] = 100 * arrays[key].mean(axis=(1, 2), dtype=np.float64)
    if edit in arrays:
        values["sparsity"] = (arrays[edit] > CHANGED).mean(axis=(1, 2))
    if "lpips" in arrays:
        values["lpips"] = arrays["lpips"].astype(np.float64)
    return values


def _validity_rows(scorer: _Scorer, arrays: Mapping[str, np.ndarray], *, present: bool) -> list[Row]:
    """Score what edits made of the findings, in the eyes of the model itself and of the judge."""
    rate, prefix = ("enforce_rate", "enforce_") if present else ("flip_rate", "")
    rows = []
    for who, before, after in (
        ("", "before", "after"),
        ("judge_", "judge_before", "judge_after"),
        ("control_", "judge_before", "judge_control"),
    ):
        if before not in arrays or after not in arrays:
            continue
        finding = arrays["finding"].astype(int)
        found = _validity(finding, arrays[before], arrays[after], present=present)
        if who == "control_":
            # What the unguided reconstruction does as well was not done by the edit.
            values = {rate: found["rate"], f"{prefix}probability": found["probability_after"]}
        else:
            values = {rate: found.pop("rate")} | {f"{prefix}{metric}": value for metric, value in found.items()}
        if f"{who}{INSERTION}" in arrays:
            first, last = (np.take_along_axis(arrays[end], finding[:, None], axis=1) for end in (before, after))
            path = np.concatenate([first, arrays[f"{who}{INSERTION}"], last], axis=1)
            values["cout"] = cout(path)
        rows += scorer.rows({f"{who}{metric}": value for metric, value in values.items()}, map=CHANGE_MAPS[0])
    return rows


def _validity(finding: np.ndarray, before: np.ndarray, after: np.ndarray, *, present: bool) -> dict[str, np.ndarray]:
    """Say what an edit that wants ``finding`` (M,) absent, or ``present``, did to the probabilities (M, K).

    Values are per image, NaN where they mean nothing.
    """
    image = np.arange(len(finding))
    own_before, own_after = before[image, finding], after[image, finding]
    others = np.arange(before.shape[1]) != finding[:, None]
    side = (np.abs(after - before) * others).sum(1) / np.maximum(others.sum(1), 1)
    return {
        # Only what was seen can stop being seen, and what was not can start.
        "rate": np.where((own_before >= THRESHOLD) != present, (own_after >= THRESHOLD) == present, np.nan),
        "probability_before": own_before,
        "probability_after": own_after,
        "side_effect": np.where(others.any(1), side, np.nan),
    }


def cout(path: np.ndarray) -> np.ndarray:
    """Return how early a finding goes, (M,) in [-1, 1], from its probability p on the way to the edit (M, steps + 1).

    COUT is the area under the probability that the edit is to bring about less that under the probability of what was
    there (Khorram & Fuxin 2022, arXiv 2203.15064), by the trapezoidal rule. Of a finding that is to go these are 1 - p
    and p, so that both areas are one number A, that under p: COUT is 1 - 2 A. NaN where the finding was not seen to
    begin with, so that it is no merit of the edit if it is not seen.
    """
    area = (path[:, :-1] + path[:, 1:]).astype(np.float64).mean(axis=1) / 2
    return np.where(path[:, 0] >= THRESHOLD, 1 - 2 * area, np.nan)


def _realism_rows(identity: Identity, facts: Mapping[str, Any], seen: Mapping[str, np.ndarray]) -> list[Row]:
    """Score how far edited images are from real test images, in the judge's features (n, D).

    Beside them stand the unedited images, which no edit needs to surpass, and the controls, which say what rebuilding
    an image takes by itself.
    """
    names = {"edit": "counterfactual", "control": "control", "unedited": "image"}
    return [
        score_row(
            identity,
            metric=f"{who}_frechet_distance",
            value=frechet_distance(*(seen[name].astype(np.float64) for name in (images, "test"))),
            n=len(seen[images]),
            protocol=format_protocol(
                map=CHANGE_MAPS[0],
                flag=few_images(seen[images]),
                **facts,
                reference="test",
                n_real=len(seen["test"]),
                features=seen["test"].shape[1],
            ),
        )
        for who, images in names.items()
        if images in seen and len(seen[images]) > 1
    ]


def _per_image(score: Callable[..., float], found: np.ndarray, *images: np.ndarray) -> np.ndarray:
    """Score each image (M, ...) that has a region; the others are NaN."""
    return np.array([score(*one) if has else math.nan for has, *one in zip(found, *images, strict=True)])


def _facts(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the scalar facts of an archive's protocol (JSON)."""
    stored = json.loads(str(arrays["protocol"])) if "protocol" in arrays else {}
    return {key: value for key, value in stored.items() if isinstance(value, int | float | str)}


class _Scorer:
    """Turns values per image into rows: means per finding and over findings, with one set of bootstrap draws."""

    def __init__(
        self,
        identity: Identity,
        *,
        facts: Mapping[str, Any],
        finding: np.ndarray,
        groups: np.ndarray,
        names: Sequence[str],
        draws: int,
        confidence: float,
    ) -> None:
        self.identity, self.facts, self.names, self.confidence = identity, facts, names, confidence
        self.present = [k for k in range(len(names)) if (finding == k).any()]
        self.member = np.stack([finding == k for k in self.present]).astype(np.float64)  # (findings, M)
        groups = groups.astype(str)
        self.shared = {"groups": len(np.unique(groups)), "bootstrap": draws}
        self.weights = resample(lambda weights: weights, groups, draws=draws)  # (M, draws)

    def rows(
        self, values: Mapping[str, np.ndarray], *, divided_by: np.ndarray | None = None, **protocol: Any
    ) -> list[Row]:
        """Return rows of each metric's mean, or of its mean over the mean of ``divided_by``."""
        text = format_protocol(**protocol, **self.facts, **self.shared)
        rows = []
        for metric, value in values.items():
            ones = np.ones((len(value), 1))
            point, draws = (self._means(value, w) for w in (ones, self.weights))
            if divided_by is not None:
                point, draws = (ratio(m, self._means(divided_by, w)) for m, w in ((point, ones), (draws, self.weights)))
            counts = (self.member @ ~np.isnan(value)).astype(int)
            for k, index in enumerate(self.present):
                rows.append(self._row(metric, self.names[index], point[k, 0], draws[k], counts[k], text))
            spread = mean_defined(draws[~np.isnan(point[:, 0])])
            rows.append(self._row(metric, MACRO, mean_defined(point)[0], spread, counts.sum(), text))
        return rows

    def _means(self, value: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the weighted mean per finding: values (M,), weights (M, B) -> (findings, B)."""
        known = ~np.isnan(value)
        total = self.member @ (np.where(known, value, 0)[:, None] * weights)
        count = self.member @ (known[:, None] * weights)
        return ratio(total, count)

    def _row(self, metric: str, finding: str, value: float, draws: np.ndarray, n: int, protocol: str) -> Row:
        undefined = math.isnan(value)
        reason = _undefined_reason(metric, n) if undefined else None
        return score_row(
            self.identity,
            metric=metric,
            finding=finding,
            value=math.nan if undefined else value,
            interval=NOWHERE if undefined else percentile_interval(draws, self.confidence),
            n=n,
            protocol="; ".join(filter(None, [format_protocol(reason=reason), protocol])),
        )


def _undefined_reason(metric: str, n: int) -> str:
    if metric.endswith(("flip_rate", "cout")):
        return "no image in which the finding was seen before the edit"
    if metric.endswith("enforce_rate"):
        return "no image in which the finding was not seen before the edit"
    if metric.endswith("side_effect"):
        return "no other finding"
    return "no change outside the region to compare with" if n else NO_REGIONS
