"""How many evaluations, and how long, for images as good as those of 1000-step DDPM?

With DATA and a MODEL trained on it: KID of a model's images against held-out ones, for `ddpm` over
every timestep and for the other samplers with few evaluations, and the seconds that 64 images take.
All draw from one seed. `fewest` is, for each sampler, the least number of evaluations from which
its KID is no higher than that of the reference; beside it, no higher by more than two standard
errors of the difference. Always: the time of one evaluation against diffusers' `UNet2DModel` of the
same shape, by default (float32, NCHW, no gradients) and at its best of float32 and bfloat16,
channels-last, in turn, each in a process of its own; and the memory each needs. Prints JSON.

    python benchmarks/sampling.py DATA MODEL > benchmarks/results/sampling.json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import common
import peers
import torch
import train_step
from accelerate import Accelerator
from steps import (
    Act,
    Apart,
    Setting,
    interleave,
    output,
    peak,
    plan,
    say,
    serve,
    show,
    significant,
    unbound,
)

from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.denoiser import Prediction
from diffuse_cli.core.samplers import default_spacing
from diffuse_cli.models import model_file
from diffuse_cli.sampling.model_loading import LoadedModel, load_denoiser
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.devices import device_type, resolve_precision
from diffuse_cli.system.events import finish

SIZE, TIMED = train_step.SIZE, 64

PRESETS = ("tiny", "ddpm-cifar10")
"""Presets, whose networks diffusers has too."""

DEFAULT = Setting()
SETTINGS = tuple(
    Setting(precision=precision, channels_last=last)
    for precision, last in (("fp32", True), ("bf16", True), ("bf16", False))
)
BATCHES = (64, 1)


# -- quality --------------------------------------------------------------------------------------


def count_evaluations(loaded: LoadedModel, sampler: str, steps: int, spacing: str | None) -> int:
    """Count the network evaluations of one sample."""
    calls = 0

    def denoise(x: torch.Tensor, t: torch.Tensor, **condition: Any) -> Prediction:
        nonlocal calls
        calls += 1
        return Prediction(0 * x, x)

    process, x = loaded.denoiser.process, torch.zeros(1, 1, 1, 1)
    times = process.times(steps, spacing or default_spacing(sampler, steps))
    for _ in SAMPLERS[sampler](denoise, process, x, times, noise=lambda k: x):
        pass
    return calls


def quality(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """KID and seconds of the reference, and of each sampler with few evaluations."""
    loaded = finish(load_denoiser(options.model, "ema", accelerator))
    images = common.read(options.data, size=loaded.space.size)
    real = common.features(common.held_out(images, options.real), accelerator)
    draw = partial(common.sample, loaded, accelerator=accelerator, spacing=options.spacing)

    def cell(sampler: str, steps: int, n: int) -> dict[str, Any]:
        pixels, seconds = draw(n=n, steps=steps, sampler=sampler)
        evaluations = count_evaluations(loaded, sampler, steps, options.spacing)
        if n != TIMED and evaluations <= max(options.steps):
            seconds = draw(n=TIMED, steps=steps, sampler=sampler)[1]
        else:
            seconds *= TIMED / n  # the reference takes too long to draw it twice
        row = {
            "sampler": sampler,
            "steps": steps,
            "evaluations": evaluations,
            "n": n,
            "seconds_for_64": significant(seconds),
            **common.distance(real, common.features(pixels, accelerator)),
        }
        say(json.dumps(row))
        return row

    reference = cell("ddpm", loaded.denoiser.process.num_timesteps, options.reference)
    rows = [cell(s, steps, options.n) for s in options.samplers for steps in options.steps]
    fewest = {sampler: reached(reference, rows, sampler) for sampler in options.samplers}
    return {"reference": reference, "few": rows, "fewest": fewest, "real": len(real)}


def reached(
    reference: dict[str, Any], rows: list[dict[str, Any]], sampler: str
) -> dict[str, int | None]:
    """The least evaluations of a sampler at the reference's KID, and within two errors of it."""

    def least(allowed: float) -> int | None:
        error = "kid_standard_error"
        good = [
            row["evaluations"]
            for row in rows
            if row["sampler"] == sampler
            and row["kid"] - reference["kid"] <= allowed * math.hypot(row[error], reference[error])
        ]
        return min(good, default=None)

    return {"at_most": least(0), "within_two_errors": least(2)}


# -- one evaluation -------------------------------------------------------------------------------


