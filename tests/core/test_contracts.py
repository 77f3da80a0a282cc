"""Every combination of table entries, in float32 through a network, against float64 without one.

A new entry of a table is met here without touching this file.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from oracles import (
    SPREAD,
    exact_denoise,
    exact_denoiser,
    exact_net,
    generator,
    last,
    process_of,
)

from diffuse_cli.core import LOSSES, SAMPLERS, SCHEDULES, SPACINGS, TARGETS, VARIANCES, Denoiser
from diffuse_cli.core.targets import STEPWISE

T, N = 50, 10


def denoiser_of(schedule: str, target: str, variance: str, respaced: bool) -> Denoiser:
    process = process_of(schedule, T)
    denoiser = exact_denoiser(process, target, variance)
    return denoiser.respaced(process.times(N)) if respaced else denoiser


PRODUCT = list(itertools.product(SCHEDULES, TARGETS, VARIANCES, [False, True]))
NAMES = [f"{s}-{t}-{v}-{'respaced' if r else 'full'}" for s, t, v, r in PRODUCT]


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize(("schedule", "target", "variance", "respaced"), PRODUCT, ids=NAMES)
def test_a_loss_in_float32_is_the_loss_in_float64(schedule, target, variance, respaced, loss):
    denoiser = denoiser_of(schedule, target, variance, respaced)
    size = denoiser.process.num_timesteps
    x0 = SPREAD * torch.randn(size, 2, 2, 3, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator(2), dtype=torch.float64)
    t = torch.arange(size)
    found = LOSSES[loss](denoiser, x0.float(), t, noise.float())
    exact = LOSSES[loss](denoiser, x0, t, noise)
    assert found.shape == (size,)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("schedule", "variance"), list(itertools.product(SCHEDULES, VARIANCES)))
def test_all_targets_agree_on_the_bound(schedule: str, variance: str):
    x0 = SPREAD * torch.randn(T, 1, 2, 3, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator(2), dtype=torch.float64)
    terms = [
        LOSSES["vlb"](denoiser_of(schedule, target, variance, False), x0, torch.arange(T), noise)
        for target in TARGETS
    ]
    assert all(torch.allclose(term, terms[0], rtol=1e-6, atol=1e-10) for term in terms)


@cache
def reference(sampler: str, schedule: str, variance: str, respaced: bool) -> torch.Tensor:
    """Images in float64 from the exact denoiser, over times of the full process."""
    process = process_of(schedule, T)
    x, draws = start()
    times = process.times(N if respaced else T)
    denoise = exact_denoise(process, variance)
    return last(SAMPLERS[sampler](denoise, process, x, times, noise=lambda k: draws[k]))


def start() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.randn(T + 1, 3, 2, 2, 3, generator=generator(7), dtype=torch.float64)
    return draws[T], draws


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize(("schedule", "target", "variance", "respaced"), PRODUCT, ids=NAMES)
def test_a_sampler_gives_the_same_images(schedule, target, variance, respaced, sampler):
    denoiser = denoiser_of(schedule, target, variance, respaced)
    x, draws = (value.float() for value in start())
    times = list(reversed(range(denoiser.process.num_timesteps)))
    found = last(SAMPLERS[sampler](denoiser, denoiser.process, x, times, noise=lambda k: draws[k]))
    exact = reference(sampler, schedule, variance, respaced)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-3


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("spacing", list(SPACINGS))
@pytest.mark.parametrize("target", list(TARGETS))
def test_a_sampler_takes_the_times_of_every_spacing(sampler: str, spacing: str, target: str):
    process = process_of("cosine", T)
    x, draws = start()
    times = process.times(N, spacing)
    if target in STEPWISE:
        times = [round(t) for t in times]
    exact = last(
        SAMPLERS[sampler](exact_denoise(process), process, x, times, noise=lambda k: draws[k])
    )
    denoiser = Denoiser(exact_net(process, target), process, target)
    found = last(
        SAMPLERS[sampler](denoiser, process, x.float(), times, noise=lambda k: draws[k].float())
    )
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-3
