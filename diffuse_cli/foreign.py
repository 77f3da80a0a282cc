"""Files from elsewhere: what they are, by their first bytes and by the names in them.

The one table of foreign formats. Reading a model file, converting and reading data all ask here, so
that a file has one name everywhere. Nothing is loaded: `diffuse convert` reads what it knows.
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

from diffuse_cli.errors import ModelFileError
from diffuse_cli.files import show

SAFETENSORS, PICKLE, TORCH, ZIP, CUT_ZIP = "safetensors", "pickle", "torch", "zip", "cut zip"
"""Kinds of file. TORCH is a zip that `torch.save` wrote: a pickle, and then its tensors."""

PICKLES = (PICKLE, TORCH)

WORDS = {
    SAFETENSORS: "a safetensors file",
    PICKLE: "a pickle",
    TORCH: "a pickle",
    ZIP: "a zip file",
}

ARCHIVE, FILE = "a {} archive", "a file of {}"
MAGIC: tuple[tuple[int, bytes, str], ...] = (
    *((0, b"\x80" + bytes([protocol]), PICKLE) for protocol in range(2, 6)),
    (0, b"GGUF", FILE.format("GGUF")),
    (0, b"\x89HDF", FILE.format("HDF5")),
    (0, b"\x93NUMPY", FILE.format("NumPy")),
    (0, b"\x1f\x8b", ARCHIVE.format("gzip")),
    (0, b"BZh", ARCHIVE.format("bzip2")),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", ARCHIVE.format("zstandard")),
    (0, b"7z\xbc\xaf", ARCHIVE.format("7-Zip")),
    (0, b"Rar!", ARCHIVE.format("RAR")),
    (257, b"ustar", ARCHIVE.format("tar")),
)
"""Kinds by the bytes at an offset; those that are only named are named in words."""

FOLDERS = ("config.json", "unet/config.json", "model_index.json")
"""Files that tell a folder of diffusers."""


@dataclass(frozen=True)
class Known:
    """A program's models.

    Attributes:
        name: whose they are.
        marks: patterns; each matches a name of a tensor, or a text in a pickle.
        format: what `diffuse convert` reads them as, or None.
        why, hint: where it does not, why, and what can be done.
    """

    name: str
    marks: tuple[str, ...]
    format: str | None = None
    why: str = ""
    hint: str = ""


_TEXT = ("a network of latents that is shown text",
         "Only networks of images are converted; use it with diffusers")  # fmt: skip
_RETRAIN = "Train on the same images instead: diffuse train DATA"
_SIGMA = "whose network is shown a noise level, not a timestep"

KNOWN = (
    Known("Stable Diffusion", (r"^model\.diffusion_model\.",), None, *_TEXT),
    Known("a text-to-image program", (r"transformer_blocks\.\d+\.attn2\.",), None, *_TEXT),
    Known(
        "denoising-diffusion-pytorch",
        (r"(^|\.)init_conv\.weight$", r"(^|\.)time_mlp\.\d\.weight$", r"(^|\.)final_res_block\."),
        why="whose network has linear attention, as none here has",
        hint=_RETRAIN,
    ),
    Known("EDM", (r"(^|\.)enc\.\d+x\d+_conv\.weight$",), None, _SIGMA, _RETRAIN),
    Known("EDM", (r"^torch_utils\.persistence", r"Precond$"), None, _SIGMA, _RETRAIN),
    Known("diffusers", (r"^conv_in\.weight$", r"^time_embedding\.linear_1\.weight$"), "diffusers"),
    Known("OpenAI's", (r"^time_embed\.0\.weight$", r"^input_blocks\.0\.0\.weight$"), "openai"),
)
"""Programs whose models people have, the more special before the more general."""


# -- what it is -----------------------------------------------------------------------------------


def kind_of(file: IO[bytes]) -> str:
    """The kind of an open file: one of those above, words for another known one, or empty."""
    file.seek(0)
    start = file.read(262)
    if is_safetensors(start):
        return SAFETENSORS
    for offset, magic, kind in MAGIC:
        if start.startswith(magic, offset):
            return kind
    if not zipfile.is_zipfile(file):
        return CUT_ZIP if start.startswith(b"PK\x03\x04") else ""
    # By its first member: listing a million of them takes seconds.
    first = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    return TORCH if start.startswith(b"PK\x03\x04") and first.endswith(b"/data.pkl") else ZIP


def kind_at(path: Path) -> str:
    """The kind of a regular file, empty where it cannot be opened."""
    try:
        with path.open("rb") as file:
            return kind_of(file)
    except OSError:
        return ""


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so has the form of safetensors: a length, of which the highest
    bytes are 0, and an object of JSON. The length may begin as a pickle does."""
    return start[6:9] == b"\0\0{"


