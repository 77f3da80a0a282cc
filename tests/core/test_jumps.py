"""Part of the way down, up again, and on."""

from functools import partial

import pytest
import torch
from oracles import exact_denoise, generator, mixture_denoise, process_of

from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.samplers import Segment, count_steps, sample_with_jumps, split_path

COSINE = process_of("cosine", 1000)
samplers = pytest.mark.parametrize("name", list(SAMPLERS))


def test_the_path_takes_every_part_as_often_as_asked():
    for length, repeats, name in ((0, 2, "length"), (3, 0, "repeats")):
        with pytest.raises(InvalidArgument, match=f"{name} must be at least 1"):
            split_path([3, 2, 1], length, repeats)
    assert split_path([9, 7, 5, 3, 1], 2, 1) == [Segment((9, 7, 5, 3, 1), -1)]
    assert split_path([9, 7, 5, 3, 1], 2, 2) == [
        Segment((9, 7), 5), Segment((9, 7, 5, 3), 1), Segment((5, 3, 1), -1), Segment((1,), -1),
    ]  # fmt: skip
    path = split_path(list(range(99, -1, -1)), 10, 5)
    assert count_steps(path) == 500
    assert len(path) == 1 + 10 * 4
    taken = [t for leg in path for t in leg.times]
    assert all(taken.count(t) == 5 for t in range(100))


@samplers
def test_without_jumps_it_is_the_sampler(name):
    times = COSINE.times(12)
    x = torch.randn(3, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    draws = torch.randn(20, *x.shape, generator=generator(2), dtype=torch.float64)
    sample = partial(SAMPLERS[name], mixture_denoise(COSINE), COSINE)
    straight = list(sample(x, times, noise=lambda k: draws[k]))
    traveled = list(
        sample_with_jumps(sample, COSINE, x, split_path(times, 5), noise=lambda k: draws[k])
    )
    for one, other in zip(straight, traveled, strict=True):
        assert torch.equal(one.x, other.x)
        assert one.t == other.t


@samplers
def test_a_sampler_ends_where_it_is_told_and_goes_on_from_there(name):
    """A sampler of one step is not changed by a stop; others begin their history anew."""
    x = torch.randn(3, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    sample = partial(SAMPLERS[name], mixture_denoise(COSINE), COSINE, noise=lambda k: x)
    *_, state = sample(x, [900, 700], end=400)
    assert state.t == 400
    *_, whole = sample(x, [900, 700, 400, 100])
    *_, rest = sample(state.x, [400, 100])
    if name in ("ddpm", "ddim", "heun", "dpmpp-2m-sde"):
        *_, short = sample(x, [900, 700, 400], end=100)
        three = list(sample(x, [900, 700, 400, 100]))
        assert torch.equal(short.x, three[2].x)
    assert rest.t == whole.t == -1
    assert torch.allclose(rest.x, whole.x, atol=0.3)


def test_no_draw_is_used_twice_and_steps_and_jumps_alternate():
    asked = []
    x = torch.ones(2, 1, 1, 1, dtype=torch.float64)

    def noise(k):
        asked.append(k)
        return 0 * x

    sample = partial(SAMPLERS["ddpm"], exact_denoise(COSINE), COSINE)
    path = split_path(COSINE.times(6), 2, 3)
    states = list(sample_with_jumps(sample, COSINE, x, path, noise=noise))
    assert len(states) == count_steps(path) == 18
    assert asked == sorted(set(asked))
    assert [s.t for s in states[:3]] == [COSINE.times(6)[1], COSINE.times(6)[2], states[0].t]
    assert states[-1].t == -1


def spread(sampler, path, **options):
    """The standard deviation of what comes out, exactly."""
    n = count_steps(path) + len(path)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, n, 1, 1)

    sample = partial(SAMPLERS[sampler], exact_denoise(COSINE), COSINE, **options)
    states = sample_with_jumps(
        sample, COSINE, unit[-1][:, None], path, noise=lambda k: unit[k][:, None]
    )
    *_, state = states
    return float(state.x.norm())


@pytest.mark.parametrize("sampler", ["ddim", "unipc", "ddpm"])
def test_jumps_leave_the_distribution_of_the_data(sampler):
    """The forward transition is exact: what is off is what the sampler's steps are off."""
    straight, jumping, finer = (
        abs(spread(sampler, split_path(COSINE.times(n), n // 10, repeats)) - 0.5)
        for n, repeats in ((100, 1), (100, 3), (300, 3))
    )
    assert jumping < max(2 * straight, 0.002)
    assert finer < max(jumping / 2, 0.002)
