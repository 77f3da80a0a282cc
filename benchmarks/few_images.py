"""Quality and copying of models of few images, over numbers of images and of steps.

Trains on nested subsets of a folder, and compares 500 samples with a test set, and with the images
trained on: KID, Fréchet distance, recall, and the numbers of the metric `memorization`, whose
references are test images. Each run is written at once and skipped when the command is repeated.

    python benchmarks/few_images.py TRAIN --real TEST --name emoji-64 --size 64 --work W

`--plot` draws docs/images/few-images.png from the runs of NAME with the variant `auto`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import plots
from sections import IMAGES
from steps import say
from time_to_quality import RESULTS, Log, judge

from diffuse_cli.metrics import memorization
from diffuse_cli.metrics.nearest_neighbors import find_nearest
from diffuse_cli.system.devices import open_accelerator
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import permutation

SAMPLES, REFERENCES = 500, 500
"""Samples of a model, and test images that are references of the memorization test."""

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "none": ("--preset", "tiny", "--augment", "none"),
    "auto": ("--preset", "tiny", "--augment", "auto"),
}
"""Options by the name of a variant. Others are given by `--variants NAME=OPTIONS`."""


def choose(folder: Path, count: int, work: Path) -> Path:
    """Link the first images of a fixed order into a folder of their own."""
    chosen = work / f"images-{count}"
    if not chosen.exists():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        chosen.mkdir(parents=True)
        for k in permutation(0, 0, len(files))[:count]:
            (chosen / f"{k:06d}{files[k].suffix}").symlink_to(files[k].resolve())
    return chosen


def run(*arguments: str) -> float:
    """Run a command of `diffuse`; return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "diffuse_cli", *arguments, "-q", "--overwrite"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def find_copies(
    samples: common.Pixels, known: common.Pixels, real: common.Pixels
) -> dict[str, float]:
    """Compare samples with the images trained on; `real` are references."""
    with open_accelerator("fp32") as accelerator:
        seen = [common.features(pixels, accelerator) for pixels in (samples, real, known)]
    order = np.arange(len(known))
    nearest = {
        "features": finish(find_nearest(*seen, order)),
        "pixels": finish(find_nearest(samples, real, known, order)),
    }
    found = memorization.compare_distances(nearest)
    signs = memorization.find_signs(found, len(samples))
    return {**{key: round(value, 4) for key, value in found.items()}, "copies": signs.level}


def measure(
    options: argparse.Namespace,
    real: common.Pixels,
    count: int,
    steps: int,
    variant: str,
    seed: int,
) -> dict[str, Any]:
    """Train, sample and judge a model."""
    images = choose(Path(options.data), count, options.work)
    name = f"{count}-{steps}-{variant}-{seed}"
    model, drawn = options.work / f"{name}.safetensors", options.work / name
    more = dict(options.variants)[variant]
    cpu = run(
        "train", str(images), "-o", str(model), "--size", str(options.size),
        "--batch-size", str(options.batch), "--steps", str(steps), "--seed", str(seed), *more,
    )  # fmt: skip
    run("sample", str(model), "-o", str(drawn), "-n", str(SAMPLES), "--seed", "0")
    size = (options.size, options.size)
    samples, known = (common.some(common.read(str(at), size), 10**6) for at in (drawn, images))
    log = [json.loads(line) for line in (model.with_suffix(".run") / "metrics.jsonl").open()]
    kept = json.loads((drawn / "manifest.json").read_text())["model"].get("step", steps)
    return {
        "dataset": options.name, "size": options.size, "images": count, "steps": steps,
        "batch": options.batch, "variant": variant, "options": list(more), "seed": seed,
        "kept": kept, "training_cpu_seconds": round(cpu, 1),
        "held_out_loss": [m["held_out_loss"] for m in log if "held_out_loss" in m][-1:],
        **judge(real, samples), **find_copies(samples, known, real[:REFERENCES]),
        "machine": common.machine(),
    }  # fmt: skip


def parse_variant(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the options of `NAME=OPTIONS`, or of an entry of `VARIANTS`."""
    name, equals, words = text.partition("=")
    return name, tuple(words.split()) if equals else VARIANTS[name]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all combinations, and print and keep each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="folder of images")
    parser.add_argument("--real", required=True, help="test images")
    parser.add_argument("--name", required=True, help="name of the data in the results")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--variants", type=parse_variant, nargs="+", metavar="NAME[=OPTIONS]")
    parser.add_argument("--work", type=Path, required=True, help="folder of models and samples")
    parser.add_argument("--plot", action="store_true", help="draw the runs of seed 0 at the end")
    options = parser.parse_args(arguments)
    options.variants = options.variants or [*VARIANTS.items()]
    options.work.mkdir(parents=True, exist_ok=True)
    real = common.some(common.read(options.real, (options.size, options.size)), 1000)
    log = Log(RESULTS / f"few-{options.name}.json")
    for seed in options.seeds:
        for steps in options.steps:
            for count in options.counts:
                for variant, _ in options.variants:
                    row = {"images": count, "steps": steps, "variant": variant, "seed": seed}
                    if not any(row.items() <= known.items() for known in log.rows):
                        log.add(measure(options, real, count, steps, variant, seed))
    if options.plot:
        drawn = [row for row in log.rows if row["variant"].startswith("auto") and not row["seed"]]
        (IMAGES / "few-images.png").write_bytes(plots.copying(drawn))
    say("done")


if __name__ == "__main__":
    main()
