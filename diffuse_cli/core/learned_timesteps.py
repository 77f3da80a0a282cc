"""Times for few steps, learned from a model's own trajectories with many steps.

First the errors of single steps give the cheapest path through the many times (Chen et al. 2024).
Then each time is moved as long as samples get nearer to the samples with many steps from the same
noise, which is the aim of Tong et al. 2024, here without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from diffuse_cli.core.denoiser import Prediction
from diffuse_cli.core.process import Process
from diffuse_cli.core.samplers import SAMPLERS
from diffuse_cli.core.solvers import Times

REACH, DIGITS = 0.3, 2
"""First move of a time, as a fraction of the distance to its neighbor, and decimals of a time."""


def cheapest_path(costs: Sequence[Sequence[float]], n: int) -> list[int]:
    """Return the n steps from the first node to the last with the least total cost.

    Args:
        costs: `costs[i][j]` is the cost of the step from node i to node j > i. Other elements are
            not used.
        n: the number of steps, at most the number of nodes after the first.

    Returns:
        The n + 1 nodes, ascending.
    """
    last = len(costs) - 1
    totals, ways = [math.inf] * last + [0.0], list[list[int]]()
    for _ in range(n):
        best = [
            min((costs[i][j] + totals[j], j) for j in range(i + 1, last + 1)) for i in range(last)
        ]
        totals = [cost for cost, _ in best] + [math.inf]
        ways.append([j for _, j in best])
    path = [0]
    for way in reversed(ways):
        path.append(way[path[-1]])
    return path


def step_costs(
    process: Process, times: Times, xs: Sequence[Tensor], x0s: Sequence[Tensor]
) -> list[list[float]]:
    """Measure the errors of DDIM steps between any two points of a trajectory.

    They are root mean squares in x_t / alpha_t, in which DDIM steps are straight.

    Args:
        times: the G descending times.
        xs: the samples at the times and at the end, G + 1.
        x0s: the estimates at the times, G.

    Returns:
        The costs (G + 1, G + 1) for `cheapest_path`, infinite for steps backward.
    """
    levels = [process.alpha_bar(t) for t in (*times, -1)]
    costs = []
    for i, (x, x0) in enumerate(zip(xs, x0s, strict=False)):
        eps = (x - math.sqrt(levels[i]) * x0) / math.sqrt(1 - levels[i])
        missed = [
            x0 + math.sqrt(1 / levels[j] - 1) * eps - xs[j] / math.sqrt(levels[j])
            for j in range(i + 1, len(levels))
        ]
        row = torch.stack([error.square().mean().sqrt() for error in missed]).tolist()
        costs.append([math.inf] * (i + 1) + row)
    return [*costs, [math.inf] * len(levels)]


def improve_times(
    times: Sequence[float], error: Callable[[list[float]], float], rounds: int
) -> Iterator[list[float]]:
    """Move times one after another to reduce an error, and yield them after each round.

    Every time except the first, at which the noise is drawn, is moved part of the way toward the
    previous and the next time. If no move of a round helps, the next moves are half as long.

    Args:
        times: descending times, none below 0.
        error: a function of the times, called at most 2 (n - 1) times per round, and once before.
    """
    best, reach = [float(t) for t in times], REACH
    min_error = start = error(best)
    for _ in range(rounds):
        for i in range(1, len(best)):
            after = best[i + 1] if i + 1 < len(best) else 0.0
            for toward in (best[i - 1], after):
                moved = round(best[i] + reach * (toward - best[i]), DIGITS)
                tried = [*best[:i], moved, *best[i + 1 :]]
                if (trial_error := error(tried)) < min_error:
                    best, min_error = tried, trial_error
                    break
        reach, start = reach if min_error < start else reach / 2, min_error
        yield best


def draws_noise(sampler: str, process: Process) -> bool:
    """Whether a sampler draws noise during its steps, so that it does not follow a trajectory."""
    has_drawn, x = False, torch.zeros(1, 1, 1)

    def noise(k: int) -> Tensor:
        nonlocal has_drawn
        has_drawn = True
        return x

    times = process.times(min(3, process.num_timesteps))
    for _ in SAMPLERS[sampler](lambda x, t: Prediction(0 * x, x), process, x, times, noise=noise):
        pass
    return has_drawn
