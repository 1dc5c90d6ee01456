"""Domain adaptation: one half of another data set as published, the other half corrupted, to learn from and to test on.

Each image comes once, in one of the two domains. Were the target domain a corrupted copy of the same images, then the
labelled images would stand among the unlabelled ones, and adaptation would be from pairs; that is another problem, and
an easier one, than the literature's (JointDiffusion: Deja et al. 2023; Ganin and Lempitsky 2015). Corruptions follow
the idea of ImageNet-C (Hendrycks and Dietterich 2019): five severities, of which each is further from the original.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from jointdiff.config import ConfigError
from jointdiff.data.source import Loadable, Sample, Source, load
from jointdiff.data.source import describe as describe_module
from jointdiff.registry import load_source, sources
from jointdiff.seeding import derive, rng

GRAINS = 64  # of noise, on the longer side: finer ones would vanish where a large image is prepared small


def describe(*, of: str = "phantom", corruption: str = "noise", severity: int = 3) -> Source:
    """Return the facts of the data set ``of``, which hold for its two halves together.

    Its name stays, since the raw files are the same.

    Raises:
        ConfigError: there is no such data set, corruption or severity.
    """
    if corruption not in CORRUPTIONS:
        nearest = difflib.get_close_matches(corruption, CORRUPTIONS, n=1, cutoff=0.0)
        raise ConfigError(
            f"datasets.shifted.options.corruption: there is no {corruption!r}: did you mean {nearest[0]!r}? "
            f"Known: {', '.join(CORRUPTIONS)}"
        )
    if not 1 <= severity <= 5:
        raise ConfigError(f"datasets.shifted.options.severity: {severity} is not in 1 (mild) to 5 (severe)")
    inner, _ = describe_module(_module(of))
    joined = ("groups that are found by likeness do not reach across domains",) if inner.near_duplicates.join else ()
    return replace(
        inner,
        title=f"{inner.title}, to a domain with {corruption} ({severity} of 5)",
        cite=f"{inner.cite}; corrupted after Hendrycks and Dietterich, ICLR (2019)",
        options={"of": "phantom", "corruption": "noise", "severity": 3},
        caveats=(
            *inner.caveats,
            f"half of its groups are the source domain, the others, with {corruption} of severity {severity} of 5, the "
            "target: labels and validation are from the source alone, test images from the target alone",
            *joined,
        ),
    )


def shards(raw: Path, *, of: str = "phantom", corruption: str = "noise", severity: int = 3) -> list[str | None]:
    """Return the shards of the data set ``of``; one without a name where it has none."""
    module = _module(of)
    return list(module.shards(raw, **_options(module))) if hasattr(module, "shards") else [None]


def read(
    raw: Path,
    *,
    size: int,
    shard: str | None = None,
    of: str = "phantom",
    corruption: str = "noise",
    severity: int = 3,
) -> Iterator[Callable[[], Sample]]:
    """Yield every image of the data set ``of`` once, in the order of its own reader."""
    module = _module(of)
    given = {} if shard is None else {"shard": shard}
    for loadable in module.read(raw, size=size, **_options(module), **given):
        yield partial(shift, loadable, corruption=corruption, severity=severity)


def shift(loadable: Loadable, *, corruption: str, severity: int) -> Sample:
    """Load a sample and put it into its group's domain: the source as it is, or the target corrupted.

    Both are decided by names alone, so that threads and parts change nothing.
    """
    sample = load(loadable)
    if derive(0, "domain", sample.group) % 2:
        return replace(sample, domain="source")
    corrupted = CORRUPTIONS[corruption](sample.image, severity, rng(0, "corruption", sample.sample_id))
    return replace(sample, image=corrupted, domain="target")


# Corruptions take and return uint8 (H, W) or (H, W, C); only noise draws from the generator.


def noise(image: np.ndarray, severity: int, g: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, independent in each channel."""
    deviation = 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    height, width = image.shape[:2]
    grain = max(1.0, max(height, width) / GRAINS)
    rows, columns = ((np.arange(side) / grain).astype(int) for side in (height, width))
    grains = g.standard_normal((rows[-1] + 1, columns[-1] + 1, *image.shape[2:]))
    return _pixels(image + deviation * grains[rows][:, columns])


def blur(image: np.ndarray, severity: int, g: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian whose width is a share of the longer side."""
    radius = max(image.shape[:2]) * (0.02, 0.03, 0.04, 0.05, 0.06)[severity - 1]
    planes = np.moveaxis(np.atleast_3d(image), 2, 0)
    blurred = [np.asarray(Image.fromarray(plane).filter(ImageFilter.GaussianBlur(radius))) for plane in planes]
    return np.stack(blurred, axis=2).reshape(image.shape)


def contrast(image: np.ndarray, severity: int, g: np.random.Generator) -> np.ndarray:
    """Draw every pixel towards the mean of the image's channel."""
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = image.mean(axis=(0, 1), keepdims=True)
    return _pixels(mean + kept * (image - mean))


def inversion(image: np.ndarray, severity: int, g: np.random.Generator) -> np.ndarray:
    """Invert what is brighter than a threshold that falls with severity: at 5 all, a negative.

    A weighted mean of image and negative would be blank half way.
    """
    return np.where(image >= (204, 153, 102, 51, 0)[severity - 1], 255 - image, image)


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "inversion": inversion,
}


def _pixels(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)


def _module(of: str) -> ModuleType:
    known = [name for name in sources() if name != __name__.rpartition(".")[2]]
    if of not in known:
        nearest = difflib.get_close_matches(of, known, n=1, cutoff=0.0)
        raise ConfigError(
            f"datasets.shifted.options.of: {of!r} is no data set to shift: did you mean {nearest[0]!r}? "
            f"Known: {', '.join(known)}"
        )
    return load_source(of)


def _options(module: ModuleType) -> dict[str, Any]:
    """Return the options of a data set's reader: all have their defaults."""
    return describe_module(module)[1]


SOURCE = describe()
