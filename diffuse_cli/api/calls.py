"""Shared parts of the functions: options from keywords, data in memory, and notices in a log."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

from PIL.Image import Image

from diffuse_cli.api.generated_samples import Samples
from diffuse_cli.config import options, parsers
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import InvalidArgument
from diffuse_cli.core.settings import shorten_repr
from diffuse_cli.data.sources import in_memory
from diffuse_cli.system import (
    DiffuseError,
    Notice,
    Progress,
    UsageError,
    Work,
    accelerator,
    to_usage_error,
)

T = TypeVar("T")


class Indexed(Protocol):
    """Samples by index, for example a `Dataset` of PyTorch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Data: TypeAlias = "str | os.PathLike[str] | Iterable[Any] | Indexed"
"""A path, as for the command line, or samples: generated samples, or those that
`data.sources.in_memory.register_samples` takes."""

LOG = logging.getLogger("diffuse")
LOG.addHandler(logging.NullHandler())


def path_of(name: str, path: Any) -> str:
    """Return a path as text.

    Args:
        name: the name of the argument, for messages.

    Raises:
        UsageError: the value is not a path.
    """
    if not isinstance(path, (str, os.PathLike)):
        text = f"{name}: {shorten_repr(path)} is not a path"
        raise UsageError(text, code="invalid_value", option=name)
    return os.fspath(path)


def check_data(name: str, data: Any) -> None:
    """Check that data is a path or samples.

    Args:
        name: the name of the argument, for messages.

    Raises:
        UsageError: it is neither.
    """
    kinds = (str, os.PathLike, Image, Iterable)
    listed = isinstance(data, kinds) or hasattr(data, "__getitem__")
    if isinstance(data, Mapping) or not listed:
        text = f"{name}: {shorten_repr(data)} is not a path, and not samples"
        raise UsageError(text, code="invalid_value", option=name)


@contextlib.contextmanager
def open_data(data: Data, name: str = "data") -> Iterator[str]:
    """Yield the path of data, or a name by which samples can be opened inside the block.

    Args:
        name: the name of the argument, for messages.
    """
    check_data(name, data)
    if isinstance(data, (str, os.PathLike)):
        yield os.fspath(data)
        return
    samples: Any = [data] if isinstance(data, Image) else data
    if isinstance(samples, Samples):
        samples = [*samples.files()]
    with in_memory.register_samples(samples, around=accelerator.forbid_accelerator) as data_name:
        yield data_name


HELD = ("given", "mask")
"""Options that may be samples in memory."""


def convert_keywords(keywords: Mapping[str, Any], stack: contextlib.ExitStack) -> dict[str, Any]:
    """Return options for keywords, without those that are None.

    Paths become text, and values of NumPy and PyTorch become values of Python. Samples become names
    by which they can be opened until the stack closes.
    """
    given = {name: value for name, value in keywords.items() if value is not None}
    for name, value in given.items():
        if name in HELD:
            given[name] = stack.enter_context(open_data(value, name))
        else:
            path = isinstance(value, os.PathLike)
            given[name] = os.fspath(value) if path else parsers.to_plain(value)
    return given


@contextlib.contextmanager
def convert_errors() -> Iterator[None]:
    """Raise errors of the block as `DiffuseError`, with keywords instead of flags."""
    try:
        yield
    except InvalidArgument as error:
        raise _replace_error_flags(to_usage_error(error)) from error
    except DiffuseError as error:
        _replace_error_flags(error)
        raise


@functools.cache
def _map_flags() -> Mapping[str, str]:
    """Return the keyword of each flag."""
    kinds = (EvalConfig, SampleConfig, TrainConfig)
    keywords = {
        options.field_flag(f): f.name
        for kind in kinds
        for f, spec in options.option_fields(kind)
        if not spec.argument
    }
    long = {flag: name for flag, name in keywords.items() if flag.startswith("--")}
    without = {f"--no-{flag[2:]}": f"{name}=False" for flag, name in long.items()}
    return {**without, **keywords, "-o": "out", "--class": "label"}


_WRITTEN = re.compile(r"\bdiffuse [a-z][a-z-]* .*|(?<![\w-])--?[a-z][a-z-]*")
"""A command with the rest of its line, which does not change, or a flag."""


def replace_flags(text: str) -> str:
    """Return a message with keywords instead of flags."""
    return _WRITTEN.sub(lambda match: _map_flags().get(match[0], match[0]), text)


def _replace_error_flags(error: DiffuseError) -> DiffuseError:
    """Replace flags by keywords in an error, and return it."""
    error.message, error.hint = replace_flags(error.message), replace_flags(error.hint)
    error.option = replace_flags(error.option)
    error.args = (error.message,)
    return error


@contextlib.contextmanager
def use_torch_defaults() -> Iterator[None]:
    """Use PyTorch's defaults in the block: gradients, float32 and the CPU. Restore the settings."""
    import torch

    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None if device.type == "cpu" else device)


def run_work(work: Work[T], progress: Callable[[Progress], object] | None = None) -> T:
    """Run work, log its notices, and return its result.

    An error of `progress` stops the work, which releases its locks and restores its settings.

    Args:
        progress: a function to call with the progress.
    """
    with contextlib.closing(work):
        while True:
            try:
                with convert_errors(), use_torch_defaults():
                    event = next(work)
            except StopIteration as end:
                result: T = end.value
                return result
            if progress is not None and isinstance(event, Progress):
                progress(event)
            if isinstance(event, Notice):
                level = logging.WARNING if event.warning else logging.INFO
                LOG.log(level, replace_flags(event.text))
