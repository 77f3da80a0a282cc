"""How fast is a training step of the DDPM CIFAR-10 network, against the baselines?

Ours is the step of `diffuse train --preset ddpm-cifar10`, with its random draws and its average of
the weights. diffusers' `UNet2DModel` of the same architecture and denoising-diffusion-pytorch's
`Unet` of about the same cost run their forward and backward pass, clip and AdamW: by default in
float32, NCHW, and AdamW as it comes; and with fused AdamW in float32 or bfloat16, NCHW or
channels-last, of which the fastest counts as the best. Each lives in a process of its own, so
that our setting of the memory allocator is ours alone; a round takes a step of each. Prints JSON;
with --json one line, within five minutes, without contenders that there was no time for. In it
`ratio_to_peer_best` and `ratio_to_peer_default` are our images a second over diffusers', all eager,
and `ratio_to_peer_best_compiled`, with --compile, both compiled. --tiny times a step of `tiny`
instead, in CPU time of one core, next to the package in the folder --before and diffusers' network
at the same recipe. CPUs without instructions for bfloat16 compute in float32.

    python benchmarks/train_step.py --json
    python benchmarks/train_step.py --compile > benchmarks/results/train_step.json
    python benchmarks/train_step.py --tiny --before FOLDER > benchmarks/results/step-ratio.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import time
from collections.abc import Iterator
from statistics import quantiles
from typing import Any

import common
import peers
import torch
from accelerate import Accelerator
from steps import (
    SETTINGS,
    Act,
    Apart,
    Setting,
    gflop,
    interleave,
    ours,
    peak,
    plan,
    say,
    serve,
    show,
    significant,
    speed,
    theirs,
)

from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.devices import device_type, has_bfloat16, resolve_precision
from diffuse_cli.training.ema_weights import EVERY

SIZE = 32

LIMIT = 210
"""Seconds of measuring with --json; imports and ends take some more."""

OURS, DIFFUSERS, DDPM_PYTORCH = "diffuse", "diffusers", "denoising-diffusion-pytorch"

NETWORKS = {DIFFUSERS: peers.diffusers_unet, DDPM_PYTORCH: peers.ddpm_pytorch_unet}
"""The baselines' networks; each is imported when it is made."""

MODULES = {DIFFUSERS: "diffusers", DDPM_PYTORCH: "denoising_diffusion_pytorch"}


TINY = ((32, 32), (64, 32), (128, 16), (256, 8))
"""Side and images per step of `tiny`."""

METHOD = (
    "CPU milliseconds of a step, in turns of 4 steps on one core, and the median and the quartiles "
    "of the ratios of turns"
)

BLOCK = 4
"""Steps of a turn, of which ours moves its average once."""


def installed() -> list[str]:
    """The baselines that are there; the others are named on stderr."""
    missing = [peer for peer, name in MODULES.items() if importlib.util.find_spec(name) is None]
    for peer in missing:
        say(f"{peer} is not installed: left out")
    return [peer for peer in MODULES if peer not in missing]


def network(peer: str) -> torch.nn.Module:
    """A baseline's network, from the same weights each time."""
    torch.manual_seed(0)
    return NETWORKS[peer](peers.blueprint("ddpm-cifar10", 3, SIZE))


def our_step(options: argparse.Namespace, accelerator: Accelerator, compiled: bool = False) -> Act:
    """Our step."""
    chosen = plan(
        SIZE,
        preset="ddpm-cifar10",
        batch_size=options.batch_size,
        precision=options.precision,
        compile=compiled,
    )
    return ours(chosen, accelerator)[0]


def settings(compiled: bool) -> Iterator[tuple[str, str, Setting]]:
    """Every baseline with its settings and what each is called."""
    half = has_bfloat16(device_type())
    if not half:
        say("bf16 is left out: this machine has no instructions for it")
    for peer in installed():
        yield f"{peer}, default", peer, Setting()
        for setting in SETTINGS:
            if half or setting.precision != "bf16":
                yield f"{peer}, {setting}", peer, setting
    if compiled and DIFFUSERS in installed():
        for precision in ("fp32", "bf16") if half else ("fp32",):
            setting = Setting(precision=precision, channels_last=True, fused=True, compile=True)
            yield f"{DIFFUSERS}, {setting}", DIFFUSERS, setting


def entries(compiled: bool) -> dict[str, tuple[str, Setting]]:
    """Who takes part: by what it is called, whose it is and how it is run; ours first."""
    found = {OURS: (OURS, Setting(channels_last=True, fused=True))}
    if compiled:
        found[f"{OURS}, compiled"] = (OURS, Setting(channels_last=True, fused=True, compile=True))
    return found | {name: (peer, setting) for name, peer, setting in settings(compiled)}


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every contender's speed and memory, all in one run."""
    flags = ("--batch-size", str(options.batch_size), "--precision", options.precision)
    found = entries(options.compile)
    began = time.monotonic()
    acts = {name: Apart(__file__, "--one", name, *flags) for name in found}
    cost = {peer: 3 * gflop(network(peer).eval(), SIZE) for peer in installed()}
    rows = []
    until = began + LIMIT if options.json else math.inf
    times = interleave(acts, options.rounds, until, needed=2)
    for name in acts.keys() - times.keys():
        acts[name].process.kill()
    for name, seconds in times.items():
        who, setting = found[name]
        measured = speed(seconds, options.batch_size, EVERY if who == OURS else 1)
        each = cost.get(who, cost.get(DIFFUSERS))  # ours is diffusers' architecture
        rows.append(
            {
                "contender": name,
                "of": who,
                "precision": options.precision if who == OURS else setting.precision,
                "compiled": setting.compile,
                **measured,
                "gflop_per_image": each and significant(each),
                "gflop_per_s": each and significant(each * measured["images_per_s"]),
                **acts[name].end(),
            }
        )
    return rows


