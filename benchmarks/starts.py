"""Does a start with the data's brightness and layout pay? KID, recall, brightness, beside noise.

Each model draws from the same noise in few and many steps, and guided by its own early average if
it has one, in half the steps. Low frequencies are those in the model file; of a model without them
they are measured on `--train`. Prints JSON.

    diffuse train DATA --size 32 --steps 800 --batch-size 16 --keep-weak -o model.safetensors
    python benchmarks/starts.py model.safetensors --real TEST_IMAGES
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
import torch
from accelerate import Accelerator

from diffuse_cli.config.sample_options import GAUSSIAN, OWN, SAMPLER, STARTS, DrawConfig
from diffuse_cli.core.data_gaussian import DataGaussian, measure
from diffuse_cli.core.samplers import default_spacing
from diffuse_cli.metrics import frechet
from diffuse_cli.sampling.generation import LoadedModel, load_denoiser
from diffuse_cli.sampling.guidance_model import load_guide
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish

MEASURED = 512
"""Training images whose low frequencies are measured."""


@dataclass(frozen=True)
class Row:
    """How images are drawn."""

    steps: int
    scale: float = 1.0


def rows(options: argparse.Namespace, loaded: LoadedModel) -> Iterator[Row]:
    """Unguided, and guided where the model has a weak average."""
    yield from (Row(steps) for steps in options.steps)
    if loaded.model.weak is not None:
        yield from (Row(max(options.steps) // 2, scale) for scale in options.scales)


def low_frequencies(loaded: LoadedModel, train: str | None) -> DataGaussian:
    """Those in the model file, or of images."""
    if train is None:
        assert loaded.model.blueprint.gaussian is not None, "give --train"
        return loaded.model.blueprint.gaussian
    height, width = loaded.space.size
    stored = common.read(train, (height, width)).stored
    places = np.linspace(0, len(stored) - 1, MEASURED).round().astype(np.int64)
    samples = loaded.space.to_model(torch.from_numpy(stored[places]))
    return measure(lambda: [samples], bands=False)


def drawn(
    row: Row, start: DataGaussian | None, loaded: LoadedModel, accelerator: Accelerator, n: int
) -> common.Pixels:
    """Images of a row."""
    asked = DrawConfig(guide_with=OWN, weak_guidance=row.scale)
    found = finish(load_guide(asked, loaded, accelerator)) if row.scale != 1 else None
    pixels, _ = common.sample(
        loaded, n, accelerator, steps=row.steps, sampler=SAMPLER, guide=found, start=start
    )
    return pixels


def main() -> None:
    """Measure every row from both starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--real", required=True)
    parser.add_argument("--train", help="images to measure low frequencies of")
    parser.add_argument("--name")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="*", default=[8, 20])
    parser.add_argument("--scales", type=float, nargs="*", default=[1.5])
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with open_accelerator(resolve_precision("auto")) as accelerator:
        loaded = finish(load_denoiser(options.model, "ema", accelerator))
        height, width = loaded.space.size
        pixels = common.some(common.read(options.real, (height, width)), 1000)
        real = common.features(pixels, accelerator)
        low = low_frequencies(loaded, options.train)
        for row in rows(options, loaded):
            for start in STARTS:
                given = low if start == GAUSSIAN else None
                made = drawn(row, given, loaded, accelerator, options.n)
                fake = common.features(made, accelerator)
                results.append(
                    {
                        "start": start,
                        "steps": row.steps,
                        "spacing": default_spacing(SAMPLER, row.steps),
                        "scale": row.scale,
                        **common.distance(real, fake),
                        "frechet": round(frechet.estimate_frechet(real, fake).value, 2),
                        **common.shares(real, fake),
                        **common.looks(pixels, made),
                    }
                )
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    model = loaded.model
    told = {"name": options.name, "steps": model.step, "seed": model.training.get("seed")}
    told |= {"size": [height, width], "n": options.n, "real": len(pixels), "sampler": SAMPLER}
    print(json.dumps({**told, "machine": common.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
