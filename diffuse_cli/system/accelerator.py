"""Accelerator of a run, its turns with other runs of the process, its trackers and environment."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.system import UsageError, __version__, devices
from diffuse_cli.system.memory import keep_freed_memory
from diffuse_cli.system.processes import world_size

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

LAUNCH = "Start them with torchrun, or with accelerate launch --multi_gpu"

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Accelerate's trackers to choose from, with the names of their packages."""

IMAGE_LAYOUTS = {"tensorboard": {"dataformats": "NHWC"}, "wandb": dict[str, str]()}
"""Trackers that take images, with the arguments for a batch (N, H, W, 3)."""

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
            devices.restore_kernel_settings(),
        ):
            program_states = [dict(state) for state in shared]
            _set_states(shared, self._states)
            if self._settings is not None:
                devices.set_kernel_settings(self._settings)
            try:
                yield
            finally:
                self._settings = devices.read_kernel_settings()
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
        precision: the precision. `auto` is float32 until `devices.apply_precision`, because it
            depends on the network.
        device: one of `devices.DEVICES`.
        accumulation: forward passes per step.
        log: a tracker, which writes to `folder`.

    Raises:
        UsageError: see `devices.resolve_precision`. Also if the processes of a launcher do not see
            each other, the tracker is not installed, or code that makes a sample in memory asks
            for it.
    """
    device = devices.device_type(device)
    precision = "fp32" if precision == "auto" else devices.resolve_precision(precision, device)
    if world_size() > 1 and "MASTER_ADDR" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {world_size()}, but no launcher set MASTER_ADDR", LAUNCH)
    if log is not None and importlib.util.find_spec(log) is None:
        text = f"--log {log}: it is not installed"
        raise UsageError(text, f"Install it: pip install {log}", code="package_missing")
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    with devices.hold_cuda_settings(device, precision):
        with _hold_process_state():
            # Its device is the first run's. With several processes, it also has their group.
            AcceleratorState._reset_state(reset_partial_state=world_size() == 1)
            GradientState._reset_state()
            if device == "cpu":
                keep_freed_memory()
            accelerator = Accelerator(
                mixed_precision=devices.PRECISIONS[precision],
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


def redirect_trackers() -> contextlib.AbstractContextManager[object]:
    """Redirect the output of trackers to stderr, because stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


def log_image(accelerator: Accelerator, name: str, picture: Image, step: int) -> None:
    """Log a picture to the Accelerator's trackers that take images."""
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
