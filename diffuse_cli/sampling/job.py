"""The images of a `diffuse sample`: which are left, their parts drawn, and what is made of all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.config import SampleConfig
from diffuse_cli.data import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.data.metadata_columns import told_by
from diffuse_cli.media import MEDIA, Asked, figures, like, prepare, suffix
from diffuse_cli.sampling import generation, journal, sample_archive
from diffuse_cli.sampling.cascade import Chain, load_chain
from diffuse_cli.sampling.generation import stored
from diffuse_cli.sampling.journal import (
    GIF,
    GRID,
    GRID_IMAGES,
    KEY,
    Ledger,
    Plan,
    holding,
    parts_of,
)
from diffuse_cli.system import files
from diffuse_cli.system.devices import machine, rank
from diffuse_cli.system.errors import OutputError
from diffuse_cli.system.events import Notice, Progress, Work
from diffuse_cli.system.processes import from_first, meet

if TYPE_CHECKING:
    import numpy.typing as npt
    from accelerate import Accelerator

    from diffuse_cli.sampling.generation import Frames

    Array = npt.NDArray[Any]


GIF_IMAGES = 16
"""Most images shown in the animation."""


@dataclass(frozen=True)
class Generated:
    """What `generate` wrote, or found: the images in order, then the grid, the animation, the
    manifest; or the file that they are packed into."""

    images: tuple[Path, ...]
    grid: Path | None
    gif: Path | None
    manifest: Path | None
    processes: int
    packed: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every picture."""
        return tuple(p for p in (*self.images, self.grid, self.gif, self.packed) if p is not None)


def load_job(config: SampleConfig, accelerator: Accelerator) -> Work[Job]:
    """Read the models, and what the images are given."""
    out = Path(config.out)
    folder = sample_archive.folder_of(out)
    before: Mapping[str, Any] = {}
    if not config.overwrite:
        before = journal.earlier(folder) or (
            sample_archive.manifest_of(out) if out.is_file() else {}
        )
    chain = yield from load_chain(config, accelerator, before)
    sample_archive.check_kind(out, chain.space, config.gif)
    return Job(config, out, folder, chain)


