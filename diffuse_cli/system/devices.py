"""The machine of a run: its Accelerator, device, precision and processes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.system.errors import UsageError, lookup
from diffuse_cli.system.memory import keep_freed_memory
from diffuse_cli.system.processes import launched

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

GAINING_WIDTHS = {("amx_bf16", ""): 32, ("avx512_bf16", "AMD"): 24}
"""The channels from which on `auto` is bf16, by instruction and maker of the processor; the first
row that fits counts (benchmarks/README.md)."""

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
    name: str, device: str = "auto", width: int | None = None, *, own: object = None
) -> str:
    """`auto` becomes a model's own precision, else bf16 where a table says that the device gains by
    it, else fp32; other names stay. No clock is asked: equal machines choose alike.

    Args:
        width: channels of the network, which a processor's gain depends on; None of a wide one.
        own: the precision that a model was trained in; another is chosen where the device lacks it.

    Raises:
        UsageError: no such precision or device, or fp16 without a GPU.
    """
    lookup(PRECISIONS, name, "--precision")
    device = device_type(device)
    if name == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU", "Choose bf16 or fp32")
    if name != "auto":
        return name
    has = {"fp32": True, "bf16": has_bfloat16(device), "fp16": device != "cpu"}
    for possible in has:
        if own == possible and has[possible]:
            return possible
    least = gaining_width(device)
    return "bf16" if least is not None and (width is None or width >= least) else "fp32"


def has_bfloat16(device: str) -> bool:
    """Whether a type of device has instructions for bfloat16, as far as PyTorch knows."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and any(map(_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16")))


def gaining_width(device: str) -> int | None:
    """Return the least channels of a network that is faster in bfloat16 on a type of device; None
    if no network is known to be."""
    if device != "cpu":
        return 1 if has_bfloat16(device) else None
    has = _capabilities()
    make = str(has.get("cpu_name", ""))
    fitting = (w for (name, of), w in GAINING_WIDTHS.items() if has.get(name) and of in make)
    return next(fitting, None)


def _capabilities() -> Mapping[str, Any]:
    """Return the processor's instructions, as far as this version of PyTorch tells."""
    import torch

    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def slow_precision(name: str, device: str) -> Iterator[str]:
    """Warn of a precision that someone passed and this processor is slow in."""
    if name == "bf16" and device_type(device) == "cpu" and gaining_width("cpu") is None:
        yield "--precision bf16: this processor is not known to gain by it. Try --precision fp32"


ALONE = threading.RLock()
"""Held by a thread while it changes what belongs to the whole process."""


_reading = threading.local()


@contextlib.contextmanager
def reading_sample() -> Iterator[None]:
    """Inside the block, in which a program's code makes a sample, refuse this thread a machine."""
    _reading.sample = True
    try:
        yield
    finally:
        _reading.sample = False


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold `ALONE`.

    Raises:
        UsageError: a sample in memory asks for it: who waits for the sample may hold it, and
            computes with what would be changed.
    """
    if getattr(_reading, "sample", False):
        raise UsageError(
            "samples cannot be generated while a command reads them from memory",
            "Generate them before, into a list",
        )
    with ALONE:
        yield


class Turns:
    """Turns of one training run among others of this process.

    Inside a turn the generators of PyTorch and the state of Accelerate belong to the run. Other
    threads wait.
    """

    def __init__(self) -> None:
        self._own: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take a turn, and put everything back as the program had it."""
        import torch
        from accelerate.state import AcceleratorState, GradientState

        shared = AcceleratorState._shared_state, GradientState._shared_state
        there = torch.cuda.is_available() and torch.cuda.is_initialized()
        with _alone(), torch.random.fork_rng([torch.cuda.current_device()] if there else []):
            theirs = [dict(state) for state in shared]
            _set_states(shared, self._own)
            try:
                yield
            finally:
                self._own = [dict(state) for state in shared]
                _set_states(shared, theirs)


def _set_states(states: Iterable[dict[str, Any]], to: Iterable[dict[str, Any]]) -> None:
    """Give each state these values, without a moment in which it has none."""
    for state, values in zip(states, to, strict=False):
        state.update(values)
        for name in state.keys() - values.keys():
            del state[name]


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
        precision: `auto` depends on the network: float32 until `settle`.
        device: one of `DEVICES`.
        accumulation: forward passes per step.
        log: a tracker, which writes under `folder`.

    Raises:
        UsageError: as `resolve_precision` does; processes that a launcher started do not see each
            other; the tracker is not installed; or a sample in memory asks for it.
    """
    device = device_type(device)
    precision = "fp32" if precision == "auto" else resolve_precision(precision, device)
    if launched() > 1 and "MASTER_ADDR" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {launched()}, but no launcher set MASTER_ADDR", LAUNCH)
    if log is not None and importlib.util.find_spec(log) is None:
        raise UsageError(f"--log {log}: it is not installed", f"Install it: pip install {log}")
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    with _alone():
        AcceleratorState._reset_state()
        GradientState._reset_state()
        if device == "cuda":
            _set_products(precision)
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False  # which chooses kernels by their time
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


def _set_products(precision: str) -> None:
    """Allow TF32 for what a GPU does not compute in 16 bits, except with fp32, which is exact."""
    import torch

    exact = precision == "fp32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact


def settle(accelerator: Accelerator, precision: str) -> str:
    """Let an Accelerator that was made for `auto` compute in what its network decided.

    The precision is exact. Returns the first process's: they may be on different machines.
    """
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        precision = gather_object([precision])[0]
    if precision == "bf16" and accelerator.mixed_precision == "no":
        # As its constructor does. Another Accelerator would need a new group of processes.
        accelerator.state._mixed_precision = PRECISIONS[precision]
        accelerator.native_amp = True
        if accelerator.device.type == "cuda":
            _set_products(precision)
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


def machine_or(
    given: Accelerator | None, precision: str, device: str = "auto"
) -> contextlib.AbstractContextManager[Accelerator]:
    """Return the given Accelerator, which stays open, or a new one.

    With several processes, each can make only one in its life.

    Raises:
        UsageError: as `machine` does.
    """
    return machine(precision, device) if given is None else contextlib.nullcontext(given)


def made_with(accelerator: Accelerator) -> dict[str, str]:
    """Return the versions and the machine behind a number; others may round differently."""
    import platform

    import numpy as np
    import torch

    from diffuse_cli.system import __version__

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
