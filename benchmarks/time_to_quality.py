"""Compare samples after equal time of training, from `diffuse` and from the baselines.

Time is CPU time of the process, user and system, so that a busy machine is fair. A `search`
chooses a recipe for a baseline among the options of its library: short trials of one option at a
time, then longer trials around the best, until the learning rate and its half and double were
tried. It minimizes KID against held-out images, which nobody trains on and no final uses. A `final`
trains `diffuse` with its defaults, or a baseline with its recipe, and two networks judge 1,000
samples against a test set. Every trial and final is written at once and skipped when a command is
repeated, so several processes can share a search. Baselines get their images as tensors in memory,
and the memory allocator settings of `diffuse`.

    python benchmarks/time_to_quality.py search TRAIN --real TEST --name fashion-mnist --work W
    python benchmarks/time_to_quality.py final TRAIN --real TEST --name fashion-mnist --work W

At 64 and 128 pixels a search can be shorter, or begin with the recipe of another data set:

    python benchmarks/time_to_quality.py search TRAIN --real TEST --name cats-64 --size 64 \\
        --factors target --short 4 --least 20 --work W
    python benchmarks/time_to_quality.py search TRAIN --real TEST --name cats-128 --size 128 \\
        --start cats-64 --factors --samples 300 --solvers UniPC "2M SDE" --work W
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system.devices import open_accelerator
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
        held_out: images that search trials are judged by.
        real: images that finals are judged by.
    """

    source: str
    name: str
    size: int
    folder: Path
    train: common.Pixels
    held_out: common.Pixels
    real: common.Pixels


def read(options: argparse.Namespace) -> Data:
    """Read the images, once."""
    folder = options.work / options.name
    folder.mkdir(parents=True, exist_ok=True)
    kept = [folder / f"{part}.npy" for part in ("train", "held-out", "real")]
    if not all(path.exists() for path in kept):
        size = (options.size, options.size)
        images, test = common.read(options.data, size), common.read(options.real, size).stored
        np.save(kept[0], images.stored[~images.held_out])
        np.save(kept[1], common.held_out(images, options.reference))
        np.save(kept[2], test[permutation(0, 0, len(test))[: options.reference]])
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


# -- search ---------------------------------------------------------------------------------------

START: Mapping[str, Recipe] = {
    "diffusers": Recipe("diffusers"),
    "ddpm-pytorch": Recipe("ddpm-pytorch", solver="DDIM"),
}
"""Recipes that a search begins with in images of `SMALL`: our target, schedule and weighting."""

LARGE_START: Mapping[str, Recipe] = {
    "diffusers": Recipe(
        "diffusers", "x0", optimizer="muon", lr=4e-3, channels=(32,), patch=2, solver="2M SDE"
    ),
    "ddpm-pytorch": Recipe(
        "ddpm-pytorch", "x0", optimizer="muon", lr=2e-3, attention=(1, 32), channels=(32,),
        solver="DDIM",
    ),
}  # fmt: skip
"""Recipes for larger images: the recipe found for CIFAR-10, with the geometric mean of the two
rates found for denoising-diffusion-pytorch, 16 times apart, and a batch of 16."""

SMALL = 32
"""The largest size at which our network has no patches, and baselines have its channels."""

FACTORS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "diffusers": {
        "optimizer": ("adamw", "muon"),
        "lr": (0.5, 2),
        "batch": (16, 32),
        "target": ("v", "eps", "x0"),
        "min_snr": (5.0, None),
        "schedule": ("cosine", "linear", "linear, zero terminal SNR"),
    },
    "ddpm-pytorch": {
        "optimizer": ("adamw", "muon"),
        "attention": ((4, 32), (1, 32)),
        "lr": (0.5, 2),
        "batch": (16, 8, 32),
        "target": ("v", "eps", "x0"),
        "min_snr": (5.0, None),
        "schedule": ("cosine", "sigmoid", "linear"),
    },
}
"""Options that are tried one at a time in images of `SMALL`, and their values: multiples of the
rate. `groups` and `ema` of the baselines are ours."""

LARGE_FACTORS: Mapping[str, Sequence[Any]] = {
    "channels": ((32,), (16,), (16, 32, 64, 64)),
    "lr": (0.5, 2),
    "target": ("v", "eps", "x0"),
    "batch": (8, 16, 32),
}
"""Those of larger images. Other options of `FACTORS` are tried if `--factors` names them."""

SHORT, LONG, LEAST = 1.0, 4.0, 40.0
"""Minutes of a short trial, of a long one, and of a whole search at least."""

