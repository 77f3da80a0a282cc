"""What is in a set of images, or in a model file."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse_cli import files
from diffuse_cli.config import InfoConfig
from diffuse_cli.errors import DataError
from diffuse_cli.events import Work

if TYPE_CHECKING:
    from diffuse_cli.inspection.dataset import DataReport
    from diffuse_cli.inspection.model import ModelReport

HINT = "PATH is a folder or a .zip file of images, or a model file"


def inspect(config: InfoConfig) -> Work[DataReport | ModelReport]:
    """Say what is at the path. Yields `Progress` and `Notice`.

    Raises:
        DataError: there is nothing, or no usable images.
        ModelFileError: a file that is not a model file.
        UsageError: an option that does not go with it.
        OutputError: the contact sheet cannot be written.
    """
    if is_data(Path(config.path)):
        from diffuse_cli.inspection.dataset import inspect_data

        return (yield from inspect_data(config))
    from diffuse_cli.inspection.model import inspect_model

    return (yield from inspect_model(config))


def is_data(path: Path) -> bool:
    """Whether a folder or zip of images is there; a file that may be a model's otherwise.

    Raises:
        DataError: there is nothing, or neither a folder nor a regular file.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file or folder: {files.show(path)}", HINT) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {files.show(path)}: {error}", HINT) from None
    if stat.S_ISDIR(mode):
        return True
    if not stat.S_ISREG(mode):
        raise DataError(f"neither a folder nor a regular file: {files.show(path)}", HINT)
    return _is_zip(path) and not _is_pickle(path)


def _is_zip(path: Path) -> bool:
    """Whether a file is a zip, which weights that end like one by chance are not."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] != b"{" and zipfile.is_zipfile(file)
    except OSError:
        return False


def _is_pickle(path: Path) -> bool:
    """Whether a zip is what `torch.save` writes: a pickle, and no images."""
    from diffuse_cli.media import by_extension

    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except Exception:  # whatever is wrong with it, reading it as images will say so
        return False
    images = any(Path(name).suffix.lower() in by_extension() for name in names)
    return not images and any(name.endswith("/data.pkl") for name in names)
