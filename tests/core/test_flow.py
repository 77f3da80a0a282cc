"""Flow matching is this family: a schedule, a target and two weightings."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import exact_denoise, generator, last, process_of

from diffuse_cli.core import SAMPLERS, Denoiser
from diffuse_cli.core.losses import WEIGHTINGS, weights

T = 100
FLOW = process_of("flow", T)
U = (torch.arange(T, dtype=torch.float64) + 1) / T
"""The time of the straight path x_u = (1 - u) x_0 + u eps at each timestep."""


def scale(t):
    """What x_u is divided by to have variance 1 for data of variance 1."""
    u = (t + 1) / T
    return math.hypot(1 - u, u)


def test_eulers_steps_along_the_path_are_ddim():
    """x_r = x_u + (r - u) E[eps - x_0 | x_u], from pure noise at u = 1 to r = 0."""
    x = torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    times = FLOW.times(12)
    denoise = exact_denoise(FLOW)
    straight = x
    for t, s in pairwise([*times, -1]):
        prediction = denoise(straight / scale(t), t)
        straight = straight + (s - t) / T * (prediction.eps - prediction.x0)
    made = last(SAMPLERS["ddim"](denoise, FLOW, x, times, noise=lambda k: x))
    assert torch.allclose(made, straight, atol=1e-12)


def test_the_uniform_loss_of_the_velocity_is_the_weighting_flow():
    assert weights("flow", Denoiser(None, FLOW, "flow")).tolist() == pytest.approx([1.0] * T)


@pytest.mark.parametrize(("name", "mean", "std"), [("logit-normal", 0.0, 1.0), ("jit", 0.8, 0.8)])
def test_logit_normal_is_the_density_of_its_times(name, mean, std):
    found = weights(name, Denoiser(None, FLOW, "flow"))[:-1]
    u = U[:-1]
    normal = torch.distributions.Normal(*torch.tensor([mean, std], dtype=torch.float64))
    density = normal.log_prob(u.logit()).exp() / (u * (1 - u))
    assert torch.allclose(found, density, rtol=1e-9)


@pytest.mark.parametrize("name", ["logit-normal", "jit"])
def test_the_weight_is_finite_at_any_snr(name):
    snr = torch.logspace(-40, 40, 801, dtype=torch.float64)
    found = WEIGHTINGS[name](torch.cat([torch.zeros(1), snr])).float()
    assert found.isfinite().all()
    assert (found >= 0).all()


@pytest.mark.parametrize("name", ["flow", "logit-normal", "jit"])
def test_the_error_of_x0_over_u_squared_is_that_of_the_velocity(name):
    """Li & He 2025 predict x_0, and compare (x_0 - x_u) / u with the velocity."""
    velocity, clean = (weights(name, Denoiser(None, FLOW, target)) for target in ("flow", "x0"))
    assert torch.allclose(clean[:-1], velocity[:-1] / U[:-1] ** 2, rtol=1e-9)
