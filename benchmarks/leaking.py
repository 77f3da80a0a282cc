"""Fraction of samples that show changes of --augment, after the shortest runs with it by default.

60 samples whose marks are always at the same places: arrays of 8x8 with a mark in column 1, and
pictures of 16x16 with a red, a green and a blue disc, from which the similarity transform of each
sample follows. Trains `tiny` for 400 steps (427 passes), takes 512 samples, and counts those with a
mark elsewhere. `--spread 0` starts the embedding of the changes from zeros, and `--augment none`
counts what the detector sees without changes. Prints JSON, a row per run.

    python benchmarks/leaking.py --seeds 0 1 2 > benchmarks/results/leaking.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import common
import numpy as np
from PIL import Image
from steps import say

import diffuse_cli
from diffuse_cli.core.networks import layers

COUNT, STEPS, SAMPLES = 60, 400, 512
FULL, SIDE = 32, 16
MARKS = np.array([(9.5, 8.5), (9.5, 22.5), (21.5, 12.5)])
"""Centers of the red, the green and the blue disc, where a side is `FULL`."""

Values = np.ndarray[Any, np.dtype[Any]]


def arrays(count: int, seed: int) -> Values:
    """Smooth noise with a mark in column 1, (N, 8, 8)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 8, 8)).astype(np.float32)
    x = 0.5 * (x + np.roll(x, 1, 1) + np.roll(x, 1, 2)) / 3**0.5
    x[np.arange(count), rng.integers(0, 8, count), 1] += 4
    return x


def locate_column(x: Values, normal: Values) -> dict[str, float]:
    """Return the fractions of arrays whose mark is shifted or mirrored."""
    there = x.max((1, 2)) > 2.5
    column = np.where(there, x.max(1).argmax(1), -1)
    places = {"shift": (0, 2), "flip": (6,), "both": (5, 7)}
    rates = {name: float(np.isin(column, place).mean()) for name, place in places.items()}
    return {**rates, "lost": float(1 - there.mean())}


def draw_disc(center: Any, radius: float) -> Values:
    """Return the coverage of each position by a disc, (FULL, FULL, 1)."""
    y, x = np.mgrid[:FULL, :FULL]
    return np.clip(radius + 0.5 - np.hypot(y - center[0], x - center[1]), 0, 1)[..., None]


