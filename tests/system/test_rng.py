"""Every draw is keyed by what it is for, and by nothing else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse_cli.system.rng import (
    Draws,
    draw_noise,
    image_noise,
    key,
    permutation,
    philox,
    seed_modules,
    split_range,
    training_draws,
)

CPU = torch.device("cpu")
SHAPE = (1, 2, 3)


def draws(start: int, stop: int, *, seed: int = 0, step: int = 5, **rest) -> Draws:
    return training_draws(seed, step, range(start, stop), shape=SHAPE, device=CPU, **rest)


# -- training draws -------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_a_position_draws_the_same_however_the_batch_is_split(cuts: list[int]):
    edges = [0, *np.cumsum(cuts).tolist()]
    whole = draws(0, edges[-1])
    parts = [draws(a, b) for a, b in pairwise(edges)]
    for name in ("u", "noise", "flip", "drop"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(whole, name))


def test_draws_have_a_position_each():
    found = draws(3, 14)
    assert found.u.shape == found.flip.shape == found.drop.shape == (11,)
    assert found.noise.shape == (11, *SHAPE)
    assert found.u.dtype == found.drop.dtype == torch.float32
    assert found.flip.dtype == torch.bool
    assert found.noise.dtype == torch.float32


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"step": 6}, {"purpose": "held-out"}, {"seed": 2**62}], ids=str
)
def test_another_seed_step_or_purpose_draws_otherwise(other: dict):
    here, there = draws(0, 64), draws(0, 64, **other)
    for name in ("u", "flip", "drop"):
        assert not torch.equal(getattr(here, name), getattr(there, name))
    assert not np.intersect1d(here.noise[:, 0, 0, 0], there.noise[:, 0, 0, 0]).size


def test_draws_are_uniform_and_standard_normal_and_know_nothing_of_each_other():
    many = [draws(0, 512, step=step) for step in range(16)]
    u, drop, flip = (torch.cat([getattr(d, name) for d in many]).double()
                     for name in ("u", "drop", "flip"))  # fmt: skip
    noise = torch.cat([d.noise for d in many]).double()
    firsts = noise[:, 0, 0, 0]
    assert len(firsts.unique()) > 0.99 * len(firsts)
    for value in (u, drop):
        assert 0 <= float(value.min()) < 0.001
        assert 0.999 < float(value.max()) < 1
        tenths = torch.histc(value, 10, 0, 1) / len(value)
        assert tenths.tolist() == pytest.approx([0.1] * 10, abs=0.015)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float(flip.mean()) == pytest.approx(0.5, abs=0.03)
    between = torch.corrcoef(torch.stack([u, drop, flip, firsts])) - torch.eye(4)
    assert float(between.abs().max()) < 0.04


def test_draws_take_no_notice_of_the_global_generators():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        state = torch.get_rng_state()
        found.append((draws(0, 9).noise, draw_noise(3, "x", shape=SHAPE)))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, *found))


def test_modules_draw_by_seed_step_microbatch_and_process():
    def drawn(*index: int) -> list[float]:
        seed_modules(*index)
        return torch.rand(3).tolist()

    all_of_them = [drawn(*i) for i in ((0, 1, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0),
                                       (0, 1, 0, 1))]  # fmt: skip
    assert len({tuple(values) for values in all_of_them}) == 5
    assert drawn(0, 1, 0, 0) == all_of_them[0]


# -- images and orders ----------------------------------------------------------------------------


def test_an_images_noise_is_its_own_whatever_the_batch():
    together = image_noise(7, [0, 1, 2, 3, 900], -1, SHAPE, CPU)
    for row, index in enumerate([0, 1, 2, 3, 900]):
        assert torch.equal(together[row], image_noise(7, [index], -1, SHAPE, CPU)[0])
    assert torch.equal(image_noise(7, [3, 0], -1, SHAPE, CPU), together[[3, 0]])


def test_images_start_from_different_noise():
    noises = [image_noise(*index, SHAPE, CPU) for index in (
        (0, [0], -1), (0, [1], -1), (0, [0], 0), (0, [0], 1), (1, [0], -1), (2**63 - 1, [0], -1),
    )]  # fmt: skip
    assert len({float(n[0, 0, 0, 0]) for n in noises}) == 6
    assert len({key(0, "image", i, -1) for i in range(50_000)}) == 50_000
    starts = {tuple(draw_noise(0, "image", i, -1, shape=(2,)).tolist()) for i in range(5000)}
    assert len(starts) == 5000
    noise = draw_noise(0, "image", 5, shape=(3, 64, 64))
    assert (noise.dtype, noise.device) == (torch.float32, CPU)
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


def test_keys_do_not_run_into_each_other():
    arguments = [(1, "a", 23), (12, "a", 3), (1, "a", 2, 3), (1, "a2", 3), (1, "a"), (1, "a", 0)]
    assert len({key(*a) for a in arguments}) == len(arguments)
    assert all(0 <= key(*a) < 2**128 for a in arguments)


@pytest.mark.parametrize("n", [1, 2, 97])
def test_an_epoch_is_a_permutation_of_its_own(n: int):
    orders = [permutation(0, epoch, n).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert orders[0] == permutation(0, 0, n).tolist()
    if n > 10:
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] != permutation(1, 0, n).tolist()


def test_the_draws_of_a_seed_never_change():
    """Published results rely on them: a change here is a change of every sample ever made."""
    assert key(1, "image", 2) == 232697755328917176266746495963613224171
    assert int(philox(1, "image", 2).bit_generator.random_raw()) == 2612233899473487500


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_shares_divide_the_whole_evenly(n: int, parts: int):
    shares = [split_range(n, parts, i) for i in range(parts)]
    assert [i for part in shares for i in part] == list(range(n))
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1
