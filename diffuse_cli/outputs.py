"""Checks, before any computing, that an output may be written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffuse_cli import files
from diffuse_cli.errors import OutputError, UsageError


def asked(config: Any, name: str, suffix: str) -> Path | None:
    """The checked path of a configuration's option `name`; None if it was not given.

    Raises:
        UsageError, OutputError: as in `check`.
    """
    given = getattr(config, name)
    flag = "-o" if name == "out" else f"--{name}"
    return None if given is None else check(given, suffix, config.overwrite, flag=flag)


def check(
    given: str | Path, suffix: str, overwrite: bool, *, flag: str = "-o", read: str | None = None
) -> Path:
    """The path of a file that a command will write.

    Args:
        suffix: of its name.
        flag: the option that gave it.
        read: the command's input, which must not be overwritten.

    Raises:
        UsageError: another suffix, or it is the input.
        OutputError: it exists and `overwrite` is false, or it cannot be written.
    """
    path = Path(given)
    check_suffix(path, suffix, flag)
    if read is not None and os.path.realpath(path) == os.path.realpath(read):
        raise UsageError(f"{flag} {files.show(path)} is the input itself", f"Choose another {flag}")
    check_free(path, overwrite, hint=f"Choose another {flag}, or --overwrite")
    return path


def check_suffix(path: Path, suffix: str, flag: str = "-o") -> None:
    """Raise a `UsageError` for another suffix."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"{flag} must end in {suffix}, not {files.show(path)!r}")


def check_free(path: Path, overwrite: bool, *, hint: str, of: Path | None = None) -> None:
    """Raise an `OutputError` if a file exists, without `overwrite`, or cannot be written.

    Args:
        of: the folder that the error names instead.
    """
    files.check_writable(path)
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{files.show(of or path)} exists already", hint)


def check_samples(
    folder: Path, overwrite: bool, manifest: str, written: Callable[[str], object]
) -> None:
    """Raise an `OutputError` if a folder has samples, without `overwrite`, or cannot be written.

    Args:
        manifest: the name of a file that will be written into it.
        written: whether a file of this name is a sample.
    """
    files.check_writable(folder / manifest)
    if overwrite or not folder.is_dir():
        return
    with files.reported(folder):
        earlier = any(written(path.name) for path in folder.iterdir())
    if earlier:
        raise OutputError(
            f"{files.show(folder)} holds samples already", "Choose another -o, or --overwrite"
        )
