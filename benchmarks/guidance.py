"""Which guidance scale? Agreement of a classifier, and KID, of a model with classes.

A small convolutional network is trained on the real images, and asked which class each generated
image is of. Prints JSON; its accuracy on held-out real images is the number to compare with.

    diffuse train DATA --classes -o model.safetensors
    python benchmarks/guidance.py DATA model.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import common
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from diffuse_cli.data import Dataset
from diffuse_cli.sampling.conditioning import Condition
from diffuse_cli.sampling.generation import load_denoiser
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import permutation


def scaled(pixels: Any) -> torch.Tensor:
    """Pixels as float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1


def train_classifier(images: Dataset, epochs: int) -> nn.Module:
    """A classifier of the images that are not held out."""
    torch.manual_seed(0)
    height, width = images.space.size
    net = nn.Sequential(
        nn.Conv2d(images.space.channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, len(images.class_names)),
    )
    own = np.flatnonzero(~images.held_out)
    steps = epochs * (len(own) // 128)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        epoch, place = divmod(step, len(own) // 128)
        if place == 0:
            order = own[permutation(0, epoch, len(own))]
        chosen = order[place * 128 : (place + 1) * 128]
        loss = F.cross_entropy(
            net(scaled(images.stored[chosen])), torch.from_numpy(images.labels[chosen])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return net.eval()


@torch.no_grad()
def classify(net: nn.Module, pixels: Any) -> np.ndarray[Any, Any]:
    """The class of each image."""
    return torch.cat([net(part).argmax(1) for part in scaled(pixels).split(256)]).numpy()


def main() -> None:
    """Measure every scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--scales", default="0,1,1.5,2,3,4")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    images = common.read(options.data)
    net = train_classifier(images, options.epochs)
    kept = np.flatnonzero(images.held_out)
    found = classify(net, images.stored[kept])
    accuracy = float((found == images.labels[kept]).mean())
    print(f"accuracy on held-out images {accuracy:.4f}", file=sys.stderr, flush=True)
    results: list[dict[str, Any]] = []
    with open_accelerator(resolve_precision("auto")) as accelerator:
        real = common.features(common.held_out(images, 1000), accelerator)
        loaded = finish(load_denoiser(options.model, "ema", accelerator))
        every = tuple(range(len(loaded.model.classes)))
        wanted = np.arange(options.n) % len(every)
        for scale in map(float, options.scales.split(",")):
            pixels, seconds = common.sample(
                loaded,
                options.n,
                accelerator,
                steps=options.steps,
                sampler=options.sampler,
                condition=Condition(every, scale),
            )
            agrees = classify(net, pixels) == wanted
            results.append(
                {
                    "scale": scale,
                    "agreement": round(float(agrees.mean()), 4),
                    "by_class": {
                        name: round(float(agrees[wanted == i].mean()), 3)
                        for i, name in enumerate(loaded.model.classes)
                    },
                    "seconds": round(seconds, 1),
                    **common.distance(real, common.features(pixels, accelerator)),
                }
            )
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    settings = {"n": options.n, "sampler": options.sampler, "sampling_steps": options.steps}
    settings |= {"accuracy_on_held_out": round(accuracy, 4), "steps": loaded.model.step}
    print(json.dumps({**settings, "machine": common.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
