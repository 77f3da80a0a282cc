"""What is in a set of images, a model file or a run."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse_cli.commands.info.model_inspection import ModelReport, inspect_model
from diffuse_cli.config import InfoConfig
from diffuse_cli.system import files, run_reader
from diffuse_cli.system.errors import DataError, UsageError
from diffuse_cli.system.events import Work
from diffuse_cli.system.hub_models import is_name

if TYPE_CHECKING:
    from diffuse_cli.commands.info.reports import DataReport, RunReport

HINT = "PATH is a folder or an archive of images, a model file or a run directory"


def inspect(config: InfoConfig) -> Work[DataReport | ModelReport | RunReport]:
    """Describe what is at the path. Yields `Progress` and `Notice`.

    Raises:
        DataError: there is nothing, neither folder nor regular file, or no usable image.
        ModelFileError: the file is not a model file.
        UsageError: an option does not suit it.
        OutputError: the contact sheet cannot be written.
    """
    from diffuse_cli.data import is_images
    from diffuse_cli.data.sources import is_sample, mode_of

    path = Path(config.path)
    if is_images(path) or is_sample(path):
        if config.toml:
            raise UsageError(f"--toml is for model files, and {files.show(path)} holds images")
        from diffuse_cli.commands.info.reports import inspect_data

        return (yield from inspect_data(config))
    if not is_name(path):
        mode = mode_of(path, HINT)
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise DataError(f"neither a folder nor a regular file: {files.show(path)}", HINT)
        if run_reader.run_at(path) == path:
            from diffuse_cli.commands.info.reports import inspect_run

            return (yield from inspect_run(config, path))
    return (yield from inspect_model(config))
