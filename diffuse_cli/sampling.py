"""Images from a model: `draw` from one in memory, `generate` from a model file.

Image k of a seed starts from the same noise whatever the number of images, the batch size and the
number of processes: every draw is keyed by (seed, image, step).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffuse_cli import files, modelfile, pictures
from diffuse_cli.config import EvalConfig, SampleConfig
from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.guidance import clip
from diffuse_cli.core.samplers import SAMPLERS, State
from diffuse_cli.errors import OutputError, UsageError, lookup
from diffuse_cli.events import Progress, Work
from diffuse_cli.runtime import image_noise, machine, rank, resolve_precision, share

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator
    from torch import Tensor

    Pixels = npt.NDArray[np.uint8]

GIF_IMAGES, GIF_FRAMES = 16, 60
WRITTEN = re.compile(r"\d{5,}\.png|grid\.png|denoising\.gif|manifest\.json")
FORMAT = "diffuse.samples"


@dataclass(frozen=True)
class Drawing:
    """A batch of images under way: its indices, and the sampler's state after `step` of `steps`."""

    indices: Sequence[int]
    step: int
    steps: int
    state: State

    @property
    def done(self) -> bool:
        """Whether these are the images."""
        return self.step == self.steps


def draw(
    denoiser: Denoiser,
    *,
    shape: tuple[int, int, int],
    indices: Sequence[int],
    seed: int,
    times: Sequence[int] | Sequence[float],
    device: torch.device,
    sampler: str = "ddim",
    batch_size: int = 64,
    knobs: Mapping[str, Any] | None = None,
) -> Iterator[Drawing]:
    """Draw the images of a seed with these indices, a batch at a time.

    Args:
        shape: (C, H, W) of an image.
        times: the timesteps visited, descending.
        knobs: what the sampler takes beside, for example `eta`.

    Raises:
        UsageError: no such sampler.
    """
    sample = lookup(SAMPLERS, sampler, "--sampler")
    denoise = clip(denoiser, denoiser.process)
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]

        def noise(k: int, batch: Sequence[int] = batch) -> Tensor:
            drawn = image_noise(seed, batch, k, shape, device)
            return drawn.contiguous(memory_format=torch.channels_last)

        states = sample(denoise, denoiser.process, noise(-1), times, noise=noise, **(knobs or {}))
        for step, state in enumerate(states, 1):
            yield Drawing(batch, step, len(times), state)


def collect(drawings: Iterator[Drawing], total: int, into: dict[int, Pixels]) -> Work[None]:
    """Run `drawings` to their end, keeping each image as uint8 (C, H, W) under its index."""
    for drawing in drawings:
        part = len(drawing.indices) * drawing.step / drawing.steps
        if drawing.done:
            images = pictures.to_uint8(drawing.state.x)
            into.update(zip(drawing.indices, images, strict=True))
            part = 0
        yield Progress(
            "sampling", int(len(into) + part), total, f"step {drawing.step}/{drawing.steps}"
        )


def sampler_knobs(config: SampleConfig | EvalConfig) -> dict[str, Any]:
    """The options that the chosen sampler takes, as it takes them.

    Raises:
        UsageError: an option was given that the sampler does not have.
    """
    takes = inspect.signature(lookup(SAMPLERS, config.sampler, "--sampler")).parameters
    if config.eta is None:
        return {}
    if "eta" not in takes:
        raise UsageError(f"--eta: the sampler '{config.sampler}' has none", "Choose ddim")
    return {"eta": config.eta}


@dataclass(frozen=True)
class Loaded:
    """A model ready to sample: its file's content, and the denoiser on the device."""

    model: modelfile.Model
    denoiser: Denoiser

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        unet = self.model.unet
        return (unet.channels, *unet.size)


