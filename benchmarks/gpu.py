"""What does a GPU give: the processor's results, a step beside diffusers', and quality for time?

Three parts. Parity: one network, from the same weights and on the same images, noise and timesteps,
on the processor in float32 and on the device in each precision; the largest error of its output and
of its gradient, as a share of the processor's norm. Step: images a second of our training step of a
preset, eager and compiled, and of diffusers' network at each of its settings. Quality: `diffuse
train --minutes` on DATA, then `diffuse eval` against its held-out part, whose KID needs no
download. All takes about a quarter of an hour. Prints JSON. With `--device cpu` everything is
small, and says only that the script runs.

    python benchmarks/gpu.py CIFAR10_PNGS > benchmarks/results/gpu.json
    python benchmarks/gpu.py examples/fashion-mnist.zip --device cpu
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import peers
import torch
from steps import SETTINGS, Act, Setting, interleave, ours, plan, say, significant, speed, theirs
from torch import Tensor

from diffuse_cli.core.kernels import arrange_memory, arrange_weights
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system.devices import DEVICES, device_type, has_bfloat16, open_accelerator
from diffuse_cli.training.ema_weights import EVERY

SIZE = 32


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
    halves = [torch.bfloat16] if has_bfloat16(device) else []
    rows = []
    for dtype in (None, *halves):
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


def step(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Images a second, ours and diffusers'."""
    precision = "bf16" if has_bfloat16(device) and device != "cpu" else "fp32"
    rows = []
    for compiled in (False, True)[: 1 + options.compile]:
        chosen = plan(
            SIZE,
            preset=options.preset,
            batch_size=options.batch_size,
            precision=precision,
            compile=compiled,
            device=device,
        )
        with open_accelerator(precision, device) as accelerator:
            act, _ = ours(chosen, accelerator)
            name = f"diffuse, {precision}{', compiled' * compiled}"
            rows.append(_timed(name, act, options, EVERY))
    settings = [
        Setting(precision=s.precision, channels_last=s.channels_last, fused=True, compile=c)
        for s in SETTINGS
        for c in (False, True)[: 1 + options.compile]
    ]
    for setting in (Setting(), *settings):
        if setting.precision == "bf16" and not has_bfloat16(device):
            continue
        torch.manual_seed(0)
        net = peers.diffusers_unet(peers.blueprint(options.preset, 3, SIZE))
        act = theirs(net, setting, options.batch_size, SIZE, torch.device(device))
        rows.append(_timed(f"diffusers, {setting}", act, options))
    return rows


def _timed(name: str, act: Act, options: argparse.Namespace, every: int = 1) -> dict[str, Any]:
    try:
        seconds = interleave({name: act}, options.rounds)[name]
    except RuntimeError as error:  # one that does not run, such as a compiler that is missing
        say(f"{name}: {error}")
        return {"contender": name, "error": str(error).splitlines()[0]}
    return {"contender": name, **speed(seconds, options.batch_size, every)}


# -- quality --------------------------------------------------------------------------------------


def quality(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """What so many minutes give: the run's last line, and the evaluation of its model."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        flags = ["--device", device]
        length = (
            ["--steps", "2", "--batch-size", "8"]
            if options.dry
            else ["--minutes", str(options.minutes)]
        )
        if options.preset and not options.dry:
            length += ["--preset", options.preset]
        compiled = ["--compile"] if options.compile else []
        run = _command("train", options.data, *length, *compiled, *flags, "-o", str(model))
        n = ["-n", "16", "--steps", "2"] if options.dry else ["-n", str(options.samples)]
        found = _command("eval", str(model), options.data, *n, *flags)
    return {"minutes": options.minutes, "train": run, "eval": found}


def _command(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "diffuse_cli", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


PARTS = ("parity", "step", "quality")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="images of 32x32 in color, such as CIFAR-10's")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--preset", default="ddpm-cifar10")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    device = device_type(options.device)
    options.dry = device == "cpu"
    if options.dry:
        say("on a processor: a dry run, whose numbers say nothing")
        options.preset, options.batch_size, options.rounds = "tiny", 2, 1
        options.compile = False
    found: dict[str, Any] = {}
    if "parity" in options.parts:
        chosen = plan(SIZE, preset=options.preset, batch_size=2, precision="fp32")
        with open_accelerator("fp32", device):
            found["parity"] = parity(chosen.blueprint, device, batch=4)
    if "step" in options.parts:
        found["step"] = step(options, device)
    if "quality" in options.parts:
        found["quality"] = quality(options, device)
    head = {"device": device, "dry": options.dry, "preset": options.preset}
    print(json.dumps({**head, **found, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
