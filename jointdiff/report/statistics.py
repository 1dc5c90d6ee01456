"""Summaries over seeds and honest comparisons. Light: numpy and pyarrow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from jointdiff.evaluate.bootstrap import group_weights, percentile_interval
from jointdiff.evaluate.classification import (
    Cases,
    Predictions,
    accuracy,
    accuracy_joint,
    certainty_of_class,
    mean_defined,
    read_predictions,
)
from jointdiff.evaluate.scores import MACRO, Identity, Row, budget_order, parse_protocol, reason_of
from jointdiff.files import read_json

# Metrics of which less is better; of every other one more is.
LOWER_IS_BETTER = frozenset(
    {
        *(
            "ece",
            "brier",
            "nll",
            "aurc",
            "conformal_size",
            "frechet_distance",
            "fid",
            "kernel_distance",
            "kid",
            "lpips",
            "change_outside",
            "side_effect",
        ),
        *("judge_side_effect", "enforce_side_effect", "judge_enforce_side_effect", "proximity", "edit_size"),
        *("sparsity", "spread", "train_seconds", "train_gflop", "parameters", "peak_memory_mib"),
        *("edit_frechet_distance", "control_frechet_distance", "unedited_frechet_distance", "vote_calls", "rank"),
        *(
            f"{quantity}_per_{what}"
            for quantity in ("ms", "calls")
            for what in ("prediction", "sample", "counterfactual", "map")
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
    rows: Sequence[Row] = field(default=(), repr=False, compare=False)  # all that it was computed from


NOTHING = Summary()

# Facts of a protocol that part the rows of one metric: the map of a localisation metric, the rule of a vote.
PARTING = ("map", "rule", "trials")


def summarise(rows: Sequence[Row]) -> Summary:
    """Summarise rows that differ in their seed alone; a row without value is left out and gives its reason."""
    kept = [row for row in rows if not math.isnan(row["value"])]
    reasons = dict.fromkeys(reason_of(row) for row in rows if math.isnan(row["value"]))
    if not kept:
        return Summary(reason=", ".join(reasons), rows=rows)
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
        rows=rows,
    )


def over_seeds(values: Sequence[float]) -> Summary:
    """Summarise one value per seed; NaN is left out."""
    kept = np.array([value for value in values if not math.isnan(value)])
    if not len(kept):
        return NOTHING
    return Summary(float(kept.mean()), float(kept.std(ddof=1)) if len(kept) > 1 else math.nan, seeds=len(kept))


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
            facts = parse_protocol(row["protocol"])
            key = (row["dataset"], row["labels"], row["method"], row["metric"], row["finding"])
            index.setdefault((*key, *(facts.get(fact, "") for fact in PARTING)), []).append(row)
        return index

    def summary(
        self, dataset: str, labels: str, method: str, metric: str, *, finding: str = MACRO, **parting: str
    ) -> Summary:
        """Summarise one number over seeds.

        ``parting`` is what parts the rows of one metric: ``map=`` of a localisation metric, ``rule=`` and ``trials=``
        of a vote.
        """
        facts = (parting.get(fact, "") for fact in PARTING)
        return summarise(self._index.get((dataset, labels, method, metric, finding, *facts), []))

    def difference(self, dataset: str, labels: str, method: str, base: str, metric: str) -> Summary:
        """Summarise a macro score less that of ``base``, over the seeds that both have."""
        of = (metric, MACRO, *("" for _ in PARTING))
        one, other = (
            {row["seed"]: row for row in self._index.get((dataset, labels, name, *of), [])} for name in (method, base)
        )
        shared = sorted(one.keys() & other.keys())
        found = over_seeds([one[seed]["value"] - other[seed]["value"] for seed in shared])
        return replace(found, rows=[by[seed] for by in (one, other) for seed in shared])

    def distinct(self, column: str, **equal: str) -> list[str]:
        """List the values of a column among rows whose other columns equal the given ones; budgets by size."""
        found = {row[column] for row in self.rows if all(row[name] == value for name, value in equal.items())}
        return sorted(found, key=budget_order) if column == "labels" else sorted(found)

    def methods(self, dataset: str, metric: str, order: Sequence[str]) -> list[str]:
        """List the methods of a data set that have a metric, in the order given."""
        present = set(self.distinct("method", dataset=dataset, metric=metric))
        return [method for method in order if method in present]

    def ordered(self, first: Sequence[str]) -> list[str]:
        """List every method: ``first`` in its order, then others that have a row, by name."""
        return [*first, *(method for method in self.distinct("method") if method not in first)]

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

    def trials(self, dataset: str, labels: str, method: str) -> dict[str, list[int]]:
        """List the numbers of trials, rising, for which each rule's votes are scored."""
        wanted = (dataset, labels, method, "vote_calls")
        found: dict[str, set[int]] = {}
        for *key, rule, trials in self._index:
            if tuple(key[:4]) == wanted:
                found.setdefault(rule, set()).add(int(trials))
        return {rule: sorted(numbers) for rule, numbers in found.items()}

    def all_calls(self, dataset: str, labels: str, method: str) -> float:
        """Return the network calls per image of all trials of all conditions: so many times those of one trial."""
        scored = self.trials(dataset, labels, method)
        rule = min(scored, key=lambda rule: scored[rule][0])
        first, last = scored[rule][0], max(numbers[-1] for numbers in scored.values())
        calls = self.summary(dataset, labels, method, "vote_calls", rule=rule, trials=str(first)).mean
        return calls / first * last

    def findings(self, dataset: str, metric: str) -> list[str]:
        """List the findings of a data set that have a metric, and macro last where there are several."""
        found = {row["finding"] for row in self.rows if row["dataset"] == dataset and row["metric"] == metric}
        if len(found) == 2:
            found.discard(MACRO)
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


