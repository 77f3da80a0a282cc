"""Free memory, and errors that mean that memory ran out."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors.

    By default it returns large blocks to the system, which then clears their pages again. That
    takes a tenth of a training step on a CPU. Other C libraries do not have this option.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(mmap_threshold, 2**30)
        set_option(trim_threshold, 2**31 - 1)


def free_memory(device: str) -> int:
    """Return the free bytes of a device, with memory that PyTorch has cached.

    For `cpu`, this process's limits count too.
    """
    import torch

    if device in ("cuda", "xpu"):
        gpu = getattr(torch, device)
        unreported = (RuntimeError,) if device == "xpu" else ()  # by some Intel drivers
        with contextlib.suppress(*unreported):
            return int(gpu.mem_get_info()[0] + gpu.memory_reserved() - gpu.memory_allocated())
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(_free_of_system(), _free_of_group(), _free_of_limit())


def count_local_processes() -> int:
    """Return the number of processes of this run that share the machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)


def free_memory_of_process(device: str) -> int:
    """Return the free bytes of this process's device, or its fraction of a CPU's."""
    free = free_memory(device)
    return free // count_local_processes() if device == "cpu" else free


def format_bytes(count: int) -> str:
    """Return `1.23 GiB`, or `4.5 MiB` below 0.02 GiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 / 50 else f"{count / 2**20:,.1f} MiB"


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
    """Return the bytes that this process's control groups leave, with cached pages as free."""
    free = UNLIMITED
    with contextlib.suppress(OSError, ValueError, IndexError):
        group_path = Path("/proc/self/cgroup").read_text().splitlines()[0].split("::")[-1]
        folder = root / group_path.lstrip("/")
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
    """Return the bytes that `ulimit -v` leaves."""
    if (limit := read_limit("RLIMIT_AS")) is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            used = int(Path("/proc/self/statm").read_text().split()[0])
            return limit - used * os.sysconf("SC_PAGE_SIZE")
    return UNLIMITED


def read_limit(name: str) -> int | None:
    """Return a limit of this process, for example `RLIMIT_FSIZE`, None if there is none."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):  # as on Windows
        import resource

        limit = resource.getrlimit(getattr(resource, name))[0]
        return None if limit == resource.RLIM_INFINITY else limit
    return None


def raise_if_full(error: BaseException) -> None:
    """Raise `MemoryError` if an error means that memory ran out.

    Call this first where any other error of reading a file counts as damage of the file.
    """
    if is_out_of_memory(error):
        raise MemoryError from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or its cause, means that the device or the machine ran out of memory."""
    if error.__cause__ is not None and is_out_of_memory(error.__cause__):
        return True
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error)
    if _NO_PRIMITIVE in text and not _may_write_code():
        return False
    return any(
        isinstance(error, kind) and any(words in text for words in phrases)
        for kind, phrases in _NO_MEMORY.items()
    )


_NO_PRIMITIVE = "could not create a primitive"
"""Error of oneDNN if it has no memory for generated code, or may not run it."""

_NO_MEMORY: dict[type[Exception], tuple[str, ...]] = {
    RuntimeError: (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "std::bad_alloc",
        _NO_PRIMITIVE,
    ),
    ImportError: ("failed to map segment from shared object",),
    SystemError: ("error return without exception set", "without setting an exception"),
}
"""Errors that mean that memory ran out: in PyTorch on Metal and CPUs, in the loader of libraries,
and in Python without the memory for a `MemoryError`."""


def _may_write_code() -> bool:
    """Whether a process may run code that it generated, which some services forbid."""
    import mmap

    try:
        with contextlib.suppress(AttributeError):  # Windows has no PROT_EXEC
            mmap.mmap(-1, 1, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError as error:  # or there is no memory for it
        return not isinstance(error, PermissionError)
    return True
