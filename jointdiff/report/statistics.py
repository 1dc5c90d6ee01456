"""Summaries over seeds and honest comparisons. Light: numpy and pyarrow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jointdiff.evaluate.bootstrap import group_weights
from jointdiff.evaluate.classification import Predictions, read_predictions
from jointdiff.evaluate.scores import MACRO, Identity, Row, budget_order, parse_protocol, reason_of
from jointdiff.files import read_json

# Metrics of which less is better; of every other one more is.
LOWER_IS_BETTER = frozenset(
    {
        *("ece", "brier", "nll", "aurc", "frechet_distance", "fid", "change_outside", "side_effect"),
        *("judge_side_effect", "train_seconds", "parameters", "peak_memory_mib"),
        *(
            f"{quantity}_per_{what}"
            for quantity in ("ms", "calls")
            for what in ("prediction", "sample", "counterfactual")
        ),
    }
)


@dataclass(frozen=True)
class Summary:
    """One number over seeds."""

    mean: float = math.nan
    sd: float = math.nan  # sample standard deviation over seeds; NaN for one seed
    low: float = math.nan  # mean over seeds of each interval's end
    high: float = math.nan
    seeds: int = 0
    reason: str = ""  # why there is no number, or a caution about it
    facts: Mapping[str, str] | None = None  # the protocol of the first row


NOTHING = Summary()


def summarise(rows: Sequence[Row]) -> Summary:
    """Summarise rows that differ in their seed alone; a row without value is left out and gives its reason."""
    kept = [row for row in rows if not math.isnan(row["value"])]
    reasons = dict.fromkeys(reason_of(row) for row in rows if math.isnan(row["value"]))
    if not kept:
        return Summary(reason=", ".join(reasons))
    values = np.array([row["value"] for row in kept])
    facts = parse_protocol(kept[0]["protocol"])
    missing = f"{len(kept)} of {len(rows)} seeds: {', '.join(reasons)}" if reasons else ""
    return Summary(
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        low=_mean([row["ci_low"] for row in kept]),
        high=_mean([row["ci_high"] for row in kept]),
        seeds=len(kept),
        reason=", ".join(filter(None, [facts.get("flag", ""), missing])),
        facts=facts,
    )


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


class Scores:
    """Score rows, found by what they are."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    @cached_property
    def _index(self) -> dict[tuple[str, ...], list[Row]]:
        index: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            place = parse_protocol(row["protocol"]).get("map", "")
            key = (row["dataset"], row["labels"], row["method"], row["metric"], row["finding"], place)
            index.setdefault(key, []).append(row)
        return index

    def summary(
        self, dataset: str, labels: str, method: str, metric: str, *, finding: str = MACRO, place: str = ""
    ) -> Summary:
        """Summarise one number over seeds; ``place`` is the map of a localisation metric."""
        return summarise(self._index.get((dataset, labels, method, metric, finding, place), []))

    def distinct(self, column: str, **equal: str) -> list[str]:
        """List the values of a column among rows whose other columns equal the given ones; budgets by size."""
        found = {row[column] for row in self.rows if all(row[name] == value for name, value in equal.items())}
        return sorted(found, key=budget_order) if column == "labels" else sorted(found)

    def distinct_seeds(self, dataset: str) -> int:
        """Count the seeds of a data set."""
        return len({row["seed"] for row in self.rows if row["dataset"] == dataset})

    def image_size(self, dataset: str) -> str:
        """Return the side of a data set's images as their protocol says it, or an empty text."""
        sizes = (parse_protocol(row["protocol"]).get("size", "") for row in self.rows if row["dataset"] == dataset)
        return next(filter(None, sizes), "")

    def places(self, dataset: str, labels: str, method: str, metric: str) -> list[str]:
        """List the maps for which a method has a localisation metric."""
        wanted = (dataset, labels, method, metric)
        return sorted({key[5] for key in self._index if key[:4] == wanted})

    def findings(self, dataset: str, metric: str) -> list[str]:
        """List the findings of a data set that have a metric, macro last."""
        found = {row["finding"] for row in self.rows if row["dataset"] == dataset and row["metric"] == metric}
        return sorted(found, key=lambda finding: (finding == MACRO, finding))

    def budgets(self, dataset: str) -> list[str]:
        """List the budgets of a data set's grid: "all" only where nothing else is."""
        every = self.distinct("labels", dataset=dataset)
        return [labels for labels in every if labels != "all"] or every


Cells = dict[tuple[str, str], dict[tuple[str, int], Predictions]]  # (dataset, labels) -> (method, seed) -> predictions


