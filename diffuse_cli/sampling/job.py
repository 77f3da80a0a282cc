"""Jobs that generate the samples of a command, record them in parts, and write figures of them."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL.Image import Image

from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.config.task_options import ImageTaskConfig, InterpolateConfig
from diffuse_cli.core import Space
from diffuse_cli.data.metadata_columns import decode_row
from diffuse_cli.data.sources import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.media import (
    MEDIA,
    Array,
    ReadSettings,
    figures,
    render_samples,
    settings_for,
    suffix,
)
from diffuse_cli.media.array import to_npy
from diffuse_cli.models.image_conditioning import ConditioningInputs
from diffuse_cli.sampling import journal
from diffuse_cli.sampling.conditioning import report_out_of_range
from diffuse_cli.sampling.model_loading import LoadedModel, load_guide
from diffuse_cli.sampling.sampling_settings import (
    SamplingSettings,
    report_settings,
    resolve_settings,
)
from diffuse_cli.system import Notice, OutputError, Progress, Work, files
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.processes import rank, run_on_first

GRID_IMAGES = 400
"""Largest number of images in the grid."""

StageConfig = SampleConfig | ImageTaskConfig
"""Options of a command that samples with the settings of a model."""

JobConfig = StageConfig | InterpolateConfig
"""Options of a command that writes samples."""


@dataclass(frozen=True)
class Stage:
    """A model, and its sampling settings."""

    loaded: LoadedModel
    settings: SamplingSettings

    def show_inputs(
        self, indices: Iterable[int], given: ConditioningInputs | None
    ) -> dict[int, Array]:
        """Return pictures of the inputs of images by index, uint8 (1 or 3, H, W).

        A model without inputs has none.
        """
        encoder = self.loaded.encoder
        if encoder is None or given is None:
            return {}
        return {i: encoder.look(given.encode([i]))[0] for i in indices}

    def make_grid(
        self, samples: Mapping[int, Array], inputs: Mapping[int, Array] = {}, turn: int = 1
    ) -> Image:
        """Return a grid of samples by index, with a row for each input, which comes first.

        Without inputs, it has a row for each condition, or is nearly square.

        Args:
            inputs: pictures of the input of image k, by k modulo `turn`.
        """
        order = sorted(samples)
        stack = render_samples(self.loaded.space, np.stack([samples[i] for i in order]))
        condition, rows = self.settings.condition, dict[Any, list[Array]]()
        if inputs:
            rows = {i: [inputs[i]] for i in sorted({i % turn for i in order})}
            for i, picture in zip(order, stack, strict=True):
                rows[i % turn].append(picture)
            return figures.arrange_rows(rows.values())
        if condition and (condition.labels or condition.rows):
            for i in range(max(len(condition.labels), len(condition.rows))):
                rows[condition.label(i), condition.row(i)] = []
            for i, picture in zip(order, stack, strict=True):
                rows[condition.label(i), condition.row(i)].append(picture)
        columns = max(map(len, rows.values()), default=0)
        if len(rows) < 2 or columns < 2:
            return figures.arrange_grid(stack)
        blank = np.full_like(stack[0], 255)
        filled = [cell for row in rows.values() for cell in (*row, *[blank] * (columns - len(row)))]
        return figures.arrange_grid(np.stack(filled), columns)

    def describe(self, config: StageConfig) -> dict[str, Any]:
        """Return the settings that decide its images, for the manifest."""
        return {
            **self.settings.describe_steps(),
            **self.settings.describe_guidance(),
            "seed": config.seed,
            "eta": config.eta,
            "order": config.order,
            "threshold": config.threshold,
            "weights": config.weights,
            "precision": self.loaded.precision,
            "model": {"sha256": self.loaded.sha256},
            **({"distilled": dict(recipe)} if (recipe := self.loaded.model.distilled) else {}),
        }

    def describe_conditions(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the class of each image, and its metadata columns, for the manifest."""
        model, condition = self.loaded.model, self.settings.condition
        described, table = dict[str, Any](), model.blueprint.conditions.table
        if condition and condition.labels:
            described["classes"] = [model.classes[condition.label(i)] for i in indices]
        if condition and condition.rows and table:
            described["on"] = [decode_row(table, condition.row(i)) for i in indices]
        return described

    def describe_cycle(self) -> dict[str, Any]:
        """Return the conditions until they repeat, and how many images share each."""
        condition = self.settings.condition
        turn = condition.turn if condition else 1
        count = max(len(condition.labels), len(condition.rows)) if condition else 0
        return {**self.describe_conditions(range(0, count * turn, turn)), "turn": turn}