def load_denoiser(path: str | Path, weights: str, accelerator: Accelerator) -> Loaded:
    """Read a model file and put its network on the device, in the accelerator's precision.

    Raises:
        ModelFileError: not a model file, or no such weights in it.
    """
    model = modelfile.load(path)
    net = model.network(weights).to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def infer(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        with torch.inference_mode(), accelerator.autocast():
            return net(x, t, **cond).float()  # type: ignore[no-any-return]

    return Loaded(model, model.denoiser(infer))


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


@dataclass
class _Collected:
    """What a process has drawn: images by index, and frames of the first ones."""

    pixels: dict[int, Pixels] = field(default_factory=dict)
    frames: dict[int, list[Pixels]] = field(default_factory=dict)


def generate(config: SampleConfig) -> Work[Generated | None]:
    """Draw images from a model file and write them with a manifest.

    Yields `Progress`.

    Returns:
        What was written, or None on every process but the first.

    Raises:
        OutputError: the folder holds samples already, or cannot be written.
        ModelFileError: not a model file.
        UsageError: options that do not go together.
    """
    folder = Path(config.out)
    knobs = sampler_knobs(config)
    if rank() == 0:
        check_folder(folder, config.overwrite)
    with machine(resolve_precision(config.precision)) as accelerator:
        loaded = load_denoiser(config.model, config.weights, accelerator)
        times = loaded.denoiser.process.times(config.steps, config.spacing)
        mine = share(config.n, accelerator.num_processes, accelerator.process_index)
        collected = _Collected()
        drawings = draw(
            loaded.denoiser,
            shape=loaded.shape,
            indices=mine,
            seed=config.seed,
            times=times,
            device=accelerator.device,
            sampler=config.sampler,
            batch_size=config.batch_size,
            knobs=knobs,
        )
        if config.gif:
            drawings = _watch(drawings, collected)
        yield from collect(drawings, len(mine), collected.pixels)
        everyone = _gather(accelerator, collected)
        if not accelerator.is_main_process:
            return None
        processes = accelerator.num_processes
    return _write(config, folder, everyone, processes)


def _watch(drawings: Iterator[Drawing], into: _Collected) -> Iterator[Drawing]:
    """Pass drawings on, keeping the frames of the first images."""
    for drawing in drawings:
        if drawing.indices[0] < GIF_IMAGES:
            frame = pictures.to_uint8(drawing.state.x)
            for i, pixels in zip(drawing.indices, frame, strict=True):
                if i < GIF_IMAGES:
                    into.frames.setdefault(i, []).append(pixels)
        yield drawing


def _gather(accelerator: Accelerator, mine: _Collected) -> _Collected:
    if accelerator.num_processes == 1:
        return mine
    from accelerate.utils import gather_object

    whole = _Collected()
    for part in gather_object([mine]):
        whole.pixels |= part.pixels
        whole.frames |= part.frames
    return whole


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds earlier samples, or that cannot be written.

    Raises:
        OutputError: as said.
    """
    files.check_writable(folder / "manifest.json")
    if overwrite or not folder.is_dir():
        return
    if any(WRITTEN.fullmatch(path.name) for path in folder.iterdir()):
        raise OutputError(
            f"{files.show(folder)} holds samples already", "Choose another -o, or --overwrite"
        )


def _earlier(folder: Path) -> list[Path]:
    """The files that an earlier manifest in `folder` says were sampled; no others are removed."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        names = list(manifest["files"]) if manifest["format"] == FORMAT else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [folder / name for name in names if WRITTEN.fullmatch(name)]


def _write(config: SampleConfig, folder: Path, drawn: _Collected, processes: int) -> Generated:
    """Write pictures and, last, the manifest that names them."""
    for path in _earlier(folder):
        files.remove(path)
    images = []
    for i in sorted(drawn.pixels):
        images.append(folder / f"{i:05d}.png")
        files.write_bytes(images[-1], pictures.png(drawn.pixels[i]))
    grid = gif = None
    if config.grid:
        import numpy as np

        grid = folder / "grid.png"
        whole = np.stack([drawn.pixels[i] for i in sorted(drawn.pixels)])
        files.write_bytes(grid, pictures.png(pictures.grid(whole)))
    if config.gif:
        gif = folder / "denoising.gif"
        files.write_bytes(gif, _animate(drawn.frames))
    manifest = folder / "manifest.json"
    files.write_json(manifest, _describe(config, [*images, *filter(None, (grid, gif))]))
    return Generated(tuple(images), grid, gif, manifest, processes)


def _animate(frames: Mapping[int, Sequence[Pixels]]) -> bytes:
    import numpy as np

    order = sorted(frames)
    last = len(frames[order[0]]) - 1
    shown = sorted({round(last * k / (GIF_FRAMES - 1)) for k in range(GIF_FRAMES)})
    grids = [pictures.grid(np.stack([frames[i][k] for i in order])) for k in shown]
    return pictures.gif(grids, seconds=3.0, hold=2.0)


def _describe(config: SampleConfig, written: Sequence[Path]) -> dict[str, Any]:
    """Everything needed to draw these images again, with the checksum of each file."""
    return {
        "format": FORMAT,
        "seed": config.seed,
        "n": config.n,
        "sampler": config.sampler,
        "steps": config.steps,
        "spacing": config.spacing,
        "eta": config.eta,
        "weights": config.weights,
        "precision": resolve_precision(config.precision),
        "model": {"sha256": files.sha256(Path(config.model))},
        "files": {path.name: files.sha256(path) for path in written},
    }
