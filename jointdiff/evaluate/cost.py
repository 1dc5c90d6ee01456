"""What a cell cost, as score rows beside its accuracy. Light: reads JSON and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.evaluate.classification import read_cost
from jointdiff.evaluate.scores import Identity, Row, format_protocol, score_row

TRAINING = ("train_seconds", "train_gflop", "images_per_second", "parameters", "peak_memory_mib")


def score_cost(
    run: Mapping[str, Any],
    *,
    predictions: Path | str | None = None,
    generated: Path | str | None = None,
    explanations: Path | str | None = None,
) -> list[Row]:
    """Return the cost of training, and of one prediction, sample, counterfactual and map where there are any.

    ``run`` is the content of run.json, whose ``cost`` holds seconds, GFLOP, images/s, parameters and MiB. The other
    files carry their own cost as JSON: predictions.parquet in its metadata, generated.npz and explanations.npz in the
    array ``cost``. What nobody measured has no row.
    """
    identity, cost = Identity.from_run(run), run.get("cost", {})
    device = cost.get("device", "unknown")
    rows = [
        score_row(
            identity,
            metric=metric,
            value=cost[metric],
            split="train",
            n=1,
            protocol=format_protocol(
                device=device,
                precision=cost.get("precision"),
                network=cost.get("network") or None if metric == "parameters" else None,
            ),
        )
        for metric in TRAINING
        if cost.get(metric) is not None
    ]
    explained = _archive_cost(explanations)
    measured = {
        "prediction": (predictions, read_cost(predictions) if predictions else {}, "image"),
        "sample": (generated, _archive_cost(generated), "sample"),
        "counterfactual": (explanations, explained, "counterfactual"),
    }
    for what, (path, values, unit) in measured.items():
        identity = Identity.from_run(run, scored=path)
        for quantity in ("ms", "calls"):
            if (value := values.get(f"{quantity}_per_{unit}")) is not None:
                protocol = format_protocol(device=values.get("device", device))
                rows.append(score_row(identity, metric=f"{quantity}_per_{what}", value=value, n=1, protocol=protocol))
    identity = Identity.from_run(run, scored=explanations)
    for quantity in ("ms", "calls"):
        for name, value in explained.get(f"{quantity}_per_map", {}).items():
            protocol = format_protocol(map=name, device=device)
            rows.append(score_row(identity, metric=f"{quantity}_per_map", value=value, n=1, protocol=protocol))
    return rows


def _archive_cost(path: Path | str | None) -> dict[str, Any]:
    if path is None:
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return json.loads(str(archive["cost"])) if "cost" in archive else {}