def read_cells(predictions: Iterable[Path | str]) -> Cells:
    """Read the predictions of cells, each beside its run.json, filed by data set and budget."""
    cells: Cells = {}
    for path in map(Path, predictions):
        run = Identity.from_run(read_json(path.parent / "run.json"))
        cells.setdefault((run.dataset, run.labels), {})[run.method, run.seed] = read_predictions(path)
    return cells


def read_caveats(predictions: Iterable[Path | str]) -> dict[str, list[str]]:
    """Return, for each data set, what its publisher does not vouch for, from the run.json of its cells."""
    caveats: dict[str, dict[str, None]] = {}
    for path in map(Path, predictions):
        run = read_json(path.parent / "run.json")
        caveats.setdefault(run["spec"]["dataset"], {}).update(dict.fromkeys(run.get("caveats", [])))
    return {dataset: list(found) for dataset, found in caveats.items()}


@dataclass(frozen=True)
class Comparison:
    """How a method stands to the best one."""

    method: str
    best: str
    difference: float  # best minus method, in the direction that is better, mean over shared seeds
    p: float  # two-sided, Holm-corrected over the family; NaN where there is nothing to compare
    different: bool


def compare_with_best(
    cells: Mapping[tuple[str, int], Predictions],
    metric: str,
    *,
    methods: Sequence[str],
    draws: int = 1000,
    alpha: float = 0.05,
) -> dict[str, Comparison]:
    """Compare ``methods`` with the best of them by a paired bootstrap over the groups of the same test cases.

    A draw takes groups for all seeds and methods at once, so that what is shared cancels; seeds are averaged. The
    two-sided p-value is twice the smaller share of draws on either side of no difference, (1 + count) / (1 + draws),
    corrected by Holm over the family. There are at least so many draws that the smallest p-value survives the
    correction. The best is chosen on the same cases: read the marks as a description.

    Raises:
        ValueError: the methods of one seed were tested on different cases.
    """
    cells = {key: cell for key, cell in cells.items() if key[0] in methods}
    seeds = sorted({seed for _, seed in cells})
    test = {seed: next(cell for (_, other), cell in cells.items() if other == seed) for seed in seeds}
    for (method, seed), cell in cells.items():
        if not np.array_equal(cell.sample_ids, test[seed].sample_ids):
            raise ValueError(f"seed {seed}: {method} was tested on other cases than the rest; delete its predictions")
    if not cells:
        return {}
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    point = {key: sign * cell.macro(metric, np.ones((len(cell.groups), 1)))[0] for key, cell in cells.items()}
    present = [method for method in methods if any(name == method for name, _ in cells)]
    best = max(present, key=lambda m: _mean([point[m, s] for s in seeds if (m, s) in cells]))

    draws = enough_draws(draws, methods=len(methods), alpha=alpha)
    edges = np.cumsum([0, *(len(test[seed].groups) for seed in seeds)])
    blocks: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in cells}
    for weights in group_weights(np.concatenate([test[seed].groups for seed in seeds]), draws=draws):
        part = {seed: weights[low:high] for seed, low, high in zip(seeds, edges, edges[1:], strict=False)}
        for key, cell in cells.items():
            blocks[key].append(sign * cell.macro(metric, part[key[1]]))
    drawn = {key: np.concatenate(values) for key, values in blocks.items()}

    rivals = [method for method in present if method != best]
    differences, p_values = [], []
    for rival in rivals:
        shared = [seed for seed in seeds if (rival, seed) in cells and (best, seed) in cells]
        differences.append(_mean([point[best, seed] - point[rival, seed] for seed in shared]))
        gaps = [drawn[best, seed] - drawn[rival, seed] for seed in shared]
        p_values.append(two_sided_p(np.mean(gaps, axis=0)) if shared else math.nan)
    corrected = holm(p_values)
    return {
        best: Comparison(best, best, 0.0, 1.0, different=False),
        **{
            rival: Comparison(rival, best, difference, p, different=p <= alpha)
            for rival, difference, p in zip(rivals, differences, corrected, strict=True)
        },
    }


def enough_draws(draws: int, *, methods: int, alpha: float) -> int:
    """Return the number of draws with which a p-value corrected for ``methods`` can still fall well below alpha."""
    return max(draws, math.ceil(4 * methods / alpha))


def two_sided_p(differences: np.ndarray) -> float:
    """Return the bootstrap p-value of no difference from draws (B,); undefined draws are left out."""
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return math.nan
    side = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, 2.0 * (1 + int(side)) / (1 + len(defined)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of comparisons (Holm 1979); NaN stays NaN and does not count."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
