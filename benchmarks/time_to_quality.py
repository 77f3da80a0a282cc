"""How good are samples after a fixed time of training, ours and the peers'?

Every contender trains for a budget of wall-clock minutes, from a clock that starts when everything
is imported and the images are in memory; ours is the command, and its own `--minutes`. Then samples
are drawn, and KID and the Fréchet distance are measured against real images that nobody trained on.
Peers get their images as tensors in memory, which their own scripts do not: it favours them. Each
run is a process of its own, and is written to `--out` at once. Prints JSON, and a table on stderr.

    python benchmarks/time_to_quality.py FASHION_MNIST --real FASHION_MNIST_TEST --size 32 \\
        --out benchmarks/results/time-to-quality-fashion.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

RATES = (1e-3, 2e-3, 4e-3)
"""Learning rates that are tried for tuned peers; the next one as well, where an end is best."""

SMALL, LARGE = 16, 64
"""Batch sizes: the rates are tried with the first, the best of them with the second too."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        contender: an entry of `CONTENDERS`.
        data: a folder of images.
        size: the side they are brought to.
        minutes: the budget.
        n: how many samples.
        lr: a learning rate in place of the contender's own.
        batch: a batch size in its place.
        precision: for what is tuned; our command decides by itself.
        folder: of `train.npy`, and where `samples.npy` goes.
        more: further options of our training.
    """

    contender: str
    data: str
    size: int
    minutes: float
    n: int
    lr: float | None
    batch: int | None
    precision: str
    folder: Path
    more: tuple[str, ...] = ()


# -- contenders -----------------------------------------------------------------------------------


def run_ours(job: Job, train: Sequence[str] = (), *, tuned: bool = False) -> dict[str, Any]:
    """The commands a user types."""
    import common

    model, out = job.folder / "model.safetensors", job.folder / "samples"
    typed = ["--lr", str(job.lr)] if job.lr else []
    typed += ["--batch-size", str(job.batch)] if job.batch else []
    typed += job.more
    trained, wall = _diffuse(
        "train", job.data, "-o", str(model), "--overwrite", "--size", str(job.size),
        "--minutes", str(job.minutes), *typed, *train,
    )  # fmt: skip
    peak = _peak(resource.RUSAGE_CHILDREN)
    found: dict[str, Any] = {}
    if tuned:
        better = str(job.folder / "tuned.safetensors")
        found, wall_tuning = _diffuse(
            "tune", str(model), job.data, "-o", better, "--overwrite", "--samplers", "unipc",
            "--steps", "20", "-n", "200", "--no-learn-times",
        )  # fmt: skip
        found = {"tuning_seconds": round(wall_tuning, 1), "recommended": found["recommended"]}
        model = Path(better)
    made, seconds = _diffuse("sample", str(model), "-o", str(out), "--overwrite", "-n", str(job.n))
    import numpy as np

    np.save(job.folder / "samples.npy", common.pictures(made["images"]))
    manifest = json.loads(Path(made["manifest"]).read_text())
    config = _config(model)
    batch = config["training"]["batch_size"]
    log = Path(trained["run"]) / "metrics.jsonl"
    rates = [m["images_per_second"] for m in map(json.loads, log.open()) if "loss" in m]
    return {
        "settings": {
            "command": " ".join(["diffuse train DATA --size S --minutes M", *typed, *train]),
            **config["training"],
        },
        "parameters": trained["parameters"],
        "batch_size": batch,
        "steps": trained["step"],
        "images_seen": trained["step"] * batch,
        "images_per_second": round(statistics.median(rates), 1),
        "training_seconds": round(trained["seconds"], 1),
        "training_command_seconds": round(wall, 1),
        "training_peak_mb": peak,
        "sampler": manifest["sampler"],
        "evaluations": manifest["steps"] * (2 if manifest.get("weak_guidance", 1) != 1 else 1),
        **found,
        "sampling_seconds": round(seconds, 1),
        "peak_mb": _peak(resource.RUSAGE_CHILDREN),
    }


def run_tuned(job: Job) -> dict[str, Any]:
    """The same, drawn as `diffuse tune` recommends for images that were held out of training:
    guided by an early average or not, from noise or not, in 20 evaluations."""
    return run_ours(job, ["--keep-weak"], tuned=True)


def run_peer(job: Job) -> dict[str, Any]:
    """A recipe of `peers.py`."""
    import numpy as np
    import peers
    import torch

    recipe = peers.RECIPES[job.contender]
    recipe = replace(recipe, lr=job.lr or recipe.lr, batch=job.batch or recipe.batch)
    torch.manual_seed(0)
    pixels = np.load(job.folder / "train.npy")
    net, done = peers.train(recipe, pixels, 60 * job.minutes, job.precision)
    peak, began = _peak(resource.RUSAGE_SELF), time.monotonic()
    samples = peers.sample(recipe, net, job.n, job.precision)
    seconds = time.monotonic() - began
    np.save(job.folder / "samples.npy", samples)
    return {
        "settings": {
            "words": recipe.words,
            "lr": recipe.lr,
            "warmup": recipe.warmup,
            "precision": job.precision if recipe.tuned else "fp32",
        },
        **done,
        "training_peak_mb": peak,
        "sampler": peers.PEERS[recipe.peer].sampler,
        "evaluations": peers.EVALUATIONS,
        "sampling_seconds": round(seconds, 1),
        "peak_mb": _peak(resource.RUSAGE_SELF),
    }


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        package: what must be installed.
        run: trains and samples.
        budgets: minutes.
        tuned: its learning rate is chosen with `--tune`.
    """

    package: str
    run: Callable[[Job], dict[str, Any]]
    budgets: tuple[float, ...] = (10.0,)
    tuned: bool = False


