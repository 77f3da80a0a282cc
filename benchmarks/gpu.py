"""What does a GPU give: the processor's results, a training step at each size, quality for time?

Three parts in at most 25 minutes. Parity: one network, from the same weights and on the same
images, noise and timesteps, on the processor in float32 and on the device in each precision; the
largest error of its output and of its gradient, as a share of the processor's norm. Step: for each
size, images a second and peak memory of a training step of the preset that `diffuse train` chooses
on a GPU, eager and compiled, beside diffusers' `UNet2DModel` at its best setting. That has no
patches: where the preset has them, it is the same preset at full resolution. Quality: `diffuse
train --minutes` on DATA, then `diffuse eval` against its held-out part, whose KID needs no
download. Prints JSON. With `--device cpu` everything is small, and says only that the script runs.

    python benchmarks/gpu.py CIFAR10_PNGS > benchmarks/results/gpu.json
    python benchmarks/gpu.py examples/fashion-mnist.zip --device cpu
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import peers
import torch
from steps import Act, Setting, interleave, ours, peak, plan, say, significant, speed, theirs, timed
from torch import Tensor

from diffuse_cli.config.presets import choose
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import Space
from diffuse_cli.core.kernels import arrange_memory, arrange_weights
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.devices import DEVICES, device_type, has_bfloat16
from diffuse_cli.system.memory import is_out_of_memory
from diffuse_cli.training.ema_weights import EVERY

SIDES = (32, 64, 128, 256, 512)

OURS, PEER = "diffuse", "diffusers"

TOTAL, EVALUATING = 25 * 60, 2 * 60
"""Seconds of all parts, and of them for evaluating. What training leaves is for the steps."""

ROUNDS, SECONDS = 20, 8
"""Most steps of a contender, and seconds after which it takes no more."""


# -- parity ---------------------------------------------------------------------------------------


def parity(blueprint: Blueprint, device: str, batch: int) -> list[dict[str, Any]]:
    """Errors of the device against the processor, of output and gradient."""
    torch.manual_seed(0)
    net = blueprint.build().eval()
    for parameter in net.parameters():  # the last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.05)
    x, noise = torch.randn(2, batch, *blueprint.space.shape)
    t = torch.linspace(0, 999, batch)
    expected = _pass(net, x, noise, t, "cpu", None)
    rows = []
    for dtype in (None, *[torch.bfloat16] * has_bfloat16(device)):
        found = _pass(net, x, noise, t, device, dtype)
        errors = [float((f - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True)]
        rows.append(
            {
                "precision": "bf16" if dtype else "fp32",
                "output_error": significant(errors[0], 3),
                "gradient_error": significant(errors[1], 3),
                "finite": all(map(math.isfinite, errors)),
            }
        )
    return rows


def _pass(
    net: torch.nn.Module,
    x: Tensor,
    noise: Tensor,
    t: Tensor,
    device: str,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Output and gradient, on the processor in float64."""
    here = arrange_weights(copy.deepcopy(net).to(device))
    with torch.autocast(device, dtype, enabled=dtype is not None):
        out = here(arrange_memory(x.to(device)), t.to(device)).float()
    (out - noise.to(device)).square().mean().backward()
    gradients = [p.grad.flatten() for p in here.parameters() if p.grad is not None]
    return out.detach().cpu().double(), torch.cat(gradients).cpu().double()


# -- step -----------------------------------------------------------------------------------------


