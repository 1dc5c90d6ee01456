"""Counterfactuals by diffusion: noise an image, rebuild it with guidance, and once more without as the control."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jointdiff.config import Explanation
from jointdiff.diffusion.process import Process, noise_for
from jointdiff.method import Counterfactuals
from jointdiff.nets.codecs import Codec
from jointdiff.seeding import derive

# What a network says of z (N, c, h, w) at steps (N,); a guide says it without and with guidance.
Plain = Callable[[Tensor, Tensor], Tensor]
Guide = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def edit(
    images: Tensor,
    seeds: Tensor,
    *,
    plain: Plain,
    guide: Guide,
    guide_calls: int,
    codec: Codec,
    process: Process,
    how: Explanation,
) -> Counterfactuals:
    """Rebuild images (N, C, H, W) from noise level ``how.noise_level`` with and without guidance.

    The draws run as one batch, (draws * N, c, h, w), draw by draw; edit and control of a draw share their noise, and
    the mean over draws is returned. ``guide_calls`` is what the guide costs in network evaluations, where ``plain``
    costs one. At the first step the control is what the guide says without guidance, so that it costs nothing.
    """
    codes, draws = codec.encode(images), draws_of(how)
    origin = codes.repeat(draws, 1, 1, 1)
    solver = process.solver("ddim", how.steps, start=how.noise_level)
    if how.start == "noise":
        each = [derive(seed, "noise", draw) for draw in range(draws) for seed in seeds.tolist()]
        noise = noise_for(torch.tensor(each, device=seeds.device), tuple(codes.shape[1:]))
        edited = process.add_noise(origin, noise, torch.full((len(origin),), solver.times[0], device=seeds.device))
    else:
        edited = invert(origin, plain=plain, process=process, times=solver.times[::-1])
    control = edited

    def advance(z: Tensor, output: Tensor, steps: Tensor, t: float) -> Tensor:
        return solver.step(near(process.clean_from(output, z, steps), origin, how.proximity), t, z)

    for i, t in enumerate(solver.times):
        steps = torch.full((len(origin),), t, device=seeds.device)
        unguided, guided = guide(edited, steps)
        edited = advance(edited, guided, steps, t)
        control = advance(control, plain(control, steps) if i else unguided, steps, t)

    drawn_edits, drawn_controls = (
        codec.decode(process.clipped(z)).clamp(-1.0, 1.0).view(draws, *images.shape) for z in (edited, control)
    )
    spread = (drawn_edits - drawn_controls).std(dim=0, correction=0).mean(dim=1) / 2.0
    edit_mean, control_mean = drawn_edits.mean(dim=0), drawn_controls.mean(dim=0)
    if how.keep < 1.0:
        kept = most_changed(edit_mean - control_mean, how.keep)
        edit_mean, control_mean = (torch.where(kept, mean, images) for mean in (edit_mean, control_mean))
    inversion = how.steps if how.start == "inversion" else 0
    calls = draws * (how.steps * guide_calls + inversion + how.steps - 1)
    return Counterfactuals(edit_mean, control_mean, spread, calls)


def draws_of(how: Explanation) -> int:
    """Return how many draws of noise are averaged; inversion is deterministic, so that another would be the same."""
    return how.noises if how.start == "noise" else 1


def in_turn(choices: tuple[int, ...], seeds: Tensor, how: Explanation) -> Tensor:
    """Return one of some choices for each draw of each image, (draws * N,): all in turn, from one the seed decides."""
    draw = torch.arange(draws_of(how), device=seeds.device)
    return torch.tensor(choices, device=seeds.device)[(draw[:, None] + seeds) % len(choices)].flatten()


def invert(codes: Tensor, *, plain: Plain, process: Process, times: Sequence[float]) -> Tensor:
    """Run DDIM backwards from codes to the last of the ascending ``times`` (Song et al. 2021, section 4.3)."""
    clean, z = codes, codes
    for i, t in enumerate(times):
        steps = torch.full((len(codes),), t, device=codes.device)
        # The estimate is asked for at the step to come, with the z at hand: they differ little when steps are small.
        noise = process.noise_from(plain(z, steps), z, steps)
        if i:
            clean = process.remove_noise(z, noise, torch.full_like(steps, times[i - 1]))
        z = process.add_noise(clean, noise, steps)
    return z


def near(clean: Tensor, origin: Tensor, threshold: float) -> Tensor:
    """Shrink the difference of an estimate from where it began by ``threshold``, to 0 where it is less.

    This is the proximal step of ``threshold`` times the absolute difference (as in ProxEdit, Han et al. 2024).
    """
    return origin + torch.nn.functional.softshrink(clean - origin, threshold) if threshold else clean


def most_changed(change: Tensor, share: float) -> Tensor:
    """Return where the mean absolute change (N, C, H, W) is among the greatest ``share`` of pixels: (N, 1, H, W).

    A pixel that did not change is nowhere among them.
    """
    size = change.abs().mean(dim=1, keepdim=True)
    count = max(1, round(share * size[0].numel()))
    least = size.flatten(1).topk(count, dim=1).values[:, -1]
    return (size >= least[:, None, None, None]) & (size > 0)