# --- Comparisons ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """How a method stands to another one."""

    method: str
    other: str  # the best of all, or the base of a variant
    difference: float  # mean over shared seeds
    p: float  # two-sided, Holm-corrected over the family; NaN where there is nothing to compare
    different: bool
    low: float = math.nan  # bootstrap interval of the difference
    high: float = math.nan
    seeds: int = 0  # that both have


def compare_with_best(
    cells: Mapping[tuple[str, int], Predictions],
    metric: str,
    *,
    methods: Sequence[str],
    draws: int = 1000,
    alpha: float = 0.05,
) -> dict[str, Comparison]:
    """Compare ``methods`` with the best of them; a difference is the best's lead, in the direction that is better.

    The best is chosen on the same cases: read the marks as a description.

    Raises:
        ValueError: the methods of one seed were tested on different cases.
    """
    paired = _Paired(cells, metric, methods=methods, draws=enough_draws(draws, methods=len(methods), alpha=alpha))
    present = [method for method in methods if paired.seeds(method)]
    if not present:
        return {}
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    best = max(present, key=lambda m: sign * _mean([paired.point[m, seed] for seed in paired.seeds(m)]))
    pairs = [(best, rival) for rival in present if rival != best]
    found = _compare(paired, pairs, sign=sign, alpha=alpha)
    return {
        best: Comparison(best, best, 0.0, 1.0, different=False, seeds=len(paired.seeds(best))),
        **{c.other: replace(c, method=c.other, other=best) for c in found},
    }


def compare_with_base(
    cells: Mapping[tuple[str, int], Predictions],
    metric: str,
    *,
    bases: Mapping[str, str],
    draws: int = 1000,
    alpha: float = 0.05,
) -> dict[str, Comparison]:
    """Compare each variant with its base, {variant: base}; a difference is the variant less its base.

    The family of the correction are all variants here. An interval is that of one difference, at level 1 - alpha.

    Raises:
        ValueError: the methods of one seed were tested on different cases.
    """
    methods = [*dict.fromkeys([*bases, *bases.values()])]
    paired = _Paired(cells, metric, methods=methods, draws=enough_draws(draws, methods=len(bases), alpha=alpha))
    pairs = [(variant, base) for variant, base in bases.items() if paired.shared(variant, base)]
    return {c.method: c for c in _compare(paired, pairs, sign=1.0, alpha=alpha)}


