"""clean-fid's Inception network: the features of FID and KID."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff.data.source import File, LabelSpec, Source
from jointdiff.files import sha256

# Name and digest of the published file, which clean-fid loads.
FILE = "inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + FILE  # where clean-fid finds it

# What the downloader needs to know of it, as of a data set's files: a mirror may have it in its folder inception/.
WEIGHTS = Source(
    name="inception",
    title="Inception weights",
    labels=LabelSpec("one_of_k", ()),
    channels=3,
    licence="NVIDIA Source Code License",
    cite="Karras et al. 2020, converted from Szegedy et al. 2016",
    files=(File(FILE, (URL,), sha256=SHA256),),
)


def inception_network(path: Path | str, device: torch.device) -> Any:
    """Load clean-fid's Inception network from a local file; nothing is downloaded.

    Raises:
        ValueError: the file is missing, has another name than clean-fid looks for, or is not the published one.
    """
    from cleanfid.inception_torchscript import InceptionV3W

    path = Path(path)
    if not path.is_file() or path.name != FILE:
        raise ValueError(f"evaluation.inception: {path} must be an existing file called {FILE}")
    if (found := sha256(path)) != SHA256:
        raise ValueError(
            f"evaluation.inception: {path} has the SHA-256 {found[:16]}..., the published file {SHA256[:16]}...; "
            "a distance in other features is no FID: download the file again, or remove it"
        )
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
