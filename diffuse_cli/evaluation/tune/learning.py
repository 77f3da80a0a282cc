"""Times learned for a few steps, for `tune`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from diffuse_cli.config import SAMPLER
from diffuse_cli.core.learned_timesteps import cheapest_path, improved, step_costs
from diffuse_cli.sampling.generation import Loaded, draw
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.system.events import Progress, Work
from diffuse_cli.system.rng import image_noise

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES, FINE, ROUNDS = 32, 40, 8
"""How many trajectories are followed, in how many steps, and how often each time is moved: see
benchmarks/times.py."""

GRID = "trailing"
"""How the many steps are spaced, of which few are chosen."""


@dataclass(frozen=True)
class Learner:
    """Learns times for a sampler in a few steps.

    Attributes:
        first: the index of the first sample to learn from, so that others can be measured.
    """

    loaded: Loaded
    first: int
    device: torch.device

    def __call__(self, settings: DrawSettings) -> Work[list[tuple[float, ...]]]:
        """Times for the sampler, steps and guidance of `settings`, falling from the last timestep
        of the process: the cheapest path, and what moving times makes of it, or of those that the
        sampler visits by default if these end nearer.

        The second ends nearer to many steps, which is better only where a model's images in many
        steps are.
        """
        yield Progress("learning times", 0, ROUNDS)
        planned, ends = self.planned(settings)
        times = self.nearer(settings, planned, ends)
        rounds = improved(times, self.error(settings, ends), ROUNDS)
        for done, better in enumerate(rounds, 1):
            times = better
            yield Progress("learning times", done, ROUNDS)
        return [tuple(planned), tuple(times)] if times != planned else [tuple(planned)]

    def nearer(self, settings: DrawSettings, planned: list[float], ends: Tensor) -> list[float]:
        """The planned times or the default ones, whichever end nearer."""
        spaced = replace(settings, times=None).times_of(self.loaded.denoiser.process)
        return min(planned, [float(t) for t in spaced], key=self.error(settings, ends))

    def error(self, settings: DrawSettings, ends: Tensor) -> Callable[[Sequence[float]], float]:
        """How far from `ends` samples end at given times: the root mean square."""

        def missed(times: Sequence[float]) -> float:
            # No solver steps from one time of SNR 0 to another.
            if len(times) > 1 and self.loaded.denoiser.process.alpha_bar(times[1]) == 0:
                return math.inf
            found, _ = self.follow(replace(settings, times=tuple(times)))[-1]
            return math.sqrt(float((found - ends).square().mean()))

        return missed

    def planned(self, settings: DrawSettings) -> tuple[list[float], Tensor]:
        """The cheapest of the times of many steps, and where these end."""
        process = self.loaded.denoiser.process
        many = min(FINE, process.num_timesteps)
        fine = replace(settings, sampler=SAMPLER, steps=many, spacing=GRID, options={})
        states = self.follow(replace(fine, times=None))
        grid, xs = process.times(many, GRID), [x for x, _ in states]
        costs = step_costs(process, grid, xs, [x0 for _, x0 in states[1:]])
        path = cheapest_path(costs, settings.steps)
        return [float(grid[node]) for node in path[:-1]], xs[-1]

    def follow(self, settings: DrawSettings) -> list[tuple[Tensor, Tensor]]:
        """x and the last estimate of x_0, for all samples: at the start and after each step."""
        space, device = self.loaded.space, self.device
        indices = range(self.first, self.first + SAMPLES)
        noise = image_noise(settings.seed, indices, -1, space.shape, device)
        batches: dict[int, list[Tensor]] = {}
        for drawing in draw(self.loaded.denoiser, settings, indices, space=space, device=device):
            both = torch.stack([drawing.state.x, drawing.state.x0])
            batches.setdefault(drawing.step, []).append(both)
        after = [torch.cat(batch, 1) for batch in batches.values()]
        return [(noise, noise), *((x, x0) for x, x0 in after)]
