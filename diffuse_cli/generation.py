"""`diffuse sample`: images from a model file into a folder, with their manifest."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli import files, locks, outputs, pictures, sheets
from diffuse_cli.columns import out_of_range, told_by
from diffuse_cli.conditioning import check_columns
from diffuse_cli.config import SampleConfig
from diffuse_cli.core.space import Space
from diffuse_cli.data import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.draws import key, share
from diffuse_cli.errors import UsageError
from diffuse_cli.events import Notice, Work
from diffuse_cli.givens import Giver, Inputs
from diffuse_cli.guiding import equipped
from diffuse_cli.inputs import from_samples, offered
from diffuse_cli.media import MEDIA
from diffuse_cli.resolving import DrawSettings, resolve, tell
from diffuse_cli.runtime import machine, rank
from diffuse_cli.sampling import Drawing, Loaded, collect, draw, load_denoiser, looks, stored

if TYPE_CHECKING:
    import numpy.typing as npt
    from accelerate import Accelerator

    from diffuse_cli.modelfile import Model
    from diffuse_cli.sheets import Frames

    Array = npt.NDArray[Any]

GIF_IMAGES, GRID_IMAGES = 16, 400
"""Most images shown in the animation, and most images of the grid."""

WRITTEN = re.compile(r"\d{5,}\.\w+|grid\.png|denoising\.gif|manifest\.json")
DESCRIBED = ("seed", "n", "eta", "order", "threshold", "weights")
"""Options that a manifest repeats; with sampler, steps and model they decide the images."""


@dataclass(frozen=True)
class Generated:
    """What `generate` wrote: the images in order, then the grid, the animation, the manifest."""

    images: tuple[Path, ...]
    grid: Path | None
    gif: Path | None
    manifest: Path
    processes: int

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every picture."""
        return tuple(p for p in (*self.images, self.grid, self.gif) if p is not None)


def generate(config: SampleConfig) -> Work[Generated | None]:
    """Draw images from a model file and write them with a manifest.

    Yields `Progress`. Each image is written when it is finished, those of other processes at the
    end; then grid, animation and manifest.

    Returns:
        What was written, or None on every process but the first.

    Raises:
        OutputError: the folder holds samples already, or cannot be written.
        ModelFileError: not a model file.
        UsageError: options that do not go together.
    """
    folder = Path(config.out)
    if rank() == 0:
        outputs.check_samples(folder, config.overwrite, MANIFEST, WRITTEN.fullmatch)
    with (
        holding(folder) if rank() == 0 else contextlib.nullcontext(),
        machine(config.precision, config.device) as accelerator,
    ):
        stage = yield from _stage(config, config.model, accelerator)
        last = (yield from _last_stage(config, accelerator)) if config.then else None
        given = yield from offered(config, stage.settings, stage.loaded)
        stage, described = stage.given(given.inputs), given.described
        yield from tell(stage.settings)
        mine = share(given.count, accelerator.num_processes, accelerator.process_index)
        if last:
            first: dict[int, Array] = {}
            space = stage.loaded.space
            yield from collect(stage.draw(mine, accelerator), space, len(mine), first)
            described = {**described, "first": stage.described(config)}
            drawn = [first[i] for i in mine]
            turn = stage.settings.condition.turn if stage.settings.condition else 1
            stage = last.given(from_samples(drawn, space, last.loaded, mine.start), turn)
            yield from tell(stage.settings)
        drawings, space = stage.draw(mine, accelerator), stage.loaded.space
        seen: Frames = {}
        frames: Frames = {}
        if config.gif:
            drawings = _with_frames(drawings, space, frames)
        keep = Folder(folder, space) if accelerator.is_main_process else {}
        yield from collect(drawings, space, len(mine), keep)
        if config.grid:
            seen = stage.inputs(mine)
        if accelerator.num_processes > 1:
            gather(keep, frames, seen)
        if not isinstance(keep, Folder):
            return None
        return _finish(config, stage, described, keep, frames, seen, accelerator.num_processes)


@dataclass(frozen=True)
class _Stage:
    """A model, and how it draws."""

    loaded: Loaded
    settings: DrawSettings

    def given(self, inputs: Inputs | None, turn: int | None = None) -> _Stage:
        """The same, told what its images are given.

        Args:
            turn: that of the model that drew the inputs, so that both are told the same of an
                image; None for inputs that each class is drawn of, not the k-th of the k-th alone.
        """
        if inputs is None or self.settings.condition is None:
            return self
        condition = replace(self.settings.condition, given=inputs, turn=turn or len(inputs))
        return replace(self, settings=replace(self.settings, condition=condition))

    def draw(self, indices: range, accelerator: Accelerator) -> Iterator[Drawing]:
        """These images."""
        denoiser, space = self.loaded.denoiser, self.loaded.space
        return draw(denoiser, self.settings, indices, space=space, device=accelerator.device)

    def inputs(self, indices: range) -> Frames:
        """What those of these images are given that a grid shows, by the index of the first image
        of it; each a list of one picture, uint8 (1 or 3, H, W)."""
        import torch

        giver = Giver.of(self.loaded.model.blueprint)
        wanted = self.settings.condition
        if giver is None or wanted is None or wanted.given is None:
            return {}
        given, device = wanted.given, torch.device("cpu")
        return {
            i: [*looks(giver.shown, giver.look(given.at([i], device)))]
            for i in indices
            if i < min(GRID_IMAGES, given.first + len(given))
        }

    def described(self, config: SampleConfig) -> dict[str, Any]:
        """What decides its images, for the manifest."""
        return {
            "sampler": self.settings.sampler,
            "steps": self.settings.steps,
            **self.settings.described_times(),
            **{name: getattr(config, name) for name in DESCRIBED},
            "precision": self.loaded.precision,
            "model": {"sha256": self.loaded.sha256},
            **({"distilled": dict(of)} if (of := self.loaded.model.distilled) else {}),
        }


