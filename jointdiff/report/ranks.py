"""Mean ranks of methods over data sets and budgets, and what can be told apart (Demšar 2006). Light: numpy, scipy late.

A block is a budget of a data set, and a method's score in it the mean over seeds. Seeds are no blocks: they draw again
from one data set, and what suits a method in that data set would count as often as there are seeds (Demšar 2006,
section 3: the sample are data sets, not measurements).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jointdiff.report.statistics import LOWER_IS_BETTER, Scores, Summary
from jointdiff.report.wording import CONTROLS

FEWEST_BLOCKS = 2
FEWEST_METHODS = 3
TOO_FEW = f"that takes {FEWEST_METHODS} methods with all seeds in {FEWEST_BLOCKS} blocks (budgets of data sets) or more"


@dataclass(frozen=True)
class Ranks:
    """Ranks of methods in the blocks that they share, the best method first."""

    methods: tuple[str, ...]  # (k,)
    blocks: tuple[tuple[str, str], ...]  # (n,) of (data set, budget)
    scores: tuple[tuple[Summary, ...], ...]  # (k, n), as ranked
    ranks: np.ndarray  # (k, n), 1 the best; equals share their mean
    left_out: tuple[str, ...]  # methods that lack a seed of some block
    p: float  # of the Friedman test: no method differs from any other
    critical: float  # difference of mean ranks beyond which two methods differ (Nemenyi)
    alpha: float

    @property
    def means(self) -> np.ndarray:
        """Return the mean ranks, (k,), rising."""
        return self.ranks.mean(1)

    def together(self) -> Iterator[tuple[int, int]]:
        """Yield the first and last of each largest group of neighbours that cannot be told apart."""
        reached = 0
        for first, mean in enumerate(self.means):
            last = int(np.flatnonzero(self.means - mean <= self.critical)[-1])
            if last > max(first, reached):
                yield first, last
            reached = max(reached, last)


def rank_methods(rows: Scores, order: Sequence[str], *, metric: str = "auroc", alpha: float = 0.05) -> Ranks | None:
    """Rank the methods that have every block, or return None where there is too little to compare.

    Controls do not compete. A method takes part where it has the macro score of all seeds of all blocks.
    """
    blocks, scores = [], []
    rivals = [method for method in order if method not in CONTROLS and method in rows.distinct("method", metric=metric)]
    for dataset in rows.distinct("dataset", metric=metric):
        for labels in rows.budgets(dataset):
            found = [rows.summary(dataset, labels, method, metric) for method in rivals]
            if seeds := max((summary.seeds for summary in found), default=0):
                blocks.append((dataset, labels))
                scores.append([summary if summary.seeds == seeds else None for summary in found])
    complete = [i for i in range(len(rivals)) if all(block[i] is not None for block in scores)]
    if len(blocks) < FEWEST_BLOCKS or len(complete) < FEWEST_METHODS:
        return None
    kept = [[block[i] for block in scores] for i in complete]
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    ranks = rank(sign * np.array([[summary.mean for summary in of if summary] for of in kept]))
    best_first = np.argsort(ranks.mean(1), kind="stable")
    return Ranks(
        methods=tuple(rivals[complete[i]] for i in best_first),
        blocks=tuple(blocks),
        scores=tuple(tuple(summary for summary in kept[i] if summary) for i in best_first),
        ranks=ranks[best_first],
        left_out=tuple(method for i, method in enumerate(rivals) if i not in complete),
        p=friedman(ranks),
        critical=critical_difference(*ranks.shape, alpha=alpha),
        alpha=alpha,
    )


def rank(values: np.ndarray) -> np.ndarray:
    """Rank values (k, n) within each column from 1, the least; equals share their mean rank."""
    below = (values[:, None] > values[None]).sum(1)
    equal = (values[:, None] == values[None]).sum(1)
    return below + (equal + 1) / 2


def friedman(ranks: np.ndarray) -> float:
    """Return the p-value of the Friedman test of ranks (k, n), corrected for ties; 1 where all are equal.

    The statistic is the spread of the rank sums over the spread that chance gives them; under no difference it follows
    about a chi-squared distribution of k - 1 degrees of freedom, poorly so where blocks are few.
    """
    from scipy.special import chdtrc

    k = len(ranks)
    centred = ranks - (k + 1) / 2
    chance = (centred**2).sum() / (k - 1)
    return float(chdtrc(k - 1, (centred.sum(1) ** 2).sum() / chance)) if chance else 1.0


def critical_difference(k: int, n: int, *, alpha: float) -> float:
    """Return by how much mean ranks of k methods in n blocks must differ (Nemenyi; Demšar 2006, section 3.2.2)."""
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - alpha, k, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(k * (k + 1) / (6 * n)))