def load_stage(
    config: StageConfig,
    loaded: LoadedModel,
    accelerator: Accelerator,
    has_input: bool | None = None,
    **conditioning: Any,
) -> Work[Stage]:
    """Read the guidance model of a model, and resolve and report the settings.

    Args:
        has_input: whether the model is conditioned on an input, None if it takes any.
        conditioning: see `resolve_condition`.

    Raises:
        UsageError, ModelFileError: see `load_guide` and `resolve_settings`.
    """
    guide = yield from load_guide(config, loaded, accelerator)
    if has_input is None:
        has_input = loaded.model.blueprint.conditions.given is not None
    request = (config, loaded.model, config.classes, config.on)
    conditioning |= {"guide": guide, "has_input": has_input, "vectors": config.on_vector or ()}
    settings = resolve_settings(*request, **conditioning)
    yield from report_settings(settings)
    yield from report_out_of_range(loaded.model, config.on)
    return Stage(loaded, settings)


@dataclass(frozen=True)
class SampleFiles:
    """Files that a job wrote or found: the samples in order, the figures and the manifest.

    Attributes:
        packed: the archive that replaces all other files.
        arrays: the means and standard deviations of members.
    """

    images: tuple[Path, ...]
    grid: Path | None
    gif: Path | None
    manifest: Path | None
    processes: int
    packed: Path | None = None
    arrays: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths of all pictures and arrays, or of the archive."""
        paths = (*self.images, *self.arrays, self.grid, self.gif, self.packed)
        return tuple(path for path in paths if path is not None)

    @property
    def values(self) -> dict[str, Any]:
        """Entries for `--json`."""
        return {
            "images": [str(path) for path in self.images],
            **({"arrays": [str(path) for path in self.arrays]} if self.arrays else {}),
            "grid": str(self.grid) if self.grid else None,
            "manifest": str(self.manifest) if self.manifest else None,
            "processes": self.processes,
        }


@dataclass(frozen=True)
class PartState:
    """State of a part after `step` of the `steps` of its model.

    Attributes:
        share: the fraction of the work that is done.
        samples: the samples as stored, (N, C, *size), once they are complete.
        arrays: further arrays of the first samples, which the figures need, with a row for each.
    """

    step: int
    steps: int
    share: float
    samples: Array | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)


class SamplingJob(ABC):
    """Samples that a command writes into a folder, in parts.

    Each process generates and writes its own parts. A job resumes where an earlier command with the
    same settings stopped. At the end the first process writes figures of all samples and the
    manifest.

    Args:
        indices: the indices of the samples.
        described: settings that decide the bytes of a sample, which the manifest lists.
        hidden: settings that decide them too, which the manifest has in another form.
        folder: the folder of the files until they are packed into `out`, by default `out`.
    """

    def __init__(
        self,
        config: JobConfig,
        space: Space,
        indices: range,
        described: Mapping[str, Any],
        hidden: Mapping[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.out, self.overwrite = Path(config.out), config.overwrite
        self.folder, self.space, self.indices = folder or self.out, space, indices
        self.described = {"format": MANIFEST_FORMAT, **described}
        self.record = journal.SamplingRecord(self.folder, self.described, hidden, suffix(space))
        self.parts = split_parts(indices, config.batch_size)
        self.figures: dict[str, Callable[[Sequence[int]], bytes]] = {}
        if config.grid:
            self.figures[journal.GRID] = lambda indices: figures.encode_png(self.make_grid(indices))
        MEDIA[space.medium].prepare()
        self.medium = MEDIA[space.medium]

    @abstractmethod
    def generate_part(self, part: range, accelerator: Accelerator) -> Iterator[PartState]:
        """Generate samples, and yield states, of which the last has them."""

    @abstractmethod
    def make_grid(self, indices: Sequence[int]) -> Image:
        """Return the grid of the written samples."""

    def describe(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return entries of the manifest about all samples."""
        return {}

    def list_files(self, part: range) -> list[str]:
        """Return the names of a part's files."""
        return [self.record.name(i) for i in part]

    def name_array(self, part: range, name: str) -> str:
        """Return the name of the file with an array of a part, which is removed at the end."""
        return f"{journal.WORK}/{part.start}-{part.stop}.{name}.npy"

    def begin(self) -> list[range] | None:
        """Return the parts to generate, None if the job is complete."""
        parts = {part: self.list_files(part) for part in self.parts}
        return self.record.begin(parts, self.figures.keys(), overwrite=self.overwrite)

    def run(self, accelerator: Accelerator) -> Work[SampleFiles | None]:
        """Generate and write the remaining samples.

        Returns:
            The files, or None on every process but the first.

        Raises:
            DivergedError: samples are not finite.
            OutputError: the folder holds other samples already, or cannot be written.
        """
        name, first = files.show(self.out), accelerator.is_main_process
        parts_left = run_on_first(accelerator, self.begin)
        if parts_left is None:
            if first:
                yield Notice(f"{name} is complete: it already contains these images")
        else:
            if count := sum(map(len, self.parts)) - sum(map(len, parts_left)):
                images = f"{count:,} image{'s' * (count != 1)}"
                yield Notice(f"{name}: resuming with {images} of {sum(map(len, self.parts)):,}")
            process_parts = parts_left[accelerator.process_index :: accelerator.num_processes]
            try:
                with self.record.hold_lock(accelerator.process_index):
                    yield from self._write_parts(process_parts, accelerator)
            except BaseException as error:
                if accelerator.num_processes == 1:
                    self.record.abandon()
                if isinstance(error, OutputError):
                    error.mark_local()
                raise
            accelerator.wait_for_everyone()
            if first:
                self._finish()
        if not first:
            return None
        if packed := self.pack():
            return SampleFiles((), None, None, None, accelerator.num_processes, packed)
        pictures = journal.GRID, journal.GIF
        grid, gif = (self.folder / name if name in self.figures else None for name in pictures)
        paths = tuple(self.record.path(i) for i in self.indices)
        arrays = tuple(self.folder / name for name in self.figures if name not in pictures)
        written = (paths, grid, gif, self.folder / MANIFEST, accelerator.num_processes)
        return SampleFiles(*written, arrays=arrays)

    def _write_parts(self, parts: Sequence[range], accelerator: Accelerator) -> Work[None]:
        written, total = 0, sum(map(len, parts))
        for part in parts:
            for state in self.generate_part(part, accelerator):
                at = written + int(len(part) * state.share)
                yield Progress("sampling", at, total, f"step {state.step}/{state.steps}")
            assert state.samples is not None
            encoded = (self.medium.encode(sample, self.space) for sample in state.samples)
            names = (self.record.name(i) for i in part)
            contents = dict(zip(names, encoded, strict=True))
            arrays = state.arrays.items()
            contents |= {self.name_array(part, name): to_npy(array) for name, array in arrays}
            self.record.add(f"{part.start}-{part.stop}", contents)
            written += len(part)

    def _finish(self) -> None:
        """Write the figures and, last, the manifest that names every file.

        Raises:
            OutputError: an image of another process is missing.
        """
        self.record.collect()
        indices = self.record.indices
        if lost := {*self.indices} - {*indices}:
            path = self.record.path(min(lost))
            raise OutputError(f"{files.show(path)} is missing", "Run the command again", path=path)
        if self.folder != self.out:  # a file holds the samples of one command
            self.record.keep(self.indices)
            indices = self.record.indices
        for k, (name, draw) in enumerate(self.figures.items()):  # one at a time, to save memory
            self.record.add(f"figure-{k}", {name: draw(indices)})
        self.record.end(self.describe(indices))

    def pack(self) -> Path | None:
        """Pack the folder into the file that the command names, and return its path, if any."""
        return None

    def read(self, path: Path) -> Array:
        """Return a written sample as stored."""
        with files.report_errors(path):
            settings = ReadSettings(**settings_for(self.space))
            return self.medium.read(path.read_bytes(), settings).values


def split_parts(indices: range, size: int) -> list[range]:
    """Return the batches of some images, which end at multiples of `size` and at the last image."""
    first, last = indices.start // size, (indices.stop - 1) // size
    blocks = ((k * size, (k + 1) * size) for k in range(first, last + 1))
    return [range(max(start, indices.start), min(stop, indices.stop)) for start, stop in blocks]


@contextlib.contextmanager
def open_folder(folder: Path, precision: str, device: str) -> Iterator[Accelerator]:
    """Lock an output folder, which has been checked, and set up an Accelerator."""
    with (
        journal.lock_folder(folder) if rank() == 0 else contextlib.nullcontext(),
        open_accelerator(precision, device) as accelerator,
    ):
        yield accelerator