def ratios(rows: list[dict[str, Any]], compiled: bool) -> dict[str, float]:
    """Our images a second over diffusers' at its default, at its best, and both compiled."""

    def most(who: str, compiled: bool) -> float:
        found = [r["images_per_s"] for r in rows if (r["of"], r["compiled"]) == (who, compiled)]
        return float(max(found))

    default = next(r["images_per_s"] for r in rows if r["contender"] == f"{DIFFUSERS}, default")
    found = {
        "ratio_to_peer_best": most(OURS, False) / most(DIFFUSERS, False),
        "ratio_to_peer_default": most(OURS, False) / default,
    }
    if compiled:
        found["ratio_to_peer_best_compiled"] = most(OURS, True) / most(DIFFUSERS, True)
    return {name: round(value, 3) for name, value in found.items()}


def compare_tiny(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """CPU time of a step of `tiny`, in turns on the last core that this process may use."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = {OURS: ""} | ({"before": options.before} if options.before else {})
    if DIFFUSERS in installed():
        found[DIFFUSERS] = ""
    for side, batch in TINY:
        flags = ("--tiny", "--size", str(side), "--batch-size", str(batch))
        acts = {
            name: Apart(
                __file__, "--one", name, *flags, "--precision", options.precision,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folder},
            )
            for name, folder in found.items()
        }  # fmt: skip
        turns: dict[str, list[float]] = {name: [] for name in acts}
        for i in range(options.rounds + 1):
            for name in [*acts][i % len(acts) :] + [*acts][: i % len(acts)]:
                clock = (~acts[name].process.pid << 3) | 2  # the CPU time of a process, on Linux
                began = time.clock_gettime(clock)
                for _ in range(BLOCK):
                    acts[name]()
                turns[name].append((time.clock_gettime(clock) - began) / BLOCK * 1000)
        ours, *others = ([*map(significant, turns[name][1:])] for name in acts)
        row: dict[str, Any] = {"side": side, "batch_size": batch, f"{OURS}_ms": ours}
        for name, taken in zip([*acts][1:], others, strict=True):
            each = [a / b for a, b in zip(ours, taken, strict=True)]
            low, middle, high = (significant(q, 3) for q in quantiles(each, n=4))
            row |= {f"{name}_ms": taken, f"ratio_to_{name}": middle, f"of_{name}": [low, high]}
        for act in acts.values():
            act.end()
        show([{k: v for k, v in row.items() if not k.endswith("_ms")}])
        yield row


def tiny(name: str, options: argparse.Namespace, accelerator: Accelerator) -> Act:
    """A step of `tiny`: ours, or of diffusers' network in the loop of `peers`."""
    size = options.size
    if name != DIFFUSERS:
        chosen = {"batch_size": options.batch_size, "precision": options.precision}
        return ours(plan(size, images=64, preset="tiny", **chosen), accelerator)[0]
    recipe = peers.recipe_of_ours(3, size, options.batch_size)
    peer, optimizer = peers.built(name, recipe, peers.blueprint("tiny", 3, size))
    images = torch.randint(256, (options.batch_size, 3, size, size), dtype=torch.uint8)

    def step() -> None:
        peers.take(peer, optimizer, images)
        peer.follow()

    return step


def hold(options: argparse.Namespace) -> None:
    """Be the contender `--one`."""
    if options.tiny:
        with open_accelerator(options.precision) as accelerator:
            serve(tiny(options.one, options, accelerator), peak())
        return
    who, setting = entries(compiled=True)[options.one]
    if who == OURS:
        with open_accelerator(options.precision) as accelerator:
            before = peak()
            serve(our_step(options, accelerator, setting.compile), before)
        return
    with torch.device("meta"):
        network(who)  # so that its imports are not counted as the network's
    before = peak()
    device = torch.device(device_type())
    serve(theirs(network(who), setting, options.batch_size, SIZE, device), before)


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--precision", default="auto", help="ours; what training chooses itself")
    parser.add_argument("--json", action="store_true", help="one line, and no table")
    parser.add_argument("--compile", action="store_true", help="compiled contenders too")
    parser.add_argument("--tiny", action="store_true", help="a step of `tiny` instead")
    parser.add_argument("--before", metavar="FOLDER", help="with --tiny: an earlier package")
    parser.add_argument("--size", type=int, default=SIZE, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = resolve_precision(options.precision)
    if options.one:
        hold(options)
        return
    if options.tiny:
        rows = [*compare_tiny(options)]
        head = {"method": METHOD, "preset": "tiny", "precision": options.precision}
        machine = {**common.machine(), "threads": 1}
        print(json.dumps({**head, "rows": rows, "machine": machine}, indent=1))
        return
    rows = compare(options)
    quotients = ratios(rows, options.compile) if DIFFUSERS in installed() else {}
    head = {"contenders": rows, "network": "ddpm-cifar10", "batch_size": options.batch_size}
    result = {**quotients, **head, "precision": options.precision, "machine": common.machine()}
    if not options.json:
        show(rows)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
