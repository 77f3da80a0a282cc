"""Images from a model: `draw` from one in memory, `generate` from a model file.

Every draw of noise is keyed by (seed, image, step): image k of a seed is the same for any number of
images, batch size and number of processes.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffuse_cli import files, locks, modelfile, outputs, pictures
from diffuse_cli.conditioning import Condition
from diffuse_cli.config import SampleConfig
from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.kernels.layout import laid_out, lay_out
from diffuse_cli.core.kernels.precision import cast_products
from diffuse_cli.core.samplers import SAMPLERS, State
from diffuse_cli.core.space import Space
from diffuse_cli.data import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.diffusion import kept_in_range
from diffuse_cli.events import Progress, Work
from diffuse_cli.media import MEDIA
from diffuse_cli.resolving import DrawSettings, resolve, tell
from diffuse_cli.runtime import image_noise, machine, rank, resolve_precision, share

if TYPE_CHECKING:
    import numpy.typing as npt
    from accelerate import Accelerator
    from PIL.Image import Image
    from torch import Tensor

    Array = npt.NDArray[Any]
    Frames = dict[int, list[Array]]

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Half precisions as Accelerate calls them."""

GIF_IMAGES, GIF_FRAMES, GRID_IMAGES = 16, 60, 400
"""Most images shown in the animation, most frames of it, and most images of the grid."""

WRITTEN = re.compile(r"\d{5,}\.\w+|grid\.png|denoising\.gif|manifest\.json")
DESCRIBED = ("seed", "n", "spacing", "eta", "order", "threshold", "weights")
"""Options that a manifest repeats; with sampler, steps and model they decide the images."""


@dataclass(frozen=True)
class Drawing:
    """A batch of images, by index, and the sampler's state after `step` of `steps`."""

    indices: Sequence[int]
    step: int
    steps: int
    state: State

    @property
    def done(self) -> bool:
        """Whether the state is the last one."""
        return self.step == self.steps


def draw(
    denoiser: Denoiser,
    settings: DrawSettings,
    indices: Sequence[int],
    *,
    space: Space,
    device: torch.device,
) -> Iterator[Drawing]:
    """Draw the images with these indices, a batch at a time.

    Raises:
        InvalidArgument: more steps than the process has timesteps.
    """
    process, condition = denoiser.process, settings.condition
    times = process.times(settings.steps, settings.spacing)
    denoise = condition.guided(denoiser, process) if condition else denoiser
    denoise = kept_in_range(denoise, denoiser, settings.threshold)
    sample = partial(SAMPLERS[settings.sampler], **settings.options)
    for start in range(0, len(indices), settings.batch_size):
        batch = indices[start : start + settings.batch_size]

        def noise(k: int, batch: Sequence[int] = batch) -> Tensor:
            return laid_out(image_noise(settings.seed, batch, k, space.shape, device))

        bound = condition.bind(denoise, batch, device) if condition else denoise
        states = sample(bound, process, noise(-1), times, noise=noise)
        for step, state in enumerate(states, 1):
            yield Drawing(batch, step, len(times), state)


def collect(
    drawings: Iterator[Drawing], space: Space, total: int, into: dict[int, Array]
) -> Work[None]:
    """Run `drawings` to the end; put each sample as stored, (C, *size), under its index."""
    done = 0
    for drawing in drawings:
        part = len(drawing.indices) * drawing.step / drawing.steps
        if drawing.done:
            samples = stored(space, drawing.state.x)
            for i, sample in zip(drawing.indices, samples, strict=True):
                into[i] = sample
            done, part = done + len(drawing.indices), 0
        yield Progress("sampling", int(done + part), total, f"step {drawing.step}/{drawing.steps}")


def stored(space: Space, x: Tensor) -> Array:
    """Samples (B, C, *size) of a model as stored numbers, on the CPU."""
    numbers: Array = space.to_stored(x).cpu().numpy()
    return numbers


def looks(space: Space, samples: Array) -> Array:
    """Stored samples as pictures, uint8 (N, 1 or 3, H, W)."""
    return MEDIA[space.medium].look(samples, space)


@dataclass(frozen=True)
class Loaded:
    """A model file's content, its hash, and the denoiser on the device."""

    model: modelfile.Model
    denoiser: Denoiser
    sha256: str

    @property
    def space(self) -> Space:
        """What its samples are."""
        return self.model.blueprint.space

    @property
    def background(self) -> str:
        """The colour behind transparent images that it was trained with."""
        return str(self.model.data.get("background", "white"))


def load_denoiser(path: str | Path, weights: str, accelerator: Accelerator) -> Loaded:
    """Read a model file and put its network on the device, in the accelerator's precision.

    Raises:
        ModelFileError: not a model file, or no such weights in it.
    """
    model = modelfile.load(path)
    digest = files.sha256(Path(path))
    return Loaded(model, ready(model, weights, accelerator), digest)


