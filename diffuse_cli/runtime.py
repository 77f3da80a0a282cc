"""The machine of a run: its Accelerator, device, precision and processes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse_cli.errors import UsageError, lookup
from diffuse_cli.memory import keep_freed_memory

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

WORTH_ITS_DIGITS = 1.25
"""`auto` is bf16 on a processor that is this many times faster in it."""

SLOW = 0.9
"""Whoever asks for bf16 hears of it on a processor that is less than so many times as fast."""

PRECISIONS = {"auto": "", "fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Accelerate's name of each precision."""

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")

LAUNCH = "Start them with torchrun, or with accelerate launch --multi_gpu"

TRACKERS = (
    "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio",
)  # fmt: skip
"""Accelerate's trackers, named as their packages."""

BATCHED: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
"""Trackers that take pictures as a batch (N, H, W, 3), with these arguments; the others that take
any want a single one (H, W, 3)."""

AS_VALUES = {"trackio": "Image"}
"""Trackers that log pictures as values, and the class of such a value in their package."""

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables by which users say how threads wait for each other."""

SPINS = 3000
"""How often a waiting thread looks again before it sleeps, of GNU's OpenMP, whose own number is
300,000 (benchmarks/README.md)."""


def wait_briefly() -> None:
    """Let threads that wait for each other sleep soon; to be called before torch is imported.

    A thread that looks again and again, as PyTorch's do, holds up the one that it waits for where
    another process has taken its core. A user's own setting stays.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def rank() -> int:
    """The index of this process among those of a launcher; 0 if it is alone."""
    return int(os.environ.get("RANK", "0") or 0)


def launched() -> int:
    """How many processes a launcher started, this one among them; 1 if there was none."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def device_type(wanted: str = "auto") -> str:
    """`cuda`, `mps`, ... or `cpu`: the wanted one, or the GPU that PyTorch sees, if any.

    Raises:
        UsageError: the wanted one is not here.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = accelerator.type if accelerator is not None else "cpu"
    if wanted not in ("auto", "cpu", found):
        raise UsageError(f"--device {wanted}: PyTorch sees none here", f"Choose {found}")
    return found if wanted == "auto" else wanted


def resolve_precision(
    name: str, device: str = "auto", width: int | None = None, *, backward: bool = False
) -> str:
    """`auto` becomes bf16 if that is faster here, else fp32; other names stay.

    Args:
        width: channels of the network, which a processor is measured at; None of a wide one.
        backward: whether it is trained.

    Raises:
        UsageError: no such precision or device, or fp16 without a GPU.
    """
    lookup(PRECISIONS, name, "--precision")
    device = device_type(device)
    if name == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU", "Choose bf16 or fp32")
    if name != "auto":
        return name
    return "bf16" if _gains_by_bfloat16(device, width, backward) else "fp32"


def _gains_by_bfloat16(device: str, width: int | None, backward: bool) -> bool:
    if not has_bfloat16(device):
        return False
    return device != "cpu" or bfloat16_speed(width, backward=backward) > WORTH_ITS_DIGITS


