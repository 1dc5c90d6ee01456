import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from jointdiff.diffusion.process import STEPS, DiffusionProcess, noise_for


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_noising_equals_diffusers_and_is_undone_by_the_true_noise(schedule):
    process = DiffusionProcess(schedule)
    reference = DDPMScheduler(beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule])
    clean, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    steps = torch.tensor([0, 1, 500, 900])
    noisy = process.add_noise(clean, noise, steps)
    torch.testing.assert_close(noisy, reference.add_noise(clean, noise, steps))
    torch.testing.assert_close(process.remove_noise(noisy, noise, steps), clean, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 4, 25, 1000])
def test_ddim_equals_that_of_diffusers(tmp_path, schedule, steps):
    process = DiffusionProcess(schedule)
    process.save_pretrained(tmp_path)
    reference = DDIMScheduler.from_pretrained(tmp_path)
    reference.set_timesteps(steps)
    solver = process.solver("ddim", steps)
    assert solver.times == reference.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 1, 4, 4, generator=generator)
    for t in solver.times[:: max(1, steps // 10)]:
        noise = z + 0.1 * torch.randn(z.shape, generator=generator)
        expected = reference.step(noise, t, z).prev_sample
        torch.testing.assert_close(solver.step(noise, t, z), expected, atol=2e-4, rtol=1e-3)


def test_times_below_a_start_are_evenly_apart():
    process = DiffusionProcess()
    assert process.times(4, start=200) == [199, 149, 99, 49]
    assert process.times(1, start=50) == [49]
    assert process.times(3) == [999, 666, 332]
    assert process.times(5, start=5) == [4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="6 steps do not fit between noise level 5"):
        process.times(6, start=5)


def test_scales_are_a_unit_vector():
    a, s = DiffusionProcess().scales(torch.arange(STEPS))
    torch.testing.assert_close(a.square() + s.square(), torch.ones(STEPS, 1, 1, 1))


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_solvers_recover_the_mean_of_gaussian_data(sampler):
    """For data N(m, v) the ideal noise estimate is known in closed form; samples must have that mean and spread."""
    mean, spread = 0.3, 0.2
    process = DiffusionProcess()
    solver = process.solver(sampler, 250)
    z = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for t in solver.times:
        a, s = process.scales(torch.full((len(z),), t))
        estimate = s * (z - a * mean) / (a**2 * spread**2 + s**2)
        z = solver.step(estimate, t, z)
    assert z.mean().item() == pytest.approx(mean, abs=0.015)
    assert z.std().item() == pytest.approx(spread, abs=0.03)


def test_noise_of_an_image_depends_on_its_seed_alone():
    together = noise_for(torch.tensor([5, 6, 7]), (1, 4, 4))
    alone = noise_for(torch.tensor([6]), (1, 4, 4))
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="unknown sampler 'euler'"):
        DiffusionProcess().solver("euler", 10)
