"""The one training loop, for every method."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from jointdiff.config import ConfigError, RunSpec, Training
from jointdiff.data.augment import Views
from jointdiff.data.source import Augmentations, DataInfo
from jointdiff.data.store import Store, open_store
from jointdiff.devices import describe, pick_device, pick_precision
from jointdiff.environment import environment, joined
from jointdiff.files import atomic_path, explain_trouble, remove_leftovers, sha256, write_json
from jointdiff.method import Batch, Method, Trainable
from jointdiff.models import load_model, save_model
from jointdiff.nets.autoencoder import Autoencoder
from jointdiff.nets.codecs import Codec
from jointdiff.processes import join_group, leads
from jointdiff.progress import Progress
from jointdiff.registry import load_method
from jointdiff.seeding import derive, rng
from jointdiff.training.averaging import averaged_copy, update_average
from jointdiff.training.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from jointdiff.training.compute import steps_and_gflop
from jointdiff.training.feed import Feed
from jointdiff.training.optimiser import build_optimiser, schedule
from jointdiff.training.preemption import Interrupted, PreemptedError, Preemption
from jointdiff.training.previews import FOLDER, draw_preview
from jointdiff.training.shares import Shares

T = TypeVar("T", bound=Trainable)
log = logging.getLogger(__name__)

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
NO_AUGMENTATIONS = Augmentations(max_shift=0.0)  # latents are not to be shifted: no image has such latents


class TrainingDivergedError(ValueError):
    """The loss is no longer a number."""


def train(
    run: RunSpec,
    *,
    store: Path | str,  # prepared data set
    split: Path | str,  # split table
    out: Path | str,  # folder of the cell: model/, metrics.jsonl and run.json are written here
    state: Path | str,  # folder of the resumable state, which survives a failed job and is removed at the end
    autoencoder: Path | str | None = None,  # folder of the first stage, for a method that works in its latents
    latents: Path | str | None = None,  # and what it makes of every image of the store
    start: Path | str | None = None,  # model folder of another cell, from whose trained network this one begins
    synthetic: Path | str | None = None,  # images drawn by another cell, to be learnt from as from labelled ones
    code_version: str = "",  # state of another code version is not resumed
    track: Callable[[Path], None] | None = None,  # told of the growing metrics.jsonl after each validation
    tuning: dict[str, int] | None = None,  # of the search behind the settings: trials, and which of them was chosen
) -> None:
    """Train one cell of the grid, from its last checkpoint where there is one.

    In several processes (``jointdiff.processes``) each calls this, with files that all of them see.
    Weights are chosen by macro AUROC on the validation rows of the split; the test rows are never looked at.

    Raises:
        ConfigError: the settings do not fit the method or the data, or it cannot begin with the network of ``start``.
        ValueError: there is an autoencoder without latents, or latents without one.
        TrainingDivergedError: a loss term is NaN or infinite; names the steps, the terms and the last checkpoint.
        PreemptedError: the process was told to end, and its state is kept.
    """
    out, data = Path(out), open_store(store)
    roles = data.split_rows(split)
    best, lines, cost = fit_cell(
        run,
        data,
        roles,
        doing="train",
        state=Path(state),
        autoencoder=autoencoder,
        latents=latents,
        start=start,
        synthetic=synthetic,
        code_version=code_version,
        track=track,
        previews=Path(state) / FOLDER,
    )
    if not leads():
        return
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    if (Path(state) / FOLDER).is_dir():
        shutil.move(Path(state) / FOLDER, out / FOLDER)
    made_with = cost.pop("environment")
    save_model(best, out / "model", run=run, results=cost, made_with=made_with)
    with atomic_path(out / "metrics.jsonl") as aside:
        aside.write_bytes(lines)
    write_json(
        out / "run.json",
        {
            "spec": run.model_dump(mode="json"),
            "settings": best.settings.model_dump(mode="json"),
            "run_id": run.digest,
            "config_digest": run.digest,
            "code_version": code_version,
            "data_digest": data.info.digest,
            "caveats": data.info.caveats,
            "roles": {role: len(rows) for role, rows in roles.items()},
            "tuning": tuning,
            "cost": cost,
            "environment": made_with,
        },
    )
    forget(state)


def fit_cell(
    run: RunSpec,
    data: Store,
    roles: dict[str, np.ndarray],
    *,
    doing: str,  # verb of the progress
    state: Path,
    autoencoder: Path | str | None = None,
    latents: Path | str | None = None,
    start: Path | str | None = None,
    synthetic: Path | str | None = None,
    code_version: str = "",
    track: Callable[[Path], None] | None = None,
    previews: Path | None = None,
) -> tuple[Method, bytes, dict[str, Any]]:
    """Build a cell's method and run the loop; see ``train`` for the arguments and ``fit`` for what comes back.

    Raises:
        ConfigError: the settings do not fit the method or the data, or it cannot begin with the network of ``start``.
        ValueError: there is an autoencoder without latents, or latents without one.
        TrainingDivergedError: a loss term is NaN or infinite.
    """
    if (autoencoder is None) != (latents is None):
        raise ValueError("autoencoder and latents belong together: give both or neither")
    codec = Autoencoder(autoencoder, data.info) if autoencoder is not None else None
    torch.manual_seed(derive(run.seed, "initial weights"))
    method = build_method(run, data.info, codec)
    key = f"{run.digest} {code_version}"
    if start is not None:
        _begin_with(method, Path(start), run)
        key += f" {_weights_digest(Path(start))}"
    drawn = None
    if synthetic is not None:
        key += f" {sha256(synthetic)}"
        with np.load(synthetic, allow_pickle=False) as archive:
            drawn = archive["images"], archive["labels"]
    return fit(
        method,
        data,
        roles,
        latents=latents,
        plan=run.training,
        seed=run.seed,
        label=f"{doing} {run.variant} on {run.dataset}, labels {run.labels}, seed {run.seed}",
        state=state,
        key=key,
        synthetic=drawn,
        real_labels=run.real_labels,
        track=track,
        previews=previews,
    )


def fit(
    trained: T,
    data: Store,
    roles: dict[str, np.ndarray],  # rows of each role
    *,
    plan: Training,
    seed: int,
    label: str,  # of the progress
    state: Path,  # folder of the resumable state
    key: str,  # a state with another key, of other images or of other roles is not resumed
    latents: Path | str | None = None,  # codes of every image of the store, taken instead of the images
    synthetic: tuple[np.ndarray, np.ndarray] | None = None,  # images and labels that count as labelled ones
    real_labels: bool = True,  # whether those of the split do
    track: Callable[[Path], None] | None = None,
    previews: Path | None = None,  # folder for a few synthetic images at each validation, where the plan asks for them
) -> tuple[T, bytes, dict[str, Any]]:
    """Run the loop; return the averaged weights that validated best, the lines of metrics.jsonl, and what it cost.

    Raises:
        TrainingDivergedError: a loss term is NaN or infinite; names the steps, the terms and the last checkpoint.
        PreemptedError: the process was told to end, and its state is kept.
    """
    device = pick_device(plan.device)
    precision = pick_precision(plan.precision, device)
    join_group(device)
    AcceleratorState._reset_state()  # precision is the process's otherwise: a second training may want another one
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=device.type == "cpu",
        # Shares keep the buffers equal themselves; a term that comes now and then leaves weights without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)],
    )
    device, leading = accelerator.device, leads()  # who leads validates and writes
    key = f"{key} {_digest(data, roles, latents)}"
    feed = Feed(
        data,
        roles,
        seed=seed,
        device=device,
        unlabelled_share=plan.unlabelled_share,
        latents=latents,
        synthetic=synthetic,
        real_labels=real_labels,
    )
    views = Views(data.info.augmentations if latents is None else NO_AUGMENTATIONS)

    trained = trained.to(device)
    if device.type == "cuda":  # channels last is what its convolutions are fastest with
        trained = trained.to(memory_format=torch.channels_last)
    trained.prepare(feed.labels[torch.from_numpy(feed.labelled).to(device)], len(feed.unlabelled))
    settings = trained.settings
    optimiser = build_optimiser(trained)
    averaged = averaged_copy(trained)
    shares = Shares(trained, accelerator=accelerator, seed=seed, count=plan.micro_batches, batch_size=plan.batch_size)
    now = TrainingState(trained, averaged, optimiser, best={}, progress={"step": 0, "best": None, "seconds": 0.0})
    labelled = plan.batch_size if trained.sees_labelled else 0
    unlabelled = plan.batch_size * settings.unlabelled_ratio
    steps, gflop = 0, 0.0

    def share_of(step: int, steps: int, share: int, count: int) -> Batch:
        return feed.batch(step, steps=steps, labelled=labelled, unlabelled=unlabelled, share=(share, count))

    if optimiser:  # what has no weights, such as a control, has nothing to train
        steps, gflop = shares.fitting(
            lambda: steps_and_gflop(
                trained,
                averaged,
                views,
                plan=plan,
                seed=seed,
                batch_of=lambda step, steps: share_of(step, steps, 0, shares.count),
                shares=shares.count,
                autocast=accelerator.autocast,
            )
        )
        if device.type == "cuda":  # the counting's copies are no part of what a training needs
            torch.cuda.reset_peak_memory_stats(device)

    state.mkdir(parents=True, exist_ok=True)
    checkpoint, metrics = state / CHECKPOINT, state / METRICS
    resumed = restore_checkpoint(checkpoint, now, key=key)
    first = now.progress["step"]
    shares.count = now.progress.get("micro_batches", shares.count)
    accelerator.wait_for_everyone()  # all have read what the leader is about to replace
    if leading:
        for path in (checkpoint, metrics):
            remove_leftovers(path)
        with atomic_path(metrics) as aside:  # without the lines that an interrupted run wrote after its checkpoint
            aside.write_text(now.progress.get("lines", ""))
        if resumed:
            log.info("%s: goes on after step %d of %d", label, first, steps)
        if previews is not None and not resumed:
            shutil.rmtree(previews, ignore_errors=True)
    judged = roles["validation"]
    if plan.validation_images is not None and plan.validation_images < len(judged):
        judged = np.sort(rng(seed, "validation images").permutation(judged)[: plan.validation_images])
    parts = trained.clipped_together()
    prepared: Any = None
    if optimiser:
        prepared = shares.prepare(optimiser)

    started, saved = time.monotonic() - now.progress["seconds"], time.monotonic()
    pause = plan.checkpoint_seconds
    since, sums = now.progress.get("since", 0), now.sums  # steps since the last line, and what their terms add up to

    def made_with() -> dict[str, str]:  # by all processes that had a part in it, on whatever machines
        return joined(now.progress.get("environment", {}), environment())

    def keep(done: int) -> None:
        now.sums = sums
        now.progress.update(
            step=done,
            environment=made_with(),
            since=since,
            seconds=time.monotonic() - started,
            micro_batches=shares.count,
            lines=metrics.read_text(),
        )
        save_checkpoint(checkpoint, now, key=key)

    def judge(done: int) -> None:
        now.progress["judging"] = True  # until it is done; a checkpoint that comes first says that it is due
        try:
            scores = _validate(
                averaged,
                feed,
                judged,
                autocast=accelerator.autocast,
                batch_size=4 * plan.batch_size,
                preemption=preemption,
            )
        except Interrupted:
            return
        now.progress["judging"] = False
        score = next(iter(scores.values()))
        # On a tie the later weights win: few validation images saturate early. Labels do not choose an encoder that is
        # to see none.
        chosen = now.progress["best"] is None or score >= now.progress["best"]
        if chosen or not trained.encoder_sees_labels:
            now.progress.update(best=score, best_step=done)
            now.best = {name: value.clone() for name, value in averaged.state_dict().items()}
        _write(metrics, step=done, images=done * plan.batch_size, split="validation", **scores)
        if plan.previews and previews is not None and isinstance(averaged, Method):
            with accelerator.autocast():
                draw_preview(averaged, previews, step=done, count=plan.previews, seed=seed)
        if track is not None:
            track(metrics)

    with (
        Progress(label, total=steps, unit="steps", done=first, silent=not leading) as progress,
        Preemption(processes=accelerator.num_processes) as preemption,
    ):
        if leading and now.progress.get("judging"):
            judge(first)
            if now.progress["judging"]:
                raise PreemptedError(label, first)
        for step in range(first, steps):
            trained.train()
            terms = shares.backward(step, functools.partial(share_of, step, steps), views, averaged)
            norms = [accelerator.clip_grad_norm_(part, plan.clip_norm) for part in parts]
            for group in prepared.param_groups:
                group["lr"] = group["base"] * schedule(settings, step=step, steps=steps)
            prepared.step()
            prepared.zero_grad(set_to_none=True)
            update_average(averaged, trained, decay=settings.ema, step=step + 1)

            # Sums stay on the device: the host asks for them only when a line is due.
            norm = torch.stack(norms).norm() if len(norms) > 1 else norms[0]
            for name, value in {**terms, "gradient_norm": norm}.items():
                sums[name] = sums[name] + value if name in sums else value
            since += 1
            done = step + 1
            progress.advance()
            if done % plan.log_every == 0 or done == steps:
                means = _finite_means(sums, since, done=done, checkpoint=checkpoint, kept=now.progress["step"])
                if leading:
                    _write(metrics, step=done, images=done * plan.batch_size, split="train", **means)
                sums, since = {}, 0
            if leading and (done % plan.validate_every == 0 or done == steps):
                judge(done)
            # An end that is asked for comes after any step, also amid a log window, whose sums are kept.
            if preemption.asked() and (done < steps or now.progress.get("judging")):
                if leading:
                    if since:
                        _finite_means(sums, since, done=done, checkpoint=checkpoint, kept=now.progress["step"])
                    keep(done)
                if done < steps:  # else the others are done
                    accelerator.wait_for_everyone()
                raise PreemptedError(label, done)
            # Otherwise between log windows, whose terms are known to be numbers.
            if leading and since == 0 and time.monotonic() - saved >= pause and done < steps:
                began = time.monotonic()
                keep(done)
                saved = time.monotonic()
                if plan.checkpoint_seconds:  # a large network's takes long: then rarely, so that it costs 2 % at most
                    pause = max(plan.checkpoint_seconds, 49.0 * (saved - began))

    seconds = time.monotonic() - started
    if now.best:
        averaged.load_state_dict(now.best)
    return (
        averaged,
        metrics.read_bytes() if leading else b"",
        {
            "train_seconds": seconds,
            "images_per_second": steps * (labelled + unlabelled) / seconds if steps else 0.0,
            "network": trained.network,
            "parameters": sum(p.numel() for p in trained.parameters()),
            "peak_memory_mib": _peak_memory(device),
            "device": describe(device),
            "precision": precision,
            "processes": accelerator.num_processes,
            "micro_batches": shares.count,
            "steps": steps,
            "train_gflop": gflop,
            "best_step": now.progress.get("best_step", 0),
            "best_validation": now.progress["best"],
            "environment": made_with(),
        },
    )


def forget(state: Path | str) -> None:
    """Remove the resumable state of a training whose results are written."""
    for name in (CHECKPOINT, METRICS):
        (Path(state) / name).unlink(missing_ok=True)


def build_method(run: RunSpec, info: DataInfo, codec: Codec | None = None) -> Method:
    """Build the method of a run with its settings checked.

    Raises:
        ConfigError: unknown method, unknown or unfit settings.
    """
    try:
        return load_method(run.method).build(info, run.settings, codec)
    except ValueError as error:  # pydantic's ValidationError is one
        raise ConfigError(f"methods.{run.variant}.settings: {error}") from error


def _begin_with(method: Method, start: Path, run: RunSpec) -> None:
    try:
        method.start_from(load_model(start))
    except ConfigError as error:
        raise ConfigError(f"methods.{run.variant}.start: {error}") from error


def _weights_digest(model: Path) -> str:
    """Digest the weights in a model folder."""
    files = sorted(model.rglob("*.safetensors"))
    return hashlib.sha256(" ".join(map(sha256, files)).encode()).hexdigest()[:16]


@torch.no_grad()
def _validate(
    averaged: Trainable,
    feed: Feed,
    rows: np.ndarray,
    *,
    autocast: Callable[..., Any],
    batch_size: int,
    preemption: Preemption,
) -> dict[str, float]:
    """Return what the averaged weights say of some rows, at most ``batch_size`` at a time.

    Raises:
        Interrupted: the process is told to end.
    """
    parts = np.array_split(rows, math.ceil(len(rows) / batch_size))
    with autocast():
        return averaged.validate(preemption.watch(map(feed.images, parts)), feed.store.labels[rows])


def _digest(data: Store, roles: dict[str, np.ndarray], latents: Path | str | None) -> str:
    """Return a digest of which images a training sees, and of those that it must not have seen."""
    digest = hashlib.sha256(data.info.digest.encode())
    for role, rows in sorted(roles.items()):
        digest.update(f" {role} {len(rows)} ".encode())
        digest.update(rows.astype("<i8").tobytes())
    if latents is not None:
        digest.update(sha256(latents).encode())
    return digest.hexdigest()[:16]


def _finite_means(
    sums: dict[str, torch.Tensor], since: int, *, done: int, checkpoint: Path, kept: int
) -> dict[str, float]:
    """Return the means of the terms over the last ``since`` steps; the checkpoint is of step ``kept``, 0 for none.

    Raises:
        TrainingDivergedError: one of them is NaN or infinite.
    """
    means = {name: value.item() / since for name, value in sums.items()}
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        good = f"the last good checkpoint is {checkpoint}, of step {kept}" if kept else "no checkpoint was written yet"
        raise TrainingDivergedError(
            f"{', '.join(broken)} not finite within the steps {done - since + 1} to {done}; {good}; "
            "lower the method's learning_rate or use training.precision: fp32"
        )
    return means


def _write(metrics: Path, **values: Any) -> None:
    line = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n"
    with explain_trouble(metrics), metrics.open("a") as lines:
        lines.write(line)


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