def _stage(config: SampleConfig, path: str, accelerator: Accelerator) -> Work[_Stage]:
    loaded = yield from load_denoiser(path, config.weights, accelerator, config.precision)
    conditions, first = loaded.model.blueprint.conditions, path == config.model
    classes = config.classes if conditions.classes or first else ()
    on = config.on if conditions.table or first else ()
    settings = resolve(config, loaded.model, classes, on)
    wanted, table = settings.condition, conditions.table
    check_columns(loaded.model, wanted)
    if table:
        for line in out_of_range(table, on):
            yield Notice(line, warning=True)
    if wanted and config.guidance is None and not wanted.tells(loaded.model):
        settings = replace(settings, condition=replace(wanted, scale=1.0))  # all scales are one
    return _Stage(loaded, (yield from equipped(settings, loaded, accelerator)))


def _last_stage(config: SampleConfig, accelerator: Accelerator) -> Work[_Stage]:
    """The model of --then, which draws from other noise than the first."""
    assert config.then is not None
    own = replace(
        config,
        guide_with=None,
        weak_guidance=None,
        seed=key(config.seed, "then") & 0x7FFF_FFFF_FFFF_FFFF,
    )
    stage = yield from _stage(own, config.then, accelerator)
    if stage.loaded.model.blueprint.conditions.given is None:
        raise UsageError(
            f"--then {files.show(config.then)}: the model was trained without --given",
            "Name one that draws from what the first draws, such as of --given low-res:4",
        )
    return stage


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock the folder of the samples; remove it again if it is new and stays empty."""
    made = not folder.exists()
    try:
        with locks.held(folder / ".lock"):
            files.sweep(folder)
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds samples
                folder.rmdir()


class Folder(dict[int, "Array"]):
    """Samples by index: writes each one that is added, and keeps the first ones for the grid."""

    def __init__(self, folder: Path, space: Space) -> None:
        super().__init__()
        self.folder, self.space, self.medium = folder, space, MEDIA[space.medium]
        self.count = 0

    def __setitem__(self, index: int, sample: Array) -> None:
        if self.count == 0:
            for path in _earlier(self.folder):
                files.remove(path)
        files.write_bytes(self.path(index), self.medium.encode(sample, self.space))
        self.count += 1
        if index < GRID_IMAGES:
            super().__setitem__(index, sample)

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.folder / f"{index:05d}{self.medium.SUFFIX}"


def _with_frames(drawings: Iterator[Drawing], space: Space, frames: Frames) -> Iterator[Drawing]:
    """Pass drawings on, keeping the frames of the first images."""
    for drawing in drawings:
        if drawing.indices[0] < GIF_IMAGES:
            states = stored(space, drawing.state.x)
            for i, pixels in zip(drawing.indices, states, strict=True):
                if i < GIF_IMAGES:
                    frames.setdefault(i, []).append(pixels)
        yield drawing


def gather(keep: dict[int, Array], *by_index: dict[int, Any]) -> None:
    """Bring what other processes drew, and what else they have, to the first process."""
    from accelerate.utils import gather_object

    everyone = gather_object([({} if isinstance(keep, Folder) else keep, by_index)])
    if isinstance(keep, Folder):
        for theirs, others in everyone:
            for i in sorted(theirs):
                keep[i] = theirs[i]
            for own, other in zip(by_index, others, strict=True):
                own.update(other)


def _earlier(folder: Path) -> list[Path]:
    """The files that an earlier manifest in `folder` lists; only these are replaced."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = list(manifest["files"]) if manifest["format"] == MANIFEST_FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [folder / name for name in [MANIFEST, *names] if WRITTEN.fullmatch(name)]


def _finish(
    config: SampleConfig,
    stage: _Stage,
    described: Mapping[str, Any],
    drawn: Folder,
    frames: Frames,
    seen: Frames,
    processes: int,
) -> Generated:
    """Write grid and animation and, last, the manifest that names every file."""
    loaded, wanted = stage.loaded, stage.settings.condition
    images = tuple(drawn.path(i) for i in range(drawn.count))
    grid = gif = None
    if config.grid:
        grid = drawn.folder / "grid.png"
        sheet = (
            sheets.beside(drawn, loaded.space, seen)
            if seen
            else sheets.arrange(drawn, loaded.space, wanted)
        )
        files.write_bytes(grid, pictures.png(sheet))
    if config.gif:
        gif = drawn.folder / "denoising.gif"
        files.write_bytes(gif, sheets.animate(frames, loaded.space))
    manifest = drawn.folder / MANIFEST
    written = [*images, *filter(None, (grid, gif))]
    whole = {
        "format": MANIFEST_FORMAT,
        **stage.described(config),
        **described,
        "images": [path.name for path in images],
        **_describe(stage.settings, loaded.model, len(images)),
        "files": {path.name: files.sha256(path) for path in written},
    }
    files.write_json(manifest, whole)
    return Generated(images, grid, gif, manifest, processes)


def _describe(settings: DrawSettings, model: Model, n: int) -> dict[str, Any]:
    """The manifest's entries on guidance, and the class of each image and what else it is told."""
    described = settings.described_guidance()
    wanted, table = settings.condition, model.blueprint.conditions.table
    if wanted and wanted.labels:
        described["classes"] = [model.classes[wanted.label(i)] for i in range(n)]
    if wanted and wanted.rows and table:
        described["on"] = [told_by(table, wanted.row(i)) for i in range(n)]
    return described