def ready(model: modelfile.Model, weights: str, accelerator: Accelerator) -> Denoiser:
    """A model's network on the device, in the accelerator's precision, under its process.

    Raises:
        ModelFileError: no such weights in the model.
    """
    net = lay_out(model.network(weights).to(accelerator.device))
    if accelerator.mixed_precision in HALVES:
        cast_products(net, HALVES[accelerator.mixed_precision])

    def infer(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        with torch.inference_mode(), accelerator.autocast():
            return net(x, t, **cond).float()  # type: ignore[no-any-return]

    return model.blueprint.denoiser(infer)


# -- from a file to files -------------------------------------------------------------------------


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
        _holding(folder) if rank() == 0 else contextlib.nullcontext(),
        machine(resolve_precision(config.precision)) as accelerator,
    ):
        loaded = load_denoiser(config.model, config.weights, accelerator)
        settings = resolve(config, loaded.model, config.classes)
        yield from tell(settings)
        mine = share(config.n, accelerator.num_processes, accelerator.process_index)
        drawings = draw(
            loaded.denoiser, settings, mine, space=loaded.space, device=accelerator.device
        )
        frames: Frames = {}
        if config.gif:
            drawings = _with_frames(drawings, loaded.space, frames)
        keep = _Folder(folder, loaded.space) if accelerator.is_main_process else {}
        yield from collect(drawings, loaded.space, len(mine), keep)
        if accelerator.num_processes > 1:
            _gather(keep, frames)
        if not isinstance(keep, _Folder):
            return None
        return _finish(config, loaded, settings, keep, frames, accelerator.num_processes)


@contextlib.contextmanager
def _holding(folder: Path) -> Iterator[None]:
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


class _Folder(dict[int, "Array"]):
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


def _gather(keep: dict[int, Array], frames: Frames) -> None:
    """Bring what other processes drew to the first process."""
    from accelerate.utils import gather_object

    everyone = gather_object([({} if isinstance(keep, _Folder) else keep, frames)])
    if isinstance(keep, _Folder):
        for theirs, their_frames in everyone:
            for i in sorted(theirs):
                keep[i] = theirs[i]
            frames.update(their_frames)


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
    loaded: Loaded,
    settings: DrawSettings,
    drawn: _Folder,
    frames: Frames,
    processes: int,
) -> Generated:
    """Write grid and animation and, last, the manifest that names every file."""
    wanted = settings.condition
    images = tuple(drawn.path(i) for i in range(config.n))
    grid = gif = None
    if config.grid:
        grid = drawn.folder / "grid.png"
        files.write_bytes(grid, pictures.png(arrange(drawn, loaded.space, wanted)))
    if config.gif:
        gif = drawn.folder / "denoising.gif"
        files.write_bytes(gif, _animate(frames, loaded.space))
    manifest = drawn.folder / MANIFEST
    written = [*images, *filter(None, (grid, gif))]
    described = {
        "format": MANIFEST_FORMAT,
        "sampler": settings.sampler,
        "steps": settings.steps,
        **{name: getattr(config, name) for name in DESCRIBED},
        "precision": resolve_precision(config.precision),
        "model": {"sha256": loaded.sha256},
        "images": [path.name for path in images],
        **_describe(wanted, loaded.model.classes, config.n),
        "files": {path.name: files.sha256(path) for path in written},
    }
    files.write_json(manifest, described)
    return Generated(images, grid, gif, manifest, processes)


def _describe(wanted: Condition | None, classes: Sequence[str], n: int) -> dict[str, Any]:
    """The manifest's entries on classes: guidance, and the class of each image."""
    if wanted is None:
        return {}
    return {
        "guidance": wanted.scale,
        "guidance_interval": wanted.noise_levels,
        "classes": [classes[wanted.label(i)] for i in range(n)],
    }


def arrange(drawn: Mapping[int, Array], space: Space, wanted: Condition | None) -> Image:
    """The grid of samples by index: nearly square, or a row for each class."""
    order = sorted(drawn)
    shown = dict(zip(order, looks(space, np.stack([drawn[i] for i in order])), strict=True))
    rows: dict[int, list[Array]] = {label: [] for label in (wanted.labels if wanted else ())}
    if wanted:
        for i in order:
            rows[wanted.label(i)].append(shown[i])
    columns = max(map(len, rows.values()), default=0)
    if len(rows) < 2 or columns < 2:
        return pictures.grid(np.stack(list(shown.values())))
    blank = np.full_like(shown[order[0]], 255)
    filled = [image for row in rows.values() for image in (*row, *[blank] * (columns - len(row)))]
    return pictures.grid(np.stack(filled), columns)


def _animate(frames: Frames, space: Space) -> bytes:
    """The first images from noise to picture, in at most `GIF_FRAMES` frames."""
    order = sorted(frames)
    last = len(frames[order[0]]) - 1
    shown = sorted({round(last * k / (GIF_FRAMES - 1)) for k in range(GIF_FRAMES)})
    grids = [pictures.grid(looks(space, np.stack([frames[i][k] for i in order]))) for k in shown]
    return pictures.gif(grids, seconds=3.0, hold=2.0)
