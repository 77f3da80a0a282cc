"""Learned times: the cheapest path, the errors it adds up, and the search after it."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import generator, mixture_denoise, process_of, zero_snr

from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.learned_timesteps import cheapest_path, draws_noise, improve_times, step_costs

# -- the path -------------------------------------------------------------------------------------


def total(costs: list[list[float]], path: list[int]) -> float:
    return sum(costs[i][j] for i, j in pairwise(path))


def matrix(size: int, seed: int) -> list[list[float]]:
    return torch.rand(size, size, generator=generator(seed), dtype=torch.float64).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(1, 8), st.integers(0, 10**6))
def test_no_path_is_cheaper(size: int, n: int, seed: int):
    """Against every path there is."""
    n, costs = min(n, size - 1), matrix(size, seed)
    path = cheapest_path(costs, n)
    assert (len(path), path[0], path[-1]) == (n + 1, 0, size - 1)
    assert all(i < j for i, j in pairwise(path))
    ways = ([0, *inner, size - 1] for inner in combinations(range(1, size - 1), n - 1))
    assert total(costs, path) == pytest.approx(min(total(costs, way) for way in ways), abs=1e-12)


def test_nothing_but_steps_forward_is_read():
    costs = [[math.nan] * 5 for _ in range(5)]
    for i, j in combinations(range(5), 2):
        costs[i][j] = (j - i) ** 2
    assert cheapest_path(costs, 4) == [0, 1, 2, 3, 4]
    assert cheapest_path(costs, 2) == [0, 2, 4]
    assert cheapest_path(costs, 1) == [0, 4]


# -- what a step costs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process", [process_of("cosine", 50), zero_snr(50)], ids=["cosine", "zero"]
)
def test_a_step_costs_what_ddim_misses(process):
    """Steps between neighbors of a trajectory of DDIM cost nothing, others their miss."""
    x = torch.randn(3, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    denoise, times = mixture_denoise(process), process.times(6)
    states = list(SAMPLERS["ddim"](denoise, process, x, times, noise=lambda k: x))
    xs, x0s = [x, *(state.x for state in states)], [state.x0 for state in states]
    costs = step_costs(process, times, xs, x0s)
    assert [len(row) for row in costs] == [7] * 7
    for i, (t, row) in enumerate(zip([*times, -1], costs, strict=True)):
        for j, (s, cost) in enumerate(zip([*times, -1], row, strict=True)):
            if j <= i:
                assert cost == math.inf
                continue
            state = next(
                SAMPLERS["ddim"](
                    denoise, process, xs[i], [t, s][: 2 if s >= 0 else 1], noise=lambda k: x
                )
            )
            missed = (state.x - xs[j]) / math.sqrt(process.alpha_bar(s))
            assert cost == pytest.approx(float(missed.square().mean().sqrt()), abs=1e-9)
            assert (cost < 1e-9) == (j == i + 1)


# -- moving times ---------------------------------------------------------------------------------


def test_times_move_to_where_the_error_is_least():
    wanted, asked = [99.0, 80.25, 41.5, 3.0], []

    def error(times: list[float]) -> float:
        asked.append(times)
        return sum((a - b) ** 2 for a, b in zip(times, wanted, strict=True))

    rounds = list(improve_times([99, 74, 49, 24], error, 40))
    assert len(rounds) == 40
    errors = [error(times) for times in rounds]
    assert errors == sorted(errors, reverse=True)
    assert rounds[-1] == pytest.approx(wanted, abs=0.05)
    for times in asked:
        assert times[0] == 99
        assert all(t > s for t, s in pairwise(times))
        assert times[-1] >= 0
        assert times == [round(t, 2) for t in times]


def test_calls_are_few_and_a_better_start_is_never_left():
    calls = 0

    def flat(times: list[float]) -> float:
        nonlocal calls
        calls += 1
        return 1.0

    assert list(improve_times([9, 4, 0], flat, 3)) == [[9.0, 4.0, 0.0]] * 3
    assert calls == 1 + 3 * 2 * 2
    assert list(improve_times([9], flat, 2)) == [[9.0]] * 2


def test_samplers_that_draw_noise_are_known():
    process = process_of("cosine", 20)
    drawing = {name for name in SAMPLERS if draws_noise(name, process)}
    assert drawing == {"ddpm", "dpmpp-2m-sde", "consistency"}
    assert draws_noise("ddpm", process_of("linear", 2))
    assert not draws_noise("ddpm", process_of("linear", 1))


# -- against the truth ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "gain", "beats"), [("unipc", 4, 8), ("ipndm", 1.5, 6), ("ddim", 1.15, 5)]
)
def test_learned_times_end_nearer_to_the_truth(sampler: str, gain: float, beats: int):
    """The exact denoiser of a mixture, from other noise than was learned from: five steps are
    `gain` times as near as trailing ones, and nearer than `beats` of these."""
    process = process_of("cosine", 1000)
    denoise = mixture_denoise(process)
    seen, other = torch.randn(2, 32, 1, 4, 4, generator=generator(3), dtype=torch.float64)

    def states(x, times, name=sampler):
        return list(SAMPLERS[name](denoise, process, x, times, noise=lambda k: x))

    def missed(x, times, ends):
        return float((states(x, times)[-1].x - ends).square().mean().sqrt())

    grid = process.times(40)
    fine = states(seen, grid, "unipc")
    xs = [seen, *(state.x for state in fine)]
    path = cheapest_path(step_costs(process, grid, xs, [state.x0 for state in fine]), 5)
    planned = [float(grid[node]) for node in path[:-1]]
    *_, times = improve_times(planned, lambda times: missed(seen, times, xs[-1]), 8)
    ends = states(other, process.times(200), "unipc")[-1].x
    learned = missed(other, times, ends)
    assert learned < missed(other, process.times(5), ends) / gain
    assert learned < missed(other, process.times(beats), ends)
