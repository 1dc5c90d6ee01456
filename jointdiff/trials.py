"""The trials of a diffusion classifier: which noise, at which level, under which conditions, until it is decided.

What the trials' errors decide is said in ``jointdiff.evaluate.voting``, without a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdiff.config import Voting
from jointdiff.devices import pick_precision
from jointdiff.diffusion.process import noise_for
from jointdiff.evaluate.voting import Race
from jointdiff.progress import Progress
from jointdiff.seeding import derive, rng


@dataclass(frozen=True)
class Ballot:
    """What the trials of some images gave."""

    steps: np.ndarray  # (n, N) noise levels of the trials, float32 in [0, 1000]
    errors: np.ndarray  # (n, N, C) error under each condition, float32; NaN where nobody had to ask
    calls: np.ndarray  # (n,) network evaluations


def fractions(seed: int, trials: int) -> np.ndarray:
    """Return where on the way to pure noise an image's trials lie: one in each of N equal strata, in random order.

    The order makes the trials done so far a random sample of all, which is what a sequential test needs.
    """
    generator = rng(seed, "trials")
    drawn = ((generator.permutation(trials) + generator.random(trials)) / trials).astype(np.float32)
    return np.minimum(drawn, np.nextafter(np.float32(1), np.float32(0)))  # rounding may reach 1, which is no step


@torch.no_grad()
def hold_trials(
    method: Any, images: Tensor, seeds: np.ndarray, *, voting: Voting, progress: Progress | None = None
) -> Ballot:
    """Ask how well each condition explains images (n, C, H, W), block by block while an answer is open.

    ``method`` is a diffusion method and a ``Voter``. Images, trials and conditions are batched together,
    ``voting.batch_size`` at a time; all conditions of a trial share noise and level. ``seeds`` (n,) decide both, so
    that neither batch nor order changes an answer.
    """
    n, trials, count = len(images), voting.trials, method.task.conditions
    precision = pick_precision(voting.precision, images.device)
    codes = method.codec.encode(images)
    at = np.stack([fractions(int(seed), trials) for seed in seeds])
    steps = method.process.steps_at(torch.from_numpy(at)).numpy()
    errors = np.full((n, trials, count), np.nan, dtype=np.float32)
    races = [Race(n, len(contest), trials=trials, error=voting.error) for contest in method.task.contests]
    needed = np.zeros((n, count), dtype=bool)
    for first in range(0, trials, voting.block):
        block = slice(first, min(first + voting.block, trials))
        for race, contest in zip(races, method.task.contests, strict=True):
            needed[:, contest] = race.active if voting.stop else True
        if not needed.any():
            break
        errors[:, block] = _errors(
            method, codes, seeds, steps, needed, block, batch_size=voting.batch_size, precision=precision
        )
        for race, contest in zip(races, method.task.contests, strict=True):
            if voting.stop:
                race.record(errors[:, block][:, :, contest])
        if progress is not None:
            progress.advance(int((block.stop - block.start) * n))
    return Ballot(steps.astype(np.float32), errors, calls=(~np.isnan(errors)).sum(axis=(1, 2)))


def _errors(
    method: Any,
    codes: Tensor,
    seeds: np.ndarray,
    steps: np.ndarray,
    needed: np.ndarray,
    block: slice,
    *,
    batch_size: int,
    precision: str,
) -> np.ndarray:
    """Return the errors (n, T, C) of one block of trials, NaN where they are not needed."""
    n, device = len(codes), codes.device
    trials = np.arange(block.start, block.stop)
    open_images = np.flatnonzero(needed.any(axis=1))
    # One noise per image and trial, for all of its conditions.
    noise_seeds = [derive(int(seeds[image]), "trial", int(trial)) for image in open_images for trial in trials]
    noise = noise_for(torch.tensor(noise_seeds, device=device), tuple(codes.shape[1:]))
    place = np.full(n, -1)
    place[open_images] = np.arange(len(open_images))
    image, trial, condition = np.nonzero(np.broadcast_to(needed[:, None], (n, len(trials), needed.shape[1])))
    row = torch.from_numpy(place[image] * len(trials) + trial).to(device)
    level = torch.from_numpy(steps[image, trials[trial]]).to(device)
    asked, of = torch.from_numpy(condition).to(device), torch.from_numpy(image).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        found = torch.cat(
            [
                method.trial_errors(codes[of[part]], level[part], noise[row[part]], asked[part])
                for part in torch.arange(len(row), device=device).split(batch_size)
            ]
        )
    errors = np.full((n, len(trials), needed.shape[1]), np.nan, dtype=np.float32)
    errors[image, trial, condition] = found.float().cpu().numpy()
    return errors
