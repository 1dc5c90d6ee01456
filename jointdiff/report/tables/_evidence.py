"""What tables are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jointdiff.report.published import Reported
from jointdiff.report.statistics import Cells, Scores
from jointdiff.report.wording import budget_name, method_name

Changes = Mapping[str, Mapping[str, Any]]  # {variant: {"base": name, "changes": {key: [old, new]}}}


class Standing(NamedTuple):
    """A method at the budget where it is shown, and its name in the table."""

    method: str
    labels: str
    name: str


@dataclass(frozen=True)
class Evidence:
    """Score rows, and what else a table may ask for."""

    rows: Scores
    order: Sequence[str]  # of methods, line by line
    cells: Cells = field(default_factory=dict)  # predictions, for paired comparisons
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


def name_beside(method: str, labels: str, *, budget: str) -> str:
    """Name a method in a table about a budget, with its own where it is another."""
    return method_name(method) + ("" if labels == budget else f" ({budget_name(labels)})")
