"""May this output be written? Asked before any computing, and answered in one way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffuse_cli import files
from diffuse_cli.errors import OutputError, UsageError


def asked(config: Any, name: str, suffix: str) -> Path | None:
    """The path that the option `name` of a configuration gives, as `check` returns it; None where
    it was not given.

    Raises:
        UsageError, OutputError: as `check` does.
    """
    given = getattr(config, name)
    flag = "-o" if name == "out" else f"--{name}"
    return None if given is None else check(given, suffix, config.overwrite, flag=flag)


def check(
    given: str | Path, suffix: str, overwrite: bool, *, flag: str = "-o", read: str | None = None
) -> Path:
    """The path of a file that a command will write.

    Args:
        suffix: what its name must end in.
        flag: the option that it was given by.
        read: a file that the command reads, which must stay as it is.

    Raises:
        UsageError: another suffix, or it is the file that is read.
        OutputError: it exists and `overwrite` is false, or it cannot be written.
    """
    path = Path(given)
    check_suffix(path, suffix, flag)
    if read is not None and os.path.realpath(path) == os.path.realpath(read):
        raise UsageError(f"{flag} {files.show(path)} is the input itself", f"Choose another {flag}")
    check_free(path, overwrite, hint=f"Choose another {flag}, or --overwrite")
    return path


def check_suffix(path: Path, suffix: str, flag: str = "-o") -> None:
    """Refuse a file of another kind, with a `UsageError`."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"{flag} must end in {suffix}, not {files.show(path)!r}")


def check_free(path: Path, overwrite: bool, *, hint: str, of: Path | None = None) -> None:
    """Refuse a file that exists, unless `overwrite`, or that cannot be written.

    Args:
        of: the folder that the file stands for, which an error names in its place.

    Raises:
        OutputError: as said.
    """
    files.check_writable(path)
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{files.show(of or path)} exists already", hint)


def check_samples(
    folder: Path, overwrite: bool, manifest: str, written: Callable[[str], object]
) -> None:
    """Refuse a folder that holds earlier samples, unless `overwrite`, or that cannot be written.

    Args:
        manifest: the name of a file that will be written into it.
        written: whether a file of this name is one of the samples.

    Raises:
        OutputError: as said.
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
