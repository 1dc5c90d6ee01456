"""The diffusion process and its solvers, on diffusers' schedulers."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from jointdiff.seeding import derive

STEPS = 1000


class DiffusionProcess:
    """z_t = a_t z_0 + s_t eps over 1000 steps (Ho et al. 2020, Eq. 4).

    Args:
        schedule: linear betas from 1e-4 to 0.02, or the squared-cosine schedule of Nichol & Dhariwal 2021.
    """

    def __init__(self, schedule: Literal["linear", "cosine"] = "linear") -> None:
        self.settings = {
            "num_train_timesteps": STEPS,
            "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule],
            "timestep_spacing": "trailing",  # ends at pure noise on one side and at step 0 on the other
            "prediction_type": "epsilon",
        }
        self.signal: Tensor = self.solver("ddim").alphas_cumprod  # abar_t (1000,)

    def solver(self, name: str) -> DDIMScheduler | DPMSolverMultistepScheduler:
        """Return a fresh solver: ``ddim`` (eta 0) or ``dpm++`` (second order)."""
        if name == "ddim":
            return DDIMScheduler(clip_sample=True, **self.settings)
        if name == "dpm++":
            return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **self.settings)
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


def noise_for(seeds: Tensor, shape: tuple[int, ...], *, purpose: str = "noise") -> Tensor:
    """Draw standard normal noise (N, *shape) with one integer seed per image, whatever the batch."""
    drawn = []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(derive(seed, purpose))
        drawn.append(torch.randn(shape, generator=generator))
    return torch.stack(drawn).to(seeds.device)
