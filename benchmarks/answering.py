"""How good is what a model draws of what it is given, beside what needs no model?

Images that nobody trained on are degraded as in training, or come with their pairs; a model draws
some samples of each. Beside one sample stand the mean of all of them, the pseudo-inverse, and, for
small images, bicubic enlargement. PSNR against the images themselves, ± its standard error, and the
Fréchet distance to other real images, in features of EfficientNet-Lite0. Prints JSON.

    python benchmarks/answering.py model.safetensors --real OTHER_IMAGES
    python benchmarks/answering.py model.safetensors --real OTHER_IMAGES --given PAIRS
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import common
import numpy as np
import torch
from PIL import Image

from diffuse_cli.core.degradations import LowRes
from diffuse_cli.data import match_pairs
from diffuse_cli.metrics import frechet
from diffuse_cli.metrics.estimates import average
from diffuse_cli.metrics.paired import psnr
from diffuse_cli.models.image_conditioning import Conditioner, ConditioningInputs
from diffuse_cli.sampling.conditioning import Condition
from diffuse_cli.sampling.model_loading import LoadedModel, load_denoiser
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import permutation

CPU = torch.device("cpu")


def bicubic(encoder: Conditioner, truth: common.Pixels) -> common.Pixels:
    """Small images, rounded to 8 bits, enlarged by Pillow's cubic filter."""
    assert isinstance(encoder.degradation, LowRes)
    x0 = encoder.space.to_model(torch.from_numpy(truth))
    small = common.to_uint8(encoder.degradation.apply(x0))
    size = truth.shape[:1:-1]
    return np.stack(
        [
            np.stack([np.asarray(Image.fromarray(c).resize(size, Image.BICUBIC)) for c in image])
            for image in small
        ]
    )


def answers(
    loaded: LoadedModel, truth: common.Pixels, inputs: ConditioningInputs, o: Any
) -> dict[str, Any]:
    """What stands for the images, by name, and the seconds of a sample."""
    encoder = Conditioner.from_blueprint(loaded.model.blueprint)
    assert encoder is not None
    with open_accelerator("fp32", "cpu") as accelerator:
        made, seconds = common.sample(
            loaded,
            len(truth) * o.samples,
            accelerator,
            steps=o.steps,
            sampler="unipc",
            condition=Condition(given=inputs, scale=1.0),
            seed=o.seed,
        )
    of_each = made.reshape(o.samples, *truth.shape)
    found = {
        "a sample": of_each[0],
        f"the mean of {o.samples}": of_each.mean(0).round().astype(np.uint8),
    }
    if encoder.given.channels in (1, encoder.space.channels):
        given = encoder.render_input(inputs.encode(range(len(truth)), CPU))
        found["the pseudo-inverse"] = np.broadcast_to(given, truth.shape)
    if isinstance(encoder.degradation, LowRes):
        found["bicubic"] = bicubic(encoder, truth)
    return {"images": found, "seconds": seconds / len(made)}


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--real", required=True)
    parser.add_argument("--given", help="the pairs of --real, for a model of pairs")
    parser.add_argument("-n", type=int, default=250)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    with open_accelerator("fp32", "cpu") as accelerator:
        loaded = finish(load_denoiser(o.model, "ema", accelerator))
    encoder = Conditioner.from_blueprint(loaded.model.blueprint)
    assert encoder is not None
    height, width = loaded.space.size
    images = common.read(o.real, (height, width))
    beside = None
    order = np.arange(len(images))
    if o.given:
        pairs = match_pairs(images, common.read(o.given, (height, width)))
        order = np.flatnonzero(pairs.matched)
    order = order[permutation(o.seed, 0, len(order))]
    own, other = order[: o.n], order[o.n : 2 * o.n]
    truth = np.ascontiguousarray(images.stored[own])
    if o.given:
        beside = np.ascontiguousarray(pairs[own])[:, : encoder.given.channels]
    made = answers(loaded, truth, encoder.choose_inputs(truth, beside, o.seed), o)
    rows = []
    with open_accelerator("fp32", "cpu") as accelerator:
        real = common.features(np.ascontiguousarray(images.stored[other]), accelerator)
        for name, found in [*made["images"].items(), ("the images themselves", truth)]:
            mean, error = average(psnr(found, truth, 255))
            features = common.features(np.ascontiguousarray(found), accelerator)
            rows.append(
                {
                    "answer": name,
                    "psnr": round(mean, 2),
                    "psnr_standard_error": round(error, 2),
                    "frechet_distance": round(frechet.estimate_frechet(real, features).value, 1),
                }
            )
    head = {"given": encoder.given.what, "n": len(truth), "steps": o.steps}
    head |= {"seconds": round(made["seconds"], 3), "machine": common.machine()}
    print(json.dumps({**head, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
