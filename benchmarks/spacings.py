"""Which times should few steps of a solver visit? KID, recall and how far from many steps.

Every row draws the same images' noise (one seed) from a model and is compared with the same real
images. `missed` is the root mean square distance to the images of 100 trailing steps. Prints JSON.

    python benchmarks/spacings.py MODEL ... --real TEST > benchmarks/results/spacings.json
    python benchmarks/spacings.py --show FILE ...
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

from diffuse_cli.events import finish
from diffuse_cli.metrics import frechet, manifold
from diffuse_cli.runtime import machine, resolve_precision
from diffuse_cli.sampling import load_denoiser

MANY = 100


def rows(path: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The results of a model, by steps and spacing."""
    with machine(resolve_precision("auto")) as accelerator:
        loaded = finish(load_denoiser(path, "ema", accelerator))
        images = common.read(options.real, size=loaded.space.size)
        real = common.features(common.some(images, options.reference), accelerator)

        def drawn(n: int, steps: int, spacing: str) -> Any:
            return common.sample(
                loaded, n, accelerator, steps=steps, sampler=options.sampler, spacing=spacing
            )[0]

        ends = drawn(options.pairs, MANY, "trailing").astype(np.float64)
        for steps in options.steps:
            for spacing in options.spacings:
                pixels = drawn(options.n, steps, spacing)
                fake = common.features(pixels, accelerator)
                missed = np.sqrt(np.square(pixels[: options.pairs] - ends).mean())
                yield {
                    "model": Path(path).stem,
                    "sampler": options.sampler,
                    "steps": steps,
                    "spacing": spacing,
                    **common.distance(real, fake),
                    "frechet": round(frechet.fit(real, fake).value, 1),
                    "recall": round(manifold.counted(real, fake)["recall"].value(), 4),
                    "missed": round(float(missed) / 127.5, 4),
                }


def show(results: Sequence[dict[str, Any]]) -> str:
    """A line for each number of steps and spacing: ratios to trailing, means over models."""
    lines = []
    for steps in sorted({r["steps"] for r in results}):
        for spacing in dict.fromkeys(r["spacing"] for r in results):
            here = {
                r["model"]: r for r in results if (r["steps"], r["spacing"]) == (steps, spacing)
            }
            told = [f"{steps:4} {spacing:9}"]
            for key in ("kid", "frechet", "missed", "recall"):
                gains = [
                    math.log(r[key] / b[key]) if key != "recall" else r[key] - b[key]
                    for name, r in here.items()
                    for b in results
                    if (b["model"], b["steps"], b["spacing"]) == (name, steps, "trailing")
                ]
                mean = statistics.fmean(gains)
                error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
                value = math.exp(mean) if key != "recall" else mean
                told.append(f"{key} {value:6.3f} ± {error:.3f}")
            lines.append("  ".join(told))
    return "\n".join(lines)


def main() -> None:
    """Measure every model, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--show", nargs="+", default=[])
    parser.add_argument("--real")
    parser.add_argument("--reference", type=int, default=1000)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=100, help="images compared with many steps")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 20])
    parser.add_argument("--spacings", nargs="+", default=["trailing", "early"])
    parser.add_argument("--sampler", default="unipc")
    options = parser.parse_args()
    if options.show:
        print(
            show(
                [r for path in options.show for r in json.loads(Path(path).read_text())["results"]]
            )
        )
        return
    results = []
    for path in options.models:
        for row in rows(path, options):
            results.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    settings = {"n": options.n, "reference": options.reference, "pairs": options.pairs}
    print(json.dumps({**settings, "machine": common.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
