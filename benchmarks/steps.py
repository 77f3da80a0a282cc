"""Training steps of ours and of a baseline, and timing them in turn, for the speed benchmarks.

Ours is the step that `diffuse train` takes, on random pixels. A baseline's is the step of its
training script, from noisy images and timesteps that are drawn beforehand.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffuse_cli.core import Conditions
from diffuse_cli.data import Dataset
from diffuse_cli.data.summary import Summary
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.decisions import complete_config
from diffuse_cli.training.plan import Plan, measure_gaussian
from diffuse_cli.training.trainer import Trainer
from diffuse_cli.training.training_data import TrainingData

Act = Callable[[], object]

WARM_UP = 2
START = 1000
"""The step that ours begins with, as in the middle of a training."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of a baseline: precision, memory format, optimizer, compiler."""

    precision: str = "fp32"
    channels_last: bool = False
    fused: bool = False
    compile: bool = False

    def __str__(self) -> str:
        order = "channels-last" if self.channels_last else "NCHW"
        ends = [", fused"] * self.fused + [", compiled"] * self.compile
        return f"{self.precision}, {order}{''.join(ends)}"

    def place(self, x: Any, device: torch.device) -> Any:
        """A network or images, on the device in this order of memory."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return x.to(device, memory_format=order)

    def autocast(self, device: torch.device) -> Any:
        """Bfloat16 where this setting has it."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


SETTINGS = tuple(
    Setting(precision=precision, channels_last=last, fused=True)
    for precision in ("fp32", "bf16")
    for last in (False, True)
)
"""What is tried to find a baseline's best."""


# -- steps ----------------------------------------------------------------------------------------


def plan(size: int, images: int = 256, **options: Any) -> Plan:
    """A training on random pixels; `options` are those of `diffuse train`."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, size, size), np.uint8)
    found = Dataset(
        stored=pixels,
        labels=np.full(images, -1),
        class_names=(),
        names=tuple(map(str, range(images))),
        digests=np.zeros((images, 16), np.uint8),
        summary=Summary("random pixels", images, images, 3),
    )
    config, blueprint = complete_config(
        configure({"data": "", **options}), found.space, Conditions()
    )
    data = TrainingData(found, np.arange(images), np.arange(0))
    gaussian = measure_gaussian(blueprint, data, config.flip)
    return Plan(config, replace(blueprint, gaussian=gaussian), data)


def ours(plan: Plan, accelerator: Accelerator) -> tuple[Act, Trainer]:
    """Our step: draws, loss, backward, clip, optimizer and average."""
    trainer = Trainer(plan, accelerator)
    steps = itertools.count(START)
    return (lambda: trainer.step(next(steps))), trainer


def theirs(
    net: nn.Module, setting: Setting, batch_size: int, size: int, device: torch.device
) -> Act:
    """A baseline's step: loss, backward, clip, AdamW, and neither draws nor an average."""
    net = setting.place(net.train(), device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=setting.fused or None)
    run = torch.compile(net) if setting.compile else net
    x, noise = (
        setting.place(torch.randn(batch_size, 3, size, size), device) for _ in ("noisy", "target")
    )
    t = torch.randint(0, 1000, (batch_size,), device=device)

    def step() -> None:
        with unbound():
            with setting.autocast(device):
                out = output(run(x, t))
            F.mse_loss(out.float(), noise).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def output(out: Any) -> Tensor:
    """The tensor that a network returns, which diffusers wraps."""
    tensor: Tensor = out if isinstance(out, Tensor) else out.sample
    return tensor


def unbound() -> Any:
    """cuDNN free to choose its algorithms, which our own runs deny it."""
    if not torch.cuda.is_available():
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)


# -- measuring ------------------------------------------------------------------------------------


def timed(act: Act) -> float:
    """Seconds of one call, the device's work included."""
    began = time.perf_counter()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def interleave(
    contenders: Mapping[str, Act], rounds: int, until: float = math.inf, needed: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, a call each, the first one moving on by one.

    Args:
        until: by the monotonic clock. No round begins that would end later; contenders that are not
            warm after a third of the time are left out, except the first `needed` ones.
    """
    began, warm = time.monotonic(), dict[str, float]()
    for i, name in enumerate(contenders):
        if i >= needed and time.monotonic() - began > (until - began) / 3:
            say(f"{name}: left out, for want of time")
            continue
        for _ in range(WARM_UP):
            taken = timed(contenders[name])
        warm[name] = taken
        say(f"{name}: warm, {taken:.3f} s")
    gc.collect()
    names = list(warm)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        each = sum(taken[-1] for taken in seconds.values() if taken)
        if i and time.monotonic() + each > until:
            break
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(timed(contenders[name]))
    return seconds


def typical(seconds: Sequence[float], every: int = 1) -> float:
    """The median of rounds; where every so manieth step does more, as ours moves its average, that
    of those and that of the others, each for its share."""
    first = (-START - WARM_UP - 1) % every
    more = seconds[first::every]
    others = [taken for i, taken in enumerate(seconds) if i % every != first]
    if not more or not others:
        return median(seconds)
    return (median(more) + (every - 1) * median(others)) / every


def speed(seconds: Sequence[float], batch_size: int, every: int = 1) -> dict[str, float]:
    """Samples a second and seconds, as `typical` has them, and the least seconds."""
    middle = typical(seconds, every)
    return {
        "images_per_s": significant(batch_size / middle),
        "seconds": significant(middle),
        "fastest_seconds": significant(min(seconds)),
    }


def gflop(net: nn.Module, size: int) -> float:
    """GFLOP of an image forward; the backward pass takes about twice as many."""
    device = next(net.parameters()).device
    x, t = torch.zeros(2, 3, size, size, device=device), torch.zeros(2, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, t)
    return float(counter.get_total_flops()) / 2e9


def peak() -> float:
    """MiB: the most that this process has held, of the GPU's memory where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with what the parent process held
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
        assert found
        return int(found[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


class Apart:
    """A contender in a process of its own, where nothing of another's settings reaches it.

    A call is one of its steps. The script is one that ends in `serve`.
    """

    def __init__(self, script: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**(os.environ if env is None else env), **QUIET},
        )

    def __call__(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "\n":
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")

    def end(self) -> dict[str, int]:
        """Let it go; its memory, as `serve` says it."""
        text, _ = self.process.communicate()
        found: dict[str, int] = json.loads(text)
        return found


def serve(act: Act, before: float) -> None:
    """Do `act` for each line of stdin, and answer each with a line.

    At the end, print the peak memory of this process in MiB, and how much of it came after `before`
    MiB, which its imports hold.
    """
    for _ in sys.stdin:
        timed(act)
        print(flush=True)
    print(json.dumps({"peak_mib": round(peak()), "over_imports_mib": round(peak() - before)}))


QUIET = {"PYTHONWARNINGS": "ignore"}


def alone(script: str, *arguments: str, limit: float | None = None) -> dict[str, Any]:
    """What a script prints, in a process of its own that is stopped after `limit` seconds."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=limit,
        env={**os.environ, **QUIET},
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# -- showing --------------------------------------------------------------------------------------


def significant(value: float, digits: int = 4) -> float:
    """`value` to so many digits."""
    return float(f"{value:.{digits}g}")


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


def show(rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as a table on stderr, with the columns of all of them."""
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    cells = [columns, *[[_cell(row.get(name)) for name in columns] for row in listed]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        say("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
