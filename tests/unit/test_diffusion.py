import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from jointdiff.diffusion.process import STEPS, ContinuousProcess, DiscreteProcess, noise_for

SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "stable_diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}


@pytest.fixture(params=["epsilon", "v"])
def prediction(request):
    return request.param


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noising_equals_diffusers_and_is_undone_by_the_true_noise(schedule):
    process = DiscreteProcess(schedule)
    reference = DDPMScheduler(**SCHEDULES[schedule])
    clean, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    steps = torch.tensor([0, 1, 500, 900])
    noisy = process.add_noise(clean, noise, steps)
    torch.testing.assert_close(noisy, reference.add_noise(clean, noise, steps))
    torch.testing.assert_close(process.remove_noise(noisy, noise, steps), clean, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_velocity_equals_that_of_diffusers(schedule):
    process = DiscreteProcess(schedule, prediction="v", clip=False)
    clean, noise, steps = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([3, 400, 998])
    velocity = DDPMScheduler(**SCHEDULES[schedule]).get_velocity(clean, noise, steps)
    torch.testing.assert_close(process.target(clean, noise, steps), velocity)
    noisy = process.add_noise(clean, noise, steps)
    torch.testing.assert_close(process.clean_from(velocity, noisy, steps), clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(process.noise_from(velocity, noisy, steps), noise, atol=1e-5, rtol=1e-5)


def steps_of(solver, process, reference, *, every=1, **how):
    """Compare each step of a solver, from a z of its own, with that of a scheduler of diffusers."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 1, 4, 4, generator=generator)
    for t in solver.times[::every]:
        output = z + 0.1 * torch.randn(z.shape, generator=generator)
        expected = reference.step(output, t, z, return_dict=False, **how)[0]
        found = solver.step(process.clean_from(output, z, torch.full((2,), t)), t, z)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
        z = found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 4, 25, 1000])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_equals_that_of_diffusers(tmp_path, schedule, steps, prediction, clip):
    process = DiscreteProcess(schedule, prediction=prediction, clip=clip)
    process.save_pretrained(tmp_path)
    reference = DDIMScheduler.from_pretrained(tmp_path)
    reference.set_timesteps(steps)
    solver = process.solver("ddim", steps)
    assert solver.times == reference.timesteps.tolist()
    steps_of(solver, process, reference, every=max(1, steps // 10), use_clipped_model_output=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_dpm_solver_equals_that_of_diffusers(schedule, steps, prediction):
    process = DiscreteProcess(schedule, prediction=prediction, clip=False)
    reference = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, prediction_type=PREDICTIONS[prediction], **SCHEDULES[schedule]
    )
    solver = process.solver("dpm++", steps)
    reference.set_timesteps(timesteps=solver.times)
    steps_of(solver, process, reference)


def test_times_below_a_start_are_evenly_apart():
    process = DiscreteProcess()
    assert process.times(4, start=200) == [199, 149, 99, 49]
    assert process.times(1, start=50) == [49]
    assert process.times(3) == [999, 666, 332]
    assert process.times(5, start=5) == [4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="6 steps do not fit between noise level 5"):
        process.times(6, start=5)
    assert ContinuousProcess(64).times(4, start=500) == [500, 375, 250, 125]
    with pytest.raises(ValueError, match="0 steps lead nowhere"):
        ContinuousProcess(64).times(0)


@pytest.mark.parametrize("process", [DiscreteProcess(), ContinuousProcess(32)], ids=["discrete", "continuous"])
def test_scales_are_a_unit_vector_and_the_signal_falls(process):
    steps = torch.arange(STEPS)
    a, s = process.scales(steps)
    torch.testing.assert_close(a.square() + s.square(), torch.ones(STEPS, 1, 1, 1))
    assert (process.signal(steps).diff() <= 0).all()


@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_the_shifted_cosine_schedule_is_that_of_its_formula(size):
    """At 64 px, log SNR is 0 halfway; elsewhere it is shifted by 2 log(64 / size); ends are cut at 15 before that."""
    process = ContinuousProcess(size)
    shift = 2 * math.log(64 / size)
    steps = torch.tensor([0.0, 250.0, 500.0, 1000.0])
    low, high = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    quarter = -2 * math.log(math.tan(low + 0.25 * (high - low)))
    expected = torch.tensor([15.0, quarter, 0.0, -15.0]) + shift
    torch.testing.assert_close(process.log_snr(steps), expected, atol=1e-3, rtol=1e-4)
    signal = process.signal(steps)
    torch.testing.assert_close((signal / (1 - signal)).log()[1:3], expected[1:3], atol=1e-3, rtol=1e-3)


def test_the_unshifted_cosine_schedule_is_nearly_that_of_nichol_and_dhariwal():
    ours = ContinuousProcess(64).signal(torch.arange(100, 900))
    theirs = DiscreteProcess("cosine").signal(torch.arange(100, 900))
    assert (ours - theirs).abs().max() < 0.02


def test_a_continuous_process_is_saved_as_betas_that_diffusers_reads(tmp_path):
    process = ContinuousProcess(32)
    process.save_pretrained(tmp_path)
    reference = DDIMScheduler.from_pretrained(tmp_path)
    assert reference.config.prediction_type == "v_prediction"
    torch.testing.assert_close(
        reference.alphas_cumprod[:990],
        process.signal(torch.arange(990)).to(reference.alphas_cumprod),
        atol=1e-5,
        rtol=1e-3,
    )


@pytest.mark.parametrize("process", [DiscreteProcess, lambda **how: ContinuousProcess(32, **how)])
def test_estimates_from_velocity_and_from_noise_agree(process):
    clean, noise, steps = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([3, 400, 800])
    by_noise, by_velocity = process(prediction="epsilon", clip=False), process(prediction="v", clip=False)
    a, s = by_noise.scales(steps)
    noisy = by_noise.add_noise(clean, noise, steps)
    velocity = a * noise - s * clean
    for of in ("clean_from", "noise_from"):
        one, other = getattr(by_noise, of)(noise, noisy, steps), getattr(by_velocity, of)(velocity, noisy, steps)
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_more_noise_is_that_much_more(prediction):
    process = DiscreteProcess(prediction=prediction, clip=False)
    output, noisy, more = torch.randn(3, 3, 1, 4, 4)
    steps = torch.tensor([3, 400, 800])
    found = process.noise_from(process.with_more_noise(output, more, steps), noisy, steps)
    torch.testing.assert_close(found, process.noise_from(output, noisy, steps) + more, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("make", [DiscreteProcess, lambda **how: ContinuousProcess(32, **how)])
def test_solvers_recover_the_mean_of_gaussian_data(sampler, make, prediction):
    """For data N(m, v) the ideal noise estimate is known in closed form; samples must have that mean and spread."""
    mean, spread = 0.3, 0.2
    process = make(prediction=prediction, clip=True)
    solver = process.solver(sampler, 250)
    z = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for t in solver.times:
        steps = torch.full((len(z),), t)
        a, s = process.scales(steps)
        noise = s * (z - a * mean) / (a**2 * spread**2 + s**2)
        clean = mean + a * spread**2 * (z - a * mean) / (a**2 * spread**2 + s**2)
        output = noise if prediction == "epsilon" else a * noise - s * clean
        z = solver.step(process.clean_from(output, z, steps), t, z)
    assert z.mean().item() == pytest.approx(mean, abs=0.015)
    assert z.std().item() == pytest.approx(spread, abs=0.03)


def test_a_step_without_any_noise_left_is_a_number():
    process = ContinuousProcess(4)
    solver = process.solver("ddim", 1000)
    assert process.signal(torch.tensor([solver.times[-1]])).item() == 1.0
    z = torch.rand(1, 1, 4, 4)
    assert torch.equal(solver.step(z, solver.times[-1], z), z)


def test_noise_of_an_image_depends_on_its_seed_alone():
    together = noise_for(torch.tensor([5, 6, 7]), (1, 4, 4))
    alone = noise_for(torch.tensor([6]), (1, 4, 4))
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="unknown sampler 'euler'"):
        DiscreteProcess().solver("euler", 10)
