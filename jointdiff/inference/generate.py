"""Synthetic images, the labels asked for and what the model says of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from jointdiff.batches import answers, image_batches
from jointdiff.config import ConfigError, Generation
from jointdiff.data.source import DataInfo
from jointdiff.data.store import open_store
from jointdiff.devices import pick_device
from jointdiff.environment import environment
from jointdiff.files import atomic_path
from jointdiff.method import Generator, Method, to_bytes
from jointdiff.models import load_model
from jointdiff.pictures import save_grid
from jointdiff.processes import join_group, share_out
from jointdiff.progress import Progress
from jointdiff.seeding import derive, rng


def wanted_labels(kind: str, count: int, findings: int) -> np.ndarray:
    """Return label vectors (count, findings) in turn: each class, or no finding and then each finding alone."""
    vectors = np.eye(findings, dtype=np.float32)
    if kind == "multi_label":
        vectors = np.concatenate([np.zeros((1, findings), dtype=np.float32), vectors])
    return vectors[np.arange(count) % len(vectors)]


def generate(
    model: Path | str,
    *,
    out: Path | str,
    picture: Path | str,
    seed: int,
    settings: Generation,
    store: Path | str | None = None,
    split: Path | str | None = None,
    only: Sequence[int] | None = None,
    device: str = "auto",
) -> None:
    """Draw images for every class or finding in turn, or for ``only`` some, and write them with a grid to look at.

    With ``settings.labels`` pseudo, what the model says of the unlabelled images of a split is asked for instead. The
    labels asked for and the model's own answers about the images drawn (pseudo-labels) are stored with them. The
    processes of a job (``jointdiff.processes``) share out the batches; each image has its seed, and is the same.

    Raises:
        ConfigError: the model cannot generate, or pseudo-labels are asked for without images to take them from.
    """
    group = join_group(pick_device(device))
    target = group.device
    method = load_model(model).to(target)
    info = method.data
    if not isinstance(method, Generator):
        raise ConfigError(f"methods: {type(method).__name__} draws no images; set generate: false for it")
    if only is not None:
        labels = np.eye(len(info.labels.names), dtype=np.float32)[np.resize(np.array(only), settings.images)]
    elif settings.labels == "each":
        labels = wanted_labels(info.labels.kind, settings.images, len(info.labels.names))
    else:
        labels = _pseudo_labels(method, store, split, count=settings.images, seed=seed, device=target)
    seeds = np.array([derive(seed, "generate", i) for i in range(settings.images)], dtype=np.int64)
    started = time.perf_counter()
    with Progress(
        "generate",
        total=settings.images,
        unit="images",
        silent=not group.is_main_process,
        times=group.num_processes,
    ) as progress:

        def draw(part: slice) -> np.ndarray:
            batch = method.sample(
                torch.from_numpy(labels[part]).to(target),
                torch.from_numpy(seeds[part]).to(target),
                steps=settings.steps,
                sampler=settings.sampler,
                guidance=settings.guidance,
            )
            progress.advance(len(batch))
            return to_bytes(batch).permute(0, 2, 3, 1).cpu().numpy()

        starts = range(0, settings.images, settings.batch_size)
        drawn = share_out(draw, [slice(start, start + settings.batch_size) for start in starts], device=target)
    spent = group.num_processes * (time.perf_counter() - started)  # of one device
    cost = {
        "ms_per_sample": 1000.0 * spent / settings.images,
        "calls_per_sample": settings.steps * method.calls_per_step(settings.guidance),
    }
    protocol = {key: getattr(settings, key) for key in ("sampler", "steps", "guidance", "labels")}
    images = np.concatenate(drawn)
    said = answers(method.predict, images, np.arange(len(images)), batch_size=settings.batch_size, device=target)
    if not group.is_main_process:
        return
    with atomic_path(out) as aside:
        np.savez(
            aside,
            images=images,
            labels=labels,
            predicted=said,
            seeds=seeds,
            protocol=json.dumps(protocol),
            cost=json.dumps(cost),
            environment=json.dumps(environment()),
        )
    _draw_grid(images, labels, info, Path(picture), settings)


def _pseudo_labels(
    method: Method,
    store: Path | str | None,
    split: Path | str | None,
    *,
    count: int,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Return what a model says of ``count`` unlabelled images, as hard labels (count, K)."""
    if store is None or split is None:
        raise ConfigError("generation.labels: 'pseudo' needs a data set whose unlabelled images it can ask about")
    data = open_store(store)
    roles = data.split_rows(split)
    pool = roles["unlabelled"] if len(roles["unlabelled"]) else roles["labelled"]
    chosen = rng(seed, "pseudo-labels").choice(pool, size=count, replace=count > len(pool))
    with torch.no_grad():
        asked = image_batches(data.images, chosen, batch_size=256, device=device)
        said = torch.cat([method.predict(images) for images in asked])
    # Rounded probabilities are hard labels; of classes exactly one is the greatest.
    if data.info.labels.kind == "one_of_k":
        return torch.nn.functional.one_hot(said.argmax(1), said.shape[1]).float().cpu().numpy()
    return said.round().float().cpu().numpy()


def _draw_grid(images: np.ndarray, labels: np.ndarray, info: DataInfo, path: Path, settings: Generation) -> None:
    """Draw up to ten images a row; a row is a class, or no finding, each finding alone, and several."""
    names = list(info.labels.names)
    if info.labels.kind == "one_of_k":
        row_of, rows = labels.argmax(axis=1), names
    else:
        several = labels.sum(axis=1) > 1
        row_of = np.where(several, len(names) + 1, (labels > 0).any(axis=1) * (1 + labels.argmax(axis=1)))
        rows = ["none", *names, "several"]
    members = [np.flatnonzero(row_of == row)[:10] for row in range(len(rows))]
    shown = [(name, member) for name, member in zip(rows, members, strict=True) if len(member)]
    per_row = max(len(member) for _, member in shown)
    blank = np.full_like(images[0], 255)
    grid = [images[member[i]] if i < len(member) else blank for _, member in shown for i in range(per_row)]
    title = f"{info.title}: {settings.sampler}, {settings.steps} steps, guidance {settings.guidance:g}"
    save_grid(np.stack(grid), path, rows=[name for name, _ in shown], per_row=per_row, title=title)
