"""Published weights: found on this machine or downloaded, and verified before use."""

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
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diffuse_cli.system import files, outputs
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import Notice, Progress, Work
from diffuse_cli.system.files import show
from diffuse_cli.system.memory import raise_if_full

Network = TypeVar("Network", bound=nn.Module)

VARIABLE = "DIFFUSE_WEIGHTS"
"""The environment variable that names a folder of weights files."""

CHUNK = 2**20
PATIENCE = 30.0
"""Seconds without a byte until a download fails."""


class Weights(Protocol):
    """A weights file of others: of which network of `FEATURES`, and the ways to get it."""

    @property
    def network(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def ways(self) -> str: ...

    def find(self) -> Work[Path]:
        """The file, whose checksum is yet to be verified; a `ModelFileError` without one."""
        ...


@dataclass(frozen=True)
class Published:
    """`Weights` that are downloaded; `size` is in bytes."""

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

    def find(self) -> Work[Path]:
        """The file in the folder of `DIFFUSE_WEIGHTS` or else in the cache, downloaded if need be.

        Raises:
            ModelFileError: the file cannot be had, or the download is not the published file.
            OutputError: the cache folder cannot be written.
        """
        given = os.environ.get(VARIABLE)
        if given and (path := Path(given) / self.file).is_file():
            return path
        cache = files.cache_folder()
        if cache is None:
            raise ModelFileError(
                f"no weights of {self.network}, and {files.CACHE} turns the cache off", self.ways
            )
        path = cache / "weights" / self.file
        if path.is_file():
            if digest(path, self) == self.sha256:
                return path
            yield Notice(f"{show(path)} is damaged; downloading it again", warning=True)
        yield from download(self, path)
        return path


def download(published: Published, path: Path) -> Work[None]:
    """Write the published file to `path`, which appears once its SHA-256 is verified.

    Raises:
        ModelFileError: the connection fails, or the file is not the published one.
        OutputError, BusyError: `path` cannot be written, or another process downloads it.
    """
    where = f"from {published.url} to {show(path)}"
    yield Notice(f"downloading the weights of {published.network} {where}")
    with outputs.hold_lock(path.with_name(f".{path.name}.lock"), "Wait for it"):
        files.sweep(path.parent, re.escape(path.name))
        with files.writing(path) as file:
            done, hashed = 0, hashlib.sha256()
            for chunk in _received(published):
                done += len(chunk)
                if done > published.size:
                    raise _failed(published, f"it has more than {published.size:,} bytes")
                hashed.update(chunk)
                file.write(chunk)
                total = -(-published.size // CHUNK)
                yield Progress("download", -(-done // CHUNK), total, "MiB")
            if done < published.size:
                raise _failed(published, f"it ended after {done:,} of {published.size:,} bytes")
            if hashed.hexdigest() != published.sha256:
                raise _failed(published, f"its SHA-256 is {hashed.hexdigest()}")


def _received(published: Published) -> Iterator[bytes]:
    """Yield the file in parts; what the network fails at is a `ModelFileError`."""
    try:
        request = urllib.request.Request(published.url, headers={"User-Agent": "diffuse"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            while chunk := response.read(CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(published, _reason(error)) from error


def _failed(published: Published, reason: str) -> ModelFileError:
    message = f"cannot download the weights of {published.network}: {reason}"
    return ModelFileError(message, published.ways)


def _reason(error: BaseException) -> str:
    """A network error in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def digest(path: Path, published: Weights) -> str:
    """The SHA-256 of a weights file; a `ModelFileError` if it cannot be read."""
    try:
        return files.sha256(path)
    except OSError as error:
        message = f"cannot read {show(path)}: {error.strerror}"
        raise ModelFileError(message, published.ways) from error


def built(make: Callable[[], Network], path: Path, published: Weights, unused: str) -> Network:
    """The network that `make` returns, with the weights in a file, on the CPU, for inference.

    Args:
        unused: the start of the names of tensors that the features do not need.

    Raises:
        ModelFileError: the file cannot be read, or is not the published one. Another one could
            load and give numbers that compare with nobody's.
    """
    found = digest(path, published)
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
        raise_if_full(error)
        message = f"{show(path)} holds more than tensors"
        raise ModelFileError(message, published.ways) from error
    state = {key: value for key, value in state.items() if not key.startswith(unused)}
    # The meta device draws nothing from the caller's random generator.
    with torch.device("meta"):
        network = make()
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise_if_full(error)
        reason = str(error).splitlines()[-1].strip()
        raise ModelFileError(f"{show(path)}: {reason[:200]}", published.ways) from error
    network.eval().requires_grad_(False)
    return network


def fold(network: nn.Module) -> None:
    """Multiply every BatchNorm into the convolution before it: the same function, faster."""
    for module in list(network.modules()):
        for (name, conv), (after, batch_norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, batch_norm))
                setattr(module, after, nn.Identity())
