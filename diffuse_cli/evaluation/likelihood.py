"""Estimate the bits per dimension of real images: the variational bound, and by the
probability-flow equation.

The bound is estimated by timestep, on a few timesteps per image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffuse_cli.core import Conditions, Denoiser, Space, likelihood, log_densities
from diffuse_cli.evaluation.image_sets import LabeledSamples, prepare_inputs
from diffuse_cli.media import Array, figures
from diffuse_cli.metrics import Measurement, Words
from diffuse_cli.models.image_conditioning import ConditioningInputs
from diffuse_cli.system import Progress, Work, rng

if TYPE_CHECKING:
    from diffuse_cli.evaluation.metric_inputs import EvaluationRun

Batch = tuple[range, torch.Tensor, dict[str, Any]]
"""The indices of some images, their stored samples, and the network's keywords."""

TASK = "estimating the likelihood"
"""The name of the task in progress messages."""

BLOCK = 16
"""Number of consecutive images whose visits are spread over each stratum."""


def make_bits(evaluation: EvaluationRun) -> Work[None]:
    """Estimate the bound of each real image."""
    timesteps = evaluation.config.timesteps
    evaluation.bound = yield from _bound(evaluation, evaluation.real, timesteps, TASK)
    evaluation.bits = evaluation.bound.parts()


