"""Probabilities of images, in one pass or by the trials of a diffusion classifier."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jointdiff.arrow import to_table
from jointdiff.batches import answers, of_batches
from jointdiff.config import ConfigError, Voting
from jointdiff.data.store import Store, open_store
from jointdiff.devices import pick_device
from jointdiff.environment import environment
from jointdiff.evaluate.votes_file import Votes, write_votes
from jointdiff.evaluate.voting import fixed, replay
from jointdiff.files import atomic_path
from jointdiff.method import Voter
from jointdiff.models import load_model
from jointdiff.processes import join_group
from jointdiff.progress import Progress
from jointdiff.seeding import derive, rng
from jointdiff.trials import Ballot, hold_trials


def classify(
    model: Path | str,
    *,
    store: Path | str,
    split: Path | str,
    out: Path | str,
    batch_size: int = 256,
    device: str = "auto",
) -> None:
    """Write the probabilities of every validation and test image to a Parquet table.

    The processes of a job (``jointdiff.processes``) share out the batches, here and below; the answers are the same.
    """
    data, group = open_store(store), join_group(pick_device(device))
    method = load_model(model).to(group.device)
    rows, role = _judged(data, split)
    started = time.perf_counter()
    scores = answers(method.predict, data.images, rows, batch_size=batch_size, device=group.device)
    spent = group.num_processes * (time.perf_counter() - started)  # of one device
    if not group.is_main_process:
        return
    cost = {"ms_per_image": 1000.0 * spent / len(rows), "calls_per_image": 1.0}
    _write_predictions(out, data, rows, role, scores, cost)


def classify_by_votes(
    model: Path | str,
    *,
    store: Path | str,
    split: Path | str,
    out: Path | str,
    votes: Path | str,
    seed: int,
    voting: Voting,
    batch_size: int = 256,
    device: str = "auto",
) -> None:
    """Let a diffusion classifier vote on every validation and test image; keep every trial beside the probabilities.

    Raises:
        ConfigError: the model is no diffusion classifier.
    """
    data, group = open_store(store), join_group(pick_device(device))
    method = load_model(model).to(group.device)
    if not isinstance(method, Voter):
        raise ConfigError(f"{model}: {type(method).__name__} holds no trials; only diffusion classifiers vote")
    rows, role = _judged(data, split, validation=voting.validation_images, seed=seed)
    seeds = np.array([derive(seed, "votes", str(data.sample_ids[row])) for row in rows])
    started = time.perf_counter()
    with Progress(
        "trials",
        total=len(rows) * voting.trials,
        unit="trials",
        silent=not group.is_main_process,
        times=group.num_processes,
    ) as progress:

        def hold(images: Tensor, places: np.ndarray) -> Ballot:
            return hold_trials(method, images, seeds[places], voting=voting, progress=progress)

        ballots = of_batches(hold, data.images, rows, batch_size=batch_size, device=group.device)
    spent = group.num_processes * (time.perf_counter() - started)  # of one device
    if not group.is_main_process:
        return
    steps, errors = (np.concatenate([getattr(ballot, name) for ballot in ballots]) for name in ("steps", "errors"))
    cost = {
        "ms_per_image": 1000.0 * spent / len(rows),
        "calls_per_image": float(np.mean(np.concatenate([ballot.calls for ballot in ballots]))),
    }
    contests, kind = method.task.contests, data.info.labels.kind
    if voting.stop:
        answer = replay(errors, contests, kind=kind, trials=voting.trials, error=voting.error, block=voting.block)
    else:
        answer = fixed(errors, contests, kind=kind, rule=voting.rule, trials=voting.trials)
    _write_predictions(out, data, rows, role, answer.probabilities, cost)
    record = Votes(
        sample_ids=data.sample_ids[rows],
        role=role,
        steps=steps,
        errors=errors,
        conditions=method.task.condition_names,
        contests=contests,
        kind=kind,
        names=data.info.labels.names,
        cost=cost,
    )
    write_votes(votes, record)


def _judged(
    data: Store, split: Path | str, *, validation: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and roles of the images that a model is judged on: at most so many of validation, then test."""
    roles = data.split_rows(split)
    if validation is not None and validation < len(roles["validation"]):
        chosen = rng(seed, "validation votes").permutation(roles["validation"])[:validation]
        roles["validation"] = np.sort(chosen)
    judged = ["validation", "test"]
    return np.concatenate([roles[role] for role in judged]), np.repeat(judged, [len(roles[role]) for role in judged])


def _write_predictions(
    out: Path | str, data: Store, rows: np.ndarray, role: np.ndarray, scores: np.ndarray, cost: dict[str, float]
) -> None:
    import pyarrow.parquet as pq

    names = data.info.labels.names
    columns: dict[str, Any] = {"sample_id": data.sample_ids[rows], "group": data.groups[rows], "role": role}
    columns |= {f"score:{name}": scores[:, k] for k, name in enumerate(names)}
    columns |= {f"label:{name}": data.labels[rows, k] for k, name in enumerate(names)}
    about = {"cost": json.dumps(cost), "kind": data.info.labels.kind, "environment": json.dumps(environment())}
    table = to_table(columns).replace_schema_metadata(about)
    with atomic_path(out) as aside:
        pq.write_table(table, aside)
