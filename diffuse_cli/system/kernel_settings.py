"""PyTorch's settings of kernels, which belong to the whole process: TF32, cuDNN and attention.

PyTorch has two interfaces for precision, and refuses to read the older one if they differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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
