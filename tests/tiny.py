"""Methods and data small enough to be trained in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.config import RunSpec, Training
from jointdiff.data.prepare import prepare
from jointdiff.data.store import open_store, write_table

# Only what makes a method small; the rest are its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "joint": {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention_at": []},
    "diffusion_classifier": {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention_at": [], "quick_trials": 4},
    "diffusion_features": {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention_at": []},
    "guided_diffusion": {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention_at": []},
    "supervised": {"depth": 10, "width": 1},
    "fixmatch": {"depth": 10, "width": 1, "unlabelled_ratio": 2},
    "mean_teacher": {"depth": 10, "width": 1},
    "pseudo_label": {"depth": 10, "width": 1},
    "pi_model": {"depth": 10, "width": 1},
    "vat": {"depth": 10, "width": 1},
    "mixmatch": {"depth": 10, "width": 1},
    "uda": {"depth": 10, "width": 1, "unlabelled_ratio": 2},
    "flexmatch": {"depth": 10, "width": 1, "unlabelled_ratio": 2},
    "freematch": {"depth": 10, "width": 1, "unlabelled_ratio": 2},
    "softmatch": {"depth": 10, "width": 1, "unlabelled_ratio": 2},
    "src_mt": {"depth": 10, "width": 1},
    "acpl": {"depth": 10, "width": 1},
    "simclr": {"depth": 10, "width": 1, "unlabelled_ratio": 2},
}


def tiny_run(method: str, *, dataset: str = "phantom", settings: dict[str, Any] | None = None, **training) -> RunSpec:
    """Return the run of a method on images of 16 px; ``training`` differs from a quick one in single precision."""
    quick = {"batch_size": 4, "precision": "fp32", "device": "cpu"}
    return RunSpec(
        experiment="test",
        dataset=dataset,
        size=16,
        labels="20",
        variant=method,
        method=method,
        seed=0,
        settings={**SMALL.get(method, {}), **(settings or {})},
        training=Training(**{**quick, **training}),
    )


def tiny_phantoms(folder: Path, **roles: int) -> dict[str, Path]:
    """Prepare 48 phantoms of 24 patients in a folder, and a split that gives roles to as many images in turn."""
    prepare("phantom", folder, folder / "store", size=16, options={"patients": 24, "images_per_patient": 2})
    ids = open_store(folder / "store").sample_ids
    write_table({"sample_id": ids, "role": np.repeat(list(roles), list(roles.values()))}, folder / "split.parquet")
    return {"store": folder / "store", "split": folder / "split.parquet"}
