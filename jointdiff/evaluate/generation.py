"""Quality of generated images: Frechet distances in a trained classifier's features and, with its weights, FID."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdiff.batches import answers
from jointdiff.data.store import open_store
from jointdiff.devices import pick_device
from jointdiff.evaluate.frechet import frechet_distance
from jointdiff.evaluate.scores import Identity, Row, format_protocol, score_row
from jointdiff.files import read_json, sha256
from jointdiff.models import load_model
from jointdiff.seeding import rng
from jointdiff.training.selection import macro_auroc

# clean-fid's Inception network (its file name and the digest of the published file).
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


def score_generated(
    generated: Path | str,
    *,
    run: Mapping[str, Any],
    extractor: Path | str,
    store: Path | str,
    split: Path | str,
    inception: Path | str | None = None,
    batch_size: int = 256,
    device: str = "auto",
) -> list[Row]:
    """Score generated images against the real test images, beside the distance of real training images to them.

    Rows: ``frechet_distance`` in the extractor's features (a classifier trained on all real labels), its real-data
    reference, ``guidance_auroc`` (whether the extractor finds in an image what was asked for), and ``fid``.
    """
    target = pick_device(device)
    identity = Identity.from_run(run)
    data = open_store(store)
    roles = data.split_rows(split)
    train = np.concatenate([roles["labelled"], roles["unlabelled"]])
    with np.load(generated, allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"]
        protocol = json.loads(str(stored["protocol"]))
    model: Any = load_model(extractor).to(target)

    def told(ask: Callable[[Tensor], Tensor], pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return answers(ask, pixels, rows, batch_size=batch_size, device=target).astype(np.float64)

    every = np.arange(len(images))
    test = told(model.features, data.images, roles["test"])
    # As many real training images, for a distance that a perfect model would have.
    some_train = np.sort(rng(identity.seed, "real reference").permutation(train)[: len(images)])
    facts = {
        "extractor": read_variant(extractor),
        **protocol,
        "reference": "test",
        "n_real": len(test),
        "n_generated": len(images),
        "weights": "EMA",
    }
    if len(images) <= test.shape[1]:
        facts["flag"] = f"fewer images than the {test.shape[1]} features"
    rows = [
        score_row(
            identity,
            metric="frechet_distance",
            value=frechet_distance(told(model.features, images, every), test),
            n=len(images),
            protocol=format_protocol(**facts),
        ),
        score_row(
            identity,
            metric="frechet_distance_real",
            value=frechet_distance(told(model.features, data.images, some_train), test),
            n=len(some_train),
            protocol=format_protocol(
                extractor=facts["extractor"], reference="test", n_real=len(test), generated="train"
            ),
        ),
        score_row(
            identity,
            metric="guidance_auroc",
            value=macro_auroc(told(model.predict, images, every), labels),
            n=len(images),
            protocol=format_protocol(judge=facts["extractor"], **protocol),
        ),
    ]
    if inception is None:
        missing = "weights absent: set evaluation.inception or put them in the mirror"
        rows.append(score_row(identity, metric="fid", value=float("nan"), protocol=format_protocol(reason=missing)))
    else:
        network = inception_network(inception, target)
        value = frechet_distance(
            inception_features(network, images, target), inception_features(network, data.images[roles["test"]], target)
        )
        rows.append(
            score_row(
                identity,
                metric="fid",
                value=value,
                n=len(images),
                protocol=format_protocol(
                    **{**facts, "extractor": "inception", "resize": "clean-fid bicubic 299"},
                    sha256=sha256(inception)[:16],
                ),
            )
        )
    return rows


def read_variant(model: Path | str) -> str:
    """Return the variant's name from a model folder."""
    return read_json(Path(model) / "config.json")["run"]["variant"]


def inception_network(path: Path | str, device: torch.device) -> Any:
    """Load clean-fid's Inception network from a local file; nothing is downloaded.

    Raises:
        ValueError: the file is missing or has another name than clean-fid looks for.
    """
    from cleanfid.inception_torchscript import InceptionV3W

    path = Path(path)
    if not path.is_file() or path.name != INCEPTION_FILE:
        raise ValueError(f"evaluation.inception: {path} must be an existing file called {INCEPTION_FILE}")
    return InceptionV3W(str(path.parent), download=False).to(device).eval()


@torch.no_grad()
def inception_features(network: Any, images: np.ndarray, device: torch.device, *, batch_size: int = 32) -> np.ndarray:
    """Return Inception features (N, 2048) of uint8 images (N, H, W, C), resized as clean-fid does."""
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, "bicubic", (299, 299))
    parts = []
    for start in range(0, len(images), batch_size):
        colour = np.broadcast_to(images[start : start + batch_size], (*images[start : start + batch_size].shape[:3], 3))
        batch = torch.from_numpy(np.stack([resize(image) for image in colour])).permute(0, 3, 1, 2)
        parts.append(network(batch.float().to(device)).cpu().numpy())
    return np.concatenate(parts).astype(np.float64)
