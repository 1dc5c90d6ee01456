"""Diffusion processes and their solvers. Noise levels are steps from 0 (the image) to 1000 (pure noise).

A process says how much of an image is left at a step, a solver which steps to take. Where diffusers has the same
scheduler, equality with it is tested.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from jointdiff.seeding import derive

STEPS = 1000

Prediction = Literal["epsilon", "v"]


class Solver(Protocol):
    """Goes from noise to an image."""

    times: Sequence[float]  # steps at which it asks for an estimate, from the noisiest

    def step(self, clean: Tensor, t: float, z: Tensor) -> Tensor:
        """Return z at the next of ``times`` (in the end z_0), given the estimate of z_0 for z at ``t``."""
        ...


class Process(ABC):
    """z_t = a_t z_0 + s_t eps with a_t^2 + s_t^2 = 1.

    Args:
        prediction: what the network estimates: the noise, or v = a_t eps - s_t z_0 (Salimans & Ho 2022).
        clip: whether z_0 lies in [-1, 1], so that estimates of it are cut off there.
    """

    def __init__(self, *, prediction: Prediction, clip: bool) -> None:
        self.prediction, self.clip = prediction, clip

    @abstractmethod
    def signal(self, steps: Tensor) -> Tensor:
        """Return a_t^2 (N,) at steps (N,)."""

    @abstractmethod
    def times(self, steps: int, *, start: int = STEPS) -> list[float]:
        """Return ``steps`` steps evenly apart from ``start`` down, without the image itself."""

    def steps_at(self, fractions: Tensor) -> Tensor:
        """Return the steps (N,) at fractions (N,) in [0, 1) of the way to pure noise."""
        return fractions * STEPS

    def scales(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t, each (N, 1, 1, 1), at steps (N,)."""
        signal = self.signal(steps)[:, None, None, None]
        return signal.sqrt(), (1.0 - signal).sqrt()

    def add_noise(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return z_t."""
        a, s = self.scales(steps)
        return a * clean + s * noise

    def remove_noise(self, noisy: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return the estimate of z_0 that goes with a noise estimate, not clipped."""
        a, s = self.scales(steps)
        return (noisy - s * noise) / a

    def target(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return what a network's output should be: the noise, or v = a eps - s z_0 (Salimans & Ho 2022)."""
        if self.prediction == "epsilon":
            return noise
        a, s = self.scales(steps)
        return a * noise - s * clean

    def with_more_noise(self, output: Tensor, more: Tensor, steps: Tensor) -> Tensor:
        """Return the output that stands for a noise estimate larger by ``more``."""
        return output + (more if self.prediction == "epsilon" else more / self.scales(steps)[0])

    def noise_from(self, output: Tensor, noisy: Tensor, steps: Tensor) -> Tensor:
        """Return the noise estimate that a network's output stands for."""
        if self.prediction == "epsilon":
            return output
        a, s = self.scales(steps)
        return s * noisy + a * output

    def clean_from(self, output: Tensor, noisy: Tensor, steps: Tensor) -> Tensor:
        """Return the estimate of z_0 that a network's output stands for, clipped where that is right."""
        if self.prediction == "epsilon":
            return self.clipped(self.remove_noise(noisy, output, steps))
        # Not through the noise, which near pure noise leaves nothing to divide by.
        a, s = self.scales(steps)
        return self.clipped(a * noisy - s * output)

    def clipped(self, clean: Tensor) -> Tensor:
        """Return an estimate of z_0 cut off where z_0 is."""
        return clean.clamp(-1.0, 1.0) if self.clip else clean

    def solver(self, name: str, steps: int, *, start: int = STEPS) -> Solver:
        """Return a fresh solver from step ``start``: ``ddim`` (eta 0) or ``dpm++`` (second order, multistep).

        Raises:
            ValueError: the name is unknown, or the steps do not fit below ``start``.
        """
        times = self.times(steps, start=start)
        # Plain numbers, so that no step waits for a device.
        signal = self.signal(torch.tensor(times)).double().tolist()
        if name == "ddim":
            return _DDIM(times, signal)
        if name == "dpm++":
            return _DPMSolver(times, signal)
        raise ValueError(f"unknown sampler {name!r}: use 'ddim' or 'dpm++'")

    @abstractmethod
    def scheduler_config(self) -> dict[str, Any]:
        """Return the configuration of the same process as a DDIM scheduler of diffusers."""

    def save_pretrained(self, folder: Path) -> None:
        """Write the process as diffusers' DDIM scheduler."""
        config = {
            "_class_name": "DDIMScheduler",
            "clip_sample": self.clip,
            "num_train_timesteps": STEPS,
            "timestep_spacing": "trailing",  # ends at pure noise on one side and at step 0 on the other
            "prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[self.prediction],
            **self.scheduler_config(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class DiscreteProcess(Process):
    """A thousand steps, 0 to 999 (Ho et al. 2020, Eq. 4).

    Args:
        schedule: linear betas from 1e-4 to 0.02, the squared-cosine schedule of Nichol & Dhariwal 2021, or that of
            Stable Diffusion (square roots of beta linear from 8.5e-4 to 0.012).
    """

    NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "stable_diffusion": "scaled_linear"}  # noqa: RUF012

    def __init__(
        self,
        schedule: Literal["linear", "cosine", "stable_diffusion"] = "linear",
        *,
        prediction: Prediction = "epsilon",
        clip: bool = True,
    ) -> None:
        super().__init__(prediction=prediction, clip=clip)
        self.schedule = schedule
        if schedule == "linear":
            betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
        elif schedule == "stable_diffusion":
            betas = torch.linspace(8.5e-4**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
        else:
            abar = torch.cos((torch.arange(STEPS + 1, dtype=torch.float64) / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1.0 - abar[1:] / abar[:-1]).clamp(max=0.999)
        self.signals = (1.0 - betas).cumprod(0).float()  # abar_t (1000,)

    def steps_at(self, fractions: Tensor) -> Tensor:
        """Return whole steps."""
        return (fractions * STEPS).floor()

    def signal(self, steps: Tensor) -> Tensor:
        """Return abar_t (N,) at whole steps (N,)."""
        self.signals = self.signals.to(steps.device)
        return self.signals[steps.long()]

    def times(self, steps: int, *, start: int = STEPS) -> list[float]:
        """Return ``steps`` of the ``start`` least noisy steps, evenly apart and from the noisiest ("trailing").

        Raises:
            ValueError: there are fewer than ``steps`` of them.
        """
        if not 1 <= steps <= start:
            raise ValueError(f"{steps} steps do not fit between noise level {start} and the image: use at most {start}")
        return [round(start * (steps - i) / steps) - 1 for i in range(steps)]

    def scheduler_config(self) -> dict[str, Any]:
        """Return the schedule by diffusers' name."""
        scale = {"beta_start": 8.5e-4, "beta_end": 0.012} if self.schedule == "stable_diffusion" else {}
        return {"beta_schedule": self.NAMES[self.schedule], **scale}


class ContinuousProcess(Process):
    """Any step from 0 to 1000: the cosine schedule, shifted for the size (Hoogeboom et al. 2023, simple diffusion).

    log SNR(t) = -2 log tan(t') + 2 log(64 / size), where t' runs over the angles at which the unshifted log SNR goes
    from 15 to -15 (Favero et al. 2025 after simple diffusion's reference settings).

    Args:
        size: side of what is diffused.
    """

    LIMIT = 15.0  # of the unshifted log SNR, both ways

    def __init__(self, size: int, *, prediction: Prediction = "v", clip: bool = True) -> None:
        super().__init__(prediction=prediction, clip=clip)
        self.shift = 2.0 * math.log(64.0 / size)
        self.first, self.last = (math.atan(math.exp(sign * 0.5 * self.LIMIT)) for sign in (-1.0, 1.0))

    def log_snr(self, steps: Tensor) -> Tensor:
        """Return log(a_t^2 / s_t^2) (N,) at steps (N,)."""
        angle = self.first + (self.last - self.first) * steps.float() / STEPS
        return self.shift - 2.0 * angle.tan().log()

    def signal(self, steps: Tensor) -> Tensor:
        """Return a_t^2 (N,) at steps (N,)."""
        return self.log_snr(steps).sigmoid()

    def times(self, steps: int, *, start: int = STEPS) -> list[float]:
        """Return ``steps`` steps evenly apart, from ``start`` down.

        Raises:
            ValueError: there is no step.
        """
        if steps < 1:
            raise ValueError(f"{steps} steps lead nowhere: use at least 1")
        return [start * (steps - i) / steps for i in range(steps)]

    def scheduler_config(self) -> dict[str, Any]:
        """Return the schedule at whole steps as betas, which diffusers has no name for."""
        signal = self.signal(torch.arange(STEPS, dtype=torch.float64)).double()
        before = torch.cat([signal.new_ones(1), signal[:-1]])
        return {"trained_betas": (1.0 - signal / before).clamp(0.0, 0.999).tolist()}


class _DDIM:
    """Deterministic DDIM (Song et al. 2021, Eq. 12 with sigma 0).

    The noise is what z holds beside the clean estimate, also where that was clipped (``use_clipped_model_output`` in
    diffusers). With the network's own noise, guidance beyond the range of an image turns round: it can no longer move
    the clean part, and moves the noise the other way.
    """

    def __init__(self, times: Sequence[float], signal: Sequence[float]) -> None:
        self.times = times
        self.signals = dict(zip(times, pairwise([*signal, 1.0]), strict=True))

    def step(self, clean: Tensor, t: float, z: Tensor) -> Tensor:
        before, after = self.signals[t]
        # Of small codes, a step next to the image can have no noise left in single precision.
        kept = math.sqrt((1.0 - after) / (1.0 - before)) if before < 1.0 else 0.0
        return math.sqrt(after) * clean + kept * (z - math.sqrt(before) * clean)


class _DPMSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), of first order in its first and last step, as in diffusers."""

    def __init__(self, times: Sequence[float], signal: Sequence[float]) -> None:
        self.times = times
        self.place = {t: i for i, t in enumerate(times)}
        self.scales = [(math.sqrt(x), math.sqrt(1.0 - x)) for x in signal] + [(1.0, 0.0)]
        self.before: Tensor | None = None  # the clean estimate of the step before

    def step(self, clean: Tensor, t: float, z: Tensor) -> Tensor:
        i = self.place[t]
        (a, s), (a_after, s_after) = self.scales[i], self.scales[i + 1]
        direction, before, self.before = clean, self.before, clean
        if s_after == 0.0:
            return direction
        h = math.log(a_after / s_after) - math.log(a / s)
        # diffusers lowers the order of the last step of short solutions; there the branch above has ended already.
        if before is not None:
            a_before, s_before = self.scales[i - 1]
            r = (math.log(a / s) - math.log(a_before / s_before)) / h
            direction = direction + (direction - before) / (2.0 * r)
        return s_after / s * z - a_after * math.expm1(-h) * direction


def noise_for(seeds: Tensor, shape: tuple[int, ...], *, purpose: str = "noise") -> Tensor:
    """Draw standard normal noise (N, *shape) with one integer seed per image, whatever the batch."""
    drawn = []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(derive(seed, purpose))
        drawn.append(torch.randn(shape, generator=generator))
    return torch.stack(drawn).to(seeds.device)
