"""Weights that others publish: found on this machine or downloaded, and checked before use."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli import files, locks
from diffuse_cli.errors import ModelFileError
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.files import show

if TYPE_CHECKING:
    from torch import Tensor, nn

VARIABLE = "DIFFUSE_WEIGHTS"
"""Names a folder in which weights lie under their published names."""

CHUNK = 2**20
PATIENCE = 30.0
"""Seconds without a byte after which a download has failed."""


@dataclass(frozen=True)
class Published:
    """A weights file as its authors published it.

    Attributes:
        network: the name of the feature network in `FEATURES`.
        file: its name.
        size: its bytes.
    """

    network: str
    file: str
    url: str
    sha256: str
    size: int

    @property
    def ways(self) -> str:
        """How to get the file where it cannot be downloaded from here."""
        return (
            f"Get {self.url} (SHA-256 {self.sha256}) and name it with --feature-weights FILE, "
            f"or put it into a folder that {VARIABLE} names"
        )


def obtain(published: Published) -> Work[Path]:
    """Where the weights lie: in the folder of `DIFFUSE_WEIGHTS`, else in the cache folder.

    A file that is in neither is downloaded into the cache, yielding `Progress` in MiB.

    Raises:
        ModelFileError: the file cannot be had, or what was downloaded is another.
        OutputError: the cache folder cannot be written.
    """
    given = os.environ.get(VARIABLE)
    if given and (path := Path(given) / published.file).is_file():
        return path
    cache = files.cache_folder()
    if cache is None:
        raise ModelFileError(
            f"no weights of {published.network}, and {files.CACHE} says to keep none",
            published.ways,
        )
    path = cache / "weights" / published.file
    if path.is_file():
        if digest(path) == published.sha256:
            return path
        yield Notice(f"{show(path)} is damaged, and is downloaded again", warning=True)
    yield from download(published, path)
    return path


def download(published: Published, path: Path) -> Work[None]:
    """Write the published file to `path`; it appears when it is whole and its SHA-256 is right.

    Raises:
        ModelFileError: no connection, or one that was cut; another file than the published one.
        OutputError, BusyError: `path` cannot be written, or another process downloads.
    """
    yield Notice(f"the weights of {published.network}: {published.url} to {show(path)}")
    with locks.held(path.with_name(f".{path.name}.lock"), "Wait for it"):
        files.sweep(path.parent, path.name)
        try:
            request = urllib.request.Request(published.url, headers={"User-Agent": "diffuse"})
            response = urllib.request.urlopen(request, timeout=PATIENCE)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _failed(published, _reason(error)) from error
        with response, files.writing(path) as file:
            done, hashed = 0, hashlib.sha256()
            while chunk := _receive(response, published):
                done += len(chunk)
                if done > published.size:
                    raise _failed(published, f"it has more than {published.size:,} bytes")
                hashed.update(chunk)
                file.write(chunk)
                total = -(-published.size // CHUNK)
                yield Progress("download", -(-done // CHUNK), total, "MiB")
            if done < published.size:
                text = f"it ended after {done:,} of {published.size:,} bytes"
                raise _failed(published, text)
            if hashed.hexdigest() != published.sha256:
                raise _failed(published, f"its SHA-256 is {hashed.hexdigest()}")


def _receive(response: Any, published: Published) -> bytes:
    """The next bytes. What fails here is the network, not the disk that is written to."""
    try:
        chunk: bytes = response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _failed(published, _reason(error)) from error
    return chunk


def _failed(published: Published, reason: str) -> ModelFileError:
    message = f"cannot download the weights of {published.network}: {reason}"
    return ModelFileError(message, published.ways)


def _reason(error: BaseException) -> str:
    """What an error of the network says, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def digest(path: Path) -> str:
    """The SHA-256 of a weights file.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        return files.sha256(path)
    except OSError as error:
        raise ModelFileError(f"cannot read {show(path)}: {error.strerror}") from error


def read(path: Path, published: Published) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU, once its SHA-256 is that of the published.

    Raises:
        ModelFileError: it cannot be read, or is another: it might load and give numbers that
            compare with nobody's.
    """
    import torch

    found = digest(path)
    if found != published.sha256:
        raise ModelFileError(
            f"{show(path)} is not the weights of {published.network}: "
            f"SHA-256 {found[:8]}…, not {published.sha256[:8]}…",
            published.ways,
        )
    try:
        # Files from before PyTorch 1.6 are no zip and cannot be mapped.
        state: dict[str, Tensor] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ModelFileError(f"{show(path)} does not hold tensors alone", published.ways) from error
    return state


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Give a network its weights, of which none may be missing or left, for inference.

    Raises:
        ModelFileError: names or shapes are others.
    """
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelFileError(f"{show(path)}: {reason[:200]}") from error
    network.eval().requires_grad_(False)
