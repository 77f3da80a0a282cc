"""Accelerator, device and precision of a run."""

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

from diffuse_cli.system import UsageError, __version__, kernel_settings, lookup
from diffuse_cli.system.memory import keep_freed_memory
from diffuse_cli.system.processes import world_size

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

GAINING_WIDTHS = {("amx_bf16", ""): 32, ("avx512_bf16", "AMD"): 24}
"""Number of channels from which `auto` is bf16, by instruction and maker of the CPU. The first
matching row counts (benchmarks/README.md)."""

PRECISIONS = {"auto": "", "fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Accelerate's names of the precisions."""

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")

LAUNCH = "Start them with torchrun, or with accelerate launch --multi_gpu"

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Accelerate's trackers to choose from, with the names of their packages."""

IMAGE_LAYOUTS = {"tensorboard": {"dataformats": "NHWC"}, "wandb": dict[str, str]()}
"""Trackers that take images, with the arguments for a batch (N, H, W, 3)."""


def device_type(device: str = "auto") -> str:
    """Return the type of device to use: the named type, or for `auto` the GPU, if any, or `cpu`.

    Raises:
        UsageError: PyTorch does not find the device.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    default = accelerator.type if accelerator is not None else "cpu"
    if device not in ("auto", "cpu", default):
        raise UsageError(f"--device {device}: PyTorch does not find one", f"Use --device {default}")
    return default if device == "auto" else device


def resolve_precision(
    name: str, device: str = "auto", width: int | None = None, *, model_precision: object = None
) -> str:
    """Return the precision that a name stands for.

    `auto` is the precision of the model's training, if the device has it. Otherwise it is bf16 if a
    table lists the device as faster with it, else fp32. The choice does not depend on timings, so
    equal machines choose the same precision.

    Args:
        width: channels of the network, which decide about bf16 on a CPU. None is a wide network.
        model_precision: the precision that the model was trained in.

    Raises:
        UsageError: an unknown precision or device, or fp16 without a GPU.
    """
    lookup(PRECISIONS, name, "--precision")
    device = device_type(device)
    if name == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU", "Choose bf16 or fp32")
    if name != "auto":
        return name
    has = {"fp32": True, "bf16": has_bfloat16(device), "fp16": device != "cpu"}
    if isinstance(model_precision, str) and has.get(model_precision):
        return model_precision
    min_width = bfloat16_width(device)
    return "bf16" if min_width is not None and (width is None or width >= min_width) else "fp32"


def has_bfloat16(device: str) -> bool:
    """Whether a type of device has instructions for bfloat16, according to PyTorch."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and any(map(_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16")))


def bfloat16_width(device: str) -> int | None:
    """Return the number of channels from which a network is faster in bfloat16 on a device.

    None means that no network is known to be faster.
    """
    if device != "cpu":
        return 1 if has_bfloat16(device) else None
    has = _capabilities()
    maker = str(has.get("cpu_name", ""))
    fitting = (w for (name, brand), w in GAINING_WIDTHS.items() if has.get(name) and brand in maker)
    return next(fitting, None)


def _capabilities() -> Mapping[str, Any]:
    """Return the CPU's instructions, if this version of PyTorch lists them."""
    import torch

    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def can_compile(device: str) -> bool:
    """Whether PyTorch can compile networks for a type of device with Triton."""
    return device == "cuda" and importlib.util.find_spec("triton") is not None


def slow_precision(name: str, device: str) -> Iterator[str]:
    """Yield a warning if the user passed a precision that may be slow on this CPU."""
    if name == "bf16" and device_type(device) == "cpu" and bfloat16_width("cpu") is None:
        yield "--precision bf16 may be slower than fp32 on this CPU. Try --precision fp32"


ALONE = threading.RLock()
"""Lock that a thread holds while it changes state of the whole process."""


_reading = threading.local()


@contextlib.contextmanager
def forbid_accelerator() -> Iterator[None]:
    """Refuse this thread an Accelerator inside the block, where a program's code makes a sample."""
    _reading.sample = True
    try:
        yield
    finally:
        _reading.sample = False


@contextlib.contextmanager
def _hold_process_state() -> Iterator[None]:
    """Hold `ALONE`.

    Raises:
        UsageError: code that makes a sample in memory asks for it. The thread that waits for the
            sample may hold the lock, and computes with the state that would change.
    """
    if getattr(_reading, "sample", False):
        text = "samples cannot be generated while a command reads them from memory"
        raise UsageError(text, "Generate them first, into a list")
    with ALONE:
        yield


