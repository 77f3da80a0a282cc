"""The variational bound of real images by timestep, estimated on a few timesteps per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffuse_cli import pictures
from diffuse_cli.config import EvalConfig
from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.likelihood import bound_terms, prior_bits, strata
from diffuse_cli.diffusion import Blueprint
from diffuse_cli.draws import draw_noise, philox
from diffuse_cli.evaluation.images import Labelled
from diffuse_cli.events import Progress, Work
from diffuse_cli.media import Array


@dataclass(frozen=True)
class Bound:
    """Bits per dimension of N images.

    Attributes:
        prior: L_T, (N,).
        groups: ranges of timesteps; the first is t = 0, the decoder, alone.
        terms: the term of one timestep of each group, (N, G).
    """

    prior: Array
    groups: tuple[range, ...]
    terms: Array

    def parts(self) -> Array:
        """L_T, L_1 + ... + L_T-1, and L_0 of each image, (N, 3)."""
        widths = np.array([len(group) for group in self.groups])
        middle = (self.terms * widths)[:, 1:].sum(1)
        return np.stack([self.prior, middle, self.terms[:, 0]], 1)

    def by_time(self) -> list[dict[str, Any]]:
        """The first and last timestep of each group, and the mean term of a timestep in it."""
        means = self.terms.mean(0)
        return [
            {"first": group.start, "last": group.stop - 1, "bits_per_timestep": float(mean)}
            for group, mean in zip(self.groups, means, strict=True)
        ]


def joined(parts: Sequence[Bound]) -> Bound:
    """The bounds of several sets of images as one, in order."""
    terms = np.concatenate([part.terms for part in parts])
    return Bound(np.concatenate([part.prior for part in parts]), parts[0].groups, terms)


def measure(
    denoiser: Denoiser,
    images: Labelled,
    blueprint: Blueprint,
    indices: range,
    config: EvalConfig,
    device: torch.device,
    task: str = "likelihood",
) -> Work[Bound]:
    """The bound of the images with these indices over the denoiser's own process.

    The draws of an image depend on the seed and its index alone. `task` is the name in `Progress`.
    """
    total, batch_size = denoiser.process.num_timesteps, config.batch_size
    groups = strata(total, total if config.timesteps == "all" else int(config.timesteps))
    priors, rows = [np.zeros(0)], [np.zeros((0, len(groups)))]
    for done in range(0, len(indices), batch_size):
        batch = indices[done : done + batch_size]
        x0, own = (
            torch.tensor(values[batch.start : batch.stop], device=device)
            for values in (images.samples, images.labels)
        )
        x0 = blueprint.space.to_model(x0)
        cond: dict[str, Any] = {**blueprint.conditions.told(own)}
        terms = []
        for term in bound_terms(denoiser, x0, _draws(config.seed, groups, batch, x0), **cond):
            terms.append(term)
            part = len(x0) * len(terms) // len(groups)
            yield Progress(task, done + part, len(indices))
        # Metal has no float64.
        rows.append(torch.stack(terms, 1).cpu().double().numpy())
        priors.append(prior_bits(denoiser, x0).cpu().double().numpy())
    return Bound(np.concatenate(priors), tuple(groups), np.concatenate(rows))


def _draws(
    seed: int, groups: list[range], indices: range, x0: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each group, a timestep and noise for each sample."""
    for k, group in enumerate(groups):
        times = [int(philox(seed, "bits-time", i, k).integers(len(group))) for i in indices]
        noise = torch.stack([draw_noise(seed, "bits", i, k, shape=x0.shape[1:]) for i in indices])
        yield torch.tensor(times, device=x0.device) + group.start, noise.to(x0.device)


def draw(bound: Bound, name: str) -> Image.Image:
    """A plot of the terms by timestep, as in Nichol & Dhariwal 2021, figure 2."""
    sheet = pictures.Sheet(7.2, 4.3, 150)
    axes = sheet.axes(0.9, 0.75, 6.0, 2.95)
    total = float(bound.parts().sum(1).mean())
    last = bound.groups[-1].stop
    title = f"{name}: {total:.3f} bits per dimension over {last} timesteps"
    sheet.text(0.9, 0.4, title, 6.0, fontsize=11, fontweight="bold", parse_math=False)
    means = np.maximum(bound.terms.mean(0), 1e-12)
    edges = [group.start + 1 for group in bound.groups] + [last + 1]
    axes.stairs(means, edges, baseline=None, color=pictures.color(0), linewidth=1.8)
    axes.plot([1.5], means[:1], "o", color=pictures.color(1), markersize=6)
    faint: dict[str, Any] = {"fontsize": 8.5, "color": pictures.FAINT}
    decoder = f"decoder, $L_0$: {means[0]:.3f}"
    axes.annotate(decoder, (2, means[0]), (6, -3), textcoords="offset points", **faint)
    axes.loglog()
    axes.set_xlim(1, last + 1)
    axes.set_xlabel("timestep $t + 1$", fontsize=9)
    axes.set_ylabel("$L_t$, bits per dimension", fontsize=9)
    axes.tick_params(length=0)
    prior, middle, _ = bound.parts().mean(0)
    axes.set_title(f"sum of the steps {middle:.3f},  prior {prior:.2g}", loc="right", **faint)
    return sheet.render()