def has_bfloat16(device: str) -> bool:
    """Whether a type of device has instructions for bfloat16, as far as PyTorch knows."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def slow_precision(name: str, device: str, width: int | None, *, backward: bool) -> Iterator[str]:
    """What to tell someone who typed a precision that this processor is slow in, if it is."""
    if name == "bf16" and device_type(device) == "cpu":
        speed = bfloat16_speed(width, backward=backward)
        if speed < SLOW:
            yield (
                f"--precision bf16: a convolution takes {1 / speed:.1f} times as long in bfloat16 "
                "as in float32 on this processor: try --precision fp32"
            )


WIDE, ROUNDS = 128, 5
"""Channels beyond which the ratio of precisions stays as it is, and rounds that measure it."""


def bfloat16_speed(width: int | None = None, *, backward: bool = False) -> float:
    """How many times faster a convolution is in bfloat16 than in float32 on this processor.

    Capabilities do not tell: it was 9 with matrix units, and with AVX-512 alone 2.2 or 0.5 by make.
    Narrow networks gain less, and the backward pass may gain less than the forward one. Measuring
    takes a few hundredths of a second, once for each width, on any number of threads.
    """
    return _bfloat16_speed(min(width or WIDE, WIDE), backward)


@functools.cache
def _bfloat16_speed(width: int, backward: bool) -> float:
    import torch

    # With an image a thread, the backward pass of two threads gained nothing; with more it did.
    batch, side = 2 * torch.get_num_threads(), 16 if width > WIDE // 2 else 32
    tensors = {
        dtype: [
            torch.ones(shape, dtype=dtype)
            .to(memory_format=torch.channels_last)
            .requires_grad_(backward)
            for shape in ((batch, width, side, side), (width, width, 3, 3))
        ]
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(tensors, math.inf)
    for _ in range(ROUNDS):  # by turns: what else the machine does slows both
        for dtype, (x, weight) in tensors.items():
            began = time.perf_counter()
            y = torch.conv2d(x, weight, padding=1)
            if backward:
                torch.autograd.grad(y, (x, weight), y.detach())
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - began)
    return seconds[torch.float32] / seconds[torch.bfloat16]


WAIT = timedelta(days=1)
"""How long processes wait for one that works alone; torch's defaults of 10 minutes on GPUs and 30
elsewhere are too short. Launchers notice at once if one dies."""


@contextlib.contextmanager
def machine(
    precision: str,
    device: str = "auto",
    *,
    accumulation: int = 1,
    log: str | None = None,
    folder: Path | None = None,
) -> Iterator[Accelerator]:
    """The Accelerator of this run, ended on exit.

    Args:
        precision: `auto` on a processor depends on the network: float32 until `settle`.
        device: one of `DEVICES`.
        accumulation: forward passes per step.
        log: a tracker, which writes under `folder`.

    Raises:
        UsageError: as `resolve_precision` does; processes that a launcher started do not see each
            other; or the tracker is not installed.
    """
    device = device_type(device)
    still_open = precision == "auto" and device == "cpu"
    precision = "fp32" if still_open else resolve_precision(precision, device)
    if launched() > 1 and "MASTER_ADDR" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {launched()}, but no launcher set MASTER_ADDR", LAUNCH)
    if log is not None and importlib.util.find_spec(log) is None:
        raise UsageError(f"--log {log}: it is not installed", f"Install it: pip install {log}")
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    AcceleratorState._reset_state()
    GradientState._reset_state()
    if device == "cuda":
        # fp32 means float32 throughout; with other precisions TF32 is good enough.
        exact = precision == "fp32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cudnn.deterministic = True
        # Its backward pass has given NaN in half precision; the other fused kernels stay.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if device == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(
        mixed_precision=PRECISIONS[precision],
        cpu=device == "cpu",
        # A plugin: an environment variable overrides the plain argument.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        log_with=log,
        project_dir=folder,
    )
    if launched() > 1 and accelerator.num_processes == 1:
        raise UsageError(f"{launched()} processes were started, but each sees only itself", LAUNCH)
    try:
        yield accelerator
    finally:
        with aside():
            accelerator.end_training()


def settle(accelerator: Accelerator, precision: str) -> str:
    """Let an Accelerator that was made for `auto` compute in what its network decided.

    The precision is exact. Returns the first process's: they measure apart, and might not agree.
    """
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        precision = gather_object([precision])[0]
    if precision == "bf16" and accelerator.mixed_precision == "no":
        # As its constructor does. Another Accelerator would need a new group of processes.
        accelerator.state._mixed_precision = PRECISIONS[precision]
        accelerator.native_amp = True
    return precision


def aside() -> contextlib.AbstractContextManager[object]:
    """Has what trackers print go to stderr: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


def log_picture(accelerator: Accelerator, name: str, picture: Image, step: int) -> None:
    """Show a picture in those of the Accelerator's trackers that take pictures."""
    import numpy as np

    pixels = np.asarray(picture.convert("RGB"))
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            shown = pixels[None] if tracker.name in BATCHED else pixels
            tracker.log_images({name: shown}, step=step, **BATCHED.get(tracker.name, {}))
        elif tracker.name in AS_VALUES:
            value = getattr(importlib.import_module(tracker.name), AS_VALUES[tracker.name])
            tracker.log({name: value(pixels)}, step=step)


@contextlib.contextmanager
def machine_or(
    given: Accelerator | None, precision: str, device: str = "auto"
) -> Iterator[Accelerator]:
    """The given Accelerator, which stays open, or a new one.

    With several processes, each can make only one in its life.

    Raises:
        UsageError: as `machine` does.
    """
    if given is not None:
        yield given
        return
    with machine(precision, device) as accelerator:
        yield accelerator


def made_with(accelerator: Accelerator) -> dict[str, str]:
    """The versions and the machine behind a number; others may round differently."""
    import platform

    import numpy as np
    import torch

    from diffuse_cli import __version__

    device = accelerator.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    return {
        "diffuse": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
