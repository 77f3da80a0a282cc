"""Device and precision of a run, and the settings of PyTorch's kernels that follow from them.

The settings belong to the whole process: TF32, cuDNN and attention. PyTorch has two interfaces for
precision, and refuses to read the older one if they differ.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diffuse_cli.system import UsageError, lookup

if TYPE_CHECKING:
    from accelerate import Accelerator

GAINING_WIDTHS = {("amx_bf16", ""): 32, ("avx512_bf16", "AMD"): 24}
"""Number of channels from which `auto` is bf16, by instruction and maker of the CPU. The first
matching row counts (benchmarks/README.md)."""

PRECISIONS = {"auto": "", "fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Accelerate's names of the precisions."""

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


def device_type(device: str = "auto") -> str:
    """Return the type of device to use: the named type, or for `auto` the GPU, if any, or `cpu`.

    Raises:
        UsageError: PyTorch does not find the device.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    default = accelerator.type if accelerator is not None else "cpu"
    if device not in ("auto", "cpu", default):
        text = f"--device {device}: PyTorch does not find one"
        raise UsageError(text, f"Use --device {default}", code="device_missing")
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
        text = "--precision fp16 needs a GPU"
        raise UsageError(text, "Choose bf16 or fp32", code="device_missing")
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
            set_product_precision(precision)
    return precision


FLAGS = "enabled", "deterministic", "benchmark"
"""Settings of cuDNN that are independent of each other."""


@contextlib.contextmanager
def hold_cuda_settings(device: str, precision: str) -> Iterator[None]:
    """Compute with kernels that repeat exactly on CUDA, and then restore the program's settings."""
    if device != "cuda":
        yield
        return
    import torch

    with restore_kernel_settings():
        set_product_precision(precision)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False  # it chooses kernels by their time
        # Its backward pass has given NaN in half precision. The other fused kernels stay on.
        torch.backends.cuda.enable_cudnn_sdp(False)
        yield


@contextlib.contextmanager
def restore_kernel_settings() -> Iterator[None]:
    """Restore the program's settings of PyTorch's kernels on exit."""
    before = read_kernel_settings()
    try:
        yield
    finally:
        set_kernel_settings(before)


def read_kernel_settings() -> dict[str, Any]:
    """Return the process's settings of PyTorch's kernels."""
    import torch

    cudnn = torch.backends.cudnn
    precisions = _read_precisions()
    try:
        matmul, tf32 = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        # `fp32_precision` differs from these older settings, which can only be read if it is ieee.
        _set_precisions(["ieee"] * len(precisions))
        matmul = torch.get_float32_matmul_precision()
        try:
            tf32 = cudnn.allow_tf32
        except RuntimeError:
            tf32 = True
        _set_precisions(precisions)
    return {
        "matmul": matmul,
        "tf32": tf32,
        "precisions": precisions,
        "flags": [getattr(cudnn, name) for name in FLAGS],
        "attention": torch.backends.cuda.cudnn_sdp_enabled(),
    }


def set_kernel_settings(settings: Mapping[str, Any]) -> None:
    """Set what `read_kernel_settings` returned."""
    import torch

    if settings == read_kernel_settings():
        return  # setting a default makes it explicit
    torch.set_float32_matmul_precision(settings["matmul"])
    torch.backends.cudnn.allow_tf32 = settings["tf32"]
    _set_precisions(settings["precisions"])  # afterwards, because both lines change them
    for name, value in zip(FLAGS, settings["flags"], strict=True):
        setattr(torch.backends.cudnn, name, value)
    torch.backends.cuda.enable_cudnn_sdp(settings["attention"])


def _list_precision_holders() -> list[tuple[Any, Any]]:
    """Return the objects with an `fp32_precision`, each with the one that `none` inherits from."""
    import torch

    backends: Any = torch.backends  # whose type hints lack some of them
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    return [
        (backends.cuda.matmul, cudnn),
        (cudnn.conv, cudnn),
        (cudnn.rnn, cudnn),
        (mkldnn.matmul, mkldnn),
    ]


def _read_precisions() -> list[str]:
    """Return the precision of each kind of operation, `none` where it is the inherited one."""
    holders = _list_precision_holders()
    pairs = [(holder.fp32_precision, parent.fp32_precision) for holder, parent in holders]
    return ["none" if precision == inherited else precision for precision, inherited in pairs]


def _set_precisions(precisions: Iterable[str]) -> None:
    """Set the precision of each kind of operation."""
    for (holder, _), precision in zip(_list_precision_holders(), precisions, strict=True):
        holder.fp32_precision = precision


def set_product_precision(precision: str) -> None:
    """Allow TF32 on a GPU where it does not compute in 16 bits. fp32 stays exact."""
    import torch

    exact = precision == "fp32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    cudnn: Any = torch.backends.cudnn
    cudnn.allow_tf32 = not exact
    if exact:  # or they inherit the program's `torch.backends.fp32_precision`
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee"
