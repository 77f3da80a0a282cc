"""Which timesteps are drawn, against a list of every loss."""

import math
import random
from itertools import accumulate

import pytest
import torch
from oracles import generator

from diffuse_cli.core.losses import FLOOR, TIMESTEP_DRAWS, History, locate_timesteps

IMPORTANCE = TIMESTEP_DRAWS["importance"]
NEARLY_ONE = 1 - 2.0**-24
"""The largest u that float32 draws."""


def history(num_timesteps, losses, seed=0):
    """A history of so many losses, and the same as a list for each timestep."""
    draw = random.Random(seed)
    kept = History(num_timesteps, IMPORTANCE.keep)
    seen = [[] for _ in range(num_timesteps)]
    while losses:
        batch = min(losses, draw.randint(1, 7))
        losses -= batch
        times = [draw.randrange(num_timesteps) for _ in range(batch)]
        values = [(t + 1) * draw.expovariate(1) for t in times]
        for t, value in zip(times, values, strict=True):
            seen[t].append(value)
        kept.add(times, values)
    return kept, seen


def expected(seen):
    """Nichol & Dhariwal 2021, eq. 18, from every loss there was."""
    count = len(seen)
    if min(map(len, seen)) < 10:
        return [1 / count] * count
    size = [math.sqrt(sum(loss**2 for loss in losses[-10:]) / 10) for losses in seen]
    return [0.999 * s / sum(size) + 0.001 / count for s in size]


# -- probabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TIMESTEP_DRAWS))
@pytest.mark.parametrize("losses", [0, 5, 400])
def test_probabilities_are_of_sum_1_and_none_is_0(name, losses):
    draw = TIMESTEP_DRAWS[name]
    kept = history(7, losses)[0] if draw.keep else History(7, 0)
    for weight in (None, torch.tensor([0.0, 5, 1, 1, 1e-6, 2, 0], dtype=torch.float64)):
        found = draw.probabilities(kept, weight)
        assert found.shape == (7,)
        assert found.dtype == torch.float64
        assert float(found.sum()) == pytest.approx(1, abs=1e-12)
        assert float(found.min()) >= FLOOR / 7


def test_weight_is_nine_tenths_in_proportion_to_it_and_uniform_is_uniform():
    draw, weight = TIMESTEP_DRAWS["weight"].probabilities, torch.tensor([1.0, 0.0, 3.0])
    found = draw(History(3, 0), weight).tolist()
    assert found == pytest.approx([0.9 / 4 + 1 / 30, 1 / 30, 2.7 / 4 + 1 / 30], abs=1e-12)
    assert draw(History(3, 0), 7 * weight).tolist() == pytest.approx(found, abs=1e-12)
    assert draw(History(3, 0), None).tolist() == [1 / 3] * 3
    kept = History(1000, TIMESTEP_DRAWS["uniform"].keep)
    assert TIMESTEP_DRAWS["uniform"].probabilities(kept, None).tolist() == [1 / 1000] * 1000
    assert kept.tensors() == {}
    kept.restore({})


def test_importance_is_that_of_the_last_ten_losses_of_each_timestep():
    """At every length of the history, from before each timestep has its ten to long after."""
    uniform = 0
    for losses in range(0, 200, 3):
        kept, seen = history(5, losses)
        found = IMPORTANCE.probabilities(kept, None).tolist()
        assert found == pytest.approx(expected(seen), rel=1e-6)
        uniform += found == [0.2] * 5
    assert 15 < uniform < 40


def test_a_timestep_without_loss_keeps_the_floor():
    kept = History(4, 10)
    for t, loss in enumerate((0.0, 3.0, 1.0, 0.0)):
        kept.add([t] * 10, [loss] * 10)
    found = IMPORTANCE.probabilities(kept, None).tolist()
    assert found == pytest.approx([0.00025, 0.74950, 0.25, 0.00025])


def test_a_history_survives_a_checkpoint():
    kept, seen = history(5, 130)
    tensors = {name: tensor.clone() for name, tensor in kept.tensors().items()}
    other = History(5, 10)
    other.restore(tensors)
    for one in (kept, other):
        one.add([0, 3, 3], [9.0, 8.0, 7.0])
    assert torch.equal(other.losses, kept.losses)
    assert torch.equal(other.counts, kept.counts)
    seen[0].append(9.0)
    seen[3] += [8.0, 7.0]
    assert IMPORTANCE.probabilities(other, None).tolist() == pytest.approx(expected(seen), rel=1e-6)


# -- choosing -------------------------------------------------------------------------------------


def some_probabilities(num_timesteps):
    """Unequal ones, down to the floor of importance."""
    size = torch.rand(num_timesteps, generator=generator(), dtype=torch.float64) ** 4
    return (1 - FLOOR) * size / size.sum() + FLOOR / num_timesteps


def test_a_timestep_begins_at_its_edge():
    probabilities = torch.tensor([0.25, 0.5, 0.125, 0.125], dtype=torch.float64)
    step = 2.0**-24
    u = [0, 0.25 - step, 0.25, 0.75 - step, 0.75, 0.875 - step, 0.875, NEARLY_ONE]
    found = locate_timesteps(probabilities.cumsum(0), torch.tensor(u))
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 1000, 4000])
@pytest.mark.parametrize("which", [some_probabilities, lambda n: torch.full((n,), 1 / n).double()])
def test_timesteps_follow_their_probabilities(num_timesteps, which):
    """Evenly spread u: each timestep is chosen in proportion, but for the two u at its edges."""
    probabilities, count = which(num_timesteps), 2**18
    u = (torch.arange(count) + 0.5) / count
    found = locate_timesteps(probabilities.cumsum(0), u)
    counts = found.bincount(minlength=num_timesteps).double()
    assert float((counts - count * probabilities).abs().max()) <= 1.1
    assert bool((found.diff() >= 0).all())
    edges = list(accumulate(probabilities.tolist()))
    for k in range(0, count, 4999):
        t = int(found[k])
        assert (edges[t - 1] if t else 0) - 1e-6 <= float(u[k]) <= edges[t] + 1e-6


@pytest.mark.parametrize("num_timesteps", [2, 3, 7, 10, 49, 1000, 4000])
@pytest.mark.parametrize("missing", [0, 1e-7, 1e-3])
def test_u_near_1_is_the_last_timestep(num_timesteps, missing):
    """Also where rounding, or worse, leaves the sum of the probabilities below it."""
    for probabilities in (
        torch.full((num_timesteps,), (1 - missing) / num_timesteps, dtype=torch.float64),
        some_probabilities(num_timesteps) * (1 - missing),
    ):
        for u in (torch.tensor([NEARLY_ONE]), torch.tensor([1 - 2.0**-53]).double()):
            assert locate_timesteps(probabilities.cumsum(0), u).tolist() == [num_timesteps - 1]
