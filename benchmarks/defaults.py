"""Which target, schedule, weighting and learning rate should be the defaults?

One factor at a time around a baseline, each trained for the same number of steps on the same
images and measured with the same seed. Prints JSON.

    python benchmarks/defaults.py FASHION_MNIST > benchmarks/results/defaults.json
    python benchmarks/defaults.py FASHION_MNIST --short > benchmarks/results/batches.json
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BASELINE = {
    "target": "v",
    "schedule": "cosine",
    "weighting": "min-snr",
    "lr": "2e-3",
    "batch-size": "64",
    "steps": "250",
}
VARIANTS: list[dict[str, str]] = [
    {},
    {"target": "eps"},
    {"target": "x0"},
    {"schedule": "linear"},
    {"weighting": "none"},
    {"lr": "1e-3"},
    {"lr": "4e-3"},
    {"lr": "8e-3"},
    {"lr": "4e-3", "batch-size": "32", "steps": "500"},
]

SHORT: list[dict[str, str]] = [
    {"batch-size": str(batch), "steps": str(2640 // batch), "lr": f"{4e-3 * (batch / 64) ** 0.5:g}"}
    for batch in (64, 32, 16, 8, 4)
]
"""A minute of one slow core: equal images in batches of other sizes, the rate with their root."""


def diffuse(*arguments: str) -> Any:
    """Run a command with --json and return its result."""
    command = [sys.executable, "-m", "diffuse_cli", *arguments, "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(variant: dict[str, str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and evaluate one variant."""
    model = str(folder / "model.safetensors")
    flags = [part for name, value in (BASELINE | variant).items() for part in (f"--{name}", value)]
    trained = diffuse("train", options.data, "-o", model, "--overwrite", *flags)
    found = diffuse(
        "eval",
        model,
        options.data,
        "-n",
        str(options.n),
        "--steps",
        str(options.sampling),
        "--timesteps",
        "10",
    )
    return {
        "changed": variant,
        "training_seconds": trained["seconds"],
        "held_out_loss": trained["held_out_loss"],
        **{k: v for k, v in found.items() if k not in ("subject", "data", "settings", "seconds")},
    }


def main() -> None:
    """Measure every variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("-n", type=int, default=400)
    parser.add_argument("--sampling", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="leave the variants before this out")
    parser.add_argument("--short", action="store_true", help="batch sizes of a very short run")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in (SHORT if options.short else VARIANTS)[options.first :]:
            results.append(measure(variant, options, Path(folder)))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "baseline": BASELINE,
                "sampling_steps": options.sampling,
                "machine": f"{platform.machine()}, {platform.python_implementation()}",
                "results": results,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
