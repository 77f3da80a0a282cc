"""Recognize files of other programs by their first bytes and the names in them, without loading.

This is the one table of foreign formats, for model files, conversion and data.
"""

from __future__ import annotations

import io
import pickletools
import re
import shlex
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from diffuse_cli.system import ModelFileError, show

SAFETENSORS, PICKLE, TORCH = "a safetensors file", "a pickle", "a pickle of torch"
ZIP, CUT_ZIP = "a zip file", "a zip file that is cut short"
TAR = "a tar archive"
"""Kinds of file, in words. TORCH is the zip file of `torch.save`: a pickle, then its tensors."""

PICKLES = (PICKLE, TORCH)

MAGIC: tuple[tuple[int, bytes, str], ...] = (
    *((0, b"\x80" + bytes([protocol]), PICKLE) for protocol in range(2, 6)),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", TAR),
)
"""Kinds by the bytes at an offset."""

FOLDERS = ("config.json", "unet/config.json", "model_index.json")
"""Files that mark a folder of diffusers, which has at least one of them."""

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Files of weights in a folder of diffusers. The first that exists counts."""

MOST_BYTES, MOST_STEPS, LONGEST = 2**22, 200_000, 300
"""Limits on the bytes and instructions to read, and on the length of a string."""


@dataclass(frozen=True)
class KnownProgram:
    """Models of another program.

    Attributes:
        name: the program or its owner.
        marks: patterns, each of which matches a tensor's name, or a string in a pickle.
        format: the format of `diffuse convert`, None if it does not read them.
        why: the reason why it does not read them.
        hint: an alternative.
    """

    name: str
    marks: tuple[str, ...]
    format: str | None = None
    why: str = ""
    hint: str = ""


_TEXT = ("a latent network that is conditioned on text",
         "Only image networks can be converted; use it with diffusers")  # fmt: skip
_RETRAIN = "Train on the same images instead: diffuse train DATA"
_SIGMA = "whose network takes a noise level, not a timestep"

KNOWN = (
    KnownProgram("Stable Diffusion", (r"^model\.diffusion_model\.",), None, *_TEXT),
    KnownProgram("a text-to-image program", (r"transformer_blocks\.\d+\.attn2\.",), None, *_TEXT),
    KnownProgram(
        "denoising-diffusion-pytorch",
        (r"(^|\.)init_conv\.weight$", r"(^|\.)time_mlp\.\d\.weight$", r"(^|\.)final_res_block\."),
        why="whose network has linear attention, which is not supported",
        hint=_RETRAIN,
    ),
    KnownProgram("EDM", (r"(^|\.)enc\.\d+x\d+_conv\.weight$",), None, _SIGMA, _RETRAIN),
    KnownProgram("EDM", (r"^torch_utils\.persistence", r"Precond$"), None, _SIGMA, _RETRAIN),
    KnownProgram(
        "diffusers", (r"^conv_in\.weight$", r"^time_embedding\.linear_1\.weight$"), "diffusers"
    ),
    KnownProgram(
        "OpenAI's", (r"^time_embed\.0\.weight$", r"^input_blocks\.0\.0\.weight$"), "openai"
    ),
)
"""Known programs, with special cases first."""


def recognize_file(file: IO[bytes]) -> str:
    """Return the kind of an open file in words, empty if unknown."""
    file.seek(0)
    start = file.read(262)
    if is_safetensors(start):
        return SAFETENSORS
    for offset, magic, kind in MAGIC:
        if start.startswith(magic, offset):
            return kind
    if not zipfile.is_zipfile(file):
        return CUT_ZIP if start.startswith(b"PK\x03\x04") else ""
    # Look only at the first member, because listing a million takes seconds.
    first = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    return TORCH if start.startswith(b"PK\x03\x04") and first.endswith(b"/data.pkl") else ZIP


def recognize_path(path: Path) -> str:
    """Return the kind of a file, empty if it is unknown or cannot be opened."""
    try:
        with path.open("rb") as file:
            return recognize_file(file)
    except OSError:
        return ""


def is_safetensors(start: bytes) -> bool:
    """Whether a file starts like safetensors, with a length and a JSON object.

    The highest bytes of the length are 0. It may look like the start of a pickle.
    """
    return start[6:9] == b"\0\0{"


def find_program(names: Collection[str]) -> KnownProgram | None:
    """Return the program whose models have tensors of these names, or strings in a pickle."""
    bare = [name.removeprefix("module.") for name in names]
    for program in KNOWN:
        if all(any(re.search(mark, name) for name in bare) for mark in program.marks):
            return program
    return None


def is_of(format: str, names: Collection[str]) -> bool:
    """Whether tensors have the names of a `diffuse convert` format."""
    program = find_program(names)
    return program is not None and program.format == format


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of diffusers."""
    return any((path / name).is_file() for name in FOLDERS)


