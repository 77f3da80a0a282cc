"""Compare samples after equal time of training, from `diffuse` and from the baselines.

Time is CPU time of the process, user and system. `diffuse` has its defaults, and the baselines have
its recipe (`peers.py`), images in memory and its memory allocator. Two networks judge 1,000 samples
against a test set. Each run is written at once and skipped when a command is repeated. If you run
two contenders at the same time, pin each to a core, and swap the cores between seeds.

    python benchmarks/time_to_quality.py TRAIN --real TEST --name fashion-mnist --work W
    python benchmarks/time_to_quality.py TRAIN --real TEST --name flowers-128 --size 128 \\
        --only diffusers --batch 16 --seeds 4 5 --work W
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import peers
from peers import Recipe
from steps import say

from diffuse_cli.media.figures import arrange_grid
from diffuse_cli.metrics import frechet
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.memory import keep_freed_memory
from diffuse_cli.system.rng import permutation

RESULTS = Path(__file__).resolve().parent / "results"

# -- images and judges ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Images of a data set, uint8 (N, C, H, W), and where to keep what is made of them.

    Attributes:
        source: the folder of images that ours reads.
        name: the name of the data set in the results.
        size: the side they are brought to.
        folder: the folder of the samples and models.
        train: images to train on.
        real: images that samples are judged by.
    """

    source: str
    name: str
    size: int
    folder: Path
    train: common.Pixels
    real: common.Pixels


def read(options: argparse.Namespace) -> Data:
    """Read the images, once."""
    folder = options.work / options.name
    folder.mkdir(parents=True, exist_ok=True)
    kept = [folder / f"{part}.npy" for part in ("train", "real")]
    if not all(path.exists() for path in kept):
        size = (options.size, options.size)
        images, test = common.read(options.data, size), common.read(options.real, size).stored
        np.save(kept[0], images.stored[~images.held_out])
        np.save(kept[1], test[permutation(0, 0, len(test))[: options.reference]])
    found = Data(options.data, options.name, options.size, folder, *map(np.load, kept))
    if found.train.shape[-1] != options.size:
        raise ValueError(f"{folder} has images of {found.train.shape[-1]} pixels. Pass its --size")
    return found


def judge(real: common.Pixels, samples: common.Pixels) -> dict[str, float]:
    """Return distances of samples to real images by two networks, and what the eye sees first.

    KID is that of EfficientNet-Lite0, which `tune` uses too, `kid_random` that of a network with
    random weights.
    """
    with open_accelerator("fp32") as accelerator:
        own = common.features(real, accelerator), common.random_features(real, real, accelerator)
        fake = (
            common.features(samples, accelerator),
            common.random_features(real, samples, accelerator),
        )
    seen = common.distance(own[0], fake[0])
    plain = common.distance(own[1], fake[1])
    return {
        "kid_x1000": round(1000 * seen["kid"], 1),
        "kid_x1000_standard_error": round(1000 * seen["kid_standard_error"], 1),
        "kid_random_x1000": round(1000 * plain["kid"], 2),
        "kid_random_x1000_standard_error": round(1000 * plain["kid_standard_error"], 2),
        "frechet_distance": round(frechet.estimate_frechet(own[0], fake[0]).value, 1),
        **common.shares(own[0], fake[0]),
        **common.looks(real, samples),
        "n": len(samples),
    }


class Log:
    """A list of results in a JSON file, to which several processes may add."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What the file holds now."""
        found: list[dict[str, Any]] = []
        if self.path.exists():
            found = json.loads(self.path.read_text())
        return found

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a result."""
        say(json.dumps(row))
        folder = os.open(self.path.parent, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        lines = ",\n".join(json.dumps(row) for row in [*self.rows, row])
        write_atomic(self.path, f"[\n{lines}\n]\n")
        os.close(folder)


def write_atomic(path: Path, text: str) -> None:
    """Replace a file by a whole one."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


# -- contenders -----------------------------------------------------------------------------------

OURS, UNGUIDED = "diffuse", "diffuse, unguided"
"""Ours with every default. The same model, sampled without the setting that its file recommends."""

VARIANTS: Mapping[str, tuple[str, Callable[[Recipe], Recipe]]] = {
    "diffusers": ("diffusers", lambda own: own),
    "diffusers, 2M SDE": ("diffusers", lambda own: replace(own, solver="2M SDE")),
    "diffusers, rate × 2": ("diffusers", lambda own: replace(own, lr=2 * own.lr)),
    "diffusers, rate × 4": ("diffusers", lambda own: replace(own, lr=4 * own.lr)),
    "diffusers, rate × 0.5": ("diffusers", lambda own: replace(own, lr=own.lr / 2)),
    "ddpm-pytorch": ("ddpm-pytorch", lambda own: own),
}
"""Baselines: an entry of `peers.PEERS`, and what changes in the recipe of ours."""

START_UP = 25.0
"""Seconds of CPU time that baselines have beyond the minutes: what the start of ours took on a slow
machine. In less than five minutes they have the seconds that ours took, which is trained first."""

PROGRAM = "import time, sys; time.monotonic = time.process_time; from diffuse_cli.app import main; "
"""The start of ours, whose `--minutes` are then CPU minutes, as those of the baselines are."""


def diffuse(*arguments: str) -> tuple[Any, dict[str, float]]:
    """Run a command; return what it prints, and its seconds."""
    program = f"{PROGRAM}sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *arguments, "--json", "--quiet"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(text), {"cpu_seconds": round(used, 1), "seconds": round(wall, 1)}


