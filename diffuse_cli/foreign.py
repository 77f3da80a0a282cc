"""Files that are models, but not of `diffuse`: recognised by what they begin with or hold.

Nothing of them is loaded here; `diffuse convert` reads those it knows.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from diffuse_cli.errors import ModelFileError
from diffuse_cli.files import show

PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))
"""First bytes of what `torch.save` and `pickle.dump` write."""

OTHERS = {b"GGUF": "GGUF", b"\x89HDF": "HDF5", b"\x93NUMPY": "NumPy"}

DIFFUSERS = frozenset(("conv_in.weight", "conv_norm_out.weight", "time_embedding.linear_1.weight"))
"""Tensors that every `UNet2DModel` of diffusers has."""

OPENAI = frozenset(("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"))
"""Tensors that every network of OpenAI's improved- and guided-diffusion has."""

FOLDERS = ("config.json", "model_index.json", "unet/config.json")
"""Files that tell a folder of diffusers."""


def check_start(start: bytes, path: Path) -> None:
    """Refuse a file by its first 9 bytes.

    Raises:
        ModelFileError: it is a pickle, or of another known kind.
    """
    if is_safetensors(start):
        return
    if start.startswith(PICKLES):
        raise ModelFileError(
            f"{show(path)} is a pickle, which can run code and is not loaded", convert_line(path)
        )
    for magic, kind in OTHERS.items():
        if start.startswith(magic):
            raise ModelFileError(f"{show(path)} is a file of {kind}, not a model of `diffuse`")


def is_safetensors(start: bytes) -> bool:
    """Whether a file whose first 9 bytes these are has the form of safetensors: a length, of which
    the highest bytes are 0, and an object of JSON. The length may begin as a pickle does."""
    return len(start) == 9 and start[6:] == b"\0\0{"


def rejected(names: Collection[str], path: Path) -> ModelFileError:
    """The error for a safetensors file with tensors of these names that is not of `diffuse`."""
    for kind, own in (("diffusers", DIFFUSERS), ("OpenAI's", OPENAI)):
        if own.issubset(names):
            return ModelFileError(f"{show(path)} is a model of {kind}", convert_line(path))
    return ModelFileError(
        f"{show(path)} is a safetensors file, but `diffuse train` did not write it",
        "It has no diffuse.config",
    )


def rejected_folder(path: Path) -> ModelFileError:
    """The error for a folder where a model file should be."""
    known = any((path / name).is_file() for name in FOLDERS)
    return ModelFileError(
        f"{show(path)} is a folder, not a model file", convert_line(path) if known else ""
    )


def convert_line(path: Path) -> str:
    """The command that makes a model file of a foreign one."""
    return f"Type: diffuse convert {shlex.quote(show(path))} -o model.safetensors"