def pickle_strings(file: IO[bytes]) -> set[str]:
    """Return the strings in a pickle or a TORCH file. Its instructions are listed, not run."""
    strings: set[str] = set()
    try:
        data = io.BytesIO(_read_pickle(file))
        steps = 0
        while steps < MOST_STEPS and data.tell() < len(data.getbuffer()):
            # torch's older files have several pickles, one after another
            for _, value, _ in islice(pickletools.genops(data), MOST_STEPS - steps):
                steps += 1
                if isinstance(value, str) and len(value) <= LONGEST:
                    strings.add(value)
    except Exception:  # a hostile file may raise anything, and the data may be cut off
        pass
    return strings


def _read_pickle(file: IO[bytes]) -> bytes:
    """Return the first bytes of the pickle in a file."""
    if recognize_file(file) == TORCH:
        with zipfile.ZipFile(file) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as member:
                return member.read(MOST_BYTES)
    file.seek(0)
    return file.read(MOST_BYTES)


def check_kind(file: IO[bytes], path: Path) -> None:
    """Raise a `ModelFileError` for an open file of a known kind other than safetensors."""
    kind = recognize_file(file)
    if kind in PICKLES:
        check_convertible(pickle_strings(file), path)
        text = f"{show(path)} is a pickle, which can run code and is not loaded"
        raise ModelFileError(text, convert_line(path), code="model_unsupported", path=path)
    if kind not in (SAFETENSORS, ""):
        text, hint = kind_error(kind, path, "a model of `diffuse`")
        code = "model_damaged" if kind == CUT_ZIP else "model_unsupported"
        raise ModelFileError(text, hint, code=code, path=path)


def kind_error(kind: str, path: Path, expected: str) -> tuple[str, str]:
    """Return the message and hint for a file of a kind that is not `expected`."""
    if kind == CUT_ZIP:
        return f"{show(path)} is {kind}", "Copy or download it again"
    hint = "Unpack it" if kind.endswith("archive") else ""
    return f"{show(path)} is {PICKLE if kind in PICKLES else kind}, not {expected}", hint


def check_convertible(names: Collection[str], path: Path) -> None:
    """Raise a `ModelFileError` for a known model that `diffuse convert` does not read."""
    program = find_program(names)
    if program and program.format is None:
        text = f"{show(path)} is a model of {program.name}, {program.why}"
        raise ModelFileError(text, program.hint, code="model_unsupported", path=path)


def foreign_error(names: Collection[str], path: Path) -> ModelFileError:
    """Return the error for a safetensors file of another program with these tensor names."""
    check_convertible(names, path)
    if program := find_program(names):
        text = f"{show(path)} is a model of {program.name}"
        return ModelFileError(text, convert_line(path), code="model_unsupported", path=path)
    text = f"{show(path)} is a safetensors file, but `diffuse train` did not write it"
    return ModelFileError(text, "It has no diffuse.config", code="model_unsupported", path=path)


def convert_line(path: Path) -> str:
    """Return the hint to convert a foreign model."""
    return f"Convert it: diffuse convert {shlex.quote(show(path))} -o model.safetensors"