@dataclass
class Job:
    """The images of a command: those of the last model, drawn from those of the ones before."""

    config: SampleConfig
    out: Path
    folder: Path
    chain: Chain

    def __post_init__(self) -> None:
        config, self.wanted = self.config, self.chain.wanted(self.config)
        self.parts = parts_of(self.wanted, config.batch_size)
        self.stages, self.space = self.chain.stages, self.chain.space
        self.medium = MEDIA[self.space.medium]
        prepare(self.space.medium)
        self.ledger = Ledger(self.folder, self.settings, suffix(self.space))
        self.shown = self.wanted[:GRID_IMAGES] if config.grid and len(self.stages) > 1 else range(0)
        self.moving = self.wanted[:GIF_IMAGES] if config.gif else range(0)

    def begin(self, overwrite: bool) -> Plan:
        """What is left to draw."""
        if sample_archive.is_packed(self.out) and self.out.exists() and not overwrite:
            names = (self.ledger.path(i).name for i in self.wanted)
            sample_archive.check_same(self.out, self.ledger.key, names)
            return Plan([], finished=True)
        wanted = {GRID: self.config.grid, GIF: self.config.gif}
        return self.ledger.begin(
            self.parts,
            overwrite=overwrite,
            pictures={name for name, asked in wanted.items() if asked},
            sides={*self.shown, *self.moving},
        )

    def draw(self, parts: Sequence[range], accelerator: Accelerator) -> Work[None]:
        """Draw parts and write them."""
        done, total = 0, sum(map(len, parts))
        for part in parts:
            samples, side = yield from self._part(part, accelerator, done, total)
            data = (self.medium.encode(sample, self.space) for sample in samples)
            self.ledger.add(accelerator.process_index, part, data, side)
            done += len(part)

    def _part(
        self, part: range, accelerator: Accelerator, done: int, total: int
    ) -> Work[tuple[Array, dict[str, Array]]]:
        """The images of a part, as stored, and what is kept of them for grid and animation."""
        side: dict[str, Array] = {}
        frames: list[Array] = []
        moving = sum(i in self.moving for i in part)
        for moment in self.chain.draw(part, accelerator):
            stage, k, drawing, samples = moment
            final = k + 1 == len(self.stages)
            if final and moving:
                frames.append(stored(self.space, drawing.state.x[:moving]))
            if k > 0 and drawing.done:
                shown = [i for i in part if i in self.shown]
                if seen := stage.inputs(shown):
                    side["seen"] = np.stack([seen[i][0] for i in shown])
            share = (k + drawing.step / drawing.steps) / len(self.stages)
            at = done + int(len(part) * share)
            yield Progress("sampling", at, total, f"step {drawing.step}/{drawing.steps}")
        if frames:
            side["frames"] = np.stack(frames, 1)
        assert samples is not None
        return samples, side

    # -- what is made of all images ----------------------------------------------------------------

    def finish(self) -> None:
        """Write grid and animation and, last, the manifest that names every file.

        Raises:
            OutputError: an image that another process drew is not there.
        """
        self.ledger.collect()
        if lost := [i for i in self.wanted if i not in self.ledger.hashes]:
            raise OutputError(
                f"{files.show(self.ledger.path(lost[0]))} is not there", "Type the command again"
            )
        indices = sorted(self.ledger.hashes)
        made = {}
        if self.config.grid:
            made[GRID] = figures.png(self._grid(indices[:GRID_IMAGES]))
        if self.config.gif:
            frames = {i: [*self._side(i, "frames")] for i in indices[:GIF_IMAGES]}
            made[GIF] = generation.animate(frames, self.space)
        for name, data in made.items():
            files.write_bytes(self.folder / name, data)
        listed = {self.ledger.path(i).name: self.ledger.hashes[i] for i in indices}
        manifest = {
            **{k: v for k, v in self.settings.items() if k != "told"},
            KEY: self.ledger.key,
            **self._counted(indices),
            "images": [*listed],
            **self._told(indices),
            "files": {**listed, **{name: files.sha256(self.folder / name) for name in made}},
        }
        self.ledger.end(manifest)

    def pack(self) -> None:
        """Pack the folder into the file that was asked for, if it is one, and remove it."""
        if not (self.folder / MANIFEST).exists() or not sample_archive.is_packed(self.out):
            return
        wanted, indices = self.stages[-1].settings.condition, sorted(self.ledger.hashes)
        labels = [wanted.label(i) for i in indices] if wanted and wanted.labels else None
        sample_archive.pack(self.out, self.folder, self._read, labels)
        files.remove(self.folder)

    def written(self, processes: int) -> Generated:
        """The images that were asked for, and what was made of all."""
        grid, gif = (
            self.folder / name if asked else None
            for name, asked in ((GRID, self.config.grid), (GIF, self.config.gif))
        )
        if sample_archive.is_packed(self.out):
            return Generated((), None, None, None, processes, self.out)
        images = tuple(self.ledger.path(i) for i in self.wanted)
        return Generated(images, grid, gif, self.folder / MANIFEST, processes)

    def _side(self, index: int, name: str) -> Array:
        """What is kept of an image."""
        path = self.ledger.sides[index]
        with np.load(path, allow_pickle=False) as file:
            kept: Array = file[name][index - int(path.stem)]
        return kept

    def _grid(self, indices: Sequence[int]) -> Any:
        drawn = {i: self._read(self.ledger.path(i).name) for i in indices}
        last = self.stages[-1]
        given = last.settings.condition.given if last.settings.condition else None
        seen: Frames = {}
        turn = len(given) if given else max(indices) + 1
        if len(self.stages) > 1:
            seen = {i: [self._side(i, "seen")] for i in indices}
        elif given:
            seen = last.inputs(sorted({i % turn for i in indices}))
        if seen:
            return generation.beside(drawn, self.space, seen, turn)
        return generation.arrange(drawn, self.space, last.settings.condition)

    def _read(self, name: str) -> Array:
        """An image that was written, as stored."""
        path = self.folder / name
        with files.reported(path):
            return self.medium.read(path.read_bytes(), Asked(**like(self.space))).values

    # -- what is said of them ----------------------------------------------------------------------

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides the bytes of an image."""
        first, last = self.stages[0], self.stages[-1]
        wanted = last.settings.condition
        cycle = range(max(len(wanted.labels), len(wanted.rows)) * wanted.turn) if wanted else ()
        told = self._told(cycle[:: wanted.turn]) if wanted else {}
        return {
            "format": MANIFEST_FORMAT,
            **last.described(self.config),
            "batch_size": self.config.batch_size,
            **last.settings.described_guidance(),
            **self.chain.offered.described,
            **({"first": first.described(self.config)} if first is not last else {}),
            "told": {**told, "turn": wanted.turn if wanted else 1},
        }

    def _counted(self, indices: Sequence[int]) -> dict[str, Any]:
        """The smallest number that has these images, and which they are if some are left out."""
        whole = -(-(indices[-1] + 1) // self.chain.offered.per)
        if len(indices) == whole * self.chain.offered.per:
            return {"n": whole}
        starts = [indices[0], *(b for a, b in pairwise(indices) if b != a + 1)]
        stops = [*(a + 1 for a, b in pairwise(indices) if b != a + 1), indices[-1] + 1]
        return {"n": whole, "ranges": [*map(list, zip(starts, stops, strict=True))]}

    def _told(self, indices: Sequence[int]) -> dict[str, Any]:
        """The class of each image, and what else it is told."""
        model, wanted = self.stages[-1].loaded.model, self.stages[-1].settings.condition
        table, told = model.blueprint.conditions.table, dict[str, Any]()
        if wanted and wanted.labels:
            told["classes"] = [model.classes[wanted.label(i)] for i in indices]
        if wanted and wanted.rows and table:
            told["on"] = [told_by(table, wanted.row(i)) for i in indices]
        return told


# -- generation -----------------------------------------------------------------------------------

# `diffuse sample`: images from a model file into a folder, with their manifest.


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
