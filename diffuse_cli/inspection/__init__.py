"""What is in a set of images, or in a model file."""

from __future__ import annotations

import stat
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
    path = Path(config.path)
    _check_there(path)
    from diffuse_cli.data import is_images

    if is_images(path):
        from diffuse_cli.inspection.dataset import inspect_data

        return (yield from inspect_data(config))
    from diffuse_cli.inspection.model import inspect_model

    return (yield from inspect_model(config))


def _check_there(path: Path) -> None:
    """Refuse what is neither a folder nor a file.

    Raises:
        DataError: there is nothing, or neither a folder nor a regular file.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file or folder: {files.show(path)}", HINT) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {files.show(path)}: {error}", HINT) from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise DataError(f"neither a folder nor a regular file: {files.show(path)}", HINT)
