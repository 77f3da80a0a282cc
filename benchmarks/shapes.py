"""Which network learns most in a few minutes of a processor?

Each of `VARIANTS` trains for the same minutes of wall-clock time and draws as many images with 15
steps of the default sampler: KID against real images that nobody trained on. Prints JSON. Results
are of one core (`taskset -c 0`, OMP_NUM_THREADS=1): two variants may run beside each other.

    python benchmarks/shapes.py FASHION_MNIST --real FASHION_MNIST_TEST
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import common
import tomli_w
from defaults import diffuse
from steps import say

from diffuse_cli.system.devices import open_accelerator
from diffuse_cli.system.rng import permutation

FLAT = {"blocks": 1, "multipliers": [1, 1, 1], "attention": []}
"""As many channels at every level, one block a level, and attention in the middle alone: `tiny` as
it then became, 32 wide."""

BEFORE = {"multipliers": [1, 2, 2], "blocks": 2, "attention": [8], "groups": 2}
"""What `tiny` was first, with groups of 16 channels."""

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "before, 32 groups": (BEFORE | {"groups": 32}, {}),
    "before": (BEFORE, {}),
    "before, no scale-shift norm": (BEFORE | {"scale_shift": False}, {}),
    "before, attention in the middle alone": (BEFORE | {"attention": []}, {}),
    "one block a level": (BEFORE | {"blocks": 1}, {"batch-size": "16"}),
    "one block a level, 48 channels": (
        BEFORE | {"blocks": 1, "groups": 3}, {"batch-size": "16", "width": "48"},
    ),
    "one block a level, attention in the middle alone": (
        BEFORE | {"blocks": 1, "attention": []}, {"batch-size": "16"},
    ),
    "one block a level, four levels": (
        BEFORE | {"blocks": 1, "multipliers": [1, 2, 2, 2]}, {"batch-size": "16"},
    ),
    "flat": (FLAT, {"batch-size": "16"}),
    "flat, batch 8": (FLAT, {"batch-size": "8"}),
    "flat, batch 32": (FLAT, {"batch-size": "32"}),
    "flat, twice the learning rate": (FLAT, {"batch-size": "16", "lr": "4e-3"}),
    "flat, 16 channels": (FLAT, {"batch-size": "32", "width": "16"}),
    "16 channels, then 32": (
        FLAT | {"multipliers": [1, 2, 2]}, {"batch-size": "32", "width": "16"},
    ),
}  # fmt: skip
"""Fields of the network over those of `tiny`, and flags of `diffuse train`; 32 channels wide."""


def measure(name: str, options: argparse.Namespace, real: Any, folder: Path) -> dict[str, Any]:
    """Train one variant, draw from it, and measure."""
    unet, flags = VARIANTS[name]
    config, model, out = folder / "config.toml", folder / "model.safetensors", folder / "samples"
    config.write_text(tomli_w.dumps({"preset": "tiny", "unet": unet}))
    flags = {"width": "32", **flags}
    typed = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    trained = diffuse(
        "train", options.data, "-o", str(model), "--overwrite", "--config", str(config),
        "--minutes", str(options.minutes), *typed,
    )  # fmt: skip
    count = ("-n", str(options.n), "--steps", "15")
    drawn = diffuse("sample", str(model), "-o", str(out), "--overwrite", *count)
    with open_accelerator("fp32") as accelerator:
        fake = common.features(common.pictures(drawn["images"]), accelerator)
    found = common.distance(real, fake)
    row = {"network": name, "flags": flags, "unet": unet, "steps": trained["step"]}
    return {**row, "parameters": trained["parameters"], "n": options.n, **found}


def main() -> None:
    """Measure what was asked for, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="images of the size that is trained")
    parser.add_argument("--real", required=True, help="images to measure against")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("-n", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    size = common.read(options.data).space.size
    others = common.read(options.real, size).stored
    with open_accelerator("fp32") as accelerator:
        real = common.features(others[permutation(0, 0, len(others))[:1000]], accelerator)
    rows = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, options, real, Path(folder)))
        say(json.dumps(rows[-1]))
    print(json.dumps({"minutes": options.minutes, "rows": rows, "machine": common.machine()}))


if __name__ == "__main__":
    main()