def inputs(batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images and timesteps."""
    return torch.randn(batch, 3, SIZE, SIZE, device=device), torch.full((batch,), 500.0).to(device)


def write(preset: str, path: Path) -> None:
    """A model file of a preset with random weights."""
    blueprint = plan(SIZE, preset=preset).blueprint
    model_file.save(
        path, model_file.StoredModel(blueprint=blueprint, ema=blueprint.build().state_dict())
    )


def ours(path: Path, batch: int, accelerator: Accelerator) -> Act:
    """An evaluation of a model file, as sampling runs it."""
    denoiser = finish(load_denoiser(path, "ema", accelerator)).denoiser
    x, t = inputs(batch, accelerator.device)
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: denoiser.net(x, t)


def theirs(preset: str, batch: int, setting: Setting, device: torch.device) -> Act:
    """An evaluation of diffusers' network; in bfloat16 its weights are that too."""
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    net = peers.diffusers_unet(peers.blueprint(preset, 3, SIZE)).eval()
    net = torch.nn.Module.to(net, dtype)  # diffusers' own `to` warns
    net = setting.place(net, device)
    x, t = inputs(batch, device)
    x = setting.place(x.to(dtype), device)

    def evaluate() -> torch.Tensor:
        with unbound(), torch.no_grad():
            return output(net(x, t))

    return evaluate


def contenders() -> dict[str, Setting | None]:
    """Each contender with its setting; ours has none."""
    found: dict[str, Setting | None] = {"diffuse": None}
    if train_step.DIFFUSERS in train_step.installed():
        found["diffusers, default"] = DEFAULT
        found |= {f"diffusers, {setting}": setting for setting in SETTINGS}
    return found


def evaluation(options: argparse.Namespace, path: Path, batch: int) -> dict[str, Any]:
    """Milliseconds of an evaluation of every contender, our ratio to theirs, and memory."""
    made = {
        name: Apart(__file__, "--one", json.dumps([str(path), batch, name]), *flags(options))
        for name in contenders()
    }
    rows: list[dict[str, Any]] = [
        {"contender": name, "ms": significant(1e3 * median(seconds)), **made[name].end()}
        for name, seconds in interleave(made, options.rounds).items()
    ]
    found: dict[str, Any] = {"network": path.stem, "batch_size": batch, "contenders": rows}
    if len(rows) > 1:
        default, best = rows[1], min(rows[1:], key=lambda row: float(row["ms"]))
        found["ratio_to_peer_default"] = round(default["ms"] / rows[0]["ms"], 3)
        found["ratio_to_peer_best"] = round(best["ms"] / rows[0]["ms"], 3)
    say(f"{path.stem}, batch {batch}")
    show(rows)
    return found


def flags(options: argparse.Namespace) -> tuple[str, str]:
    """What a contender in its own process is told besides its name."""
    return "--precision", options.precision


def hold(options: argparse.Namespace) -> None:
    """Be one contender of a model file, in a batch."""
    path, batch, name = options.one
    setting = contenders()[name]
    if setting is None:
        with open_accelerator(options.precision) as accelerator:
            before = peak()
            serve(ours(Path(path), batch, accelerator), before)
        return
    preset = Path(path).stem
    with torch.device("meta"):  # so that its imports are not counted as the network's
        peers.diffusers_unet(peers.blueprint(preset, 3, SIZE))
    before = peak()
    serve(theirs(preset, batch, setting, torch.device(device_type())), before)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("data", nargs="?")
    parser.add_argument("model", nargs="?")
    parser.add_argument("-n", type=int, default=500, help="images of a sampler")
    parser.add_argument("--reference", type=int, default=256, help="images of 1000-step DDPM")
    parser.add_argument("--real", type=int, default=1000, help="held-out images")
    parser.add_argument("--steps", type=numbers, default="5,8,10,12,15,20")
    parser.add_argument("--samplers", type=lambda text: text.split(","), default="unipc,dpmpp-2m")
    parser.add_argument("--spacing", help="in place of the samplers' own")
    parser.add_argument("--networks", type=lambda text: text.split(","), default=PRESETS)
    parser.add_argument("--batches", type=numbers, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", default="auto", help="ours")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data and not options.model:
        parser.error("DATA goes with a MODEL that was trained on it")
    options.precision = resolve_precision(options.precision)
    if options.one:
        hold(options)
        return
    found: dict[str, Any] = {"precision": options.precision}
    found["evaluation"] = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.networks:
            path = Path(folder) / f"{preset}.safetensors"
            write(preset, path)
            for batch in options.batches:
                found["evaluation"].append(evaluation(options, path, batch))
    if options.model:
        with open_accelerator(options.precision) as accelerator:
            found["quality"] = quality(options, accelerator)
        show([found["quality"]["reference"], *found["quality"]["few"]])
    print(json.dumps({**found, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
