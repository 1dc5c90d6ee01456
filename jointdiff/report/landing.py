"""What the first page of the report says of the first question: who leads at which budget."""

from __future__ import annotations

from collections.abc import Sequence

from jointdiff.evaluate.scores import Row
from jointdiff.report.statistics import Scores
from jointdiff.report.wording import CONTROLS, budget_name, dataset_name, method_name


def landing_page(rows: Sequence[Row]) -> dict[str, float]:
    """Return the largest macro AUROC on test images, mean over seeds, by the name of its data set, budget and method.

    Controls do not compete. Snakemake shows such a dictionary on the report's first page; of texts as values it would
    show the parts that docutils makes of them.
    """
    scores, page = Scores(rows), {}
    for dataset in scores.distinct("dataset", metric="auroc"):
        for labels in scores.budgets(dataset):
            rivals = set(scores.distinct("method", dataset=dataset, labels=labels)) - set(CONTROLS)
            found = {method: scores.summary(dataset, labels, method, "auroc") for method in sorted(rivals)}
            scored = [method for method in found if found[method].seeds]
            if scored:
                best = max(scored, key=lambda method: found[method].mean)
                where = f"{dataset_name(dataset)}, {budget_name(labels)}"
                page[f"{where}: {method_name(best)}"] = round(found[best].mean, 3)
    return page
