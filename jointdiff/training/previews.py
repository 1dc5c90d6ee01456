"""A few synthetic images now and then during a training, for whoever watches it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jointdiff.config import Generation
from jointdiff.files import atomic_path
from jointdiff.method import Generator, Method, to_bytes
from jointdiff.seeding import derive

FOLDER = "previews"  # of a cell and of its resumable state; a picture bears the number of its step


@torch.no_grad()
def draw_preview(method: Method, folder: Path, *, step: int, count: int, seed: int) -> None:
    """Draw ``count`` images into one PNG, a column for each label, from the same noise at every step.

    A method that draws no images leaves nothing.
    """
    if not isinstance(method, Generator):
        return
    how, device, names = Generation(), next(method.parameters()).device, method.data.labels.names
    labels = torch.eye(len(names), device=device)[torch.arange(count, device=device) % len(names)]
    seeds = torch.tensor([derive(seed, "preview", index) for index in range(count)], device=device)
    drawn = method.sample(labels, seeds, steps=how.steps, sampler=how.sampler, guidance=how.guidance)
    images = to_bytes(drawn).permute(0, 2, 3, 1).cpu().numpy()
    blank = np.zeros((-count % len(names), *images.shape[1:]), dtype=np.uint8)
    rows = np.concatenate([images, blank]).reshape(-1, len(names), *images.shape[1:])
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / f"{step:07d}.png") as aside:
        Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet).save(aside, "PNG")
