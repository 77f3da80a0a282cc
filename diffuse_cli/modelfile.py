"""The one model file: safetensors, with everything needed to rebuild the model in its header.

The header's metadata has `format: pt`, the `modelspec.*` keys and `diffuse.config`, canonical
JSON. Nothing in the file depends on when or where it was written, so that two equal trainings
give equal bytes. Reading trusts nothing: the header is checked, and shapes are compared on the
meta device, before anything is allocated.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse_cli import __version__, files
from diffuse_cli.config import DiffusionConfig, UNetConfig
from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.process import Process
from diffuse_cli.core.schedules import SCHEDULES, zero_terminal_snr
from diffuse_cli.core.unet import UNet
from diffuse_cli.core.variances import channels_out
from diffuse_cli.errors import DiffuseError, ModelFileError, lookup
from diffuse_cli.options import from_dict, parse_color, to_dict

RAW = "raw."
"""Prefix of the weights before averaging, where they are kept."""

MAX_HEADER = 16_000_000
MAX_CONFIG = 8_000_000
DTYPES = {torch.float32: "F32", torch.int64: "I64"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model file holds.

    Attributes:
        unet, diffusion: the network and the process.
        ema, raw: the averaged weights by name, and those before averaging or None.
        step: optimizer steps behind the weights.
        classes: class names of the training data, which a conditional network has as labels.
        data: fingerprint, number of images and the held-out rule of the training data.
        training: the configuration of the training.
        versions: of `diffuse` and torch, as a file says them; writing fills in its own.
    """

    unet: UNetConfig
    diffusion: DiffusionConfig
    ema: Mapping[str, Tensor]
    raw: Mapping[str, Tensor] | None = None
    step: int = 0
    classes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def network(self, weights: str = "ema") -> UNet:
        """The network with its averaged or raw weights.

        Raises:
            ModelFileError: raw weights of a file that has none.
        """
        tensors = lookup({"ema": self.ema, "raw": self.raw}, weights, "--weights")
        if tensors is None:
            raise ModelFileError(
                "the model file has no raw weights", "Train with --keep-raw to have them"
            )
        with torch.device("meta"):
            net = UNet(self.unet)
        net.load_state_dict(dict(tensors), assign=True)
        return net.eval().requires_grad_(False)

    def denoiser(self, net: Any) -> Denoiser:
        """`net` with the model's process, target and variance."""
        return make_denoiser(net, self.diffusion)


def make_process(diffusion: DiffusionConfig) -> Process:
    """The forward process of a configuration: of its schedule or its betas, rescaled if it says so.

    Raises:
        UsageError: no such schedule, or betas that are no process.
    """
    betas: Sequence[float] | None = diffusion.betas
    if betas is None:
        betas = lookup(SCHEDULES, diffusion.schedule, "--schedule")(diffusion.num_timesteps)
    if diffusion.zero_terminal_snr:
        betas = zero_terminal_snr(betas)
    return Process(betas, None if diffusion.rescale_timesteps else range(len(betas)))


def make_denoiser(net: Any, diffusion: DiffusionConfig) -> Denoiser:
    """A network under the process, target and variance of a configuration.

    Raises:
        UsageError: an unknown name, or a target that is undefined under the process.
    """
    return Denoiser(net, make_process(diffusion), diffusion.target, diffusion.variance)


# -- writing --------------------------------------------------------------------------------------


def _describe(model: Model) -> dict[str, Any]:
    """Everything but the tensors, as plain values."""
    return {
        "unet": to_dict(model.unet),
        "diffusion": to_dict(model.diffusion),
        "step": model.step,
        "classes": list(model.classes),
        "data": dict(model.data),
        "training": dict(model.training),
        "versions": {"diffuse": __version__, "torch": torch.__version__.split("+")[0]},
    }


def save(path: Path, model: Model) -> None:
    """Write the model file, whole or not at all."""
    height, width = model.unet.size
    metadata = {
        "format": "pt",
        "diffuse.config": json.dumps(_describe(model), sort_keys=True, separators=(",", ":")),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "diffuse/unet",
        "modelspec.implementation": "diffuse",
        "modelspec.title": f"diffuse model, {model.step} steps",
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": model.diffusion.target,
    }
    tensors = dict(model.ema)
    for name, tensor in (model.raw or {}).items():
        tensors[RAW + name] = tensor
    write_tensors(path, tensors, metadata)