def make_train_bits(evaluation: EvaluationRun) -> Work[None]:
    """Estimate the bound of the same number of training images, at half the timesteps each.

    Fewer images would save the same time, but lose far more precision, because images differ more
    than timesteps.
    """
    assert evaluation.training is not None
    evaluation.train = evaluation.training.first(len(evaluation.real))
    whole = evaluation.config.timesteps
    timesteps = whole if isinstance(whole, str) else max(2, (whole + 1) // 2)
    task = f"{TASK} of training {Words.of(evaluation.space).many}"
    bound = yield from _bound(evaluation, evaluation.train, timesteps, task)
    evaluation.train_bits = bound.parts()


def _bound(
    evaluation: EvaluationRun, images: LabeledSamples, timesteps: int | str, task: str
) -> Work[VariationalBound]:
    """Estimate the bound of each image, on the model's process or a respaced process."""
    config, (loaded, settings) = evaluation.config, evaluation.model_and_settings
    denoiser = settings.set_variance(loaded.denoiser)
    if config.respaced is not None:
        denoiser = denoiser.respaced(denoiser.process.times(config.respaced))
    indices, batches = _share_batches(evaluation, images)
    work = measure_bound(
        denoiser, batches, indices, loaded.space, timesteps=timesteps, seed=config.seed, task=task
    )
    return join_bounds(evaluation.team.gather((yield from work)))


def _share_batches(
    evaluation: EvaluationRun, images: LabeledSamples
) -> tuple[range, Iterator[Batch]]:
    """Return the indices of this process's images, and their batches."""
    config, (loaded, _) = evaluation.config, evaluation.model_and_settings
    indices = evaluation.team.share(len(images), config.batch_size)
    given, device = prepare_inputs(loaded, images, config.seed), evaluation.accelerator.device
    sources = images, loaded.model.blueprint.conditions, indices, given
    return indices, iterate_batches(*sources, config.batch_size, device)


def measure_bound(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    indices: range,
    space: Space,
    *,
    timesteps: int | str,
    seed: int,
    task: str = TASK,
) -> Work[VariationalBound]:
    """Estimate the bound of the images with these indices over the denoiser's own process.

    Timesteps and noise of an image depend only on the seed and its index, so two models with the
    same process are compared at the same points.

    Args:
        batches: the images, from `iterate_batches`.
        timesteps: the number of visits to each image, or `all`.
        task: the name in `Progress`.
    """
    total = denoiser.process.num_timesteps
    n = total if timesteps == "all" else min(int(timesteps), total)
    expected = likelihood.plan_visits(denoiser.process, n)
    priors, rows = [np.zeros(0)], [np.zeros((0, n))]
    times = likelihood.draw_visits(expected, torch.from_numpy(draw_positions(seed, indices, n)))
    for batch, stored, cond in batches:
        start, x0 = batch.start - indices.start, space.to_model(stored)
        batch_times = times[start : start + len(batch)]
        draws, terms = _draws(seed, batch, batch_times, x0), []
        for term in likelihood.bound_terms(denoiser, x0, draws, **cond):
            terms.append(term)
            part = len(x0) * len(terms) // n
            yield Progress(task, start + part, len(indices))
        # Metal has no float64.
        rows.append(torch.stack(terms, 1).cpu().double().numpy())
        if space.levels is None:
            slope = space.log_slope(stored).flatten(1).mean(1).cpu().double().numpy()
            first = batch_times.numpy() == 0
            # An image's decoder terms, divided by their expected number, sum to one decoder.
            rows[-1] -= first * (slope / math.log(2))[:, None]
        priors.append(likelihood.prior_bits(denoiser, x0).cpu().double().numpy())
    prior, every = np.concatenate(priors), np.concatenate(rows)
    return VariationalBound(prior, expected.numpy(), times.numpy(), every)


def iterate_batches(
    images: LabeledSamples,
    conditions: Conditions,
    indices: range,
    given: ConditioningInputs | None,
    batch_size: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield the batches of the images with these indices.

    Args:
        given: the conditioning inputs, for a model that is conditioned on images.
    """
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        chosen = images[batch.start : batch.stop]
        stored = torch.tensor(chosen.samples, device=device)
        labels = torch.tensor(chosen.labels, device=device)
        row = None if chosen.rows is None else torch.tensor(chosen.rows, device=device)
        conditioning = given.encode(batch, device) if given else None
        yield batch, stored, {**conditions.make_keywords(labels, conditioning, row)}


def draw_positions(seed: int, indices: Sequence[int], n: int) -> Array:
    """Draw the position of each of n visits to each image within its stratum, (N, n) in [0, 1).

    Each position is uniform, and independent of the image's other positions. The visits k to a
    block of images are in different parts of the stratum (McKay et al. 1979, Latin hypercube
    sampling), which reduces the variance of the mean over images.
    """
    positions = np.empty((len(indices), n))
    blocks: dict[int, Array] = {}
    for row, i in enumerate(indices):
        block, place = divmod(i, BLOCK)
        if block not in blocks:
            draws = rng.philox(seed, "bits-time", block)
            cells = draws.permuted(np.tile(np.arange(BLOCK), (n, 1)), axis=1)
            blocks = {block: (cells + draws.random((n, BLOCK))) / BLOCK}
        positions[row] = blocks[block][:, place]
    return positions


def _draws(
    seed: int, indices: range, times: torch.Tensor, x0: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a timestep and noise of each sample, for each visit."""
    for k, t in enumerate(times.unbind(1)):
        noise = torch.stack(
            [rng.draw_noise(seed, "bits", i, k, shape=x0.shape[1:]) for i in indices]
        )
        yield t.to(x0.device), noise.to(x0.device)


BINS = 50
"""The most groups of timesteps to show, unless an image has more visits."""


SEEN = 8
"""The fewest visits of a group."""


@dataclass(frozen=True)
class VariationalBound:
    """Variational bound of N images in bits per dimension, estimated from V visits to each.

    For floats it bounds the density of stored values, and may be negative.

    Attributes:
        prior: the term L_T, (N,).
        expected: the mean number of visits to each timestep, see `plan_visits`, (T,).
        times, terms: the timestep of each visit and its term, (N, V).
    """

    prior: Array
    expected: Array
    times: Array
    terms: Array

    def parts(self) -> Array:
        """Return L_T, L_1 + ... + L_T-1, and L_0 of each image, (N, 3)."""
        shares, first = self._shares(), self.times == 0
        middle, decoder = ((shares * mask).sum(1) for mask in (~first, first))
        return np.stack([self.prior, middle, decoder], 1)

    def _shares(self) -> Array:
        """Return the summands of each image's bound, without the prior, (N, V)."""
        shares: Array = self.terms / self.expected[self.times]
        return shares

    def group_by_time(self) -> list[dict[str, Any]]:
        """Return the first and last timestep of each group, and its mean term per timestep.

        Multiplied by the widths of the groups, the means add up to the sums of `parts`.
        """
        shares = self._shares() / len(self.times)
        means = np.bincount(self.times.ravel(), shares.ravel(), len(self.expected))
        return [
            {
                "first": group.start,
                "last": group.stop - 1,
                "bits_per_timestep": float(means[group.start : group.stop].mean()),
            }
            for group in self._groups()
        ]

    def _groups(self) -> list[range]:
        """Divide all timesteps into ranges with visits. The first range is only t = 0."""
        total, (images, per_image) = len(self.expected), self.times.shape
        visits = np.bincount(self.times.ravel(), minlength=total).cumsum()
        edges = [0, 1]
        for group in likelihood.strata(total, max(BINS, per_image))[1:]:
            if visits[group.stop - 1] - visits[edges[-1] - 1] >= min(SEEN, images):
                edges.append(group.stop)
        if edges[-1] < total:  # the rest joins the last group, but never the decoder
            edges[max(2, len(edges) - 1) :] = [total]
        return [range(a, b) for a, b in pairwise(edges)]


def join_bounds(parts: Sequence[VariationalBound]) -> VariationalBound:
    """Join the bounds of several sets of images, in order."""
    prior = np.concatenate([part.prior for part in parts])
    times = np.concatenate([part.times for part in parts])
    terms = np.concatenate([part.terms for part in parts])
    return VariationalBound(prior, parts[0].expected, times, terms)


def plot_bound(bound: VariationalBound, name: str, *, density: bool = False) -> bytes:
    """Plot the terms by timestep as PNG, as in Nichol & Dhariwal 2021, figure 2.

    Args:
        density: whether the samples are floats, so that the bound is a density's.
    """
    sheet = figures.Sheet(7.2, 4.3, 150)
    axes = sheet.axes(0.9, 0.75, 6.0, 2.95)
    total = float(bound.parts().sum(1).mean())
    groups, last = bound.group_by_time(), len(bound.expected)
    suffix = " of the density" if density else ""
    title = f"{name}: {Measurement(total)} bits per dimension{suffix} over {last} timesteps"
    sheet.text(0.9, 0.4, title, 6.0, fontsize=11, fontweight="bold", parse_math=False)
    means = np.array([group["bits_per_timestep"] for group in groups])
    edges = [group["first"] + 1 for group in groups] + [last + 1]
    heights = np.where(means > 0, means, np.nan)  # a density's decoder may be negative
    axes.stairs(heights, edges, baseline=None, color=figures.color(0), linewidth=1.8)
    axes.plot([1.5], heights[:1], "o", color=figures.color(1), markersize=6)
    faint: dict[str, Any] = {"fontsize": 8.5, "color": figures.FAINT}
    decoder = f"decoder{', a density' * density}, $L_0$: {Measurement(means[0])}"
    place = means[0] if means[0] > 0 else means[means > 0].max(initial=1e-12)
    above = -3 if means[0] > 0 else 7
    axes.annotate(decoder, (2, place), (6, above), textcoords="offset points", **faint)
    axes.loglog()
    axes.set_xlim(1, last + 1)
    axes.set_xlabel("timestep $t + 1$", fontsize=9)
    axes.set_ylabel("$L_t$, bits per dimension", fontsize=9)
    axes.tick_params(length=0)
    prior, middle, _ = bound.parts().mean(0)
    sums = f"sum of the steps {Measurement(middle)},  prior {Measurement(prior)}"
    axes.set_title(sums, loc="right", **faint)
    return figures.encode_png(sheet.render())


# The likelihood by the probability-flow equation.

ODE_TASK = "solving the probability-flow equation"
"""The name of the task in progress messages."""

ODE_STEPS = 64
"""Default number of the solver's steps."""


def make_ode_bits(evaluation: EvaluationRun) -> Work[None]:
    """Estimate the likelihood of each real image by the probability-flow equation."""
    config, (loaded, _) = evaluation.config, evaluation.model_and_settings
    indices, batches = _share_batches(evaluation, evaluation.real)
    sources, steps = (loaded.denoiser, batches, indices, loaded.space), config.ode_steps
    bits = yield from measure_ode_bits(*sources, steps=steps or ODE_STEPS, seed=config.seed)
    evaluation.ode_bits = np.concatenate(evaluation.team.gather(bits))


def measure_ode_bits(
    denoiser: Denoiser,
    batches: Iterable[Batch],
    indices: range,
    space: Space,
    *,
    steps: int,
    seed: int,
) -> Work[Array]:
    """Estimate the bits per dimension of the images with these indices, (N, 2).

    Levels become floats by adding uniform noise as wide as a level, so that the mean over the noise
    is a bound on the bits of the level (Theis et al. 2016). The second column is the result minus
    its limit for many steps, estimated from half the steps (Richardson extrapolation).
    """
    rows, runs = [np.zeros((0, 2))], (steps, steps // 2)
    for batch, samples, cond in batches:
        stored, step = samples.float(), 0
        densities: list[torch.Tensor] = []
        if space.levels is not None:
            stored = stored + _draw_uniform(seed, batch, space.shape).to(stored) - 0.5
        x0, probe = space.to_model(stored), _draw_signs(seed, batch, space.shape).to(stored)
        for k, n in enumerate(runs):
            for density in log_densities(denoiser, x0, steps=n, probes=[probe], **cond):
                densities[k:] = [density]
                step += 1
                part = len(x0) * step // sum(runs)
                yield Progress(ODE_TASK, batch.start - indices.start + part, len(indices))
        # Metal has no float64.
        fine, coarse = (nats.cpu().double().numpy() / x0[0].numel() for nats in densities)
        slope = space.log_slope(stored).flatten(1).mean(1).cpu().double().numpy()
        error = (fine - coarse) / ((runs[0] / runs[1]) ** 2 - 1)
        rows.append(np.stack([-fine - slope, error], 1) / math.log(2))
    return np.concatenate(rows)


def _draw_uniform(seed: int, indices: range, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw uniform noise in [0, 1) for each sample, (B, *shape)."""
    draws = (rng.philox(seed, "ode-level", i).random(shape, dtype=np.float32) for i in indices)
    return torch.from_numpy(np.stack([*draws]))


def _draw_signs(seed: int, indices: range, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw 1 or -1 for each value of each sample, (B, *shape)."""
    noise = torch.stack([rng.draw_noise(seed, "ode-probe", i, shape=shape) for i in indices])
    return torch.ones_like(noise).copysign(noise)