def contenders(side: int, options: argparse.Namespace, device: str) -> Iterator[dict[str, Any]]:
    """Speed and memory of each contender at a size, what matters most first."""
    half = "bf16" if has_bfloat16(device) and device != "cpu" else "fp32"
    space = Space(channels=3, size=(side, side))
    preset = "tiny" if options.dry else str(choose(TrainConfig(data=""), space, "cuda"))
    patch = getattr(peers.blueprint(preset, 3, side).config, "patch", 1)
    best = Setting(precision=half, channels_last=True, fused=True)
    order = [(OURS, best), (PEER, best)]
    if not options.dry:
        order += [(who, replace(best, compile=True)) for who in (OURS, PEER)]
        order += [(PEER, replace(best, channels_last=False))]

    def step(who: str, setting: Setting, batch: int) -> Act:
        torch.manual_seed(0)
        if who == OURS:
            chosen = plan(side, preset=preset, batch_size=batch, precision=half, device=device,
                          compile=setting.compile)  # fmt: skip
            return ours(chosen, accelerator)[0]
        net = peers.diffusers_unet(peers.blueprint(preset, 3, side, patch=1))
        return theirs(net, setting, batch, side, torch.device(device))

    most = dict.fromkeys((OURS, PEER), options.batch_size)
    with open_accelerator(half, device) as accelerator:
        for who, setting in order:
            row = {"side": side, "preset": preset, "patch": patch if who == OURS else 1}
            row |= {"contender": who, "setting": str(setting)}
            while True:
                make = partial(step, who, setting, most[who])
                found = _timed(make, most[who], options.dry, EVERY if who == OURS else 1)
                if found or most[who] == 1:
                    break
                most[who] //= 2
            yield {**row, "batch_size": most[who], **(found or {"error": "out of memory"})}


def _timed(make: Callable[[], Act], batch: int, dry: bool, every: int) -> dict[str, Any]:
    """Speed and memory of a step, or its error. Nothing if memory runs out."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        act = make()
        timed(act)  # it may compile
        until = time.monotonic() + SECONDS
        seconds = interleave({"step": act}, 1 if dry else ROUNDS, until)["step"]
    except Exception as error:  # one that does not run, such as a compiler that is missing
        return {} if is_out_of_memory(error) else {"error": str(error).splitlines()[0]}
    return {**speed(seconds, batch, every), "peak_mib": round(peak())}


def step_rows(options: argparse.Namespace, until: float) -> Iterator[dict[str, Any]]:
    """The contenders at each size, in a process that ends when its part of the time is over."""
    sides = SIDES[:2] if options.dry else SIDES
    for i, side in enumerate(sides):
        limit = None if options.dry else (until - time.monotonic()) / (len(sides) - i)
        command = [sys.executable, *sys.argv, "--side", str(side)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                text, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                text, _ = process.communicate()
                say(f"{side}: out of time")
        yield from map(json.loads, text.splitlines())


# -- quality --------------------------------------------------------------------------------------


def quality(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """What so many minutes give: numbers of the run, and of its model's evaluation."""
    dry = ["--steps", "2", "--batch-size", "8"]
    length = dry if options.dry else ["--minutes", str(options.minutes)]
    n = ["-n", "16", "--steps", "2"] if options.dry else ["-n", str(options.samples)]
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model.safetensors")
        run = _command("train", options.data, *length, "--device", device, "-o", model)
        found = _command("eval", model, options.data, *n, "--device", device)
    return {"minutes": options.minutes, "train": run, "eval": found}


def _command(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "diffuse_cli", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {k: v for k, v in json.loads(done.stdout).items() if isinstance(v, (int, float))}


def main() -> None:
    """Measure and print."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="images of 32x32 in color, such as CIFAR-10's")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = device_type(options.device)
    options.dry = device == "cpu"
    if options.dry:
        options.batch_size = 2
    if options.side:
        for row in contenders(options.side, options, device):
            print(json.dumps(row), flush=True)
        return
    if options.dry:
        say("on a processor: a dry run, whose numbers say nothing")
    with open_accelerator("fp32", device):
        preset = "tiny" if options.dry else "ddpm-cifar10"
        found: dict[str, Any] = {"parity": parity(peers.blueprint(preset, 3, 32), device, batch=4)}
    until = began + TOTAL - EVALUATING - 60 * options.minutes
    found |= {"step": list(step_rows(options, until)), "quality": quality(options, device)}
    head = {"device": device, "dry": options.dry}
    print(json.dumps({**head, **found, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