def holds(path: Path, model: Model) -> bool:
    """Whether the file at `path` already describes `model`: network, data, training and step."""
    try:
        with _rejecting(path):
            return bool(_read_header(path)[1] == json.loads(json.dumps(_describe(model))))
    except (OSError, ModelFileError):
        return False


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file with sorted names and metadata, so that equal content is equal bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    header = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with files.writing(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in sorted(tensors):
            file.write(tensors[name].detach().cpu().contiguous().numpy().tobytes())


# -- reading --------------------------------------------------------------------------------------


def load(path: str | Path) -> Model:
    """Read and check a model file.

    Raises:
        ModelFileError: it is missing, or not a whole and sane model file of `diffuse`.
    """
    path = Path(path)
    try:
        with _rejecting(path):
            header, described = _read_header(path)
            model = _rebuild(described)
            _check_shapes(model.unet, header)
            tensors = read_tensors(path)
            _check_finite(tensors)
            own = {n: t for n, t in tensors.items() if not n.startswith(RAW)}
            raw = {n.removeprefix(RAW): t for n, t in tensors.items() if n.startswith(RAW)}
            return Model(**{**vars(model), "ema": own, "raw": raw or None})
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ModelFileError(f"no such model file: {files.show(path)}") from error
        raise ModelFileError(f"cannot read {files.show(path)}: {error.strerror}") from error


def read_training(path: str | Path) -> dict[str, Any]:
    """The training configuration in a model file's header, for `--init`."""
    return {**load(path).training}


@contextlib.contextmanager
def _rejecting(path: Path) -> Iterator[None]:
    """Turn what a malformed file makes Python say into a `ModelFileError` that names the file."""
    name = files.show(path)
    try:
        yield
    except ModelFileError as error:
        named = error.message if name in error.message else f"{name}: {error.message}"
        raise ModelFileError(named, error.hint) from error
    except DiffuseError as error:
        raise ModelFileError(f"{name} is not a valid model file: {error.message}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{name} is not a valid model file: {reason}") from error


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors' entries and the description in a file's header."""
    name = files.show(path)
    if path.is_dir():
        raise ModelFileError(f"{name} is a folder, not a model file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
            raise ModelFileError(
                f"{name} is a pickle, which can run code and is never loaded",
                "Only .safetensors files that `diffuse train` wrote are read",
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER):
            raise ModelFileError(f"{name} is not a model file, or it is cut short")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ModelFileError(f"{name} is not a model file")
    metadata = header.pop("__metadata__", {})
    text = metadata.get("diffuse.config") if isinstance(metadata, dict) else None
    if not isinstance(text, str) or len(text) > MAX_CONFIG:
        raise ModelFileError(
            f"{name} is a safetensors file, but `diffuse train` did not write it",
            "It has no diffuse.config",
        )
    ends = [entry["data_offsets"][1] for entry in header.values()]
    if size != 8 + length + max(ends, default=0):
        raise ModelFileError(f"{name} is cut short or has bytes to spare: {size} bytes")
    described = json.loads(text)
    return header, described


def _rebuild(described: Mapping[str, Any]) -> Model:
    """The model without its tensors."""
    diffusion = from_dict(DiffusionConfig, _settled(described["diffusion"]))
    make_denoiser(None, diffusion)
    step, classes = described["step"], described["classes"]
    if not isinstance(step, int) or not all(isinstance(name, str) for name in classes):
        raise ValueError("step or classes are of the wrong type")
    unet = from_dict(UNetConfig, described["unet"])
    out, needed = (
        unet.out_channels or unet.channels,
        channels_out(diffusion.variance, unet.channels),
    )
    if out != needed:
        raise ValueError(f"{out} channels out, not {needed} for variance '{diffusion.variance}'")
    if unet.num_classes not in (0, len(classes)):
        raise ValueError(f"a network of {unet.num_classes} classes with {len(classes)} names")
    data = dict(described["data"])
    parse_color(data.get("background", "white"))
    return Model(
        unet=unet,
        diffusion=diffusion,
        ema={},
        step=step,
        classes=tuple(classes),
        data=data,
        training=_settled(described["training"]),
        versions=dict(described["versions"]),
    )


def _settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as `to_dict` writes them: a null would be a default, and a path would be read."""
    if any(value is None for value in values.values()) or isinstance(values.get("betas"), str):
        raise ModelFileError("settings that are not those of a configuration")
    return dict(values)


def _check_shapes(unet: UNetConfig, header: Mapping[str, Any]) -> None:
    """Names, shapes and types of the tensors are those of the network, none more and none less."""
    with torch.device("meta"):
        expected = {n: list(t.shape) for n, t in UNet(unet).state_dict().items()}
    if any(name.startswith(RAW) for name in header):
        expected |= {RAW + name: shape for name, shape in expected.items()}
    problems = [f"{name} is missing" for name in expected if name not in header]
    problems += [f"{name} is not of this network" for name in header if name not in expected]
    for name in expected.keys() & header.keys():
        entry = header[name]
        if entry["dtype"] != "F32" or list(entry["shape"]) != expected[name]:
            problems.append(
                f"{name} is {entry['dtype']} {entry['shape']}, not F32 {expected[name]}"
            )
    if problems:
        raise ModelFileError(
            f"its tensors do not fit its network: {'; '.join(sorted(problems)[:5])}"
            + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, read by the safetensors library."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    bad = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if bad:
        raise ModelFileError(f"weights that are not numbers: {', '.join(bad[:5])}")
