"""Does guidance by a weaker model pay? KID and recall at several scales, in equal evaluations.

The weaker models are the model's own early average, or files of the same run stopped earlier. A
guided step takes two evaluations, so guided images are drawn in half the steps. Prints JSON.

    diffuse train DATA --size 32 --steps 800 --batch-size 16 --keep-weak -o model.safetensors
    python benchmarks/autoguidance.py model.safetensors --real TEST_IMAGES
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
from accelerate import Accelerator

from diffuse_cli.config.sample_options import OWN, SAMPLER, DrawConfig
from diffuse_cli.metrics import precision_recall
from diffuse_cli.sampling.generation import LoadedModel, load_denoiser
from diffuse_cli.sampling.guidance_model import load_guide
from diffuse_cli.sampling.sampling_settings import Guide
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish


def guides(
    options: argparse.Namespace, loaded: LoadedModel, accelerator: Accelerator
) -> Iterator[tuple[str, Guide | None]]:
    """Every weaker model at every scale; at 1 the model alone, once."""
    if 1 in options.scales:
        yield "", None
    for path in options.weak:
        for scale in (scale for scale in options.scales if scale != 1):
            asked = DrawConfig(guide_with=path, weak_guidance=scale)
            found = finish(load_guide(asked, loaded, accelerator))
            yield "own" if path == OWN else Path(path).stem, found


def main() -> None:
    """Measure every scale with every weaker model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--weak", nargs="*", default=[OWN])
    parser.add_argument("--real", required=True)
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--scales", type=float, nargs="*", default=[1.0, 1.25, 1.5, 2.0, 3.0])
    parser.add_argument("--sampler", default=SAMPLER)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with open_accelerator(resolve_precision("auto")) as accelerator:
        loaded = finish(load_denoiser(options.model, "ema", accelerator))
        height, width = loaded.space.size
        real = np.ascontiguousarray(common.read(options.real, size=(height, width)).stored)
        wanted = common.features(real, accelerator)
        for name, guide in guides(options, loaded, accelerator):
            steps = options.evaluations // (2 if guide else 1)
            pixels, seconds = common.sample(
                loaded,
                options.n,
                accelerator,
                steps=steps,
                sampler=options.sampler,
                guide=guide,
                seed=options.seed,
            )
            fake = common.features(pixels, accelerator)
            shares = {
                key: each.value()
                for key, each in precision_recall.measure_fractions(wanted, fake).items()
            }
            results.append(
                {
                    "weak": name,
                    "scale": guide.scale if guide else 1.0,
                    "steps": steps,
                    "evaluations": steps * (2 if guide else 1),
                    "seconds": round(seconds, 1),
                    **common.distance(wanted, fake),
                    **shares,
                }
            )
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    model = loaded.model
    settings = {
        "steps": model.step,
        "batch_size": model.training.get("batch_size"),
        "weak_step": model.weak_step,
        "sampler": options.sampler,
        "n": options.n,
        "real": len(real),
        "seed": options.seed,
    }
    print(json.dumps({**settings, "machine": common.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
