"""`diffuse sample`: MODEL and the model of `--then`, their settings, and the job of both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL.Image import Image

from diffuse_cli.config.sample_options import IMAGES, SampleConfig
from diffuse_cli.core import Space
from diffuse_cli.media import MEDIA, Array, ReadSettings, figures, render_samples, settings_for
from diffuse_cli.media.array import to_npy
from diffuse_cli.media.file_errors import strip_extension
from diffuse_cli.models.image_conditioning import ConditioningInputs
from diffuse_cli.models.model_file import ModelFile
from diffuse_cli.sampling import generation, journal, packing
from diffuse_cli.sampling.conditioning_images import read_inputs
from diffuse_cli.sampling.job import (
    GRID_IMAGES,
    PartState,
    SampleFiles,
    SamplingJob,
    Stage,
    load_stage,
    open_folder,
    split_parts,
)
from diffuse_cli.sampling.model_loading import (
    LoadedModel,
    describe_channels,
    load_denoiser,
)
from diffuse_cli.system import DataError, Progress, UsageError, Work, files
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.processes import rank
from diffuse_cli.system.rng import key

GIF_IMAGES = 16
"""Largest number of images in the animation."""

GIF_FRAMES = 60
"""Largest number of frames of the animation."""


StageState = tuple[int, generation.BatchState, Array | None, ConditioningInputs | None]
"""The place of a stage in its chain, a state of its sampler, the samples as stored, (B, C, *size),
once the stage is done, and its inputs made from samples of the previous stage."""


@dataclass(frozen=True)
class Cascade:
    """Models, each of which is conditioned on samples of the previous model.

    Attributes:
        per: the number of samples per `-n`, one for each input of the first model.
        described: entries of the manifest about these inputs.
    """

    stages: tuple[Stage, ...]
    per: int
    described: Mapping[str, Any]

    @property
    def last(self) -> Stage:
        """Stage whose samples are written."""
        return self.stages[-1]

    @property
    def space(self) -> Space:
        """Space of the samples."""
        return self.last.loaded.space

    def generate_states(self, part: range, accelerator: Accelerator) -> Iterator[StageState]:
        """Generate the samples with these indices in one batch, and yield each state."""
        device = accelerator.device
        samples: Array | None = None
        given: ConditioningInputs | None = None
        for place, stage in enumerate(self.stages):
            loaded, space = stage.loaded, stage.loaded.space
            if samples is not None:
                previous = self.stages[place - 1].loaded.space
                given = from_samples(samples, previous, loaded, part.start)
            drawings = generation.generate_batches(
                loaded.denoiser, stage.settings, part, space=space, device=device, given=given
            )
            for drawing in drawings:
                samples = generation.to_stored(space, drawing.state.x) if drawing.done else None
                yield place, drawing, samples, given

    def generate_samples(self, part: range, accelerator: Accelerator) -> Array:
        """Return the samples with these indices as stored, generated in one batch."""
        last_samples: Array | None = None
        for _, _, samples, _ in self.generate_states(part, accelerator):
            last_samples = samples  # one state at a time, to save memory
        assert last_samples is not None
        return last_samples

    def list_indices(self, config: SampleConfig) -> range:
        """Return the indices of the samples that a command asks for."""
        if config.range:
            return range(*config.range)
        return range((config.members or config.n or IMAGES) * self.per)

    def list_stems(self, config: SampleConfig) -> list[str]:
        """Return the names of the inputs that members are named after, empty without `--members`.

        Raises:
            DataError: they differ only in the extension, or leave the folder.
        """
        inputs = self.described["given"]["files"] if config.members else ()
        stems = [strip_extension(file["name"]) for file in inputs]
        for stem in stems:
            if stems.count(stem) > 1 or not journal.WRITTEN.fullmatch(f"{stem}-00.png"):
                text = f"--members: {stem} is not the name of one file inside a folder"
                hint = "Rename the files of --given, so that names without extensions differ"
                raise DataError(text, hint, code="data_mismatch", path=config.given)
        return stems


def load_cascade(
    config: SampleConfig,
    accelerator: Accelerator,
    before: Mapping[str, Any] = {},
    file: ModelFile | None = None,
) -> Work[Cascade]:
    """Read the models and the inputs, and resolve the settings.

    Args:
        before: the manifest of the samples to add to.
        file: the first model, if it has been read.

    Raises:
        ModelFileError: not a model file.
        UsageError: options that do not go together.
        DataError: an input cannot be used.
    """
    first = before.get("first") if config.then else before
    options = (config.weights, accelerator, config.precision)
    loaded = yield from load_denoiser(file or config.model, *options, earlier=first)
    inputs, described = yield from read_inputs(config, loaded)
    turn = len(inputs) if inputs else 1
    stages = [(yield from load_stage(config, loaded, accelerator, given=inputs, turn=turn))]
    if config.then:
        last = yield from load_denoiser(config.then, *options, earlier=before)
        check_follows(loaded.space, last, config.then)
        conditions = last.model.blueprint.conditions
        last_config = replace(  # other noise, and the guidance and start that the model recommends
            config,
            guidance=None,
            guidance_interval=None,
            guide_with=None,
            weak_guidance=None,
            start=None,
            seed=key(config.seed, "then") & 0x7FFF_FFFF_FFFF_FFFF,
            classes=config.classes if conditions.classes else (),
            on=config.on if conditions.table else (),
            on_vector=config.on_vector if conditions.table and conditions.table.vector else None,
        )
        stages.append((yield from load_stage(last_config, last, accelerator, turn=turn)))
        check_same_conditions(stages, config.then)
    return Cascade(tuple(stages), turn, described)


def generate_arrays(config: SampleConfig, file: ModelFile) -> Work[tuple[Array, Space, int]]:
    """Generate samples in memory. Returns them as stored, their space, and the first index."""
    with open_accelerator(config.precision, config.device) as accelerator:
        chain = yield from load_cascade(config, accelerator, file=file)
        indices, samples = chain.list_indices(config), list[Array]()
        for part in split_parts(indices, config.batch_size):
            yield Progress("sampling", part.start - indices.start, len(indices))
            samples.append(chain.generate_samples(part, accelerator))
        yield Progress("sampling", len(indices), len(indices))
    return np.concatenate(samples), chain.space, indices.start


def check_same_conditions(stages: Sequence[Stage], path: str) -> None:
    """Refuse a second model that gives images other classes or columns than the first.

    Images cycle through the conditions of each model, which may have others besides.

    Raises:
        UsageError
    """
    conditions = [stage.settings.condition for stage in stages]
    cycles = [len(values) for c in conditions if c for values in (c.labels, c.rows) if values]
    turn = max((c.turn for c in conditions if c), default=1)
    images = range(0, turn * math.lcm(*cycles), turn)
    described = [stage.describe_conditions(images) for stage in stages]
    for kind in ("classes", "on"):
        for first, last in zip(*(values.get(kind, ()) for values in described), strict=False):
            if kind == "on":
                first, last = ({k: row[k] for k in first if k in last} for row in (first, last))
            if first != last:
                text = f"{first} for MODEL is {last} for --then {files.show(path)}"
                hint = "Name classes of both models, or generate their combinations one by one"
                raise UsageError(text, hint, code="model_mismatch", path=path)


def check_follows(space: Space, loaded: LoadedModel, path: str) -> None:
    """Refuse a model that cannot be conditioned on samples of a space.

    Raises:
        UsageError: the model takes no input, needs a mask, or takes other channels or levels.
    """
    encoder, flag = loaded.encoder, f"--then {files.show(path)}"
    if encoder is None or encoder.masks:
        why = f"needs masks ({encoder.given.what})" if encoder else "was trained without --given"
        hint = "Name a model that is conditioned on MODEL's samples, for example --given low-res:4"
        raise UsageError(f"{flag}: the model {why}", hint, code="model_mismatch", path=path)
    input_space = encoder.input_space
    # Float samples have the scale of the files, so mean and standard deviation may differ.
    kinds = [(s.medium, s.channels, s.levels, s.layout, s.dims) for s in (space, input_space)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{flag}: the model is conditioned on {describe_channels(input_space)}, "
            f"and MODEL generates {describe_channels(space)}",
            code="model_mismatch",
            path=path,
        )
    # Rates are rounded.
    if space.rate and input_space.rate and abs(space.rate - input_space.rate) > 1:
        text = f"{flag}: the model is conditioned on sounds at {input_space.rate:,} Hz"
        hint = f"MODEL generates them at {space.rate:,} Hz"
        raise UsageError(text, hint, code="model_mismatch", path=path)


def from_samples(
    samples: Array, space: Space, loaded: LoadedModel, first: int
) -> ConditioningInputs:
    """Return stored samples of a model as inputs of another, fitted to its size.

    Call `check_follows` first.

    Args:
        first: the index of the first sample.
    """
    encoder = loaded.encoder
    assert encoder is not None
    input_space = encoder.input_space
    settings = ReadSettings(**settings_for(input_space))
    medium = MEDIA[space.medium]
    fitted = [x if x.shape[1:] == input_space.size else medium.fit(x, settings) for x in samples]
    return encoder.stored_inputs(np.stack(fitted), first)


class CascadeJob(SamplingJob):
    """Samples of the last model of `diffuse sample`, conditioned on earlier models' samples."""

    def __init__(self, config: SampleConfig, chain: Cascade) -> None:
        first, last = chain.stages[0], chain.last
        self.chain, self.condition = chain, last.settings.condition
        self.cascaded, indices = first is not last, chain.list_indices(config)
        hidden = {"told": last.describe_cycle()}
        described = last.describe(config)
        described |= {"batch_size": config.batch_size, **chain.described}
        if self.cascaded:
            described["first"] = first.describe(config)
            hidden["told_first"] = first.describe_cycle()
        folder, stems = packing.choose_folder(Path(config.out)), chain.list_stems(config)
        if stems:
            described["named"] = "members"
        super().__init__(config, chain.space, indices, described, hidden, folder)
        self.record.stems = stems or self.record.stems
        self.grid_indices = self.indices[: GRID_IMAGES * (config.grid and self.cascaded)]
        self.moving = self.indices[: GIF_IMAGES * config.gif]
        if config.gif:
            self.figures[journal.GIF] = self._make_gif
        for k, stem in enumerate(stems if config.moments else ()):
            for name, spread in (("mean", False), ("std", True)):
                make = partial(self._encode_moments, k, spread=spread)
                self.figures[f"{stem}-{name}.npy"] = make

    def list_files(self, part: range) -> list[str]:
        """Return the names of a part's files, and of arrays that grid and animation show."""
        arrays = {"frames": self.moving, "inputs": self.grid_indices}
        names = [name for name, indices in arrays.items() if part.start in indices]
        return [*super().list_files(part), *(self.name_array(part, name) for name in names)]

    def begin(self) -> list[range] | None:
        """Return the parts to generate, None if the job is complete or packed."""
        if self.folder != self.out and self.out.exists() and not self.overwrite:
            names = (self.record.name(i) for i in self.indices)
            packing.check_same(self.out, self.record.key, names, self.figures)
            return None
        return super().begin()

    def generate_part(self, part: range, accelerator: Accelerator) -> Iterator[PartState]:
        """Generate samples, and keep the arrays that grid and animation show."""
        arrays: dict[str, Array] = {}
        frames: list[Array] = []
        moving, models = sum(i in self.moving for i in part), len(self.chain.stages)
        for k, drawing, samples, given in self.chain.generate_states(part, accelerator):
            if moving and k + 1 == models:
                frames.append(generation.to_stored(self.space, drawing.state.x[:moving]))
            if drawing.done:
                if frames:
                    arrays["frames"] = np.stack(frames, 1)
                indices = [i for i in part if i in self.grid_indices]
                if inputs := self.chain.stages[k].show_inputs(indices, given):
                    arrays["inputs"] = np.stack([inputs[i] for i in indices])
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
            inputs = dict(zip(self.grid_indices, rows, strict=True))
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

    def _encode_moments(self, place: int, indices: Sequence[int], *, spread: bool) -> bytes:
        """Return the mean or standard deviation of an input's members as .npy, channels first."""
        members = [self.read(self.record.path(i)) for i in indices[place :: len(self.record.stems)]]
        stack = np.stack(members).astype(np.float64)
        values = stack.std(0, ddof=1) if spread else stack.mean(0)
        return to_npy(values.astype(np.float32))

    def _load_arrays(self, name: str, indices: range) -> list[Array]:
        """Return arrays of the first samples, which are kept until the job ends, by part."""
        parts = [part for part in self.parts if part.start in indices]
        return [np.load(self.folder / self.name_array(part, name)) for part in parts]

    def describe(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the smallest `-n` that includes these samples, gaps in it, and the conditions."""
        per = self.chain.per
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
            if journal.read_earlier(self.folder).get(journal.KEY) == self.record.key:
                files.remove(self.folder)  # which a stopped command has left
            return self.out
        condition, indices = self.condition, self.record.indices
        labels = [condition.label(i) for i in indices] if condition and condition.labels else None
        packing.pack(self.out, self.folder, self.read, labels, self.space)
        files.remove(self.folder)
        return self.out


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
    folder, before = packing.choose_folder(out), dict[str, Any]()
    if rank() == 0:
        journal.check_output_apart(out, *filter(None, (config.given, config.mask)))
        packing.check_output(out, config.overwrite)
    with open_folder(folder, config.precision, config.device) as accelerator:
        if not config.overwrite:
            before = journal.read_earlier(folder) or packing.read_packed_manifest(out)
        chain = yield from load_cascade(config, accelerator, before)
        packing.check_kind(out, chain.space, gif=config.gif, members=config.members is not None)
        return (yield from CascadeJob(config, chain).run(accelerator))