CONTENDERS = {
    "diffuse": Contender("diffuse_cli", run_ours, (1.0, 2.5, 10.0)),
    "diffuse-tuned": Contender("diffuse_cli", run_tuned),
    "diffusers": Contender("diffusers", run_peer),
    "diffusers-tuned": Contender("diffusers", run_peer, tuned=True),
    "ddpm-pytorch": Contender("denoising_diffusion_pytorch", run_peer),
    "ddpm-pytorch-tuned": Contender("denoising_diffusion_pytorch", run_peer, tuned=True),
}


def run(job: Job) -> dict[str, Any]:
    """Run one job."""
    return CONTENDERS[job.contender].run(job)


# -- what is measured -----------------------------------------------------------------------------


def prepare(data: str, real: str | None, size: int, reference: int, folder: Path) -> dict[str, Any]:
    """Write the images that peers train on, and the real ones nobody does; say what they are."""
    import common
    import numpy as np

    from diffuse_cli.draws import permutation

    images = common.read(data, (size, size))
    np.save(folder / "train.npy", images.stored[~images.held_out])
    if real is None:
        kept = common.held_out(images, reference)
    else:
        other = common.read(real, (size, size)).stored
        kept = other[permutation(0, 0, len(other))[:reference]]
    np.save(folder / "real.npy", kept)
    return {
        "images": int((~images.held_out).sum()),
        "shape": list(images.stored.shape[1:]),
        "real": len(kept),
        "real_are": "the held-out part" if real is None else "a test set",
        "machine": common.machine(),
    }


def measure(folder: Path, keep: Path | None) -> dict[str, float]:
    """Distances of `samples.npy` to `real.npy`, and what the eye sees first; KID x 1000."""
    import common
    import numpy as np

    from diffuse_cli.metrics import frechet
    from diffuse_cli.pictures import grid
    from diffuse_cli.runtime import machine

    samples, pixels = np.load(folder / "samples.npy"), np.load(folder / "real.npy")
    features = folder / "real-features.npy"
    with machine("fp32") as accelerator:
        if not features.exists():
            np.save(features, common.features(pixels, accelerator))
        real, fake = np.load(features), common.features(samples, accelerator)
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        grid(samples[:64]).save(keep / "grid.png")
        np.save(keep / "samples.npy", samples)
        for model in folder.glob("*.safetensors"):
            shutil.move(model, keep / model.name)
    found = common.distance(real, fake)
    return {
        "kid_x1000": round(1000 * found["kid"], 1),
        "kid_x1000_standard_error": round(1000 * found["kid_standard_error"], 1),
        "frechet_distance": round(frechet.fit(real, fake).value, 1),
        **common.shares(real, fake),
        **common.looks(pixels, samples),
    }


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own: its peak of memory is its own, too."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


# -- all of it ------------------------------------------------------------------------------------


