"""Untrusted files of other programs, of which only tensors and JSON are read.

A pickle is a program. Its sizes are checked, then torch reads it with `weights_only=True`, which
calls nothing but what makes tensors. All errors become a `ModelFileError`.
"""

from __future__ import annotations

import contextlib
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffuse_cli.models import tensor_file
from diffuse_cli.system import DiffuseError, ModelFileError, file_types, files, run_reader, shorten
from diffuse_cli.system.descriptors import open_regular_file, read_bounded
from diffuse_cli.system.memory import raise_if_full

MOST_BYTES = 2**34
"""The largest pickle that is read: four times the largest published network of this kind."""

NOTHING_RUN = "diffuse reads only tensors of a pickle, and has run no code in it"

NAMES = ("GLOBAL", "INST")
"""Instructions of a pickle that name what it calls. PyTorch knows no others."""

OF_THE_OLD_FORMAT = 5
"""Pickles in a file of torch before 1.6."""

JSON_BYTES = 10_000_000


class ForeignSource:
    """A folder or file to convert, which exists."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = files.show(self.path)
        if not self.path.exists():
            text = f"no such file or folder: {self.name}"
            raise ModelFileError(text, code="model_missing", path=self.path)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file. None for a folder."""
        return {} if self.path.is_dir() else read_weights(self.path)

    @property
    def is_own(self) -> bool:
        """Whether it is a model file of this program, or a run."""
        if self.path.is_dir():
            return run_reader.find_run(self.path) is not None
        with reject_malformed(self.path), open_regular_file(self.path) as file:
            is_safetensors = file_types.is_safetensors(file.read(9))
            return is_safetensors and "diffuse.config" in tensor_file.read_header(file).metadata


@contextlib.contextmanager
def reject_malformed(path: Path) -> Iterator[None]:
    """Turn what a malformed file makes Python raise into a `ModelFileError` that names the file."""
    name = files.show(path)
    try:
        yield
    except OSError as error:
        raise ModelFileError(f"cannot read {name}: {error.strerror or error}", path=path) from error
    except (*tensor_file.MALFORMED, SafetensorError) as error:
        text = f"{name} cannot be used: {shorten(error)}"
        raise ModelFileError(text, code="model_damaged", path=path) from error


# -- tensors --------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file or a pickle, by name.

    Refuses a file that is damaged, of a program that is not converted, or with anything in it but
    tensors of real numbers that lie in it.
    """
    with reject_malformed(path), open_regular_file(path) as file:
        kind = file_types.recognize_file(file)
        if kind == file_types.SAFETENSORS:
            header = tensor_file.read_header(file)
            file_types.check_convertible(header.entries, path)
            return _check_tensors(path, load_file(path))
        if kind in file_types.PICKLES:
            file_types.check_convertible(file_types.pickle_strings(file), path)
            return _check_tensors(path, _unpickle(path, zipped=kind == file_types.TORCH))
        if kind:
            code = "model_damaged" if kind == file_types.CUT_ZIP else "model_unsupported"
            problem = file_types.kind_error(kind, path, "a model")
            raise ModelFileError(*problem, code=code, path=path)
        text = f"{files.show(path)} is neither safetensors nor a pickle"
        raise ModelFileError(text, code="model_unsupported", path=path)


def _unpickle(path: Path, zipped: bool) -> Any:
    """Return the content of a pickle of tensors."""
    _check_pickle(path, zipped)
    name = files.show(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (DiffuseError, OSError):
        raise
    except Exception as error:  # a hostile file may raise anything
        raise_if_full(error)
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"{name} is a pickle that asks for {match[1][:100]}, which is not a tensor"
            raise ModelFileError(
                reason, NOTHING_RUN, code="model_unsupported", path=path
            ) from error
        reason = f"{name} cannot be read as a checkpoint of tensors"
        hint = "diffuse has run no code in it"
        raise ModelFileError(reason, hint, code="model_damaged", path=path) from error


def _check_pickle(path: Path, zipped: bool) -> None:
    """Refuse a pickle that is too large, compressed, or asks for memory that is not in the file: of
    what torch lets a pickle call, `bytearray(n)` fills the bytes by itself."""
    name, size = files.show(path), path.stat().st_size
    if size > MOST_BYTES:
        raise ModelFileError(f"{name} is a pickle of more than {MOST_BYTES:,} bytes", path=path)
    with contextlib.ExitStack() as stack:
        if zipped:
            archive = stack.enter_context(zipfile.ZipFile(path))
            entries = archive.infolist()
            packed = any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries)
            if packed or sum(entry.file_size for entry in entries) > size:
                text = f"{name} is compressed or encrypted, as no checkpoint of torch is"
                raise ModelFileError(text, code="model_unsupported", path=path)
            # All of them: torch may take another of two of one name, and looks away from case.
            inside = [e for e in entries if e.filename.lower().endswith(".pkl")]
            pickles = [stack.enter_context(archive.open(entry)) for entry in inside]
        else:  # of the old format: a magic number, two headers, the tensors, and their storages
            pickles = [stack.enter_context(path.open("rb"))] * OF_THE_OLD_FORMAT
        for file in pickles:
            with contextlib.suppress(ValueError, EOFError):  # torch says what is wrong with it
                called = (value for op, value, _ in pickletools.genops(file) if op.name in NAMES)
                if any(str(value).endswith(" bytearray") for value in called):
                    reason = f"{name} is a pickle that asks for a bytearray, which is not a tensor"
                    raise ModelFileError(reason, NOTHING_RUN, code="model_unsupported", path=path)


def _check_tensors(path: Path, entries: Any) -> dict[str, Tensor]:
    """Tensors by name, each of real numbers that lie in the file."""
    entries, where = _unwrap_tensors(entries), files.show(path)
    if not isinstance(entries, Mapping):
        text = f"{where} holds no tensors by name"
        raise ModelFileError(text, code="model_unsupported", path=path)
    # The text of a nested key could be longer than the memory.
    wrong = [
        shorten(name) if isinstance(name, str) else f"a key of type {type(name).__name__}"
        for name, value in entries.items()
        if not _is_usable(name, value)
    ]
    if wrong:
        raise ModelFileError(
            f"{where} holds {len(wrong)} entries that are not tensors of real numbers: "
            f"{tensor_file.format_first(wrong)}",
            code="model_unsupported",
            path=path,
        )
    if sum(tensor.nbytes for tensor in entries.values()) > path.stat().st_size:
        text = f"{where} claims tensors that are larger than the file"
        raise ModelFileError(text, code="model_damaged", path=path)
    return {name: tensor.detach() for name, tensor in entries.items()}


def _unwrap_tensors(checkpoint: Any) -> Any:
    """Return the entries of a checkpoint under `state_dict`, without the `module.` that
    `DataParallel` puts before every name."""
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("state_dict"), Mapping):
        checkpoint = checkpoint["state_dict"]
    names = [*checkpoint] if isinstance(checkpoint, Mapping) else [None]
    if all(isinstance(name, str) and name.startswith("module.") for name in names):
        checkpoint = {name.removeprefix("module."): value for name, value in checkpoint.items()}
    return checkpoint


def _is_usable(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and value.is_floating_point()
    )


# -- JSON -----------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    with reject_malformed(path):
        content = json.loads(read_bounded(path, JSON_BYTES).decode("utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        return content