def told(names: Collection[str]) -> Known | None:
    """Whose model has tensors, or a pickle texts, of these names."""
    bare = [name.removeprefix("module.") for name in names]
    for known in KNOWN:
        if all(any(re.search(mark, name) for name in bare) for mark in known.marks):
            return known
    return None


def is_of(format: str, names: Collection[str]) -> bool:
    """Whether tensors of these names are what `diffuse convert` reads as `format`."""
    known = told(names)
    return known is not None and known.format == format


def is_folder(path: Path) -> bool:
    """Whether it is a folder of diffusers."""
    return any((path / name).is_file() for name in FOLDERS)


# -- texts of a pickle ----------------------------------------------------------------------------

MOST_BYTES, MOST_STEPS, LONGEST = 2**22, 200_000, 300
"""Of a pickle no more is looked at, and no longer texts."""


def texts(file: IO[bytes]) -> set[str]:
    """The texts in a pickle, or in that of a zip of torch. Its instructions are listed, not run."""
    found: set[str] = set()
    try:
        data = io.BytesIO(_pickled(file))
        steps = 0
        while steps < MOST_STEPS and data.tell() < len(data.getbuffer()):
            # torch's older files have several pickles, one after another
            for _, value, _ in islice(pickletools.genops(data), MOST_STEPS - steps):
                steps += 1
                if isinstance(value, str) and len(value) <= LONGEST:
                    found.add(value)
    except Exception:  # it may be anything, of a file that was made to do harm or is cut off here
        pass
    return found


def _pickled(file: IO[bytes]) -> bytes:
    """The beginning of the pickle in a file."""
    if kind_of(file) == TORCH:
        with zipfile.ZipFile(file) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as member:
                return member.read(MOST_BYTES)
    file.seek(0)
    return file.read(MOST_BYTES)


# -- saying it ------------------------------------------------------------------------------------


def check_kind(file: IO[bytes], path: Path) -> None:
    """Refuse an open file that is of a known kind, but not safetensors.

    Raises:
        ModelFileError: with its name, and what to do.
    """
    kind = kind_of(file)
    if kind in PICKLES:
        check_convertible(texts(file), path)
        raise ModelFileError(
            f"{show(path)} is a pickle, which can run code and is not loaded", convert_line(path)
        )
    if kind not in (SAFETENSORS, ""):
        raise ModelFileError(*described(kind, path, "a model of `diffuse`"))


def described(kind: str, path: Path, wanted: str) -> tuple[str, str]:
    """What a file of a kind is, where `wanted` was expected, and what to do."""
    if kind == CUT_ZIP:
        return f"{show(path)} is a zip file that is cut short", "Copy or download it again"
    hint = "Unpack it" if kind.endswith("archive") else ""
    return f"{show(path)} is {WORDS.get(kind, kind)}, not {wanted}", hint


def check_convertible(names: Collection[str], path: Path) -> None:
    """Refuse a model that is known, and that `diffuse convert` does not read.

    Raises:
        ModelFileError: with why, and what can be done.
    """
    known = told(names)
    if known and known.format is None:
        raise ModelFileError(f"{show(path)} is a model of {known.name}, {known.why}", known.hint)


def rejected(names: Collection[str], path: Path) -> ModelFileError:
    """The error for a safetensors file with tensors of these names that is not of `diffuse`."""
    check_convertible(names, path)
    if known := told(names):
        return ModelFileError(f"{show(path)} is a model of {known.name}", convert_line(path))
    return ModelFileError(
        f"{show(path)} is a safetensors file, but `diffuse train` did not write it",
        "It has no diffuse.config",
    )


def rejected_folder(path: Path) -> ModelFileError:
    """The error for a folder where a model file should be."""
    return ModelFileError(
        f"{show(path)} is a folder, not a model file",
        convert_line(path) if is_folder(path) else "",
    )


def convert_line(path: Path) -> str:
    """The command that makes a model file of a foreign one."""
    return f"Type: diffuse convert {shlex.quote(show(path))} -o model.safetensors"
