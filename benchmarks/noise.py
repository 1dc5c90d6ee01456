"""What benchmarks measure on: data sets of noise, joint models of three sizes, and processes that are as jobs are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Literal

from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.jobs import keep_memory

# U-Nets by the side and channels of what they are given: one for two cores, JointDiffusion's, Mediffusion's.
UNETS: dict[str, dict[str, Any]] = {
    "small": {"size": 28, "channels": 1, "width": 32, "multipliers": (1, 2, 2), "blocks": 3, "attention_at": (14, 7)},
    "pixels": {
        "size": 32,
        "channels": 1,
        "width": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 3,
        "attention_at": (16, 8),
    },
    "latents": {
        "size": 32,
        "channels": 4,
        "width": 256,
        "multipliers": (1, 2, 4),
        "blocks": 2,
        "attention_at": (32, 16, 8),
    },
}


def noise_info(
    size: int,
    *,
    names: Sequence[str] = ("a", "b"),
    channels: int = 1,
    kind: Literal["one_of_k", "multi_label"] = "multi_label",
) -> DataInfo:
    """Return what a prepared set of noise would say of itself; its images are not augmented."""
    return DataInfo(
        name="noise",
        title="Noise",
        labels=LabelSpec(kind, tuple(names)),
        channels=channels,
        size=size,
        augmentations=Augmentations(max_shift=0.0),
        samples=1,
        digest="",
        has_regions=False,
    )


def run_as_job() -> None:
    """Start this script anew with memory kept as the workflow's jobs keep it, unless it has been."""
    if "GLIBC_TUNABLES" not in os.environ:
        keep_memory(os.environ)
        raise SystemExit(subprocess.run([sys.executable, *sys.argv], check=False).returncode)
