"""The two sides of a comparison: which images, and of which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from diffuse_cli.config.eval_options import MeasureConfig, SidesConfig
from diffuse_cli.core.conditions import PAIRS
from diffuse_cli.core.space import Space
from diffuse_cli.data import Dataset, Pairs, pair, read_cells, read_images
from diffuse_cli.data.metadata_columns import rows_of, unknown
from diffuse_cli.media import MEDIA, Array, judged, like
from diffuse_cli.metrics.features.feature_choice import words_of
from diffuse_cli.models.image_conditioning import Giver, Inputs, check_pairs_option, inputs_for
from diffuse_cli.sampling.generation import Loaded
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.memory import free_memory, processes_here
from diffuse_cli.system.rng import permutation


@dataclass(frozen=True)
class Labelled:
    """Stored samples (N, C, *size) and their classes, int64 (N,), -1 for none.

    Attributes:
        samples: of a whole data set a read-only memory map, if they are many.
        pairs: what lies beside each, as stored, for a model that is given it; by index alone for a
            whole data set.
        rows: the codes of its columns, (N, columns), for a model that is told them.
    """

    samples: Array
    labels: Array
    pairs: Any = None
    rows: Array | None = None

    @classmethod
    def of(cls, images: Dataset, names: Sequence[str], pairs: Pairs | None = None) -> Labelled:
        """Label images by the place in `names` of their class, -1 if it is not there."""
        places = {name: i for i, name in enumerate(names)}
        known = np.array([*(places.get(name, -1) for name in images.class_names), -1], np.int64)
        return cls(images.stored, known[images.labels], pairs, images.rows)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, chosen: Array | slice) -> Labelled:
        """Some of them: by index, or where a mask is true."""
        pairs = None if self.pairs is None else np.ascontiguousarray(self.pairs[chosen])
        rows = None if self.rows is None else self.rows[chosen]
        samples = np.ascontiguousarray(self.samples[chosen])
        return Labelled(samples, self.labels[chosen], pairs, rows)


REFERENCES = 200
"""If fewer images are held out, training images, each without itself, make up this number."""


KEPT_SHARE = 2
"""Images are kept in memory up to 1/KEPT_SHARE of what is free."""


@dataclass(frozen=True)
class Training:
    """Training images, and held-out ones of the same data.

    Attributes:
        pool: all of the data.
        order: the indices of the training images, shuffled.
    """

    pool: Labelled
    order: Array
    held_out: Labelled

    @property
    def alone(self) -> int:
        """How many training images, the first of `order`, are references."""
        return max(0, min(REFERENCES - len(self.held_out), len(self.order)))

    def first(self, n: int) -> Labelled:
        """At most n training images."""
        return self.pool[self.order[:n]]


FINGERPRINTS: Mapping[str, str] = {
    "data": "the real {many}",
    "subject": "the generated {many}",
    "given": "the conditioning {many}",
    "table": "the metadata columns",
}
"""The names that people read of what has a fingerprint, by its key."""


@dataclass(frozen=True)
class Sides:
    """Real images and, where a folder is measured, the images in it.

    Attributes:
        more: further real images, at most as many.
        training: what the model was trained on, if DATA is that; for a folder, DATA divided as
            training would, if it is large enough.
        part: which of DATA `real` is: `held-out` or `all`.
        classes: the name of each label.
        fingerprints: of DATA, and of what else was read, by the keys of `FINGERPRINTS`.
        space: that of the samples on all sides.
    """

    real: Labelled
    more: Labelled
    fakes: Labelled | None
    training: Training | None
    part: str
    classes: tuple[str, ...]
    fingerprints: dict[str, str]
    space: Space

    def check(self) -> None:
        """Raise a `UsageError` if a side has fewer than two images."""
        many = words_of(self.space).many
        for name, side in (("real", self.real), ("generated", self.fakes)):
            if side is not None and len(side) < 2:
                raise UsageError(
                    f"two {many} are needed on each side, not {len(side)} {name}",
                    f"Give more {many}",
                )


def read_sides(config: MeasureConfig, loaded: Loaded | None) -> Work[Sides]:
    """Read the real images and, without a model, those to compare with them."""
    if loaded is None:
        return (yield from _of_folder(config))
    check_pairs_option(config.given, loaded.model.blueprint.conditions.given)
    [sides] = yield from sides_for(config, [loaded])
    return sides


def sides_for(config: MeasureConfig, models: Sequence[Loaded]) -> Work[list[Sides]]:
    """Read the sides for each of several models of one space: the same images, those held out if
    one of the models was trained on the others, or all; without those that lack a pair."""
    images = yield from _read_as(models[0].space, config.data, config, models[0])
    yield from _tell(images)
    held_out = any(knows(model, images) for model in models)
    usable, read = np.ones(len(images), np.bool_), []
    for model in models:
        told = yield from _read_rows(config.data, images, model)
        pairs = yield from _read_pairs(config, images, model)
        if pairs is not None:
            usable &= pairs.matched
        read.append((told, model, pairs))
    yield _told_part(images, held_out)
    return [_sides_of(config, *each, usable, held_out=held_out) for each in read]


def _read_as(space: Space, data: str, config: SidesConfig, loaded: Loaded) -> Work[Dataset]:
    """Read samples of a space, fitted as the options say, or else as the model's were."""
    images = yield from read_images(
        data,
        **like(space),
        background=config.background or loaded.background,
        fit=config.fit or loaded.fit,
        medium=space.medium,
        strict=config.strict,
        workers=config.workers,
        keep=kept_bytes(),
    )
    return images


