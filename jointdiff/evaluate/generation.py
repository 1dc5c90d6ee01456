"""Generated images: their quality in a trained classifier's features and, with its weights, Inception's; privacy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jointdiff.batches import answers
from jointdiff.data.store import open_store
from jointdiff.devices import pick_device
from jointdiff.evaluate.distances import (
    density_coverage,
    few_images,
    frechet_distance,
    kernel_distance,
    nearest,
    precision_recall,
)
from jointdiff.evaluate.inception import inception_features, inception_network
from jointdiff.evaluate.privacy import copy_limit, draw_nearest, privacy, small
from jointdiff.evaluate.scores import Identity, Row, format_protocol, score_row
from jointdiff.files import read_json, sha256
from jointdiff.models import load_model
from jointdiff.seeding import rng
from jointdiff.training.selection import macro_auroc


def score_generated(
    generated: Path | str,
    *,
    run: Mapping[str, Any],
    extractor: Path | str,
    store: Path | str,
    split: Path | str,
    picture: Path | str,
    inception: Path | str | None = None,
    batch_size: int = 256,
    device: str = "auto",
) -> list[Row]:
    """Score generated images against real test images, and draw those most like an image of the training side.

    Quality is measured in the features of the extractor, a classifier trained on all real labels: Frechet and kernel
    distance, precision, recall, density and coverage, each also of as many real training images ("..._real"), which is
    what a perfect model would reach. ``guidance_auroc`` says whether the extractor finds in an image what was asked
    for; ``fid`` and ``kid`` need the Inception weights. Privacy compares how near generated and test images come to
    the training side, in pixels and in features.
    """
    target = pick_device(device)
    identity = Identity.from_run(run, scored=generated)
    data = open_store(store)
    roles = data.split_rows(split)
    train = np.concatenate([roles["labelled"], roles["unlabelled"]])
    seen = np.sort(np.concatenate([train, roles["validation"]]))
    with np.load(generated, allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"]
        protocol = json.loads(str(stored["protocol"]))
    model: Any = load_model(extractor).to(target)
    # As many real training images, for the scores that a perfect model would have.
    some_train = np.sort(rng(identity.seed, "real reference").permutation(train)[: len(images)])
    every = np.arange(len(images))

    def told(ask: Callable[[Tensor], Tensor], pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return answers(ask, pixels, rows, batch_size=batch_size, device=target).astype(np.float64)

    def scored(metric: str, value: float, n: int = len(images), **facts: Any) -> Row:
        return score_row(identity, metric=metric, value=value, n=n, protocol=format_protocol(**facts))

    drawn, seen_features, test = (
        told(model.features, pixels, chosen)
        for pixels, chosen in ((images, every), (data.images, seen), (data.images, roles["test"]))
    )
    shared = {"extractor": read_variant(extractor), "reference": "test", "n_real": len(test)}
    facts = {**shared, **protocol, "n_generated": len(images), "weights": "EMA"}
    facts["flag"] = few_images(drawn)
    rows = [scored(metric, value, **facts) for metric, value in quality(drawn, test).items()]
    real = quality(seen_features[np.searchsorted(seen, some_train)], test)
    rows += [
        scored(f"{name}_real", value, len(some_train), **shared, generated="train") for name, value in real.items()
    ]
    match = macro_auroc(told(model.predict, images, every), labels)
    rows.append(scored("guidance_auroc", match, judge=facts["extractor"], **protocol))

    pixels = (told(small, data.images, seen), told(small, data.images, roles["test"]))
    near, place = nearest(told(small, images, every), pixels[0])
    beside, _ = nearest(pixels[1], pixels[0])
    rows += [scored(metric, value, **protocol, space="pixels") for metric, value in privacy(near, beside).items()]
    apart = nearest(drawn, seen_features)[0], nearest(test, seen_features)[0]
    rows += [
        scored(f"feature_{metric}", value, **protocol, space=facts["extractor"])
        for metric, value in privacy(*apart).items()
    ]
    draw_nearest(images, data.images, near, seen[place], limit=copy_limit(beside), path=Path(picture))

    if inception is None:
        missing = "weights absent: set evaluation.inception or put them in the mirror"
        return [*rows, *(scored(metric, float("nan"), 0, reason=missing) for metric in ("fid", "kid"))]
    network = inception_network(inception, target)
    a, b = (inception_features(network, x, target) for x in (images, data.images[roles["test"]]))
    facts |= {"extractor": "inception", "resize": "clean-fid bicubic 299", "sha256": sha256(inception)[:16]}
    facts["flag"] = few_images(a)
    return [*rows, scored("fid", frechet_distance(a, b), **facts), scored("kid", kernel_distance(a, b), **facts)]


def quality(drawn: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Compare features (N, D) of drawn images with those of real ones (M, D) by every measure."""
    precision, recall = precision_recall(drawn, real)
    density, coverage = density_coverage(drawn, real)
    return {
        "frechet_distance": frechet_distance(drawn, real),
        "kernel_distance": kernel_distance(drawn, real),
        "image_precision": precision,
        "image_recall": recall,
        "image_density": density,
        "image_coverage": coverage,
    }


def read_variant(model: Path | str) -> str:
    """Return the variant's name from a model folder."""
    return read_json(Path(model) / "config.json")["run"]["variant"]
