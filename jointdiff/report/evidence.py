"""What tables and figures are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jointdiff.evaluate.classification import Predictions
from jointdiff.evaluate.scores import Identity, budget_order
from jointdiff.files import read_json
from jointdiff.report.published import Reported
from jointdiff.report.statistics import Cells, Scores
from jointdiff.report.wording import budget_name, method_name

Changes = Mapping[str, Mapping[str, Any]]  # {variant: {"base": name, "changes": {key: [old, new]}}}
Curve = dict[str, tuple[np.ndarray, np.ndarray]]  # "loss" or "auroc" -> steps, values
Curves = dict[tuple[str, str, str], list[Curve]]  # (dataset, labels, method) -> one per seed


class Standing(NamedTuple):
    """A method at the budget where it is shown, and its name in the table."""

    method: str
    labels: str
    name: str


@dataclass(frozen=True)
class Evidence:
    """Score rows, and what else a table or figure may ask for."""

    rows: Scores
    order: Sequence[str]  # of methods, in lines and legends
    cells: Cells = field(default_factory=dict)  # predictions
    curves: Curves = field(default_factory=dict)  # of trainings
    caveats: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of data sets
    reported: Sequence[Reported] = ()  # published numbers
    changes: Changes = field(default_factory=dict)  # what variants change of their base
    draws: int = 1000  # of a bootstrap, at least
    alpha: float = 0.05  # level of a test

    def standing(self, dataset: str, metric: str) -> list[Standing]:
        """List all that have a metric, at the largest budget, or else with all labels."""
        largest = self.rows.budgets(dataset)[-1]
        found = []
        for method in self.rows.methods(dataset, metric, self.order):
            labels = largest if largest in self.rows.distinct("labels", dataset=dataset, method=method) else "all"
            found.append(Standing(method, labels, name_beside(method, labels, budget=largest)))
        return found

    def networks(self, dataset: str, methods: Iterable[str]) -> str:
        """Return a sentence that says which network each method is, and its size; empty where no row tells."""
        sizes: dict[str, dict[str, float]] = {}  # network -> method -> millions of parameters
        for method in methods:
            for labels in self.rows.distinct("labels", dataset=dataset, method=method, metric="parameters"):
                found = self.rows.summary(dataset, labels, method, "parameters")
                if network := (found.facts or {}).get("network"):
                    sizes.setdefault(network, {})[method] = found.mean / 1e6
        # The network of many methods comes last, so that they need not be named.
        common = max(sizes, key=lambda network: len(sizes[network]), default="")
        if len(sizes) == 1 or len(sizes.get(common, ())) <= 3:
            common = ""
        told: list[str] = []
        for network, of in sorted(sizes.items(), key=lambda found: found[0] == common):
            span = dict.fromkeys(f"{size:.2f}" for size in (min(of.values()), max(of.values())))
            unit = " M parameters" if not told else " M"
            who = "all others that learn" if network == common else ", ".join(map(method_name, of))
            told.append(f"{network} ({' to '.join(span)}{unit}) for {who}")
        return f"Networks: {'; '.join(told)}." if told else ""

    def from_synthetic(self) -> dict[str, dict[str, Any]]:
        """Return what variants that learn from synthetic images change of the one in their line that does not."""
        found = {}
        for name in self.changes:
            base, changed = name, dict[str, Any]()
            while base in self.changes and "synthetic" not in changed:  # a base may itself be a variant
                changed = {**self.changes[base]["changes"], **changed}
                base = self.changes[base]["base"]
            if changed.get("synthetic", (None, None))[1] is not None:
                found[name] = {"base": base, "changes": changed}
        return found

    def predicted(self) -> dict[str, str]:
        """Return the largest budget with predictions of each data set."""
        return {
            dataset: largest_budget(labels for name, labels in self.cells if name == dataset)
            for dataset in sorted({dataset for dataset, _ in self.cells})
        }

    def predictions_of(self, dataset: str, budget: str, method: str) -> tuple[str, list[Predictions]]:
        """Return a method's predictions of all seeds with their budget: the one asked for, or else all labels."""
        for labels in (budget, "all"):
            if found := [c for (name, _), c in self.cells.get((dataset, labels), {}).items() if name == method]:
                return labels, found
        return budget, []


def largest_budget(budgets: Iterable[str]) -> str:
    """Return the largest budget: all labels only where there is no other."""
    every = set(budgets)
    return max(every - {"all"} or every, key=budget_order)


def name_beside(method: str, labels: str, *, budget: str) -> str:
    """Name a method in a table about a budget, with its own where it is another."""
    return method_name(method) + ("" if labels == budget else f" ({budget_name(labels)})")


def read_curves(metrics: Iterable[Path | str]) -> Curves:
    """Read the training loss and the validation AUROC of cells from their metrics.jsonl."""
    curves: Curves = {}
    for path in map(Path, metrics):
        run = Identity.from_run(read_json(path.parent / "run.json"))
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        curve = {
            metric: _series([line for line in lines if line.get("split") == split and metric in line], metric)
            for split, metric in (("train", "loss"), ("validation", "auroc"))
        }
        curves.setdefault((run.dataset, run.labels, run.method), []).append(curve)
    return curves


def _series(lines: Sequence[Mapping[str, Any]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([line["step"] for line in lines], float), np.array([line[metric] for line in lines], float)
