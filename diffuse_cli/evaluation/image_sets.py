"""Choose the images on both sides of an evaluation, with their classes and conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from diffuse_cli.config.eval_options import EvalConfig, ImageSetsConfig, MeasureConfig
from diffuse_cli.core.space import Space, longest_side
from diffuse_cli.data import (
    Dataset,
    Pairs,
    match_members,
    match_pairs,
    metadata_columns,
    read_cells,
    reader,
)
from diffuse_cli.media import MEDIA, Array, Indices, can_judge, settings_for
from diffuse_cli.metrics import Words, memorization
from diffuse_cli.models import image_conditioning
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system import Notice, UsageError, Work, memory, rng


@dataclass(frozen=True)
class LabeledSamples:
    """Stored samples (N, C, *size) and their classes, int64 (N,), -1 for none.

    Attributes:
        samples: the stored samples, a read-only memory map for a large data set.
        pairs: the stored paired sample of each, for a model that is conditioned on pairs. For a
            whole data set it only supports indexing. For a folder of members, their indices.
        rows: the codes of the metadata columns, (N, columns), for a model conditioned on them.
    """

    samples: Array
    labels: Array
    pairs: Any = None
    rows: Array | None = None

    @classmethod
    def from_dataset(
        cls, images: Dataset, names: Sequence[str], pairs: Pairs | Array | None = None
    ) -> LabeledSamples:
        """Label images by the index of their class in `names`, -1 for other classes."""
        places = {name: i for i, name in enumerate(names)}
        labels = np.array([*(places.get(name, -1) for name in images.class_names), -1], np.int64)
        return cls(images.stored, labels[images.labels], pairs, images.rows)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, chosen: Array | slice) -> LabeledSamples:
        """Select samples by index or mask."""
        pairs = None if self.pairs is None else np.ascontiguousarray(self.pairs[chosen])
        rows = None if self.rows is None else self.rows[chosen]
        samples = np.ascontiguousarray(self.samples[chosen])
        return LabeledSamples(samples, self.labels[chosen], pairs, rows)


FEWEST = 2
"""The fewest images of a side."""


@dataclass(frozen=True)
class TrainingSamples:
    """Training images and held-out images of the same data.

    Attributes:
        pool: all images of the data.
        order: the indices of the training images, shuffled.
    """

    pool: LabeledSamples
    order: Array
    held_out: LabeledSamples

    @property
    def reference_count(self) -> int:
        """Number of training images that are references, the first of `order`."""
        return memorization.count_training_references(len(self.held_out), len(self.order))

    def first(self, n: int) -> LabeledSamples:
        """Return at most n training images."""
        return self.pool[self.order[:n]]


@dataclass(frozen=True)
class Sides:
    """Real images, and the generated images if a folder is measured.

    Attributes:
        more: further real images, at most as many as are generated.
        training: the training images of the model, if they are part of DATA. For a folder, DATA is
            split as in training, if it is large enough.
        part: the part of DATA in `real`: `held-out` or `all`.
        classes: the name of each label.
        fingerprints: the fingerprints of DATA and of other inputs, by `data`,
            `subject`, `given` and `table`.
        space: the space of the samples on all sides.
        members: all stored samples of a folder of members, which `LabeledSamples.pairs` indexes.
    """

    real: LabeledSamples
    more: LabeledSamples
    fakes: LabeledSamples | None
    training: TrainingSamples | None
    part: str
    classes: tuple[str, ...]
    fingerprints: dict[str, str]
    space: Space
    members: Any = None

    @property
    def words(self) -> Words:
        """Words for the samples."""
        return Words.of(self.space)

    def check(self) -> None:
        """Raise a `UsageError` if a side has fewer than two images."""
        many = self.words.many
        for name, side in (("real", self.real), ("generated", self.fakes)):
            if side is not None and len(side) < FEWEST:
                text = f"an evaluation needs two {many} on each side, not {len(side)} {name}"
                raise UsageError(text, f"Add more {many}", code="too_few_samples")


def read_sides(config: MeasureConfig, loaded: LoadedModel) -> Work[Sides]:
    """Read the real images for a model."""
    image_conditioning.check_pairs_option(config.given, loaded.model.blueprint.conditions.given)
    [sides] = yield from read_common_sides(config, [loaded])
    return sides


def read_common_sides(config: MeasureConfig, models: Sequence[LoadedModel]) -> Work[list[Sides]]:
    """Read the sides for several models of one space, with the same images for all.

    They are the held-out images if one of the models was trained on the others, else all images,
    or if too few are held out. Images without a pair are left out.
    """
    tables = [model.model.blueprint.conditions.table for model in models]
    metadata_columns.check_vector_file(config.condition_on, tables)
    images = yield from _read_in_space(models[0].space, config.data, config, models[0])
    yield from _report_summaries(images)
    trained = [is_trained_on(model, images) for model in models]
    for model, recognized in zip(models, trained, strict=True):
        if not recognized and config.background not in (None, model.background):
            text = f"the model was trained with --background {model.background}"
            yield Notice(f"{text}: training images in DATA are not recognized", warning=True)
    usable, read = np.ones(len(images), np.bool_), []
    words = Words.of(models[0].space)
    for model in models:
        dataset = yield from _read_rows(config, images, model)
        pairs = yield from _read_pairs(config, images, model)
        if pairs is not None:
            usable &= pairs.matched
        read.append((dataset, model, pairs))
    count = int((images.held_out & usable).sum())
    held_out = any(trained) and count >= FEWEST
    if any(trained) and not held_out:
        amount = f"only {count} {words.one}" if count else f"no {words.many} are"
        text = f"{amount} held out: training {words.many} stand in as real {words.many}"
        yield Notice(f"{text}, so distances and likelihood are too good", warning=True)
    count = count if held_out else int(usable.sum())
    part = "the held-out part" if held_out else "all"
    yield Notice(f"real {words.many}: {part}, {count:,} of {len(images):,}")
    return [_make_sides(config, *sources, usable, held_out=held_out) for sources in read]


def _read_in_space(
    space: Space, data: str, config: ImageSetsConfig, loaded: LoadedModel
) -> Work[Dataset]:
    """Read samples of a space, with the options' fit and background, or else the model's."""
    images = yield from reader.read_images(
        data,
        **settings_for(space),
        background=config.background or loaded.background,
        fit=config.fit or loaded.fit,
        medium=space.medium,
        strict=config.strict,
        workers=config.workers,
        keep=kept_bytes(),
    )
    yield from reader.match_quantities(images.summary.quantities, space.quantities)
    return images


def kept_bytes() -> int:
    """Return the bytes of a set to keep in memory: half of the memory that is free.

    Other images are decoded on demand.
    """
    return memory.free_memory("cpu") // (2 * memory.count_local_processes())


def _read_rows(config: MeasureConfig, images: Dataset, loaded: LoadedModel) -> Work[Dataset]:
    """Add the metadata columns of a model's condition to DATA, if it has any.

    Raises:
        DataError: there is no metadata.
        UsageError: the metadata lacks a column.
    """
    table = loaded.model.blueprint.conditions.table
    if table is None:
        return images
    cells = read_cells(config.data, images.names, table.names, config.condition_on)
    for line in (*cells.lines, *metadata_columns.describe_unknown_labels(table, cells)):
        yield Notice(line, warning=True)
    return replace(images, rows=metadata_columns.encode_rows(table, cells))


def _read_pairs(config: ImageSetsConfig, data: Dataset, loaded: LoadedModel) -> Work[Pairs | None]:
    """Read the paired samples of DATA, for a model that was trained on pairs.

    Raises:
        DataError: no image has a pair.
    """
    encoder = loaded.encoder
    if encoder is None or not encoder.given.is_paired:
        return None
    assert config.given is not None  # as `check_pairs_option` says
    pair_images = yield from _read_in_space(encoder.input_space, config.given, config, loaded)
    stored = encoder.match_labels(pair_images.stored, config.given)
    pairs = match_pairs(data, replace(pair_images, stored=stored))
    for line in pairs.describe_unpaired():
        yield Notice(line, warning=True)
    return pairs


def prepare_inputs(
    loaded: LoadedModel, images: LabeledSamples, seed: int
) -> image_conditioning.ConditioningInputs | None:
    """Return the conditioning inputs of images, or None for a model without them."""
    if loaded.encoder is None:
        return None
    return loaded.encoder.choose_inputs(images.samples, images.pairs, seed)


def set_conditions(
    settings: SamplingSettings, loaded: LoadedModel, sides: Sides, seed: int
) -> SamplingSettings:
    """Return the settings with the conditions of the real images, used one after another.

    A model that is conditioned only on classes uses the classes of further real images. If DATA has
    none of its classes, it uses all evenly.
    """
    real, condition = sides.real, settings.condition
    if condition is None:
        return settings
    inputs = prepare_inputs(loaded, real, seed)
    rows = () if real.rows is None else tuple(map(tuple, real.rows.tolist()))
    if inputs is None and not rows:
        labels = classes_of(sides) or condition.labels
    else:  # an image without a class still has its own conditions
        no_class = len(loaded.model.blueprint.conditions.classes)
        labels = tuple(np.where(real.labels >= 0, real.labels, no_class).tolist())
    labels = labels if condition.labels else ()
    return replace(settings, condition=replace(condition, labels=labels, given=inputs, rows=rows))


def classes_of(sides: Sides) -> tuple[int, ...]:
    """Return classes in the proportions of DATA, starting with further real images.

    With the same number of each class on both sides, a perfect model's KID would be below 0.
    """
    labels = np.concatenate([sides.more.labels, sides.real.labels])
    return tuple(labels[labels >= 0].tolist())


def is_trained_on(loaded: LoadedModel, images: Dataset) -> bool:
    """Whether a model was trained on these images, except a held-out part if there is one."""
    return bool(images.fingerprint == loaded.model.data.get("fingerprint"))


def _make_sides(
    config: MeasureConfig,
    images: Dataset,
    loaded: LoadedModel,
    pairs: Pairs | None,
    usable: Array,
    *,
    held_out: bool,
) -> Sides:
    """Make the sides for a model from the usable images: the held-out images, or all."""
    names = loaded.model.classes
    pool = LabeledSamples.from_dataset(images, names, pairs)
    chosen = np.flatnonzero(images.held_out & usable if held_out else usable)
    real, more = _choose(config, pool, chosen)
    has_both = images.held_out.any() and (~images.held_out & usable).any()
    trained = is_trained_on(loaded, images) and has_both
    training = _training(config, pool, images.held_out, usable) if trained else None
    if held_out:  # for every model, because the classes to generate are of these images
        more = pool[_shuffle_training(config.seed, images.held_out, usable)[: config.n]]
    part, prints = "held-out" if held_out else "all", {"data": images.fingerprint}
    if pairs is not None:
        prints["given"] = pairs.fingerprint
    if images.rows is not None:
        prints["table"] = images.rows_fingerprint
    return Sides(real, more, None, training, part, names, prints, loaded.space)


def read_folder(config: EvalConfig) -> Work[Sides]:
    """Read generated images at their own size if it is uniform, and real images at that size."""
    fit = config.fit or "crop"
    read = partial(
        reader.read_images,
        background=config.background or "white",
        fit=fit,
        layout=config.layout,
        rate=config.rate,
        strict=config.strict,
        workers=config.workers,
        keep=kept_bytes() // 2,
        sizable=False,
    )
    samples = yield from read(config.subject)
    samples.summary.check_finite()
    uniform: dict[str, Any] = {}
    sizes = [sides[::-1] for sides in samples.summary.sizes]
    longest = longest_side(len(sizes[0]))
    if len(sizes) == 1 and sizes[0] != samples.stored.shape[2:] and max(sizes[0]) <= longest:
        uniform["size"] = sizes[0]
        samples = yield from read(config.subject, **uniform)
    settings: dict[str, Any] = {
        "medium": samples.medium,
        "layout": samples.layout,
        "rate": samples.rate,
        "size": samples.stored.shape[2:],
    }
    # Feature networks compare grey photos with color photos.
    if config.members or not can_judge(samples.estimated_space):
        settings["channels"] = samples.stored.shape[1]
    images = yield from read(config.data, **settings)
    if images.stored.dtype != samples.stored.dtype and MEDIA[samples.medium].bits:
        samples = yield from read(config.subject, **uniform, bits=8)
        images = yield from read(config.data, **settings, bits=8)
    yield from _report_summaries(samples, images)
    if not uniform and (text := samples.summary.describe_resizing(settings["size"], fit)):
        yield Notice(text)
    names = images.class_names
    fakes, _ = _choose(config, LabeledSamples.from_dataset(samples, names), np.arange(len(samples)))
    rows, usable = None, np.ones(len(images), np.bool_)
    if config.members:
        rows = match_members(images, samples, config.members)
        usable = rows.min(1) >= 0
        yield Notice(f"{usable.sum():,} of {len(images):,} in DATA have {config.members} members")
    pool = LabeledSamples.from_dataset(images, names, rows)
    real, more = _choose(config, pool, np.flatnonzero(usable))
    training = _training(config, pool, images.held_out, usable) if images.held_out.any() else None
    prints = {"data": images.fingerprint, "subject": samples.fingerprint}
    # Standard deviations of floats are those of real samples: generated samples may have none.
    space, estimated = images.space, samples.estimated_space
    yield from reader.match_quantities(estimated.quantities, space.quantities)
    if space.levels is not None:
        limits = space.limits if space.levels == estimated.levels else None
        channels = estimated.channels
        if estimated.levels is not None:
            channels = max(channels, space.channels)
        space = replace(estimated, channels=channels, limits=limits)
    return Sides(real, more, fakes, training, "all", names, prints, space, samples.stored)


def _report_summaries(*sets: Dataset) -> Work[None]:
    """Report the number of images, and which were skipped and why."""
    for images in sets:
        for line in images.summary.lines():
            yield Notice(line)


def _choose(
    config: MeasureConfig, pool: LabeledSamples, chosen: Array
) -> tuple[LabeledSamples, LabeledSamples]:
    """Return at most n of the chosen images, shuffled, and at most n of the rest."""
    order = chosen[rng.permutation(config.seed, 0, len(chosen))]
    return pool[order[: config.n]], pool[order[config.n : 2 * config.n]]


def _training(
    config: MeasureConfig, pool: LabeledSamples, held_out: Array, usable: Array
) -> TrainingSamples:
    """Return the training images, and at most n held-out images.

    Args:
        held_out, usable: masks over the images of the pool, (N,).
    """
    order = _shuffle_training(config.seed, held_out, usable)
    return TrainingSamples(pool, order, _choose(config, pool, np.flatnonzero(held_out & usable))[0])


def _shuffle_training(seed: int, held_out: Array, usable: Array) -> Array:
    """Return the indices of the training images, shuffled. For masks see `_training`."""
    indices = np.flatnonzero(~held_out & usable)
    shuffled: Indices = indices[rng.permutation(seed, 1, len(indices))]
    return shuffled
