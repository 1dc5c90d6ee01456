"""The diffusion process and its solvers, with the definitions of diffusers' schedulers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from jointdiff.seeding import derive

STEPS = 1000


class Solver(Protocol):
    """Goes from noise to an image."""

    times: Sequence[int]  # steps at which it asks for the noise, from the noisiest

    def step(self, noise: Tensor, t: int, z: Tensor) -> Tensor:
        """Return the image at the next of ``times`` (in the end z_0), given the noise estimate for z at ``t``."""
        ...


class DiffusionProcess:
    """z_t = a_t z_0 + s_t eps over 1000 steps (Ho et al. 2020, Eq. 4).

    Args:
        schedule: linear betas from 1e-4 to 0.02, or the squared-cosine schedule of Nichol & Dhariwal 2021.
    """

    def __init__(self, schedule: Literal["linear", "cosine"] = "linear") -> None:
        self.settings: dict[str, Any] = {
            "num_train_timesteps": STEPS,
            "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule],
            "timestep_spacing": "trailing",  # ends at pure noise on one side and at step 0 on the other
            "prediction_type": "epsilon",
        }
        if schedule == "linear":
            betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
        else:
            abar = torch.cos((torch.arange(STEPS + 1, dtype=torch.float64) / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1.0 - abar[1:] / abar[:-1]).clamp(max=0.999)
        self.signal = (1.0 - betas).cumprod(0).float()  # abar_t (1000,)

    def times(self, steps: int, *, start: int = STEPS) -> list[int]:
        """Return ``steps`` of the ``start`` least noisy steps, evenly apart and from the noisiest ("trailing").

        Raises:
            ValueError: there are fewer than ``steps`` of them.
        """
        if not 1 <= steps <= start:
            raise ValueError(f"{steps} steps do not fit between noise level {start} and the image: use at most {start}")
        return [round(start * (steps - i) / steps) - 1 for i in range(steps)]

    def solver(self, name: str, steps: int, *, start: int = STEPS) -> Solver:
        """Return a fresh solver from step ``start`` - 1: ``ddim`` (eta 0) or ``dpm++`` (second order)."""
        if name == "ddim":
            return _DDIM(self.signal.tolist(), self.times(steps, start=start))
        if name == "dpm++":
            return _DPMSolver(self.settings, self.times(steps, start=start))
        raise ValueError(f"unknown sampler {name!r}: use 'ddim' or 'dpm++'")

    def scales(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t, each (N, 1, 1, 1), at integer steps (N,)."""
        self.signal = self.signal.to(steps.device)
        signal = self.signal[steps][:, None, None, None]
        return signal.sqrt(), (1.0 - signal).sqrt()

    def add_noise(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return z_t."""
        a, s = self.scales(steps)
        return a * clean + s * noise

    def remove_noise(self, noisy: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return the estimate of z_0 that goes with a noise estimate."""
        a, s = self.scales(steps)
        return (noisy - s * noise) / a

    def save_pretrained(self, folder: Path) -> None:
        """Write the process as diffusers' DDIM scheduler."""
        config = {"_class_name": "DDIMScheduler", "clip_sample": True, **self.settings}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class _DDIM:
    """Deterministic DDIM (Song et al. 2021, Eq. 12 with sigma 0); estimates of z_0 are clipped to [-1, 1]."""

    def __init__(self, signal: Sequence[float], times: Sequence[int]) -> None:
        self.times = times
        # Plain numbers, so that no step waits for a device.
        self.signal = {t: signal[t] for t in times}
        self.signal_after = {t: signal[after] for t, after in pairwise(times)} | {times[-1]: 1.0}

    def step(self, noise: Tensor, t: int, z: Tensor) -> Tensor:
        now, after = self.signal[t], self.signal_after[t]
        clean = ((z - math.sqrt(1.0 - now) * noise) / math.sqrt(now)).clamp(-1.0, 1.0)
        return math.sqrt(after) * clean + math.sqrt(1.0 - after) * noise


class _DPMSolver:
    """DPM-Solver++ of second order (Lu et al. 2022), diffusers' own."""

    def __init__(self, settings: dict[str, Any], times: Sequence[int]) -> None:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        self.times = times
        self.scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **settings)
        self.scheduler.set_timesteps(timesteps=list(times))

    def step(self, noise: Tensor, t: int, z: Tensor) -> Tensor:
        return self.scheduler.step(noise, t, z, return_dict=False)[0]


def noise_for(seeds: Tensor, shape: tuple[int, ...], *, purpose: str = "noise") -> Tensor:
    """Draw standard normal noise (N, *shape) with one integer seed per image, whatever the batch."""
    drawn = []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(derive(seed, purpose))
        drawn.append(torch.randn(shape, generator=generator))
    return torch.stack(drawn).to(seeds.device)
