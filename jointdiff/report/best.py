"""Which trained model stands for a data set: chosen by validation images alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from jointdiff.config import RunSpec
from jointdiff.files import read_json
from jointdiff.report.evidence import largest_budget
from jointdiff.report.wording import budget_name


@dataclass(frozen=True)
class Best:
    """A model's cell, its best macro AUROC on validation images, and in Markdown how it was chosen."""

    cell: Path
    run: RunSpec
    code_version: str
    score: float
    why: str = ""


def choose_best(cells: Iterable[Path]) -> dict[str, Best]:
    """Choose a model for each data set from folders of finished trainings; one without validation scores has none.

    The method has the largest mean over seeds of the best macro AUROC on validation images, and its model is of the
    seed with the largest. Only trainings at the largest budget take part, and those with all labels only where there
    are no others: they are the ceiling.
    """
    tried: dict[str, dict[str, dict[str, list[Best]]]] = {}  # by data set, budget and variant: one for each seed
    for cell in cells:
        record: dict[str, Any] = read_json(cell / "run.json")
        score = record["cost"].get("best_validation")
        if score is not None and math.isfinite(score):
            run = RunSpec.model_validate(record["spec"])
            variants = tried.setdefault(run.dataset, {}).setdefault(run.labels, {})
            variants.setdefault(run.variant, []).append(Best(cell, run, record["code_version"], score))
    return {dataset: _choose(budgets) for dataset, budgets in tried.items()}


def _choose(budgets: dict[str, dict[str, list[Best]]]) -> Best:
    labels = largest_budget(budgets)
    means = {variant: fmean(seed.score for seed in seeds) for variant, seeds in sorted(budgets[labels].items())}
    ranked = sorted(means, key=means.__getitem__, reverse=True)  # stable: of equals the first by name
    best = max(budgets[labels][ranked[0]], key=lambda seed: seed.score)
    why = (
        f"The best of the trainings with {budget_name(labels)}, by macro AUROC on validation images, mean over seeds; "
        "no test image took part.\n\n| method | validation AUROC |\n|---|---|\n"
    )
    return replace(best, why=why + "".join(f"| {variant} | {means[variant]:.3f} |\n" for variant in ranked))
