"""The machine: the one maker of an Accelerator, the precision that suits it, and every draw.

No generator state is ever saved. A draw is keyed by (seed, purpose, indices), so that it is the
same whatever was drawn before it, on however many processes.
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
    from torch import Tensor

BLOCK = 8
"""Positions of the global batch that share a generator."""

WORTH_ITS_DIGITS = 1.25
"""`auto` is bf16 on a processor that is so many times faster in it."""

PRECISIONS = {"auto": "", "fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Precision by name, as Accelerate calls it."""

LAUNCH = "Start them with torchrun, or with accelerate launch --multi_gpu"

TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive")
"""Trackers that Accelerate knows, each by the name of its package."""


# -- the machine ----------------------------------------------------------------------------------


def rank() -> int:
    """The index of this process among those a launcher started; 0 where it is alone."""
    return int(os.environ.get("RANK", "0") or 0)


def device_type() -> str:
    """`cuda`, `mps`, ... or `cpu`, without making an Accelerator."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None else "cpu"


def resolve_precision(name: str) -> str:
    """`auto` becomes bf16 where the hardware gains by it, else fp32; other names stay.

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

    What a processor says it can do does not tell: with matrix units it was 9, with AVX-512 alone
    2.2 on one make and 0.5 on another. Measured in a few hundredths of a second.
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
    """Let the C library keep the memory that tensors free, for the next ones.

    glibc returns large blocks to the system, which clears every page of them again: a tenth of a
    training step on a processor. Other C libraries have no such switch and are left alone.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(mmap_threshold, 2**30)
        set_option(trim_threshold, 2**31 - 1)


def free_memory(device: str) -> int:
    """Bytes that a process may still take on a device, or of the machine where it is `cpu`."""
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
    """What the control groups of this process leave it; pages of files are given back."""
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
    """What `ulimit -v` leaves."""
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0])
            return limit - used * os.sysconf("SC_PAGE_SIZE")
    return UNLIMITED


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, of the device or of the machine, ran out."""
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
"""What oneDNN says where it has no memory for the code that it writes, or may not write any."""

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
"""What is said where no error of its own says it: by PyTorch on Metal and on processors, and by
Python, which may find no memory for the error either."""


def _may_write_code() -> bool:
    """Whether a process may run code that it wrote, which some services' settings forbid."""
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
"""How long processes wait for one that reads, draws or measures alone: torch would end them after
10 minutes on GPUs and 30 elsewhere. A launcher notices at once when one has gone."""


@contextlib.contextmanager
def machine(
    precision: str, *, accumulation: int = 1, log: str | None = None, folder: Path | None = None
) -> Iterator[Accelerator]:
    """The Accelerator of this run, ended on every way out.

    Args:
        precision: a resolved name of `PRECISIONS`.
        accumulation: forward passes a step.
        log: a tracker, writing under `folder`.

    Raises:
        UsageError: a launcher started several processes that do not see each other, or the
            tracker is not installed.
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
        # Beside bfloat16 the rest may be fast; fp32 means float32 throughout.
        exact = precision == "fp32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cudnn.deterministic = True
    if device == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(
        mixed_precision=PRECISIONS[precision],
        cpu=device == "cpu",
        # The plugin, since the plain argument gives way to an environment variable.
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


@contextlib.contextmanager
def machine_or(given: Accelerator | None, precision: str) -> Iterator[Accelerator]:
    """The Accelerator that is given, which stays, or that of a run of its own.

    A process has one in its life where there are several processes.

    Raises:
        UsageError: as `machine` and `resolve_precision` do.
    """
    if given is not None:
        yield given
        return
    with machine(resolve_precision(precision)) as accelerator:
        yield accelerator


def made_with(accelerator: Accelerator) -> dict[str, str]:
    """The versions and the machine behind a number: another machine may round differently."""
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
    """The order of n images in an epoch."""
    return philox(seed, "order", epoch).permutation(n)


def draw_noise(seed: int, purpose: str, *index: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise in float32 on the CPU."""
    import numpy as np
    import torch

    values = philox(seed, purpose, *index).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(values)


def image_noise(
    seed: int, indices: Sequence[int], draw: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """The `draw`-th noise of each image of a sample, shape (B, *shape); -1 is where it starts."""
    import torch

    noise = torch.stack([draw_noise(seed, "image", i, draw, shape=shape) for i in indices])
    return noise.to(device)


@dataclass(frozen=True)
class Draws:
    """The randomness of positions of one step.

    Attributes:
        u: (B,) in [0, 1), from which a timestep follows.
        noise: (B, C, H, W).
        flip: (B,), whether the image is mirrored.
        drop: (B,) in [0, 1), from which it follows whether the label is left out.
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
    """The draws of some positions of the global batch, in blocks of 8 with a generator each.

    The same position draws the same on one or many processes and with any accumulation.
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
    """Fix what modules draw themselves, such as dropout."""
    import torch

    torch.manual_seed(key(seed, "modules", step, microbatch, process) & 0xFFFF_FFFF)


def share(n: int, parts: int, index: int) -> range:
    """The `index`-th of `parts` contiguous shares of 0 ... n-1, as even as can be."""
    return range(n * index // parts, n * (index + 1) // parts)
