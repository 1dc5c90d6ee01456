"""Scores of recorded votes under every rule and number of trials, without the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.evaluate.bootstrap import percentile_interval, resample
from jointdiff.evaluate.classification import Predictions, ratio, read_predictions
from jointdiff.evaluate.scores import NOWHERE, Identity, Row, format_protocol, score_row
from jointdiff.evaluate.votes_file import Votes, read_votes
from jointdiff.evaluate.voting import RULES, MissingErrors, Replay, fixed, replay

LADDER = (1, 3, 5, 11, 25, 51, 101, 251, 501)  # numbers of trials that are scored


def score_votes(
    votes: Path | str,
    predictions: Path | str,
    run: Mapping[str, Any],
    *,
    error: float,
    block: int,
    bootstrap: int = 1000,
    confidence: float = 0.95,
) -> list[Row]:
    """Score the recorded test images under every rule and number of trials, with intervals over groups.

    Rows are ``vote_accuracy`` (of findings: their mean, presence being what wins), ``vote_gain``, that less the
    accuracy of the majority of all trials on the same images, for findings ``vote_auroc``, and ``vote_calls``, the
    network calls per image. ``error`` and ``block`` are those of the race. What needs errors that were not recorded
    has no row.

    Raises:
        ValueError: the two files are not of the same images and labels, with their names.
    """
    identity, recorded = Identity.from_run(run, scored=predictions), read_votes(votes)
    cell, errors = _aligned(recorded, read_predictions(predictions), f"{votes} and {predictions}")
    shared = {"groups": len(np.unique(cell.groups)), "bootstrap": bootstrap, "size": run["spec"].get("size")}

    entries = [
        (metric, facts, score)
        for facts, answer in _answers(recorded, errors, error=error, block=block)
        for metric, score in _metrics(cell, answer).items()
    ]
    if not entries:
        return []

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.stack([score(weights) for _, _, score in entries])

    defined = ~np.isnan(cell.values("auroc", np.ones((len(cell.scores), 1))))[:, 0]
    points, draws = statistic(np.ones((len(cell.scores), 1)))[:, 0], resample(statistic, cell.groups, draws=bootstrap)
    values = [(metric, facts, *at) for (metric, facts, _), *at in zip(entries, points, draws, strict=True)]
    accuracy = {(facts["rule"], facts["trials"]): at for metric, facts, *at in values if metric == "vote_accuracy"}
    if whole := accuracy.get(("majority", errors.shape[1])):
        values += [
            ("vote_gain", facts, value - whole[0], drawn - whole[1])  # the same draws of groups: paired
            for metric, facts, value, drawn in values
            if metric == "vote_accuracy"
        ]
    rows = []
    for metric, facts, value, drawn in values:
        partial = metric == "vote_auroc" and not defined.all() and defined.any()
        protocol = format_protocol(
            reason="no finding has both positives and negatives" if np.isnan(value) else None,
            findings=f"{defined.sum()} of {len(defined)}" if partial else None,
            **facts,
            **shared,
        )
        interval = NOWHERE if np.isnan(value) else percentile_interval(drawn, confidence)
        rows.append(
            score_row(identity, metric=metric, value=value, interval=interval, n=len(cell.scores), protocol=protocol)
        )
    return rows


def _aligned(votes: Votes, cell: Predictions, files: str) -> tuple[Predictions, np.ndarray]:
    """Return the labels and groups of the recorded test images, and their errors."""
    if (votes.kind, votes.names) != (cell.kind, cell.names):
        raise ValueError(f"{files} are not of the same labels; delete both so that the images are classified again")
    test = votes.role == "test"
    row_of = {sample_id: row for row, sample_id in enumerate(cell.sample_ids)}
    rows = [row_of.get(sample_id, -1) for sample_id in votes.sample_ids[test]]
    if not rows or min(rows) < 0:
        raise ValueError(f"{files} are not of the same test images; delete both so that they are classified again")
    of_images = ("sample_ids", "groups", "scores", "labels", "decided")
    return replace(cell, **{name: getattr(cell, name)[rows] for name in of_images}), votes.errors[test]


def _answers(votes: Votes, errors: np.ndarray, *, error: float, block: int) -> Iterator[tuple[dict[str, Any], Replay]]:
    """Yield every answer that the errors allow, with what it depends on."""
    contests, kind, recorded = votes.contests, votes.kind, errors.shape[1]
    for trials in [*(n for n in LADDER if n < recorded), recorded]:
        if not np.isnan(errors[:, :trials]).any():
            for rule in RULES:
                yield {"rule": rule, "trials": trials}, fixed(errors, contests, kind=kind, rule=rule, trials=trials)
        with suppress(MissingErrors):
            answer = replay(errors, contests, kind=kind, trials=trials, error=error, block=block)
            yield {"rule": "race", "trials": trials, "error": float(error), "block": block}, answer


def _metrics(cell: Predictions, answer: Replay) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return what is scored of an answer, as functions of weights (n, B) to values (B,)."""
    won = answer.winners == (np.arange(len(cell.names)) if cell.kind == "one_of_k" else 1)
    scored = replace(cell, scores=answer.probabilities, decided=won)
    metrics = {"vote_accuracy": lambda weights: scored.macro("accuracy", weights)}
    if cell.kind == "multi_label":
        metrics["vote_auroc"] = lambda weights: scored.macro("auroc", weights)
    metrics["vote_calls"] = lambda weights: ratio(answer.calls @ weights, weights.sum(0, dtype=np.float64))
    return metrics