def kept_bytes() -> int:
    """Bytes of a set that are kept in memory; others are decoded when they are measured."""
    return free_memory("cpu") // (KEPT_SHARE * processes_here())


def _read_rows(data: str, images: Dataset, loaded: Loaded) -> Work[Dataset]:
    """DATA with the columns that a model is told; as it is for one that is told none.

    Raises:
        DataError: there is no table.
        UsageError: a table without such a column.
    """
    table = loaded.model.blueprint.conditions.table
    if table is None:
        return images
    cells = read_cells(data, images.names, table.names)
    for line in (*cells.lines, *unknown(table, cells)):
        yield Notice(line, warning=True)
    return replace(images, rows=rows_of(table, cells))


def _read_pairs(config: SidesConfig, images: Dataset, loaded: Loaded) -> Work[Pairs | None]:
    """What lies beside DATA, for a model that was trained on pairs.

    Raises:
        DataError: nothing has a pair.
    """
    given = loaded.model.blueprint.conditions.given
    if given is None or given.what != PAIRS:
        return None
    assert config.given is not None  # as `check_pairs_option` says
    found = yield from _read_as(Giver(given, loaded.space).inputs, config.given, config, loaded)
    pairs = pair(images, found)
    for line in pairs.missing():
        yield Notice(line, warning=True)
    return pairs


def inputs_of(loaded: Loaded, images: Labelled, seed: int) -> Inputs | None:
    """What a model is told that these images are given."""
    giver = Giver.of(loaded.model.blueprint)
    return inputs_for(giver, images.samples, images.pairs, seed) if giver else None


def classes_told(sides: Sides) -> Notice:
    """Which classes a model draws that is told nothing else."""
    if _classes_of(sides):
        return Notice("classes are drawn in the shares that they have in DATA")
    return Notice("DATA has none of the model's classes: all are drawn evenly")


def drawn_from(settings: DrawSettings, loaded: Loaded, sides: Sides, seed: int) -> DrawSettings:
    """The settings with what the real images are given and told, in turn, and their classes.

    A model that is told classes alone draws those of further real images, in their shares; all
    evenly where DATA has none of them.
    """
    real, wanted = sides.real, settings.condition
    if wanted is None:
        return settings
    inputs = inputs_of(loaded, real, seed)
    rows = () if real.rows is None else tuple(map(tuple, real.rows.tolist()))
    if inputs is None and not rows:
        own = _classes_of(sides) or wanted.labels
    else:  # an image of no class is still given and told its own
        untold = len(loaded.model.blueprint.conditions.classes)
        own = tuple(np.where(real.labels >= 0, real.labels, untold).tolist())
    own = own if wanted.labels else ()
    return replace(settings, condition=replace(wanted, labels=own, given=inputs, rows=rows))


def _classes_of(sides: Sides) -> tuple[int, ...]:
    """Classes in the shares of DATA, first those of further real images: with as many of each on
    both sides, the KID of a perfect model would be below 0."""
    labels = np.concatenate([sides.more.labels, sides.real.labels])
    return tuple(labels[labels >= 0].tolist())