def trained(data: Data, seed: int, minutes: float) -> tuple[Path, dict[str, Any]]:
    """Train ours, or find what was trained; return the model and the seconds it took."""
    model = data.folder / f"diffuse-{minutes:g}-{seed}.safetensors"
    kept = model.with_suffix(".json")
    if not kept.exists():
        _, spent = diffuse(
            "train", data.source, "-o", str(model), "--overwrite", "--size", str(data.size),
            "--minutes", f"{minutes:g}", "--seed", str(seed),
        )  # fmt: skip
        kept.write_text(json.dumps(spent))
    found: dict[str, Any] = json.loads(kept.read_text())
    return model, found


def ignore_recommendation(model: Path) -> list[str]:
    """Return options of `sample` that a recommendation in a model file gives way to."""
    weak = ["--weak-guidance", "1"] if "weak" in header(model) else []
    return [*weak, "--steps", str(peers.EVALUATIONS)]


def samples_of_ours(
    data: Data, seed: int, minutes: float, contender: str
) -> tuple[dict[str, Any], common.Pixels]:
    """Train and sample ours, by the commands a user types."""
    model, spent = trained(data, seed, minutes)
    plain = contender == UNGUIDED
    drawn = data.folder / f"{model.stem}{'-unguided' * plain}"
    made, _ = diffuse(
        "sample", str(model), "-o", str(drawn), "--overwrite", "-n", str(len(data.real)),
        "--seed", str(seed), *(ignore_recommendation(model) if plain else ()),
    )  # fmt: skip
    manifest = json.loads(Path(made["manifest"]).read_text())
    config, metrics = header(model)["training"], model.with_suffix(".run") / "metrics.jsonl"
    steps = max(json.loads(line).get("step", 0) for line in metrics.open())
    width = config["width"]
    like = peers.blueprint("tiny", data.train.shape[1], data.size, width=width)
    like = replace(like, wiener=config["wiener"])
    evaluations = manifest["steps"] * (2 if manifest.get("weak_guidance", 1) != 1 else 1)
    row = {
        **peers.facts(like.build(), evaluations, config["precision"]),
        "steps": steps,
        "batch": config["batch_size"],
        "lr": config["lr"],
        "width": width,
        "patch": getattr(like.config, "patch", 1),
        "solver": manifest["sampler"],
        "guidance": manifest.get("weak_guidance", 1),
        "differs": {},
        "training_cpu_seconds": spent["cpu_seconds"],
        "training_seconds": spent["seconds"],
    }
    return row, common.pictures(made["images"])


def header(model: Path) -> Any:
    """Return the configuration in the header of a model file."""
    with model.open("rb") as file:
        found = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(found["__metadata__"]["diffuse.config"])


def samples_of_peer(
    data: Data, seed: int, minutes: float, contender: str, batch: int, width: int
) -> tuple[dict[str, Any], common.Pixels]:
    """Train and sample a baseline of `width` channels in steps of `batch` images."""
    name, vary = VARIANTS[contender]
    recipe = vary(peers.recipe_of_ours(data.train.shape[1], data.size, batch, width))
    seconds = 60 * minutes + START_UP
    if minutes < 5:
        seconds = trained(data, seed, minutes)[1]["cpu_seconds"]
    peer, net, done = peers.train(name, recipe, data.train, seconds, seed)
    with peers.counting(net) as seen:
        samples = peers.sample(peer, net, len(data.real), seed)
    evaluations = len(seen) // -(-len(samples) // peers.BATCH)
    facts = peers.facts(net, evaluations, seen[0])
    return {**done, **facts, **asdict(peer.recipe), "differs": dict(peer.differs)}, samples


def run(options: argparse.Namespace, data: Data) -> None:
    """Run what is not in the log."""
    log = Log(RESULTS / f"quality-{options.name}.json")
    for contender in options.only or (OURS, *VARIANTS):
        for seed in options.seeds:
            done = [(row["contender"], row["seed"], row["minutes"]) for row in log.rows]
            if (contender, seed, options.minutes) in done:
                continue
            what = data, seed, options.minutes, contender
            peer = contender in VARIANTS
            network = (options.batch, options.width)
            row, samples = samples_of_peer(*what, *network) if peer else samples_of_ours(*what)
            stem = f"{contender}-{options.minutes:g}-{seed}"
            np.save(data.folder / f"{stem}.npy", samples)
            arrange_grid(samples[:64]).save(data.folder / f"{stem}.png")
            head = {"contender": contender, "dataset": data.name, "size": data.size}
            head |= {"seed": seed, "minutes": options.minutes}
            found = judge(data.real, samples)
            log.add({**head, **row, **found, "machine": common.machine()})


def main() -> None:
    """Run what is asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="images to train on, a held-out part of them excepted")
    parser.add_argument("--real", required=True, help="images that samples are judged by")
    parser.add_argument("--reference", type=int, default=1000, help="how many of them")
    parser.add_argument("--name", required=True, help="name of the data in the results")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=(OURS, UNGUIDED, *VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=32, help="of baselines: what ours chose")
    parser.add_argument("--width", type=int, default=32, help="of baselines: what ours chose")
    parser.add_argument("--work", type=Path, required=True, help="folder of models and samples")
    options = parser.parse_args()
    keep_freed_memory()
    run(options, read(options))


if __name__ == "__main__":
    main()
