"""What an evaluation writes, refused before the work where it cannot be written."""

from __future__ import annotations

from pathlib import Path

from diffuse_cli import files
from diffuse_cli.config import EvalConfig
from diffuse_cli.errors import OutputError, UsageError


def check_picture(config: EvalConfig, name: str) -> Path | None:
    """The path of a picture that was asked for.

    Raises:
        UsageError: it is not named as a PNG file.
        OutputError: it exists already, or cannot be written.
    """
    return _checked(getattr(config, name), f"--{name}", ".png", config.overwrite)


def check_report(config: EvalConfig) -> Path | None:
    """The path of the page that was asked for.

    Raises:
        UsageError: it is not named as an HTML file.
        OutputError: it exists already, or cannot be written.
    """
    return _checked(config.report, "--report", ".html", config.overwrite)


def check_model(config: EvalConfig) -> Path | None:
    """The path of a model file that was asked for.

    Raises:
        UsageError: it is not named as a safetensors file.
        OutputError: it exists already, or cannot be written.
    """
    return _checked(config.out, "-o", ".safetensors", config.overwrite)


def _checked(given: str | None, flag: str, suffix: str, overwrite: bool) -> Path | None:
    if given is None:
        return None
    path = Path(given)
    if path.suffix.lower() != suffix:
        raise UsageError(f"{flag} must end in {suffix}, not {files.show(path)!r}")
    files.check_writable(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{files.show(path)} exists already", "--overwrite replaces it")
    return path
