"""A small search on validation images, as many trials for every method. Light: torch is imported by trials alone.

A search belongs to one cell (data set, budget, method, seed), since what another seed validates on may be what this one
is tested on. Nothing here sees a test image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jointdiff.config import ConfigError, RunSpec
from jointdiff.environment import environment
from jointdiff.files import atomic_path, read_json, write_json
from jointdiff.registry import load_method
from jointdiff.seeding import rng


def trial_settings(declared: Mapping[str, float], *, trial: int, seed: int, spread: float) -> dict[str, float]:
    """Return the settings that a trial tries: the declared ones first, then each of them times a factor.

    Factors are drawn log-uniformly from 1 / spread to spread, anew for each seed, trial and setting. A trial of every
    method multiplies its learning rate by the same factor, so that no method has better luck than another.
    """
    if trial == 0:
        return dict(declared)
    return {
        name: value * spread ** rng(seed, "tuning", trial, name).uniform(-1.0, 1.0) for name, value in declared.items()
    }


def try_settings(
    run: RunSpec,
    *,
    trial: int,  # counted from 0
    spread: float,  # see trial_settings
    store: Path | str,  # prepared data set
    split: Path | str,  # split table
    out: Path | str,  # JSON: what was tried and how it validated
    metrics: Path | str,  # the training's curves
    state: Path | str,  # folder of the resumable state
    autoencoder: Path | str | None = None,
    latents: Path | str | None = None,
    start: Path | str | None = None,  # model folder of another cell, from whose trained network this one begins
    synthetic: Path | str | None = None,  # images drawn by another cell, to be learnt from as from labelled ones
    code_version: str = "",
) -> None:
    """Train one cell with the settings of a trial and keep its best validation. A training that diverges has none.

    Raises:
        ConfigError: the settings do not fit the method or the data, or it cannot begin with the network of ``start``.
    """
    from jointdiff.data.store import open_store
    from jointdiff.training.loop import METRICS, TrainingDivergedError, fit_cell, forget

    data, state = open_store(store), Path(state)
    tried = trial_settings(declared_settings(run), trial=trial, seed=run.seed, spread=spread)
    run = _with(run, tried, trial=trial)
    cost: dict[str, Any] = {}
    failed = None
    try:
        _, lines, cost = fit_cell(
            run,
            data,
            data.split_rows(split),
            doing=f"trial {trial} of",
            state=state,
            autoencoder=autoencoder,
            latents=latents,
            start=start,
            synthetic=synthetic,
            code_version=code_version,
        )
    except TrainingDivergedError as error:
        lines, failed = (state / METRICS).read_bytes(), str(error)
    score = cost.get("best_validation")
    with atomic_path(metrics) as aside:
        aside.write_bytes(lines)
    write_json(
        out,
        {
            "dataset": run.dataset,
            "labels": run.labels,
            "method": run.variant,
            "seed": run.seed,
            "trial": trial,
            "settings": tried,
            "best_validation": score if score is not None and math.isfinite(score) else None,
            "failed": failed,
            "run_id": run.digest,
            "code_version": code_version,
            "environment": cost.pop("environment", None) or environment(),  # of one that diverged, that of its end
            "cost": cost,
        },
    )
    forget(state)


def declared_settings(run: RunSpec) -> dict[str, float]:
    """Return the settings of a run that its method lets a search multiply, with their values.

    Raises:
        ConfigError: unknown method, unknown or unfit settings.
    """
    method = load_method(run.method)
    try:
        settings = method.Settings.model_validate(run.settings)
    except ValueError as error:
        raise ConfigError(f"methods.{run.variant}.settings: {error}") from error
    return {name: getattr(settings, name) for name in method.tunable}


def choose_settings(trials: Iterable[Path | str], out: Path | str) -> None:
    """Write all trials of a cell in order, and which of them validated best, the earlier one of equals.

    Raises:
        ValueError: no trial has a score.
    """
    tried = sorted((read_json(path) for path in trials), key=lambda trial: trial["trial"])
    scored = [trial for trial in tried if trial["best_validation"] is not None]
    if not scored:
        where = "{method} on {dataset}, labels {labels}, seed {seed}".format(**tried[0])
        raise ValueError(f"no trial of {where} ended with a score. The first: {tried[0]['failed']}")
    # Rounded, so that the order of a sum does not make one of two equals the better; max takes the first of them.
    best = max(scored, key=lambda trial: round(trial["best_validation"], 9))
    write_json(
        out,
        {
            **{name: best[name] for name in ("dataset", "labels", "method", "seed")},
            "chosen": best["trial"],
            "settings": best["settings"],
            "trials": tried,
        },
    )


def tuned(run: RunSpec, choice: Mapping[str, Any] | None) -> tuple[RunSpec, dict[str, int] | None]:
    """Return a run with the settings that a search chose, if there was one, and what its record says of the search."""
    if choice is None:
        return run, None
    about = {"trials": len(choice["trials"]), "chosen": choice["chosen"]}
    return _with(run, choice["settings"], trial=choice["chosen"]), about


def _with(run: RunSpec, tried: Mapping[str, float], *, trial: int) -> RunSpec:
    # The declared settings stay as they are declared, so that the run bears the name that it has without a search.
    return run.model_copy(update={"settings": {**run.settings, **tried}}) if trial else run
