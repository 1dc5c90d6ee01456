"""Batches by counter: which images a step sees depends on the seed and the step alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jointdiff.data.store import Store
from jointdiff.method import Batch, to_unit_range
from jointdiff.seeding import derive, rng


class Feed:
    """Draw labelled and unlabelled images of a split for any step.

    Every image is seen once before any is seen again. The unlabelled stream runs over all training images, labelled
    ones included (as USB does), or over ``unlabelled_share`` of the unlabelled ones. On a GPU images stay as bytes
    where they fit in ``resident_bytes``, by default a third of its free memory; otherwise they are gathered from the
    memory-mapped store, which costs a CPU nothing more (benchmarks/loading.py). ``latents`` are codes of every image of
    the store; they are then handed out in place of the images. ``synthetic`` images (uint8, M x H x W x C) with their
    labels (M, K) are labelled ones as well, or in place of those of the split; their rows follow those of the store.
    """

    def __init__(
        self,
        store: Store,
        roles: dict[str, np.ndarray],
        *,
        seed: int,
        device: torch.device,
        unlabelled_share: float = 1.0,
        resident_bytes: int | None = None,
        latents: Path | str | None = None,
        synthetic: tuple[np.ndarray, np.ndarray] | None = None,
        real_labels: bool = True,
    ) -> None:
        self.pixels = store.images if latents is None else np.load(latents, mmap_mode="r", allow_pickle=False)
        count = len(self.pixels)
        self.store, self.seed, self.device = store, seed, device
        self.labelled = roles["labelled"]
        others = roles["unlabelled"]
        if unlabelled_share < 1.0:
            order = rng(seed, "unlabelled share").permutation(len(others))
            others = np.sort(others[order[: round(unlabelled_share * len(others))]])
        self.unlabelled = np.concatenate([self.labelled, others])
        self._orders: dict[str, tuple[int, np.ndarray]] = {}  # of each stream's present pass, which its seed gives
        labels, self.drawn = store.labels, None
        if synthetic is not None:
            self.drawn, given = synthetic
            assert self.drawn.shape[1:] == self.pixels.shape[1:], (self.drawn.shape, self.pixels.shape)
            labels = np.concatenate([labels, given.astype(np.float32)])
            real = self.labelled if real_labels else self.labelled[:0]
            self.labelled = np.concatenate([real, np.arange(count, count + len(self.drawn))])
        self.labels = torch.from_numpy(labels.copy()).to(device)
        if resident_bytes is None:
            resident_bytes = torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else 0
        self.resident = _on_device(self.pixels, device) if self.pixels.nbytes <= resident_bytes else None
        if self.resident is not None and self.drawn is not None:
            self.resident = torch.cat([self.resident, _on_device(self.drawn, device)])

    def batch(self, step: int, *, steps: int, labelled: int, unlabelled: int, share: tuple[int, int] = (0, 1)) -> Batch:
        """Return the batch of one step with as many images as asked for, or a share of it: which one, of how many."""
        part, parts = share
        labelled_at, unlabelled_at = (
            self._places(stream, size, step, count)[part * count // parts : (part + 1) * count // parts]
            for stream, size, count in (
                ("labelled", len(self.labelled), labelled),
                ("unlabelled", len(self.unlabelled), unlabelled),
            )
        )
        shown = self.labelled[labelled_at]
        return Batch(
            labelled=self.images(shown),
            labels=self.labels[torch.from_numpy(shown).to(self.device)],
            unlabelled=self.images(self.unlabelled[unlabelled_at]),
            step=step,
            steps=steps,
            labelled_at=torch.from_numpy(labelled_at).to(self.device),
            unlabelled_at=torch.from_numpy(unlabelled_at).to(self.device),
        )

    def images(self, rows: np.ndarray) -> Tensor:
        """Return images (N, C, H, W) in [-1, 1], or latents, on the device."""
        if self.resident is not None:
            return _to_floats(self.resident[torch.from_numpy(rows).to(self.device)])
        gathered = torch.from_numpy(self._gather(rows)).permute(0, 3, 1, 2)
        if self.device.type == "cuda":
            gathered = gathered.pin_memory().to(self.device, non_blocking=True)
        return _to_floats(gathered).contiguous()

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        if self.drawn is None:
            return self.pixels[rows]
        stored = rows < len(self.pixels)
        gathered = np.empty((len(rows), *self.pixels.shape[1:]), dtype=self.pixels.dtype)
        gathered[stored] = self.pixels[rows[stored]]
        gathered[~stored] = self.drawn[rows[~stored] - len(self.pixels)]
        return gathered

    def _places(self, stream: str, size: int, step: int, count: int) -> np.ndarray:
        """Return what stands at [step * count, (step + 1) * count) of endless shuffled passes over ``range(size)``."""
        epochs, places = np.divmod(np.arange(step * count, (step + 1) * count), size)
        drawn = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            if self._orders.get(stream, (-1,))[0] != epoch:
                self._orders[stream] = epoch, rng(self.seed, stream, epoch).permutation(size)
            here = epochs == epoch
            drawn[here] = self._orders[stream][1][places[here]]
        return drawn


def _on_device(pixels: np.ndarray, device: torch.device, *, at_once: int = 4096) -> Tensor:
    """Copy images (N, H, W, C) to a device as (N, C, H, W), so many at a time, since the host's memory is smaller."""
    n, height, width, channels = pixels.shape
    kind = torch.from_numpy(np.empty(0, dtype=pixels.dtype)).dtype
    resident = torch.empty((n, channels, height, width), dtype=kind, device=device)
    for start in range(0, n, at_once):
        part = torch.from_numpy(np.array(pixels[start : start + at_once]))
        resident[start : start + at_once] = part.permute(0, 3, 1, 2)
    return resident


def _to_floats(stored: Tensor) -> Tensor:
    return to_unit_range(stored) if stored.dtype == torch.uint8 else stored.float()


def seed_step(seed: int, step: int, share: int | None = None) -> None:
    """Seed torch for everything random inside one step, or a share of it: noise, times, views, dropout."""
    torch.manual_seed(derive(seed, "step", step, *([] if share is None else [share])))
