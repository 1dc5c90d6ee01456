"""The one number by which weights are chosen on validation images.

It stands apart from the evaluation's metrics so that a new metric re-trains nothing.
"""

from __future__ import annotations

import numpy as np


def macro_auroc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean area under the ROC curve over columns (N, K) that have positives and negatives, else NaN.

    The area is the Mann-Whitney statistic, the chance that a positive outranks a negative, ties counting half.
    """
    areas = []
    for score, label in zip(probabilities.T, labels.T, strict=True):
        positive, negative = score[label > 0.5], np.sort(score[label < 0.5])
        if len(positive) and len(negative):
            below = np.searchsorted(negative, positive, side="left") + np.searchsorted(negative, positive, side="right")
            areas.append(below.mean() / 2.0 / len(negative))
    return float(np.mean(areas)) if areas else float("nan")