BATCHES = 8, 64
"""The least and the largest batch."""


@dataclass(frozen=True)
class Effort:
    """Extent of a search.

    Attributes:
        least: the minutes of CPU time that the search takes at least.
        short: the minutes of a short trial.
        factors: the options to try one at a time. None for those of the size.
        samples: the samples of a long trial. A short one has three fifths.
        solvers: the solvers to compare. None for all.
        start: the recipe to begin with. None for the recipe of the size.
    """

    least: float = LEAST
    short: float = SHORT
    factors: Sequence[str] | None = None
    samples: int = 500
    solvers: Sequence[str] | None = None
    start: Recipe | None = None


def choose_start(peer: str, size: int) -> Recipe:
    """Return the recipe that a search begins with."""
    return (START if size <= SMALL else LARGE_START)[peer]


def choose_factors(
    peer: str, size: int, names: Sequence[str] | None = None
) -> dict[str, Sequence[Any]]:
    """Return options that a search tries one at a time, and their values."""
    found = dict(FACTORS[peer])
    if size > SMALL:
        names = tuple(LARGE_FACTORS) if names is None else names
        found |= LARGE_FACTORS
    return {name: found[name] for name in (found if names is None else names) if name in found}


def as_json(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as it is read from a file, which has channels and patches if it has any."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    left_out = {"channels": None, "patch": 1}
    return {k: v for k, v in found.items() if k not in left_out or v != left_out[k]}


def from_json(found: Mapping[str, Any]) -> Recipe:
    """Return a recipe that was read from a file."""
    known = {name: found[name] for name in ("attention", "channels") if name in found}
    return Recipe(**{**found, **{name: tuple(values) for name, values in known.items()}})


def vary(recipe: Recipe, option: str, values: Iterable[Any]) -> list[Recipe]:
    """Return a recipe with other values of an option, where rates are multiples of its own."""
    if option == "lr":
        values = [recipe.lr * factor for factor in values]
    return [replace(recipe, **{option: v}) for v in values if v != getattr(recipe, option)]


def beside(recipe: Recipe, factors: Mapping[str, Sequence[Any]]) -> Iterator[Recipe]:
    """Return the recipes one step away: other rates first, which are always tried."""
    yield from vary(recipe, "lr", (2, 0.5))
    for batch in (recipe.batch * 2, recipe.batch // 2):
        if BATCHES[0] <= batch <= BATCHES[1]:
            yield replace(recipe, batch=batch)
    for option in sorted(factors.keys() - {"lr", "batch"}):
        yield from vary(recipe, option, factors[option])


class Search:
    """The search for the recipe of a baseline, which several processes may share."""

    def __init__(self, data: Data, peer: str, log: Log, effort: Effort = Effort()) -> None:
        self.data, self.peer, self.log, self.effort = data, peer, log, effort
        self.start = effort.start or choose_start(peer, data.size)
        self.factors = choose_factors(peer, data.size, effort.factors)

    def run(self) -> None:
        """Search until `chosen` finds a recipe in the log."""
        first = self.screen()
        while left := self.next(first):
            # Take the first that no other process is at, else wait for one of theirs.
            if not any(self.attempt(recipe, LONG, wait=False) for recipe in left):
                self.attempt(left[0], LONG)
        self.compare_solvers(best_trial(self.log.rows, self.peer))

    def screen(self) -> Recipe:
        """Try one option at a time in short trials, keep what is better, and return the best."""
        best = self.start
        for option, values in self.factors.items():
            tried = [best, *vary(best, option, values)]
            for wait in (False, True):
                for recipe in tried:
                    self.attempt(recipe, self.effort.short, wait=wait)
            best = best_trial(self.log.rows, self.peer, self.effort.short, tried)
        return best

    def next(self, first: Recipe) -> list[Recipe]:
        """Return recipes for long trials, in turn: `first`, then those beside the best so far.

        None are left when the search has had its minutes, and half and double of the best rate are
        worse.
        """
        rows = trials(self.log.rows, self.peer, LONG)
        known = [row["recipe"] for row in rows]
        if as_json(first) not in known:
            return [first]
        best = best_trial(rows, self.peer)
        spent = sum(row["cpu_seconds"] for row in trials(self.log.rows, self.peer)) / 60
        others = beside(best, self.factors)
        left = [tried for tried in others if as_json(tried) not in known]
        return [tried for tried in left if tried.lr != best.lr or spent < self.effort.least]

    def attempt(self, recipe: Recipe, minutes: float, wait: bool = True) -> bool:
        """Train and judge a recipe that is not in the log; return whether this process did.

        Args:
            wait: if another process is at it, wait for that one.
        """
        words = "-".join(str(value) for value in as_json(recipe).values())
        with (self.data.folder / f"{words}-{minutes:g}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return False
            rows = trials(self.log.rows, self.peer, minutes)
            if as_json(recipe) in [row["recipe"] for row in rows]:
                return False
            began = time.process_time()
            peer, net, done = peers.train(recipe, self.data.train, 60 * minutes)
            n = self.effort.samples
            samples = peers.sample(peer, net, 3 * n // 5 if minutes < LONG else n)
            found = judge(self.data.held_out, samples)
            row = {"recipe": as_json(recipe), "minutes": minutes, **done, **found}
            row["least_minutes"] = self.effort.least
            row["cpu_seconds"] = round(time.process_time() - began, 1)
            self.log.add({**row, "machine": common.machine()})
        arrange_grid(samples[:64]).save(self.data.folder / f"{words}-{minutes:g}.png")
        return True

    def compare_solvers(self, best: Recipe) -> None:
        """Sample with each solver from the best recipe, trained once more."""
        with (self.data.folder / f"{self.peer}-solvers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = {row["recipe"]["solver"] for row in of_solvers(self.log.rows, best)}
            named = self.effort.solvers
            every = [s for s in peers.PEERS[self.peer].solvers if named is None or s in named]
            left = [name for name in every or [best.solver] if name not in known]
            if not left:
                return
            peer, net, done = peers.train(best, self.data.train, 60 * LONG, seed=1)
            for name in left:
                peer.recipe = replace(best, solver=name)
                found = judge(self.data.held_out, peers.sample(peer, net, self.effort.samples))
                row = {"recipe": as_json(peer.recipe), "solvers_of": as_json(best), **done, **found}
                self.log.add({**row, "machine": common.machine()})


def trials(
    rows: Sequence[Mapping[str, Any]], peer: str, minutes: float | None = None
) -> list[Mapping[str, Any]]:
    """Return the trials of a baseline in a log, of one length."""
    own = [row for row in rows if row["recipe"]["peer"] == peer and "solvers_of" not in row]
    return [row for row in own if minutes in (None, row["minutes"])]


def best_trial(
    rows: Sequence[Mapping[str, Any]],
    peer: str,
    minutes: float = LONG,
    among: Sequence[Recipe] | None = None,
) -> Recipe:
    """Return the recipe of the best trial of one length, among these.

    Raises:
        ValueError: there is none.
    """
    known = None if among is None else [as_json(recipe) for recipe in among]
    tried = [r for r in trials(rows, peer, minutes) if known is None or r["recipe"] in known]
    if not tried:
        raise ValueError(f"{peer}: no trial of {minutes:g} minutes")
    return from_json(min(tried, key=lambda row: row["kid_x1000"])["recipe"])


def of_solvers(rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> list[Mapping[str, Any]]:
    """Return the rows of a log that compare solvers on a recipe."""
    return [row for row in rows if row.get("solvers_of") == as_json(recipe)]


def chosen(rows: Sequence[Mapping[str, Any]], peer: str) -> Recipe:
    """Return the best recipe of a baseline in a log, with the best solver.

    Raises:
        ValueError: half or double of its rate was not tried, so that a search has to go on.
    """
    recipe, tried = best_trial(rows, peer), trials(rows, peer, LONG)
    for other in map(as_json, vary(recipe, "lr", (0.5, 2))):
        if other not in [row["recipe"] for row in tried]:
            raise ValueError(f"{peer}: the rate {other['lr']:g} was not tried")
    solvers = of_solvers(rows, recipe)
    if not solvers:
        raise ValueError(f"{peer}: no solver was compared")
    return from_json(min(solvers, key=lambda row: row["kid_x1000"])["recipe"])


# -- finals ---------------------------------------------------------------------------------------

OURS, GUIDED, UNGUIDED = "diffuse", "diffuse, guided", "diffuse, unguided"
"""Ours with every default. The setting that `tune` recommends, within the same time, which counts
it. And the model of ours without the setting that its file recommends."""

COPIED = "diffusers, recipe of diffuse"
"""diffusers with the recipe of ours: target, weighting, optimizer, rate, batch and solver, those of
`COPIED_MINUTES`."""

COPIED_MINUTES = 10.0

TUNING = 2.5
"""Minutes of the budget that are left for `tune`."""

START_UP = 25.0
"""Seconds of CPU time that baselines have beyond the minutes: what the start of ours takes."""

QUIET = 0.95
"""The least part of its time, by the clock on the wall, that ours must have had of a core."""


def diffuse(*arguments: str) -> tuple[Any, dict[str, float]]:
    """Run a command; return what it prints, and its seconds."""
    command = [sys.executable, "-m", "diffuse_cli", *arguments, "--json", "--quiet"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(text), {"cpu_seconds": round(used, 1), "seconds": round(wall, 1)}


def trained(data: Data, seed: int, minutes: float, guided: bool) -> tuple[Path, dict[str, Any]]:
    """Train ours, or find what was trained; return the model and the seconds it took.

    What `tune` makes of a model lies beside it.

    Raises:
        RuntimeError: other programs took more of the core than counts as equal time.
        ValueError: the time is too short for `tune`.
    """
    if guided and minutes <= TUNING:
        raise ValueError(f"`tune` takes {TUNING:g} minutes. Pass more --minutes")
    model = data.folder / f"diffuse-{'guided-' * guided}{minutes:g}-{seed}.safetensors"
    kept = model.with_suffix(".json")
    if not kept.exists():
        typed = ["--minutes", f"{minutes - TUNING * guided:g}", *["--keep-weak"] * guided]
        _, spent = diffuse(
            "train", data.source, "-o", str(model), "--overwrite", "--size", str(data.size),
            *typed, "--seed", str(seed),
        )  # fmt: skip
        if guided:
            _, tuning = diffuse(
                "tune", str(model), data.source, "-o", str(tuned(model)), "--overwrite",
                "--samplers", "unipc", "--steps", str(peers.EVALUATIONS), "-n", "200",
                "--no-learn-times",
            )  # fmt: skip
            spent = {key: spent[key] + tuning[key] for key in spent}
        if not guided and spent["cpu_seconds"] < QUIET * 60 * minutes:
            raise RuntimeError(f"{model}: {spent} is no equal time. Run it on a free core")
        kept.write_text(json.dumps(spent))
    found: dict[str, Any] = json.loads(kept.read_text())
    return model, found


def tuned(model: Path) -> Path:
    """Return where `tune` writes a model."""
    return model.with_stem(f"{model.stem}-tuned")


def ignore_recommendation(model: Path) -> list[str]:
    """Return options of `sample` that a recommendation in a model file gives way to."""
    weak = ["--weak-guidance", "1"] if "weak" in header(model) else []
    return [*weak, "--steps", str(peers.EVALUATIONS)]


def final_of_ours(
    data: Data, seed: int, minutes: float, contender: str
) -> tuple[dict[str, Any], common.Pixels]:
    """Train and sample ours, by the commands a user types."""
    model, spent = trained(data, seed, minutes, contender == GUIDED)
    source = tuned(model) if contender == GUIDED else model
    plain = contender == UNGUIDED
    drawn = data.folder / f"{model.stem}{'-unguided' * plain}"
    made, _ = diffuse(
        "sample", str(source), "-o", str(drawn), "--overwrite", "-n", str(len(data.real)),
        "--seed", str(seed), *(ignore_recommendation(model) if plain else ()),
    )  # fmt: skip
    manifest = json.loads(Path(made["manifest"]).read_text())
    config, metrics = header(model)["training"], model.with_suffix(".run") / "metrics.jsonl"
    diffusion = header(model)["diffusion"]
    steps = max(json.loads(line).get("step", 0) for line in metrics.open())
    like = peers.blueprint("tiny", data.train.shape[1], data.size)
    like = replace(like, wiener=config["wiener"])
    evaluations = manifest["steps"] * (2 if manifest.get("weak_guidance", 1) != 1 else 1)
    row = {
        **peers.facts(like.build(), evaluations, config["precision"]),
        **describe_levels(like),
        "steps": steps,
        "batch": config["batch_size"],
        "lr": config["lr"],
        "optimizer": config["optimizer"],
        "target": diffusion["target"],
        "schedule": diffusion["schedule"],
        "min_snr": {"min-snr": 5.0, "none": None}.get(config["weighting"], config["weighting"]),
        "differs": {},
        "sampler": manifest["sampler"],
        "training_cpu_seconds": spent["cpu_seconds"],
        "training_seconds": spent["seconds"],
    }
    return row, common.pictures(made["images"])


def describe_levels(like: Blueprint) -> dict[str, Any]:
    """Return the side of the patches and the channels of each level."""
    config: Any = like.config
    return {"patch": config.patch, "channels": config.widths}


def header(model: Path) -> Any:
    """Return the configuration in the header of a model file."""
    with model.open("rb") as file:
        found = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(found["__metadata__"]["diffuse.config"])


def final_of_peer(
    data: Data, recipe: Recipe, seed: int, seconds: float
) -> tuple[dict[str, Any], common.Pixels]:
    """Train and sample a baseline."""
    peer, net, done = peers.train(recipe, data.train, seconds, seed)
    with peers.counting(net) as seen:
        samples = peers.sample(peer, net, len(data.real), seed)
    evaluations = len(seen) * peers.BATCH // len(samples)
    facts = peers.facts(net, evaluations, seen[0])
    like = peers.baseline_blueprint(recipe, *data.train.shape[1:3])
    settings = {**as_json(recipe), **describe_levels(like), "patch": recipe.patch}
    settings |= {"sampler": recipe.solver, "differs": dict(peer.differs)}
    return {**done, **facts, **settings}, samples


def final(options: argparse.Namespace, data: Data) -> None:
    """Run the finals that are not in the log."""
    log = Log(RESULTS / f"quality-{options.name}.json")
    if options.only and COPIED in options.only and options.minutes != COPIED_MINUTES:
        raise ValueError(f"`{COPIED}` has the batch and the rate of {COPIED_MINUTES:g} minutes")
    for contender in options.only or (OURS, *peers.PEERS):
        for seed in options.seeds:
            done = [(row["contender"], row["seed"], row["minutes"]) for row in log.rows]
            if (contender, seed, options.minutes) in done:
                continue
            if contender in (COPIED, *peers.PEERS):
                seconds = 60 * options.minutes + START_UP
                recipe = from_json(recipes()[options.name][contender])
                row, samples = final_of_peer(data, recipe, seed, seconds)
            else:
                row, samples = final_of_ours(data, seed, options.minutes, contender)
            stem = f"{contender}-{options.minutes:g}-{seed}"
            np.save(data.folder / f"{stem}.npy", samples)
            arrange_grid(samples[:64]).save(data.folder / f"{stem}.png")
            head = {"contender": contender, "dataset": data.name, "size": data.size}
            head |= {"seed": seed, "minutes": options.minutes}
            found = judge(data.real, samples)
            log.add({**head, **row, **found, "machine": common.machine()})


# -- all of it ------------------------------------------------------------------------------------

RECIPES = RESULTS / "peer-recipes.json"

OPTIONS = sorted({*LARGE_FACTORS, *(name for factors in FACTORS.values() for name in factors)})
"""Options that a search may try."""


def recipes() -> dict[str, Any]:
    """Return the recipes found so far, by data set and baseline."""
    found: dict[str, Any] = json.loads(RECIPES.read_text()) if RECIPES.exists() else {}
    return found


def search(options: argparse.Namespace, data: Data) -> None:
    """Search for the recipes of baselines, and write them down."""
    for name in options.only or peers.PEERS:
        log = Log(RESULTS / f"search-{options.name}.json")
        start = choose_start(name, options.size)
        if options.start:
            found = from_json(recipes()[options.start][name])
            start = replace(found, channels=found.channels or start.channels)
        effort = Effort(
            options.least, options.short, options.factors, options.samples, options.solvers, start
        )
        Search(data, name, log, effort).run()
        known = recipes()
        known.setdefault(options.name, {})[name] = as_json(chosen(log.rows, name))
        write_atomic(RECIPES, json.dumps(known, indent=1) + "\n")


def main() -> None:
    """Search or run finals, as asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("act", choices=("search", "final"))
    parser.add_argument("data", help="images to train on, a held-out part of them excepted")
    parser.add_argument("--real", required=True, help="images that finals are judged by")
    parser.add_argument("--reference", type=int, default=1000, help="how many of each")
    parser.add_argument("--name", required=True, help="name of the data in the results")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=(OURS, GUIDED, UNGUIDED, COPIED, *peers.PEERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--least", type=float, default=LEAST, help="minutes of a search")
    parser.add_argument(
        "--factors", nargs="*", choices=OPTIONS, help="options that a search tries one at a time"
    )
    parser.add_argument("--short", type=float, default=SHORT, help="minutes of a short trial")
    parser.add_argument("--samples", type=int, default=500, help="of a long trial")
    parser.add_argument("--solvers", nargs="+", help="that a search compares")
    parser.add_argument("--start", metavar="NAME", help="data whose recipe a search begins with")
    parser.add_argument("--work", type=Path, required=True, help="folder of models and samples")
    options = parser.parse_args()
    keep_freed_memory()
    {"search": search, "final": final}[options.act](options, read(options))


if __name__ == "__main__":
    main()
