"""The machine: its Accelerator, precision and memory, and all random numbers.

No generator state is saved. A draw is keyed by (seed, purpose, indices): it does not depend on
earlier draws or the number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.errors import UsageError, lookup

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator
    from PIL.Image import Image
    from torch import Tensor

BLOCK = 8
"""Positions of the global batch that share a generator."""

WORTH_ITS_DIGITS = 1.25
"""`auto` is bf16 on a processor that is this many times faster in it."""

PRECISIONS = {"auto": "", "fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Accelerate's name of each precision."""

LAUNCH = "Start them with torchrun, or with accelerate launch --multi_gpu"

TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive")
"""Accelerate's trackers, named as their packages."""

BATCHED: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
"""Trackers that take pictures as a batch (N, H, W, 3), with these arguments; the others that take
any want a single one (H, W, 3)."""


# -- the machine ----------------------------------------------------------------------------------


def rank() -> int:
    """The index of this process among those of a launcher; 0 if it is alone."""
    return int(os.environ.get("RANK", "0") or 0)


def device_type() -> str:
    """`cuda`, `mps`, ... or `cpu`."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None else "cpu"


def resolve_precision(name: str) -> str:
    """`auto` becomes bf16 if that is faster here, else fp32; other names stay.

    Raises:
        UsageError: no such precision, or fp16 without a GPU.
    """
    lookup(PRECISIONS, name, "--precision")
    device = device_type()
    if name == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU", "Choose bf16 or fp32")
    if name != "auto":
        return name
    return "bf16" if _gains_by_bfloat16(device) else "fp32"


def _gains_by_bfloat16(device: str) -> bool:
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
            return bfloat16_speed() > WORTH_ITS_DIGITS
    return False


@functools.cache
def bfloat16_speed() -> float:
    """How many times faster a convolution is in bfloat16 than in float32 on this processor.

    Capabilities do not tell: it was 9 with matrix units, and with AVX-512 alone 2.2 or 0.5 by make.
    Measuring takes a few hundredths of a second.
    """
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(2, 128, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.ones(128, 128, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        times = []
        for _ in range(6):
            began = time.perf_counter()
            torch.conv2d(x, weight, padding=1)
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors.

    It returns large blocks to the system, which clears their pages again: a tenth of a training
    step on a processor. Other C libraries have no such switch.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(mmap_threshold, 2**30)
        set_option(trim_threshold, 2**31 - 1)


def free_memory(device: str) -> int:
    """Bytes still free on a device, or for this process on the machine if it is `cpu`."""
    import torch

    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_free_of_system(), _free_of_group(), _free_of_limit())


def processes_here() -> int:
    """Processes of this run that share the machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)


UNLIMITED = 2**62


def _free_of_system() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return UNLIMITED


def _free_of_group(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process's control groups leave; cached file pages count as free."""
    free = UNLIMITED
    with contextlib.suppress(OSError, ValueError, IndexError):
        own = Path("/proc/self/cgroup").read_text().splitlines()[0].split("::")[-1]
        folder = root / own.lstrip("/")
        for group in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):
                limit = int((group / "memory.max").read_text())
                stat = dict(s.split() for s in (group / "memory.stat").read_text().splitlines())
                used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
                free = min(free, limit - used)
            if group == root:
                break
    return free


def _free_of_limit() -> int:
    """Bytes that `ulimit -v` leaves."""
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0])
            return limit - used * os.sysconf("SC_PAGE_SIZE")
    return UNLIMITED


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that the device or the machine ran out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    if _NO_PRIMITIVE in text and not _may_write_code():
        return False
    return any(
        isinstance(error, kind) and any(words in text for words in said)
        for kind, said in _NO_MEMORY.items()
    )


_NO_PRIMITIVE = "could not create a primitive"
"""oneDNN's error if it has no memory for generated code, or may not run any."""

_NO_MEMORY: dict[type[Exception], tuple[str, ...]] = {
    RuntimeError: (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "std::bad_alloc",
        _NO_PRIMITIVE,
    ),
    SystemError: ("error return without exception set", "without setting an exception"),
}
"""Errors that mean it in PyTorch on Metal and processors, and in Python without memory to build the
proper error."""


