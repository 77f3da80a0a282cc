"""Which of diffusers' solvers samples best from its tuned peer?

Trains `diffusers-tuned` of `peers.py` once, for some minutes, then draws the same number of images
with each of `peers.SOLVERS`: KID against real ones. The best is `peers.SOLVER`. Prints JSON.

    python benchmarks/peer_solvers.py FASHION_MNIST --real FASHION_MNIST_TEST \\
        > benchmarks/results/peer_solvers.json
"""

from __future__ import annotations

import argparse
import json

import common
import numpy as np
import peers
import torch
from common import to_uint8
from steps import say

from diffuse_cli.draws import permutation
from diffuse_cli.runtime import machine, resolve_precision

BATCH = 50


def main() -> None:
    """Train, draw, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--real", required=True, help="images to measure against")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("-n", type=int, default=300)
    options = parser.parse_args()
    precision, size = resolve_precision("auto"), (options.size, options.size)
    recipe = peers.RECIPES["diffusers-tuned"]
    torch.manual_seed(0)
    pixels = common.read(options.data, size).stored
    net, trained = peers.train(recipe, pixels, 60 * options.minutes, precision)
    real = common.read(options.real, size).stored
    net.eval()
    with machine("fp32") as accelerator:
        kept = real[permutation(0, 0, len(real))[:1000]]
        features = common.features(kept, accelerator)
        rows = []
        for solver in peers.SOLVERS:
            torch.manual_seed(1)
            with torch.no_grad(), peers.autocast(recipe, precision):
                parts = [
                    to_uint8(peers.diffusers_draw(net, BATCH, solver))
                    for _ in range(options.n // BATCH)
                ]
            drawn = common.features(np.concatenate(parts), accelerator)
            rows.append({"solver": solver, **common.distance(features, drawn)})
            say(json.dumps(rows[-1]))
    found = {"solvers": rows, "evaluations": peers.EVALUATIONS, "n": options.n, **trained}
    print(json.dumps({**found, "minutes": options.minutes, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
