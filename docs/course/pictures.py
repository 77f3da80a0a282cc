"""Draw the pictures of the course that no command of the program draws.

python docs/course/pictures.py NAME ...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from diffuse_cli.core import SAMPLERS, SCHEDULES, Denoiser, Prediction, Process, bits_per_dim
from diffuse_cli.core.losses import weights

IMAGES = Path(__file__).parents[1] / "images" / "course"
BLUE, RED, GREEN, GREY = "#2f6fb0", "#c8443c", "#3c8d4f", "#888888"
PIXEL = torch.tensor([-1.0, 1.0], dtype=torch.float64)


def bell(x: Any, mean: float, spread: float) -> Any:
    """The density of a Gaussian."""
    return np.exp(-(((x - mean) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Gaussian noise in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best(process: Process) -> Callable[[Any, Any], Any]:
    """The perfect network for a black or white pixel."""

    def net(x: Any, t: Any) -> Any:
        index = (t.double() * process.num_timesteps / 1000).round().long()
        bar = process.alpha_bars[index].reshape(-1, 1)
        return torch.tanh(bar.sqrt() * x / (1 - bar))

    return net


def posterior(axes: Any) -> None:
    """Chapter 2: two bells multiplied."""
    process = Process(SCHEDULES["linear"](1000))
    pair, x = process.coefficients(300, 200, like=PIXEL), np.linspace(-2, 2.5, 400)
    shrunk, added = pair.alpha / pair.alpha_s, math.exp(pair.log_beta / 2)
    mean, spread = pair.c1 - pair.c2 * 0.3, math.exp(pair.log_beta_tilde / 2)
    axes.plot(x, bell(x, pair.alpha_s, pair.sigma_s), color=BLUE, label="from $x_0 = 1$")
    axes.plot(x, bell(x, -0.3 / shrunk, added / shrunk), color=RED, label="from $x_t = -0.3$")
    axes.fill_between(x, bell(x, mean, spread), color=GREEN, alpha=0.3)
    axes.plot(x, bell(x, mean, spread), color=GREEN, label="from both: the posterior")
    axes.set(xlabel="$x_s$", yticks=[])
    axes.legend(frameon=False)


def bound(left: Any, right: Any) -> None:
    """Chapter 3: the terms by timestep."""
    pixels = PIXEL.repeat(2000).reshape(-1, 1)
    for axes, count in ((left, 10), (right, 100)):
        process = Process(SCHEDULES["cosine"](count))
        denoiser = Denoiser(best(process), process, "x0", levels=2)
        terms = bits_per_dim(denoiser, pixels, noise=lambda t: noise(4000, 1, seed=t)).terms.mean(0)
        axes.bar(np.arange(count), terms, color=BLUE, width=0.85)
        axes.set(xlabel="$t$", ylabel="bits", title=f"{count} steps: {float(terms.sum()):.2f} bits")


def weighted(axes: Any) -> None:
    """Chapter 4: what targets and weightings make of an error in x_0."""
    process = Process(SCHEDULES["cosine"](1000))
    log_snr = process.log_snr(torch.arange(1000))
    level = log_snr.exp()
    denoiser = Denoiser(lambda x, t: x, process, "x0")
    axes.plot(log_snr, level, color=BLUE, lw=4, alpha=0.4, label="eps")
    axes.plot(log_snr, level + 1, color=RED, label="v (the default's target)")
    axes.plot(log_snr, level**0, color=GREY, label="x0")
    axes.plot(log_snr, weights("sigmoid", denoiser), color=GREEN, label="sigmoid (the default's)")
    for name, style in (("min-snr", "--"), ("p2", ":")):
        axes.plot(log_snr, weights(name, denoiser), color=GREEN, linestyle=style, label=name)
    axes.set(yscale="log", ylim=(1e-3, 1e3), xlim=(-8, 8), xlabel="log-SNR", ylabel="weight")
    axes.legend(frameon=False)


def covariance(axes: Any) -> None:
    """Chapter 5: beta-tilde over beta, and the truth for a pixel."""
    for count, color in ((1000, GREY), (100, BLUE), (20, RED)):
        process = Process(SCHEDULES["cosine"](count))
        steps, place = process.steps, (np.arange(count) + 1) / count
        small = (steps.log_beta_tilde - steps.log_beta).exp()
        axes.plot(place[1:], small[1:], color=color, label=f"{count:,} steps")
    denoiser = Denoiser(best(process), process, "x0")
    drawn = noise(4000, 1).sign()
    for t in range(1, 20):
        guess = denoiser(process.diffuse(drawn, t, noise(4000, 1, seed=t + 1)), t).x0
        pair = process.coefficients(t, like=drawn)
        true = math.exp(pair.log_beta_tilde) + pair.c1**2 * float((1 - guess**2).mean())
        axes.plot(place[t], true / math.exp(pair.log_beta), "o", color=RED, markersize=4)
    axes.set(xlabel="$(t + 1) / T$", ylabel=r"$\tilde\beta / \beta$", ylim=(0, 1.05))
    axes.legend(frameon=False)


def unet(axes: Any) -> None:
    """Chapter 7: the parts in their places."""
    axes.set(xlim=(0, 12), ylim=(-0.6, 4.6))
    axes.axis("off")

    def box(x: float, y: float, text: str, color: str, wide: float = 1.7) -> None:
        style = {"boxstyle": "round,pad=0.28", "facecolor": color, "edgecolor": "none"}
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color="white", bbox=style)

    def arrow(a: tuple[float, float], b: tuple[float, float], color: str, style: str = "-") -> None:
        how = {"arrowstyle": "->", "color": color, "linestyle": style, "linewidth": 1.3}
        axes.annotate("", b, a, arrowprops=how)

    levels = [(3, "32×32, 32 channels"), (1.8, "16×16, 64 channels"), (0.6, "8×8, 64, attention")]
    for i, (y, text) in enumerate(levels):
        left, right = 2.2 + 0.9 * i, 9.8 - 0.9 * i
        box(left, y, f"blocks\n{text}", BLUE)
        box(right, y, f"blocks\n{text}", BLUE)
        arrow((left + 1.15, y), (right - 1.15, y), GREEN, "--")
        axes.text(6, y + 0.13, "skip", ha="center", color=GREEN, fontsize=9)
        if i:
            arrow((left - 0.7, y + 0.85), (left - 0.25, y + 0.35), GREY)
            arrow((right + 0.25, y + 0.35), (right + 0.7, y + 0.85), GREY)
    axes.text(1.7, 2.4, "halve", ha="center", color=GREY, fontsize=9)
    axes.text(10.3, 2.4, "double", ha="center", color=GREY, fontsize=9)
    box(6, -0.3, "middle: block, attention, block", BLUE)
    arrow((4.4, 0.22), (4.75, -0.15), GREY)
    arrow((7.25, -0.15), (7.6, 0.22), GREY)
    box(2.2, 4.2, "$x_t$", GREY)
    box(9.8, 4.2, r"$\epsilon$, $x_0$ or $v$", GREY)
    arrow((2.2, 3.95), (2.2, 3.4), GREY)
    arrow((9.8, 3.4), (9.8, 3.95), GREY)
    box(6, 4.2, "$t$: sinusoids, two linear layers → every block", RED)


def ranks(*axes: Any) -> None:
    """Chapter 8: draws of the data and of two models of it, 16 pixels each."""
    names = "the data", "A: few bits, wrong brightness", "B: right brightness, more bits"
    for plot, name, parts in zip(
        axes, names, ((0.5, 0.05), (0.25, 0.05), (0.5, 0.03)), strict=True
    ):
        brightness, detail = parts
        drawn = brightness * noise(24, 1, 1) + detail * noise(24, 4, 4, seed=1)
        page = np.pad(drawn.numpy(), ((0, 0), (0, 1), (0, 1)), constant_values=1)
        plot.imshow(
            np.vstack([np.hstack(page[i : i + 12]) for i in (0, 12)]), "gray", vmin=-1, vmax=1
        )
        plot.set_title(name, fontsize=10)
        plot.axis("off")


def mixture(process: Process) -> Callable[..., Prediction]:
    """The perfect denoiser of N(-1, 0.2^2) or N(1, 0.2^2), with equal chance."""

    def denoise(x: Any, t: Any) -> Prediction:
        alpha, sigma = process.alpha_sigma(float(t), like=x)
        total = alpha**2 * 0.04 + sigma**2
        white = torch.sigmoid(2 * alpha * x / total)
        x0 = 2 * white - 1 + alpha * 0.04 / total * (x - alpha * (2 * white - 1))
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def ends(process: Process, starts: torch.Tensor, count: int) -> list[tuple[float, Any]]:
    """A path of ddim: (time, x), from the first time to clean data."""
    times = process.times(count)
    states = SAMPLERS["ddim"](mixture(process), process, starts, times, noise=lambda k: starts)
    return [(times[0], starts), *((state.t, state.x) for state in states)]


def paths(left: Any, right: Any) -> None:
    """Chapter 9: the probability flow, in many steps and in five."""
    process = Process(SCHEDULES["cosine"](1000))
    starts = torch.linspace(-2, 2, 14, dtype=torch.float64).reshape(-1, 1)
    fine = ends(process, starts, 500)
    for axes, count in ((left, 5), (right, 20)):
        axes.plot([t for t, _ in fine], torch.cat([x for _, x in fine], 1).T, color="#cccccc")
        few = ends(process, starts, count)
        axes.plot(
            [t for t, _ in few], torch.cat([x for _, x in few], 1).T, ".-", color=BLUE, lw=0.9
        )
        axes.set(xlim=(1020, -20), xlabel="$t$", title=f"{count} steps")


def guidance(axes: Any) -> None:
    """Chapter 10: densities of guided samples."""
    process = Process(SCHEDULES["cosine"](1000))
    x = np.linspace(-3, 4, 300)
    axes.fill_between(x, bell(x, -1, 0.7) / 2 + bell(x, 1, 0.7) / 2, color=GREY, alpha=0.3)
    starts = noise(4000, 1)

    def guess(x: Any, t: Any, classes: tuple[float, ...]) -> Any:
        alpha, sigma = process.alpha_sigma(t, like=x)
        total = alpha**2 * 0.49 + sigma**2
        fits = torch.stack([-((x - alpha * m) ** 2) / 2 / total for m in classes]).softmax(0)
        each = torch.stack([m + alpha * 0.49 / total * (x - alpha * m) for m in classes])
        return (fits * each).sum(0)

    for scale, color in ((1, BLUE), (2, GREEN), (4, RED)):

        def denoise(x: Any, t: Any, scale: float = scale) -> Prediction:
            free = guess(x, t, (-1, 1))
            x0 = free + scale * (guess(x, t, (1,)) - free)
            alpha, sigma = process.alpha_sigma(t, like=x)
            return Prediction(x0, (x - alpha * x0) / sigma)

        *_, end = SAMPLERS["ddim"](denoise, process, starts, process.times(100), noise=None)
        counts, edges = np.histogram(end.x.numpy(), 70, (-3, 4), density=True)
        axes.plot((edges[1:] + edges[:-1]) / 2, counts, color=color, label=f"guidance {scale}")
    axes.set(xlabel="$x_0$", yticks=[])
    axes.legend(frameon=False)


def straight(left: Any, right: Any) -> None:
    """Chapter 11: the same paths in two coordinates."""
    process = Process(SCHEDULES["flow"](1000))
    starts = torch.linspace(-2, 2, 14, dtype=torch.float64).reshape(-1, 1)
    way = ends(process, starts, 500)
    u = [(t + 1) / 1000 for t, _ in way]
    left.plot(u, torch.cat([x for _, x in way], 1).T, color=BLUE, lw=0.9)
    scaled = [x * math.hypot(1 - place, place) for place, (_, x) in zip(u, way, strict=True)]
    right.plot(u, torch.cat(scaled, 1).T, color=RED, lw=0.9)
    for axes, title in ((left, "$x_t$, variance kept"), (right, "$(1 - u) x_0 + u \\epsilon$")):
        axes.set(xlim=(1, 0), xlabel="$u$", title=title)


def restored(axes: Any) -> None:
    """Chapter 12: what is known of the second of two numbers, before and after the first."""
    x, y = np.mgrid[-2.5:2.5:200j, -2.5:2.5:200j]
    axes.contour(x, y, (x**2 + y**2 - 1.6 * x * y) / 0.36, levels=(0.5, 2, 4.5), colors=GREY)
    axes.axvline(0.7, color=RED, label="seen: the first is 0.7")
    second = np.linspace(-2.5, 2.5, 300)
    axes.plot(
        0.7 + 1.2 * bell(second, 0.56, 0.6), second, color=BLUE, label="posterior of the second"
    )
    axes.set(xlabel="first number", ylabel="second number", aspect="equal")
    axes.legend(frameon=False, loc="upper left", fontsize=8)


PICTURES: dict[str, tuple[Callable[..., None], tuple[int, int], tuple[float, float]]] = {
    "posterior": (posterior, (1, 1), (6, 2.8)),
    "bound": (bound, (1, 2), (8, 2.8)),
    "weights": (weighted, (1, 1), (6, 3.2)),
    "covariance": (covariance, (1, 1), (6, 3)),
    "unet": (unet, (1, 1), (9, 4)),
    "ranks": (ranks, (3, 1), (6, 3.9)),
    "paths": (paths, (1, 2), (8, 3)),
    "guidance": (guidance, (1, 1), (6, 2.8)),
    "straight": (straight, (1, 2), (8, 3)),
    "restored": (restored, (1, 1), (4.2, 4)),
}
"""By name: what draws it on its axes, how many axes there are, and its size in inches."""


def main(names: list[str]) -> None:
    """Draw the pictures of these names."""
    for name in names:
        paint, grid, size = PICTURES[name]
        figure, axes = plt.subplots(*grid, figsize=size, squeeze=False, layout="constrained")
        for each in axes.flat:
            each.spines[["top", "right"]].set_visible(False)
        paint(*axes.flat)
        IMAGES.mkdir(exist_ok=True)
        figure.savefig(IMAGES / f"{name}.png", dpi=100, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
