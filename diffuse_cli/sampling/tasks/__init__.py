"""What the tasks share: a model is loaded, samples are drawn for each picture, and written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.config import PictureConfig
from diffuse_cli.core.kernels import laid_out
from diffuse_cli.data import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.data.metadata_columns import told_by, typed_rows
from diffuse_cli.media import figures, looks
from diffuse_cli.sampling.cascade import DESCRIBED
from diffuse_cli.sampling.conditioning import check_columns
from diffuse_cli.sampling.generation import Drawing, Loaded, collect, load_denoiser
from diffuse_cli.sampling.guidance_model import equipped
from diffuse_cli.sampling.journal import (
    GRID,
    GRID_IMAGES,
    WRITTEN,
    Folder,
    Unfinished,
    gather,
    holding,
)
from diffuse_cli.sampling.sampling_settings import DrawSettings, resolve, tell
from diffuse_cli.sampling.tasks.task_inputs import check_apart, check_class
from diffuse_cli.system import files, outputs
from diffuse_cli.system.devices import machine, rank
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Work
from diffuse_cli.system.rng import image_noise, share

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from accelerate import Accelerator

    from diffuse_cli.core.denoiser import Denoise
    from diffuse_cli.core.samplers import State
    from diffuse_cli.core.solvers import Noise

    Array = npt.NDArray[Any]
    from diffuse_cli.media import Size

    Bind = Callable[[Denoise], Denoise]


@dataclass(frozen=True)
class Plan:
    """What is drawn for some pictures.

    Attributes:
        names: of the pictures.
        steps: states of each batch.
        states: (pictures by index, one a sample; binds a denoiser to the samples' classes; noise)
            -> the states of a batch, of which the last one is written. None where something
            else draws.
        shown: stored samples that the grid shows before those of a picture, (N, C, *size) each.
        described: for the manifest.
    """

    names: Sequence[str]
    steps: int
    states: Callable[[Sequence[int], Bind, Noise], Iterator[State]] | None = None
    shown: Sequence[Array] = ()
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """What was written: the samples of each picture in turn, the grid, the manifest."""

    images: tuple[Path, ...]
    grid: Path | None
    manifest: Path
    processes: int

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every picture."""
        return tuple(p for p in (*self.images, self.grid) if p is not None)

    @property
    def values(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "images": [str(path) for path in self.images],
            "grid": str(self.grid) if self.grid else None,
            "manifest": str(self.manifest),
            "processes": self.processes,
        }


Planning = Callable[[Loaded, DrawSettings, "torch.device"], Work[Plan]]


def make(
    config: PictureConfig,
    task: str,
    planning: Planning,
    *,
    tells: Callable[[Loaded], bool],
    size: Callable[[Loaded], Size | None] = lambda loaded: None,
    differentiable: bool = False,
) -> Work[Made | None]:
    """Draw `config.n` samples for each picture, and write them with a grid and a manifest.

    Args:
        tells: whether the model is told what it is given.
        size: of the samples, where none is typed; None for the model's.

    Returns:
        What was written, or None on every process but the first.

    Raises:
        OutputError: the folder holds samples already, or cannot be written.
        ModelFileError: not a model file.
        UsageError: options that do not go together.
        DataError: a picture that cannot be used.
    """
    with opened(config, config.image) as accelerator:
        loaded = yield from load_denoiser(
            config.model,
            config.weights,
            accelerator,
            config.precision,
            differentiable=differentiable,
        )
        loaded = loaded.enlarged(config.size or size(loaded))
        settings = _settings(config, loaded, tells(loaded))
        settings = yield from equipped(settings, loaded, accelerator)
        yield from tell(settings)
        plan = yield from planning(loaded, settings, accelerator.device)
        mine = share(
            len(plan.names) * config.n, accelerator.num_processes, accelerator.process_index
        )
        drawings = _drawings(plan, config, settings, loaded, mine, accelerator.device)
        folder = Folder(Path(config.out), loaded.space)
        keep = folder if accelerator.is_main_process else {}
        yield from collect(drawings, loaded.space, len(mine), keep)
        if accelerator.num_processes > 1:
            gather(keep)
        if keep is not folder:
            return None
        described = {
            "task": task,
            "sampler": settings.sampler,
            "steps": settings.steps,
            **settings.described_times(),
            **{name: getattr(config, name) for name in (*DESCRIBED, "n")},
            **settings.described_guidance(),
            **_classes(config, settings, loaded, len(plan.names)),
        }
        plan = replace(plan, described={**described, **plan.described})
        return finish(config, loaded, plan, folder, accelerator)


@contextlib.contextmanager
def opened(config: Any, *inputs: str) -> Iterator[Accelerator]:
    """The checked and locked output folder of a task, and its Accelerator.

    Raises:
        OutputError: the folder holds samples already, or cannot be written.
        UsageError: it holds an input.
    """
    folder = Path(config.out)
    if rank() == 0:
        check_apart(folder, *inputs)
        files.check_writable(folder / MANIFEST)
    with (
        _held(folder, config.overwrite) if rank() == 0 else contextlib.nullcontext(),
        machine(config.precision, config.device) as accelerator,
    ):
        yield accelerator


@contextlib.contextmanager
def _held(folder: Path, overwrite: bool) -> Iterator[None]:
    """Lock a folder, and refuse it if it holds samples but what a stopped task left of its own."""
    with holding(folder):
        own = Unfinished(folder).names()
        outputs.check_samples(
            folder, overwrite, MANIFEST, lambda name: name not in own and WRITTEN.fullmatch(name)
        )
        yield


def _settings(config: PictureConfig, loaded: Loaded, told: bool) -> DrawSettings:
    """How samples are drawn: without `--class` of no class, and given nothing unless `told`."""
    settings = resolve(config, loaded.model, config.classes, config.on)
    wanted, conditions = settings.condition, loaded.model.blueprint.conditions
    check_columns(loaded.model, wanted)
    if wanted is None:
        return settings
    named = bool(config.classes or config.on)
    if config.guidance is not None and not (named or told):
        if conditions.classes or conditions.table:
            raise UsageError("--guidance goes with --class or --on", "Say what the picture is of")
        raise UsageError("--guidance: the model is told nothing here", "Leave it out")
    check_class(loaded, labelled=bool(config.classes), told=told)
    if config.classes:
        return settings
    if not (config.on or told):
        return replace(settings, condition=None)
    rows = typed_rows(conditions.table, config.on) if conditions.table and config.on else ()
    return replace(settings, condition=replace(wanted, labels=(), rows=rows))


def _drawings(
    plan: Plan,
    config: PictureConfig,
    settings: DrawSettings,
    loaded: Loaded,
    mine: Sequence[int],
    device: torch.device,
) -> Iterator[Drawing]:
    """Draw samples by index, a batch at a time; those of a picture follow each other.

    Sample j of any picture starts from the same noise, for any number of samples and pictures.
    """
    for start in range(0, len(mine), settings.batch_size):
        batch = mine[start : start + settings.batch_size]
        of, own = [k // config.n for k in batch], [k % config.n for k in batch]

        def noise(k: int, own: Sequence[int] = own) -> torch.Tensor:
            return laid_out(image_noise(settings.seed, own, k, loaded.space.shape, device))

        def bind(denoise: Denoise, own: Sequence[int] = own) -> Denoise:
            wanted = settings.condition
            return wanted.bind(denoise, own, device) if wanted else denoise

        assert plan.states is not None
        for step, state in enumerate(plan.states(of, bind, noise), 1):
            yield Drawing(batch, step, plan.steps, state)


def _classes(
    config: PictureConfig, settings: DrawSettings, loaded: Loaded, count: int
) -> dict[str, Any]:
    """The manifest's entries on the class of each sample, and what else it is told."""
    wanted, conditions = settings.condition, loaded.model.blueprint.conditions
    found: dict[str, Any] = {}
    if wanted and wanted.labels:
        names = [conditions.classes[wanted.label(j)] for j in range(config.n)]
        found["classes"] = names * count
    if wanted and wanted.rows and conditions.table:
        rows = [told_by(conditions.table, wanted.row(j)) for j in range(config.n)]
        found["on"] = rows * count
    return found


def finish(
    config: Any, loaded: Loaded, plan: Plan, drawn: Folder, accelerator: Accelerator
) -> Made:
    """Write the grid and, last, the manifest that names every file."""
    images = tuple(drawn.path(k) for k in range(drawn.count))
    grid = None
    if config.grid:
        grid = drawn.unfinished.write(GRID, figures.png(_grid(plan, drawn, loaded)))
    written = [*images, *filter(None, [grid])]
    manifest = drawn.folder / MANIFEST
    described = {
        "format": MANIFEST_FORMAT,
        **plan.described,
        "precision": loaded.precision,
        "model": {"sha256": loaded.sha256},
        "inputs": [files.show(name) for name in plan.names],
        "images": [path.name for path in images],
        "files": {path.name: files.sha256(path) for path in written},
    }
    drawn.unfinished.write(MANIFEST, files.as_json(described).encode())
    drawn.unfinished.end()
    return Made(images, grid, manifest, accelerator.num_processes)


def _grid(plan: Plan, drawn: Folder, loaded: Loaded) -> Any:
    """A row for each picture: itself, and its samples. One row where no picture is shown."""
    per = drawn.count // len(plan.names) if plan.shown else drawn.count
    columns = min(per, GRID_IMAGES)
    rows = []
    for i in range(max(1, min(drawn.count // per, GRID_IMAGES // columns))):
        rows += [shown[i] for shown in plan.shown]
        rows += [drawn[i * per + j] for j in range(columns)]
    return figures.grid(looks(loaded.space, np.stack(rows)), len(plan.shown) + columns)