class Bench:
    """Runs jobs and keeps their results in a file."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.name = options.name or Path(options.data).name
        self.data = apart(
            prepare, options.data, options.real, options.size, options.reference, folder
        )
        self.runs: list[dict[str, Any]] = []

    def add(
        self, contender: str, minutes: float, n: int, lr: float | None, batch: int | None
    ) -> dict[str, Any]:
        """Run one job and write down what came out."""
        o = self.options
        more = tuple(o.more.split())
        job = Job(contender, o.data, o.size, minutes, n, lr, batch, o.precision, self.folder, more)
        print(f"{contender}, {minutes:g} minutes, {lr=}, {batch=}", file=sys.stderr)
        done = apart(run, job)
        typed = "".join(f"-{value:g}" for value in (minutes, lr, batch) if value)
        typed += "".join(more)
        keep = o.keep / f"{contender}{typed}" if o.keep else None
        found = apart(measure, self.folder, keep)
        head = {"contender": contender, "dataset": self.name, "size": o.size, "minutes": minutes}
        self.runs.append({**head, **done, "n": n, **found, **self.data})
        if o.out:
            before = json.loads(o.out.read_text()) if o.out.exists() else []
            o.out.write_text(json.dumps([*before, self.runs[-1]], indent=1) + "\n")
        print(json.dumps(self.runs[-1]), file=sys.stderr, flush=True)
        return self.runs[-1]

    def tune(self, contender: str) -> tuple[float, int]:
        """The learning rate and the batch size with the lowest KID after a short run."""
        kids: dict[tuple[float, int], float] = {}

        def attempt(rate: float, batch: int = SMALL) -> None:
            n, minutes = self.options.tuning_n, self.options.tuning_minutes
            kids[rate, batch] = self.add(contender, minutes, n, rate, batch)["kid_x1000"]

        for rate in RATES:
            attempt(rate)
        beyond = {RATES[0]: RATES[0] / 2, RATES[-1]: RATES[-1] * 2}
        best = min(kids, key=kids.__getitem__)[0]
        if best in beyond:
            attempt(beyond[best])
        # Not at a higher rate, though a larger batch has less noise: 8e-3 with 64 was the best of
        # diffusers' short runs, and diverged after five minutes of a long one.
        attempt(min(kids, key=kids.__getitem__)[0], LARGE)
        return min(kids, key=kids.__getitem__)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as lines of text."""
    head = f"{'contender':20}{'minutes':>8}{'lr':>8}{'batch':>6}{'parameters':>12}"
    head += f"{'images/s':>10}{'n':>6}{'KID x 1000':>18}{'Frechet':>9}"
    head += f"{'recall':>8}{'means':>7}{'peak MB':>9}"
    lines = [head]
    for r in runs:
        kid = f"{r['kid_x1000']:.1f} +- {r['kid_x1000_standard_error']:.1f}"
        lines.append(
            f"{r['contender']:20}{r['minutes']:8g}{r['settings'].get('lr') or 0:8g}"
            f"{r['batch_size']:6}{r['parameters']:12,}{r['images_per_second']:10}{r['n']:6}{kid:>18}"
            f"{r['frechet_distance']:9}{r['recall']:8.3f}{r['means']:7.2f}{r['peak_mb']:9}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--real", help="images to measure against; else the held-out part of DATA")
    parser.add_argument("--reference", type=int, default=1000, help="how many of them")
    parser.add_argument("--name", help="of the data, in the results")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--minutes", nargs="+", type=float, help="budgets in place of the own")
    parser.add_argument("--lr", type=float, help="in place of the contender's own")
    parser.add_argument("--batch-size", type=int, help="in place of the contender's own")
    parser.add_argument(
        "--more", default="", help="further options of our training: --more='--width 16'"
    )
    parser.add_argument(
        "--tune", action="store_true", help="choose the settings of tuned peers first"
    )
    parser.add_argument("--tuning-minutes", type=float, default=2.0)
    parser.add_argument("--tuning-n", type=int, default=300)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for each run's samples, grid and model")
    options = parser.parse_args()
    if options.precision == "auto":
        options.precision = apart(_precision)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for name in options.only:
            contender = CONTENDERS[name]
            if importlib.util.find_spec(contender.package) is None:
                print(f"{name}: {contender.package} is not installed, skipped", file=sys.stderr)
                continue
            lr, batch = options.lr, options.batch_size
            if options.tune and contender.tuned:
                lr, batch = bench.tune(name)
            for minutes in options.minutes or contender.budgets:
                bench.add(name, minutes, options.n, lr, batch)
    print(table(bench.runs), file=sys.stderr)
    print(json.dumps(bench.runs, indent=1))


# -- small things ---------------------------------------------------------------------------------


def _diffuse(*arguments: str) -> tuple[Any, float]:
    """The result of a command, and its seconds."""
    command = [sys.executable, "-m", "diffuse_cli", *arguments, "--json", "--quiet"]
    began = time.monotonic()
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(text), time.monotonic() - began


def _config(model: Path) -> Any:
    """The configuration in the header of a model file."""
    with model.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["diffuse.config"])


def _precision() -> str:
    from diffuse_cli.runtime import resolve_precision

    return resolve_precision("auto")


def _peak(who: int) -> int:
    """The most memory that this process, or any it waited for, ever held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(who).ru_maxrss * unit / 1e6)


if __name__ == "__main__":
    main()
