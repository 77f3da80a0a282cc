"""Jobs that generate the samples of a command, record them in parts, and write figures of them."""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.core import Space
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
from diffuse_cli.sampling import journal, sample_archive
from diffuse_cli.sampling.cascade import Cascade, load_cascade
from diffuse_cli.sampling.generation import to_stored
from diffuse_cli.sampling.journal import (
    GIF,
    GRID,
    KEY,
    WORK,
    SamplingRecord,
    lock_folder,
    split_parts,
)
from diffuse_cli.system import Notice, OutputError, Progress, Work, files
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.processes import rank, run_on_first

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image


GRID_IMAGES = 400
"""Largest number of images in the grid."""

GIF_IMAGES = 16
"""Largest number of images in the animation."""

GIF_FRAMES = 60
"""Largest number of frames of the animation."""


@dataclass(frozen=True)
class SampleFiles:
    """Files that a job wrote or found: the samples in order, the figures and the manifest.

    Attributes:
        packed: the archive that replaces all other files.
    """

    images: tuple[Path, ...]
    grid: Path | None
    gif: Path | None
    manifest: Path | None
    processes: int
    packed: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths of all pictures, or of the archive."""
        return tuple(p for p in (*self.images, self.grid, self.gif, self.packed) if p is not None)

    @property
    def values(self) -> dict[str, Any]:
        """Entries for `--json`."""
        return {
            "images": [str(path) for path in self.images],
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
        config: options `out`, `batch_size`, `grid` and `overwrite`.
        indices: the indices of the samples.
        described: settings that decide the bytes of a sample, which the manifest lists.
        hidden: settings that decide them too, which the manifest has in another form.
        folder: the folder of the files until they are packed into `out`, by default `out`.
    """

    def __init__(
        self,
        config: Any,
        space: Space,
        indices: range,
        described: Mapping[str, Any],
        hidden: Mapping[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.out, self.overwrite = Path(config.out), bool(config.overwrite)
        self.folder, self.space, self.indices = folder or self.out, space, indices
        self.described = {"format": MANIFEST_FORMAT, **described}
        self.record = SamplingRecord(self.folder, self.described, hidden, suffix(space))
        self.parts = split_parts(indices, config.batch_size)
        self.figures: dict[str, Callable[[Sequence[int]], bytes]] = {}
        if config.grid:
            self.figures[GRID] = lambda indices: figures.encode_png(self.make_grid(indices))
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
        return [self.record.path(i).name for i in part]

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
        grid, gif = (self.folder / n if n in self.figures else None for n in (GRID, GIF))
        paths = tuple(self.record.path(i) for i in self.indices)
        return SampleFiles(paths, grid, gif, self.folder / MANIFEST, accelerator.num_processes)

    def _write_parts(self, parts: Sequence[range], accelerator: Accelerator) -> Work[None]:
        written, total = 0, sum(map(len, parts))
        for part in parts:
            for state in self.generate_part(part, accelerator):
                at = written + int(len(part) * state.share)
                yield Progress("sampling", at, total, f"step {state.step}/{state.steps}")
            assert state.samples is not None
            encoded = (self.medium.encode(sample, self.space) for sample in state.samples)
            names = (self.record.path(i).name for i in part)
            contents = dict(zip(names, encoded, strict=True))
            for name, array in state.arrays.items():
                file = io.BytesIO()
                np.save(file, array, allow_pickle=False)
                contents[_array_file(part, name)] = file.getvalue()
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
            text = f"{files.show(self.record.path(min(lost)))} is missing"
            raise OutputError(text, "Run the command again")
        self.record.add("figures", {name: draw(indices) for name, draw in self.figures.items()})
        self.record.end(self.describe(indices))

    def pack(self) -> Path | None:
        """Pack the folder into the file that the command names, and return its path, if any."""
        return None

    def read(self, path: Path) -> Array:
        """Return a written sample as stored."""
        with files.report_errors(path):
            settings = ReadSettings(**settings_for(self.space))
            return self.medium.read(path.read_bytes(), settings).values


class CascadeJob(SamplingJob):
    """Samples of the last model of `diffuse sample`, conditioned on earlier models' samples."""

    def __init__(self, config: SampleConfig, chain: Cascade) -> None:
        first, last = chain.stages[0], chain.last
        self.chain, self.condition = chain, last.settings.condition
        self.cascaded = first is not last
        hidden = {"told": last.describe_cycle()}
        described = {
            **last.describe(config),
            "batch_size": config.batch_size,
            **last.settings.describe_guidance(),
            **chain.offered.described,
        }
        if self.cascaded:
            described["first"] = {**first.describe(config), **first.settings.describe_guidance()}
            hidden["told_first"] = first.describe_cycle()
        folder = sample_archive.choose_folder(Path(config.out))
        super().__init__(config, chain.space, chain.list_indices(config), described, hidden, folder)
        self.grid_indices = self.indices[: GRID_IMAGES * (config.grid and self.cascaded)]
        self.moving = self.indices[: GIF_IMAGES * config.gif]
        if config.gif:
            self.figures[GIF] = self._make_gif

    def list_files(self, part: range) -> list[str]:
        """Return the names of a part's files, and of arrays that grid and animation show."""
        arrays = {"frames": self.moving, "inputs": self.grid_indices}
        names = [name for name, indices in arrays.items() if part.start in indices]
        return [*super().list_files(part), *(_array_file(part, name) for name in names)]

    def begin(self) -> list[range] | None:
        """Return the parts to generate, None if the job is complete or packed."""
        if self.folder != self.out and self.out.exists() and not self.overwrite:
            names = (self.record.path(i).name for i in self.indices)
            sample_archive.check_same(self.out, self.record.key, names)
            return None
        return super().begin()

    def generate_part(self, part: range, accelerator: Accelerator) -> Iterator[PartState]:
        """Generate samples, and keep the arrays that grid and animation show."""
        arrays: dict[str, Array] = {}
        frames: list[Array] = []
        moving, models = sum(i in self.moving for i in part), len(self.chain.stages)
        for k, drawing, samples, given in self.chain.generate_states(part, accelerator):
            if moving and k + 1 == models:
                frames.append(to_stored(self.space, drawing.state.x[:moving]))
            if drawing.done:
                if frames:
                    arrays["frames"] = np.stack(frames, 1)
                indices = [i for i in part if i in self.grid_indices]
                if inputs := self.chain.stages[k].show_inputs(indices, given):
                    arrays["inputs"] = np.stack([inputs[i][0] for i in indices])
            share = (k + drawing.step / drawing.steps) / models
            yield PartState(drawing.step, drawing.steps, share, samples, arrays)

    def make_grid(self, indices: Sequence[int]) -> Image:
        """Return the grid of the written samples, next to their inputs."""
        if self.cascaded:  # The inputs of samples of earlier commands are not kept.
            indices = self.grid_indices
        samples = {i: self.read(self.record.path(i)) for i in indices[:GRID_IMAGES]}
        given = self.condition.given if self.condition else None
        turn = len(given) if given else max(samples) + 1
        if self.cascaded:
            rows = np.concatenate(self._load_arrays("inputs", self.grid_indices))
            inputs = {i: [row] for i, row in zip(self.grid_indices, rows, strict=True)}
        else:
            inputs = self.chain.last.show_inputs(sorted({i % turn for i in samples}), given)
        return self.chain.last.make_grid(samples, inputs, turn)

    def _make_gif(self, indices: Sequence[int]) -> bytes:
        """Return an animation from noise to sample, in at most `GIF_FRAMES` frames."""
        arrays = self._load_arrays("frames", self.moving)
        last = arrays[0].shape[1] - 1
        steps = sorted({round(last * k / (GIF_FRAMES - 1)) for k in range(GIF_FRAMES)})
        stacks = (np.concatenate([frames[:, step] for frames in arrays]) for step in steps)
        grids = [figures.arrange_grid(render_samples(self.space, stack)) for stack in stacks]
        return figures.encode_gif(grids, seconds=3.0, hold=2.0)

    def _load_arrays(self, name: str, indices: range) -> list[Array]:
        """Return arrays of the first samples, which are kept until the job ends, by part."""
        parts = [part for part in self.parts if part.start in indices]
        return [np.load(self.folder / _array_file(part, name)) for part in parts]

    def describe(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the smallest `-n` that includes these samples, gaps in it, and the conditions."""
        per = self.chain.offered.per
        whole = -(-(indices[-1] + 1) // per)
        counted: dict[str, Any] = {"n": whole}
        if len(indices) != whole * per:
            gaps = [i for a, b in pairwise(indices) if b != a + 1 for i in (a + 1, b)]
            ends = [indices[0], *gaps, indices[-1] + 1]
            counted["ranges"] = [ends[k : k + 2] for k in range(0, len(ends), 2)]
        entries = {**counted, **self.chain.last.describe_conditions(indices)}
        if self.cascaded:
            conditions = self.chain.stages[0].describe_conditions(indices)
            entries["first"] = {**self.described["first"], **conditions}
        return entries

    def pack(self) -> Path | None:
        """Pack the folder into the archive that the command names, if any, and remove it."""
        if self.folder == self.out:
            return None
        if not self.record.hashes:  # the file was complete before
            if journal.read_earlier(self.folder).get(KEY) == self.record.key:
                files.remove(self.folder)  # which a stopped command has left
            return self.out
        condition, indices = self.condition, self.record.indices
        labels = [condition.label(i) for i in indices] if condition and condition.labels else None
        sample_archive.pack(self.out, self.folder, self.read, labels)
        files.remove(self.folder)
        return self.out


def _array_file(part: range, name: str) -> str:
    """Return the name of the file with an array of a part, which the job removes at its end."""
    return f"{WORK}/{part.start}-{part.stop}.{name}.npy"


@contextlib.contextmanager
def open_folder(config: Any, folder: Path) -> Iterator[Accelerator]:
    """Lock a command's output folder, which has been checked, and set up its Accelerator."""
    with (
        lock_folder(folder) if rank() == 0 else contextlib.nullcontext(),
        open_accelerator(config.precision, config.device) as accelerator,
    ):
        yield accelerator


def generate(config: SampleConfig) -> Work[SampleFiles | None]:
    """Generate images with a model file and write them with a manifest (see `SamplingJob`).

    Yields `Progress`.

    Returns:
        The files, or None on every process but the first.

    Raises:
        OutputError: the folder holds other samples already, or cannot be written.
        ModelFileError: not a model file.
        UsageError: options that cannot be combined.
    """
    out = Path(config.out)
    folder, before = sample_archive.choose_folder(out), dict[str, Any]()
    if rank() == 0:
        journal.check_output_apart(out, *filter(None, (config.given, config.mask)))
        sample_archive.check_output(out, config.overwrite)
    with open_folder(config, folder) as accelerator:
        if not config.overwrite:
            before = journal.read_earlier(folder) or sample_archive.read_packed_manifest(out)
        chain = yield from load_cascade(config, accelerator, before)
        sample_archive.check_kind(out, chain.space, config.gif)
        return (yield from CascadeJob(config, chain).run(accelerator))
