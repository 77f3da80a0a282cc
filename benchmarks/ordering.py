"""Do the metrics order what is known to be worse, and do their errors cover repeated evaluations?

python benchmarks/ordering.py TEST_IMAGES TRAINING_IMAGES > benchmarks/results/ordering.json

Real images against other real ones, against the same with rising noise and blur, without some of
the classes, and with copies of training images among them. Then ten evaluations of disjoint images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import machine, read
from PIL import Image, ImageFilter

from diffuse_cli.metrics import METRICS
from diffuse_cli.metrics.features import FeatureNetwork, find_weights, load_network
from diffuse_cli.metrics.features.feature_cache import cache_features
from diffuse_cli.metrics.nearest_neighbors import find_nearest
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import permutation

Array = np.ndarray[Any, Any]

NOISE = (4, 8, 16, 32)
BLUR = (0.5, 1.0, 2.0)
DROPPED = (1, 3, 5)
COPIES = (0.1, 0.5, 1.0)

RISES = {"kid": 1, "frechet_distance": 1, "frechet_infinity": 1}
LADDERS = {
    "noise": {**RISES, "precision": -1, "density": -1, "coverage": -1},
    "blur": {**RISES, "precision": -1, "density": -1, "coverage": -1},
    "dropped": {**RISES, "recall": -1, "coverage": -1},
    "copies": {"memorized_features": 1, "memorized_pixels": 1},
}
"""Which way each metric should go along a ladder; others need not go anywhere."""

OF_FEATURES = ("kid", "frechet", "precision-recall")


def log(text: str) -> None:
    """Say on stderr how far it is."""
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


def noisy(pixels: Array, strength: float) -> Array:
    """Gaussian noise of a deviation in levels of 255, rounded and clipped."""
    noise = np.random.default_rng(0).normal(size=pixels.shape) * strength
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def blurred(pixels: Array, radius: float) -> Array:
    """A Gaussian blur of a deviation in pixels, of grey images."""
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(x[0]).filter(blur))[None] for x in pixels])


Samples = tuple[Array, Array]
"""Pixels and their features."""


def sets(
    n: int, spare: Samples, labels: Array, training: Samples, network: FeatureNetwork
) -> dict[tuple[str, float], Samples]:
    """The images of every step of every ladder; step 0 is the same for all: n spare images."""
    clean, own = spare[0][:n], spare[1][:n]
    changed = {("noise", s): noisy(clean, s) for s in NOISE}
    changed |= {("blur", r): blurred(clean, r) for r in BLUR}
    result: dict[tuple[str, float], Samples] = {("real", 0.0): (clean, own)}
    for key, pixels in changed.items():
        log(f"features of {key}")
        result[key] = (pixels, finish(cache_features(network, pixels)))
    for k in DROPPED:
        kept = np.flatnonzero(labels >= k)[:n]
        result["dropped", float(k)] = (spare[0][kept], spare[1][kept])
    for share in COPIES:
        m = round(share * n)
        pixels, features = (
            np.concatenate([x[:m], y[m:n]]) for x, y in zip(training, spare, strict=True)
        )
        result["copies", share] = (pixels, features)
    return result


def measure(real: Array, fake: Array, more: Array) -> dict[str, float]:
    """All metrics of features."""
    sides = SimpleNamespace(real_features=real, fake_features=fake, more_features=more)
    result: dict[str, float] = {}
    for name in OF_FEATURES:
        result |= METRICS[name].compute(sides)
    return result


def repeats(real: Array, fake: Array, times: int, n: int) -> dict[str, dict[str, float]]:
    """The spread of evaluations of disjoint images beside their mean standard error."""
    found = [
        measure(real[i * n : (i + 1) * n], fake[i * n : (i + 1) * n], real[:0])
        for i in range(times)
    ]
    keys = [k for k in found[0] if f"{k}_standard_error" in found[0] and "floor" not in k]
    values = {k: np.array([f[k] for f in found]) for k in keys}
    errors = {k: np.array([f[f"{k}_standard_error"] for f in found]) for k in keys}
    return {
        k: {
            "mean": float(values[k].mean()),
            "spread": float(values[k].std(ddof=1)),
            "standard_error": float(np.sqrt(np.square(errors[k]).mean())),
        }
        for k in keys
    }


def ordered(rows: list[dict[str, Any]]) -> dict[str, dict[str, bool]]:
    """Whether each metric goes the way it should at every step of each ladder."""
    result: dict[str, dict[str, bool]] = {}
    for ladder, ways in LADDERS.items():
        steps = [row for row in rows if row["ladder"] in ("real", ladder)]
        result[ladder] = {
            name: all(way * (b[name] - a[name]) > 0 for a, b in itertools.pairwise(steps))
            for name, way in ways.items()
        }
    return result


def rows_of(
    found: dict[tuple[str, float], Samples], real: Samples, more: Array, training: Samples
) -> list[dict[str, Any]]:
    """Every step measured."""
    rows = []
    for (ladder, strength), fakes in found.items():
        log(f"{ladder} {strength}")
        near = {}
        for place, space in enumerate(("pixels", "features")):
            order = np.arange(len(training[place]))
            near[space] = finish(find_nearest(fakes[place], real[place], training[place], order))
        numbers = {"n": float(len(fakes[0])), **measure(real[1], fakes[1], more)}
        numbers |= METRICS["memorization"].compute(SimpleNamespace(nearest=near))
        rows.append({"ladder": ladder, "strength": strength, **numbers})
    return rows


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("test")
    parser.add_argument("training")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--train-n", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    began, n = time.monotonic(), options.n
    test, train = read(options.test), read(options.training)
    order = permutation(0, 0, len(test))
    pixels, labels = np.ascontiguousarray(test.stored[order[: 3 * n]]), test.labels[order[: 3 * n]]
    known = train.stored[permutation(0, 1, len(train))[: options.train_n]]
    network = load_network("efficientnet-lite0", "cpu", finish(find_weights("efficientnet-lite0")))
    log("features of real images")
    own = finish(cache_features(network, pixels))
    training = (known, finish(cache_features(network, known)))
    found = sets(n, (pixels[n:], own[n:]), labels[n:], training, network)
    rows = rows_of(found, (pixels[:n], own[:n]), own[2 * n :], training)
    each = n // options.repeats
    print(
        json.dumps(
            {
                "n": n,
                "training": len(known),
                "rows": rows,
                "ordered": ordered(rows),
                "repeats": {
                    "n": each,
                    "real": repeats(own[:n], own[n:], options.repeats, each),
                    "noise 16": repeats(own[:n], found["noise", 16][1], options.repeats, each),
                },
                "machine": machine(),
                "seconds": round(time.monotonic() - began),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