def _may_write_code() -> bool:
    """Whether a process may run code that it generated; some services forbid it."""
    import mmap

    if not hasattr(mmap, "PROT_EXEC"):  # Windows
        return True
    try:
        mmap.mmap(-1, 1, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:
        return False
    except OSError:  # no memory for it
        return True
    return True


WAIT = timedelta(days=1)
"""How long processes wait for one that works alone; torch's defaults of 10 minutes on GPUs and 30
elsewhere are too short. Launchers notice at once if one dies."""


@contextlib.contextmanager
def machine(
    precision: str, *, accumulation: int = 1, log: str | None = None, folder: Path | None = None
) -> Iterator[Accelerator]:
    """The Accelerator of this run, ended on exit.

    Args:
        precision: as `resolve_precision` returns it.
        accumulation: forward passes per step.
        log: a tracker, which writes under `folder`.

    Raises:
        UsageError: processes that a launcher started do not see each other, or the tracker is not
            installed.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1") or 1)
    if launched > 1 and "MASTER_ADDR" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {launched}, but no launcher set MASTER_ADDR", LAUNCH)
    if log is not None and importlib.util.find_spec(log) is None:
        raise UsageError(f"--log {log}: it is not installed", f"Install it: pip install {log}")
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    AcceleratorState._reset_state()
    GradientState._reset_state()
    device = device_type()
    if device == "cuda":
        # fp32 means float32 throughout; with other precisions TF32 is good enough.
        exact = precision == "fp32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cudnn.deterministic = True
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
    if launched > 1 and accelerator.num_processes == 1:
        raise UsageError(f"{launched} processes were started, but each sees only itself", LAUNCH)
    try:
        yield accelerator
    finally:
        accelerator.end_training()


def log_picture(accelerator: Accelerator, name: str, picture: Image, step: int) -> None:
    """Show a picture in those of the Accelerator's trackers that take pictures."""
    import numpy as np

    pixels = np.asarray(picture.convert("RGB"))
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            shown = pixels[None] if tracker.name in BATCHED else pixels
            tracker.log_images({name: shown}, step=step, **BATCHED.get(tracker.name, {}))


@contextlib.contextmanager
def machine_or(given: Accelerator | None, precision: str) -> Iterator[Accelerator]:
    """The given Accelerator, which stays open, or a new one.

    With several processes, each can make only one in its life.

    Raises:
        UsageError: as `machine` and `resolve_precision` do.
    """
    if given is not None:
        yield given
        return
    with machine(resolve_precision(precision)) as accelerator:
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


# -- draws ----------------------------------------------------------------------------------------


def key(seed: int, purpose: str, *index: int) -> int:
    """128 bits that depend on every argument."""
    text = "/".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def philox(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """NumPy's counter-based generator under `key`."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *index)))


def permutation(seed: int, epoch: int, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order of n samples in an epoch."""
    return philox(seed, "order", epoch).permutation(n)


def draw_noise(seed: int, purpose: str, *index: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32, on the CPU."""
    import numpy as np
    import torch

    values = philox(seed, purpose, *index).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(values)


def image_noise(
    seed: int, indices: Sequence[int], draw: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """The noise of step `draw` of each image, (B, *shape); that of step -1 starts sampling."""
    import torch

    noise = torch.stack([draw_noise(seed, "image", i, draw, shape=shape) for i in indices])
    return noise.to(device)


@dataclass(frozen=True)
class Draws:
    """The random numbers of some positions of a step.

    Attributes:
        u: (B,) in [0, 1), decides the timestep.
        noise: (B, *shape).
        flip: (B,), whether to mirror the sample.
        drop: (B,) in [0, 1), decides whether the label is dropped.
    """

    u: Tensor
    noise: Tensor
    flip: Tensor
    drop: Tensor


def training_draws(
    seed: int,
    step: int,
    positions: range,
    *,
    shape: Sequence[int],
    device: torch.device,
    purpose: str = "training",
) -> Draws:
    """The draws of some positions of the global batch, with a generator for each block of 8.

    They depend on neither the number of processes nor the accumulation.
    """
    import torch

    first, last = positions.start // BLOCK, (positions.stop - 1) // BLOCK
    blocks = []
    for block in range(first, last + 1):
        generator = torch.Generator(device).manual_seed(
            key(seed, purpose, step, block) & 0x7FFF_FFFF_FFFF_FFFF
        )
        options: dict[str, Any] = {"generator": generator, "device": device}
        u, flip, drop = torch.rand((3, BLOCK), **options)
        noise = torch.randn((BLOCK, *shape), **options)
        blocks.append((u, noise, flip < 0.5, drop))
    part = slice(positions.start - first * BLOCK, positions.stop - first * BLOCK)
    return Draws(*(torch.cat(values)[part] for values in zip(*blocks, strict=True)))


def seed_modules(seed: int, step: int, microbatch: int, process: int) -> None:
    """Seed what modules draw themselves, such as dropout."""
    import torch

    torch.manual_seed(key(seed, "modules", step, microbatch, process) & 0xFFFF_FFFF)


def share(n: int, parts: int, index: int) -> range:
    """The `index`-th of `parts` contiguous shares of 0 ... n-1, as even as can be."""
    return range(n * index // parts, n * (index + 1) // parts)