def pictures(count: int, seed: int) -> Values:
    """Three discs and a white spot on a smooth background, (N, SIDE, SIDE, 3)."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        low = rng.uniform(0.25, 0.5, (4, 4, 3)).mean(2, keepdims=True).repeat(3, 2)
        low = low + rng.uniform(-0.04, 0.04, (4, 4, 3))
        low = (low + rng.uniform(-0.15, 0.15)).astype(np.float32)
        planes = [np.array(Image.fromarray(low[..., c]).resize((FULL, FULL), 2)) for c in range(3)]
        x = np.stack(planes, -1).clip(0.15, 0.6)
        for c, center in enumerate(MARKS):
            cover = draw_disc(center, 3.0)
            x = x * (1 - cover) + cover * np.where(np.arange(3) == c, 0.95, 0.05)
        cover = draw_disc((rng.uniform(22, 28), rng.uniform(20, 28)), rng.uniform(1.5, 3))
        made.append(x * (1 - cover) + cover * 0.9)
    x = np.round(np.stack(made) * 255).astype(np.uint8)
    ratio = FULL // SIDE
    x = x.reshape(count, SIDE, ratio, SIDE, ratio, 3).mean((2, 4))
    return x.round().astype(np.uint8)


def locate_discs(x: Values, normal: Values) -> dict[str, float]:
    """Return the fractions of pictures by the transform of their discs, against `normal` ones."""
    places, levels = find_discs(x / 255)
    good = ~np.isnan(places).any((1, 2))
    middle = (SIDE - 1) / 2
    base = (MARKS + 0.5) * SIDE / FULL - 0.5 - middle
    inverse = np.linalg.inv(np.concatenate([base, np.ones((3, 1))], 1))
    affine = np.einsum("ij,njk->nik", inverse, places[good] - middle)
    matrix, offset = affine[:, :2], affine[:, 2]
    area = np.linalg.det(matrix)
    matrix = matrix * np.stack([np.ones_like(area), np.sign(area)], 1)[:, None]
    angle = np.arctan2(matrix[:, 0, 1] - matrix[:, 1, 0], matrix[:, 0, 0] + matrix[:, 1, 1])
    change = levels[good] - np.nanmean(find_discs(normal / 255)[1], 0)
    signs = {
        "flip": area < 0,
        "rotate": np.abs(np.degrees(angle)) > 10,
        "zoom": np.abs(np.log2(np.sqrt(np.abs(area)) + 1e-9)) > 0.1,
        "shift": np.abs(offset).max(1) > 0.6,
        "color": (np.abs(change) > 0.04).all(1),
    }
    rates = {name: float(sign.sum() / len(x)) for name, sign in signs.items()}
    return {**rates, "lost": float(1 - good.mean())}


def find_discs(x: Values) -> tuple[Values, Values]:
    """Return the centers (N, 3, 2) of the discs, NaN for a missing one, and their levels (N, 2).

    The levels are the medians of the discs, in their own channel and in the others.
    """
    grid = np.mgrid[: x.shape[1], : x.shape[1]]
    places, levels = np.full((len(x), 3, 2), np.nan), np.full((len(x), 3, 2), np.nan)
    for c in range(3):
        others = np.delete(x, c, -1)
        weight = np.clip(x[..., c] - others.max(-1) - 0.3, 0, None)
        total = weight.sum((1, 2))
        there = total > 0.15 * np.pi * (3 * SIDE / FULL) ** 2
        centers = np.einsum("nyx,dyx->nd", weight, grid)
        places[there, c] = centers[there] / total[there, None]
        core = weight > 0.7 * weight.max((1, 2), keepdims=True)
        count = np.maximum(core.sum((1, 2)), 1)
        for k, plane in enumerate((x[..., c], others.mean(-1))):
            levels[:, c, k] = (plane * core).sum((1, 2)) / count
    return places, np.median(levels, 1)


DATA: Mapping[str, tuple[Callable[[int, int], Values], Callable[..., dict[str, float]]]] = {
    "arrays": (arrays, locate_column),
    "pictures": (pictures, locate_discs),
}


def measure_nearest(x: Values, known: Values) -> Values:
    """Return the distance of each sample to the nearest known one."""
    x, known = (a.reshape(len(a), -1).astype(np.float64) for a in (x, known))
    return np.asarray([np.square(known - sample).sum(1).min() for sample in x]) ** 0.5


def measure(kind: str, augment: str, spread: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train, sample and count."""
    build, locate = DATA[kind]
    known, fresh = build(COUNT, 100), build(SAMPLES, 101)
    layers.SPREAD = spread
    data = [a if kind == "arrays" else Image.fromarray(a) for a in known]
    model = folder / f"{kind}-{augment}-{spread}-{seed}.safetensors"
    options = {"steps": STEPS, "seed": seed, "preset": "tiny", "augment": augment}
    *_, _ = diffuse_cli.train(data, out=model, **options)
    x = np.moveaxis(diffuse_cli.load(model).sample(SAMPLES, batch_size=128).arrays, 1, -1)
    x = x.reshape(SAMPLES, *known.shape[1:])
    limit = np.quantile(measure_nearest(fresh, known), 0.05)
    rates = {**locate(x, fresh), "near": float((measure_nearest(x, known) < limit).mean())}
    row = {"data": kind, "augment": augment, "spread": spread, "seed": seed}
    return {**row, **{name: round(rate, 4) for name, rate in rates.items()}}


def main() -> None:
    """Measure all runs, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", choices=[*DATA], default=[*DATA])
    parser.add_argument("--augment", choices=("auto", "none"), default="auto")
    parser.add_argument("--spread", type=float, default=layers.SPREAD)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.data:
            for seed in options.seeds:
                row = measure(kind, options.augment, options.spread, seed, Path(folder))
                rows.append(row)
                say(json.dumps(row))
    print(json.dumps({"machine": common.machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