def knows(loaded: Loaded, images: Dataset) -> bool:
    """Whether a model was trained on all of these images but a part that was held out."""
    same = images.fingerprint == loaded.model.data.get("fingerprint")
    return bool(same and images.held_out.any())


def _sides_of(
    config: MeasureConfig,
    images: Dataset,
    loaded: Loaded,
    pairs: Pairs | None,
    usable: Array,
    *,
    held_out: bool,
) -> Sides:
    """The sides for a model: of the usable images those held out, or all of them."""
    names = loaded.model.classes
    pool = Labelled.of(images, names, pairs)
    chosen = np.flatnonzero(images.held_out & usable if held_out else usable)
    real, more = _choose(config, pool, chosen)
    training = None
    if knows(loaded, images):
        training = _training(config, pool, images.held_out, usable)
        more = training.first(len(real))
    part, prints = "held-out" if held_out else "all", {"data": images.fingerprint}
    if pairs is not None:
        prints["given"] = pairs.fingerprint
    if images.rows is not None:
        prints["table"] = images.rows_fingerprint
    return Sides(real, more, None, training, part, names, prints, loaded.space)


def _told_part(images: Dataset, held_out: bool) -> Notice:
    """Which of the images are the real ones."""
    which = "the part that was never trained on" if held_out else "all"
    count = int(images.held_out.sum()) if held_out else len(images)
    return Notice(f"real {MEDIA[images.medium].many}: {which}, {count:,} of {len(images):,}")


def _of_folder(config: MeasureConfig) -> Work[Sides]:
    """Generated images at their own size, if all have the same, and real ones at that size."""
    read = partial(
        read_images,
        background=config.background or "white",
        fit=config.fit or "crop",
        strict=config.strict,
        workers=config.workers,
        keep=kept_bytes() // 2,
    )
    theirs = yield from read(config.subject)
    own: dict[str, Any] = {}
    sizes = [size[::-1] for size in theirs.summary.sizes]
    if len(sizes) == 1 and sizes[0] != theirs.stored.shape[2:]:
        own["size"] = sizes[0]
        theirs = yield from read(config.subject, **own)
    asked: dict[str, Any] = {
        "size": theirs.stored.shape[2:],
        "medium": theirs.medium,
        "layout": theirs.layout,
        "rate": theirs.rate,
    }
    if not judged(theirs.unmeasured):  # grey photos are shown in colour where the others are
        asked["channels"] = theirs.stored.shape[1]
    images = yield from read(config.data, **asked)
    if images.stored.dtype != theirs.stored.dtype and MEDIA[theirs.medium].bits:
        theirs = yield from read(config.subject, **own, bits=8)
        images = yield from read(config.data, **asked, bits=8)
    yield from _tell(theirs, images)
    names = images.class_names
    fakes, _ = _choose(config, Labelled.of(theirs, names), np.arange(len(theirs)))
    pool, training = Labelled.of(images, names), None
    real, more = _choose(config, pool, np.arange(len(images)))
    if images.held_out.any():
        training = _training(config, pool, images.held_out, np.ones(len(images), np.bool_))
    prints = {"data": images.fingerprint, "subject": theirs.fingerprint}
    # The deviations of floats are those of the real ones: what is generated may have none.
    space = images.space
    if space.levels is not None:
        space = replace(theirs.unmeasured, limits=space.limits)
    return Sides(real, more, fakes, training, "all", names, prints, space)


def _tell(*sets: Dataset) -> Work[None]:
    """How many images were found, and which were skipped and why."""
    for images in sets:
        for line in images.summary.lines():
            yield Notice(line)


def _choose(config: MeasureConfig, pool: Labelled, chosen: Array) -> tuple[Labelled, Labelled]:
    """At most n of the chosen images, shuffled, and at most n of the rest."""
    order = chosen[permutation(config.seed, 0, len(chosen))]
    return pool[order[: config.n]], pool[order[config.n : 2 * config.n]]


def _training(config: MeasureConfig, pool: Labelled, held_out: Array, usable: Array) -> Training:
    """The training images, and at most n held-out ones.

    Args:
        held_out, usable: which images of the pool are, (N,).
    """
    own = np.flatnonzero(~held_out & usable)
    order = own[permutation(config.seed, 1, len(own))]
    return Training(pool, order, _choose(config, pool, np.flatnonzero(held_out & usable))[0])
