"""What an evaluation writes, refused before the work where it cannot be written."""

from __future__ import annotations

from pathlib import Path

from diffuse_cli import files
from diffuse_cli.config import MeasureConfig
from diffuse_cli.errors import OutputError, UsageError


def check_output(config: MeasureConfig, name: str, suffix: str) -> Path | None:
    """The path that an option names, None where it names none.

    Raises:
        UsageError: it does not end in `suffix`.
        OutputError: it exists already, or cannot be written.
    """
    given = getattr(config, name)
    if given is None:
        return None
    path = Path(given)
    if path.suffix.lower() != suffix:
        flag = "-o" if name == "out" else f"--{name}"
        raise UsageError(f"{flag} must end in {suffix}, not {files.show(path)!r}")
    files.check_writable(path)
    if path.exists() and not config.overwrite:
        raise OutputError(f"{files.show(path)} exists already", "--overwrite replaces it")
    return path
