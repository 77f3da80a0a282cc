"""`diffuse sample`: images from a model file into a folder, with their manifest."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.config import SampleConfig
from diffuse_cli.sampling import sample_archive
from diffuse_cli.sampling.folders import holding
from diffuse_cli.sampling.job import Generated, load_job
from diffuse_cli.system import files
from diffuse_cli.system.devices import machine, rank
from diffuse_cli.system.errors import OutputError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.processes import from_first, meet

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


def generate(config: SampleConfig) -> Work[Generated | None]:
    """Draw images from a model file and write them with a manifest.

    Yields `Progress`. Each process writes the images that it draws, part by part, and goes on where
    an earlier sampling of the same settings was stopped; at the end the first one writes grid,
    animation and manifest.

    Returns:
        What was written, or None on every process but the first.

    Raises:
        OutputError: the folder holds other samples already, or cannot be written.
        ModelFileError: not a model file.
        UsageError: options that do not go together.
    """
    out = Path(config.out)
    folder, name = sample_archive.folder_of(out), files.show(out)
    if rank() == 0:
        sample_archive.check(out, config.overwrite)
    with (
        holding(folder) if rank() == 0 else contextlib.nullcontext(),
        machine(config.precision, config.device) as accelerator,
    ):
        job = yield from load_job(config, accelerator)
        plan = from_first(accelerator, lambda: job.begin(config.overwrite))
        if plan.finished:
            if not accelerator.is_main_process:
                return None
            job.pack()
            yield Notice(f"{name} is finished: these images are drawn already")
            return job.written(accelerator.num_processes)
        mine = plan.parts[accelerator.process_index :: accelerator.num_processes]
        if drawn := sum(map(len, job.parts)) - sum(map(len, plan.parts)):
            yield Notice(f"{name}: going on, {drawn:,} images are drawn already")
        try:
            with job.ledger.writing(accelerator.process_index):
                yield from job.draw(mine, accelerator)
        except BaseException as error:
            if accelerator.num_processes == 1:
                job.ledger.abandon()
            if isinstance(error, OutputError):
                error.of_one()
            raise
        meet(accelerator)
        if not accelerator.is_main_process:
            return None
        job.finish()
        job.pack()
        return job.written(accelerator.num_processes)