class RunProcessState:
    """Process state of a training run, which takes turns with other runs of this process.

    During a turn, the generators of PyTorch, its settings of kernels and the state of Accelerate
    belong to the run, and other threads wait.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []
        self._settings: dict[str, Any] | None = None

    @contextlib.contextmanager
    def take_turn(self) -> Iterator[None]:
        """Take a turn, and restore the program's state afterwards."""
        import torch
        from accelerate.state import AcceleratorState, GradientState, PartialState

        shared = [AcceleratorState._shared_state, GradientState._shared_state]
        if world_size() == 1:  # else all runs share the group of processes
            shared.append(PartialState._shared_state)
        has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        with (
            _hold_process_state(),
            torch.random.fork_rng([torch.cuda.current_device()] if has_cuda else []),
            kernel_settings.restore_kernel_settings(),
        ):
            program_states = [dict(state) for state in shared]
            _set_states(shared, self._states)
            if self._settings is not None:
                kernel_settings.set_kernel_settings(self._settings)
            try:
                yield
            finally:
                self._settings = kernel_settings.read_kernel_settings()
                self._states = [dict(state) for state in shared]
                _set_states(shared, program_states)


def _set_states(states: Iterable[dict[str, Any]], to: Iterable[dict[str, Any]]) -> None:
    """Set the values of each state, which is never empty meanwhile."""
    for state, values in zip(states, to, strict=False):
        state.update(values)
        for name in state.keys() - values.keys():
            del state[name]


WAIT = timedelta(days=1)
"""Time limit for processes that wait for another. The defaults of torch, 10 minutes on GPUs and 30
elsewhere, are too short. Launchers notice at once if a process dies."""


_GROUPS: list[Any] = []
"""Process groups, which are never freed. Freeing one waits for gloo's threads while it holds the
GIL, and a thread that frees its last tensor waits for the GIL."""


@contextlib.contextmanager
def open_accelerator(
    precision: str,
    device: str = "auto",
    *,
    accumulation: int = 1,
    log: str | None = None,
    folder: Path | None = None,
) -> Iterator[Accelerator]:
    """Set up the Accelerator of a run, and end it on exit.

    Args:
        precision: the precision. `auto` is float32 until `apply_precision`, because it depends on
            the network.
        device: one of `DEVICES`.
        accumulation: forward passes per step.
        log: a tracker, which writes to `folder`.

    Raises:
        UsageError: see `resolve_precision`. Also if the processes of a launcher do not see each
            other, the tracker is not installed, or code that makes a sample in memory asks for it.
    """
    device = device_type(device)
    precision = "fp32" if precision == "auto" else resolve_precision(precision, device)
    if world_size() > 1 and "MASTER_ADDR" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {world_size()}, but no launcher set MASTER_ADDR", LAUNCH)
    if log is not None and importlib.util.find_spec(log) is None:
        raise UsageError(f"--log {log}: it is not installed", f"Install it: pip install {log}")
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    with kernel_settings.hold_cuda_settings(device, precision):
        with _hold_process_state():
            # Its device is the first run's. With several processes, it also has their group.
            AcceleratorState._reset_state(reset_partial_state=world_size() == 1)
            GradientState._reset_state()
            if device == "cpu":
                keep_freed_memory()
            accelerator = Accelerator(
                mixed_precision=PRECISIONS[precision],
                cpu=device == "cpu",
                # A plugin, because an environment variable overrides the plain argument.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
                log_with=log,
                project_dir=folder,
            )
        if accelerator.num_processes > 1:
            _GROUPS.append(torch.distributed.group.WORLD)
        if world_size() > 1 and accelerator.num_processes == 1:
            text = f"{world_size()} processes were started, but each sees only itself"
            raise UsageError(text, LAUNCH)
        try:
            yield accelerator
        finally:
            with redirect_trackers():
                accelerator.end_training()


def apply_precision(accelerator: Accelerator, precision: str) -> str:
    """Set the exact precision of an Accelerator that was made for `auto`, and return it.

    All processes use the first one's precision, because they may be on different machines.
    """
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        precision = gather_object([precision])[0]
    if precision == "bf16" and accelerator.mixed_precision == "no":
        # Like its constructor. Another Accelerator would need a new group of processes.
        accelerator.state._mixed_precision = PRECISIONS[precision]
        accelerator.native_amp = True
        if accelerator.device.type == "cuda":
            kernel_settings.set_product_precision(precision)
    return precision


def redirect_trackers() -> contextlib.AbstractContextManager[object]:
    """Redirect the output of trackers to stderr, because stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


def log_image(accelerator: Accelerator, name: str, picture: Image, step: int) -> None:
    """Log a picture to the Accelerator's trackers that take images."""
    import numpy as np

    images = {name: np.asarray(picture.convert("RGB"))[None]}
    for tracker in accelerator.trackers:
        if tracker.name in IMAGE_LAYOUTS:
            tracker.log_images(images, step=step, **IMAGE_LAYOUTS[tracker.name])


def reuse_accelerator(
    given: Accelerator | None, precision: str, device: str = "auto"
) -> contextlib.AbstractContextManager[Accelerator]:
    """Return the given Accelerator, which stays open, or a new one.

    Each of several processes can make only one Accelerator in its life.

    Raises:
        UsageError: see `open_accelerator`.
    """
    return open_accelerator(precision, device) if given is None else contextlib.nullcontext(given)


def describe_environment(accelerator: Accelerator) -> dict[str, str]:
    """Return the versions and the machine of a result, because others may round differently."""
    import platform

    import numpy as np
    import torch

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
