"""Table entries that paired experiments try; `recipe.py` offers them as entry points."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from diffuse_cli.core.losses import min_snr


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
    "edm": edm,
}

for _name, _entry in WEIGHTINGS.items():
    globals()[_name.replace("-", "_").replace(".", "_")] = _entry


def entry_points() -> str:
    """The file that lists them for Python's package metadata."""
    lines = ["[diffuse.weightings]"]
    for name in WEIGHTINGS:
        lines.append(f"{name} = candidates:{name.replace('-', '_').replace('.', '_')}")
    return "\n".join(lines) + "\n"