class _Paired:
    """A metric of methods on the same test cases and in the same draws of their groups.

    A draw takes groups for all seeds and methods at once, so that what is shared cancels; seeds are averaged.
    """

    def __init__(
        self, cells: Mapping[tuple[str, int], Predictions], metric: str, *, methods: Sequence[str], draws: int
    ) -> None:
        self.cells = {key: cell for key, cell in cells.items() if key[0] in methods}
        seeds = sorted({seed for _, seed in self.cells})
        test = {seed: next(cell for (_, other), cell in self.cells.items() if other == seed) for seed in seeds}
        for (method, seed), cell in self.cells.items():
            if not np.array_equal(cell.sample_ids, test[seed].sample_ids):
                raise ValueError(
                    f"seed {seed}: {method} was tested on other cases than the rest; delete its predictions"
                )
        self.point = {
            key: float(cell.macro(metric, np.ones((len(cell.groups), 1)))[0]) for key, cell in self.cells.items()
        }
        edges = np.cumsum([0, *(len(test[seed].groups) for seed in seeds)])
        blocks: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in self.cells}
        if self.cells:
            for weights in group_weights(np.concatenate([test[seed].groups for seed in seeds]), draws=draws):
                part = {seed: weights[low:high] for seed, low, high in zip(seeds, edges, edges[1:], strict=False)}
                for key, cell in self.cells.items():
                    blocks[key].append(cell.macro(metric, part[key[1]]))
        self.drawn = {key: np.concatenate(values) for key, values in blocks.items()}

    def seeds(self, method: str) -> list[int]:
        return sorted(seed for name, seed in self.cells if name == method)

    def shared(self, one: str, other: str) -> list[int]:
        return [seed for seed in self.seeds(one) if (other, seed) in self.cells]


def _compare(paired: _Paired, pairs: Sequence[tuple[str, str]], *, sign: float, alpha: float) -> list[Comparison]:
    """Compare the first of each pair with the second by a paired bootstrap over the groups of the same test cases.

    The two-sided p-value is twice the smaller share of draws on either side of no difference,
    (1 + count) / (1 + draws), corrected by Holm over all pairs.
    """
    found, p_values = [], []
    for one, other in pairs:
        shared = paired.shared(one, other)
        gaps = [sign * (paired.drawn[one, seed] - paired.drawn[other, seed]) for seed in shared]
        drawn = np.mean(gaps, axis=0) if shared else np.array([math.nan])
        p_values.append(two_sided_p(drawn))
        low, high = percentile_interval(drawn, 1 - alpha)
        gap = _mean([sign * (paired.point[one, seed] - paired.point[other, seed]) for seed in shared])
        found.append(Comparison(one, other, gap, math.nan, different=False, low=low, high=high, seeds=len(shared)))
    return [replace(c, p=p, different=p <= alpha) for c, p in zip(found, holm(p_values), strict=True)]


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


# --- Risk and coverage ------------------------------------------------------------------------------------------------


def risk_at(cell: Predictions, coverage: np.ndarray) -> np.ndarray:
    """Return the error among the surest cases: shares kept (B,) -> (B,), of findings their mean.

    Certainty, and who is kept with equals, are those of the metric AURC, which is the mean of this over all shares.
    """
    if cell.kind == "one_of_k":
        cases = Cases(cell.scores, cell.labels, cell.decided)
        return 1 - accuracy_joint(cases, _surest(certainty_of_class(cases.scores), coverage))
    risks = []
    for scores, labels, decided in zip(cell.scores.T, cell.labels.T, cell.decided.T, strict=True):
        known = ~np.isnan(labels)
        if known.any():
            kept = _surest(np.abs(scores[known] - 0.5), coverage)
            risks.append(1 - accuracy(Cases(scores[known], labels[known], decided[known]), kept))
    return mean_defined(np.stack(risks)) if risks else np.full(len(coverage), math.nan)


def _surest(certainty: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Return weights (n, B) that keep at least each share of the cases, the surest first and equals together."""
    falling = np.sort(certainty)[::-1]
    last = np.clip(np.ceil(coverage * len(falling) - 1e-9).astype(int), 1, len(falling)) - 1
    return (certainty[:, None] >= falling[last]).astype(np.float32)
