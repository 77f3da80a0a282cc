"""What a model is given beside its images: which pairs or degradation, and whether it stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.config import TrainConfig
from diffuse_cli.config.train_options import GIVEN_DROPOUT
from diffuse_cli.core.conditions import PAIRS, Given
from diffuse_cli.core.degradations import DEGRADATIONS
from diffuse_cli.core.space import Space
from diffuse_cli.data import Pairs, Samples, is_images, pair
from diffuse_cli.data.samples import NOISE, limited, moments
from diffuse_cli.models.image_conditioning import Giver, is_degradation
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError, UsageError, suggest
from diffuse_cli.system.events import Notice, Work


def pairs_at(config: TrainConfig) -> str | None:
    """The folder or zip file of --given; None where nothing or a degradation is given.

    Raises:
        DataError: neither there nor a degradation.
    """
    if config.given is None or is_degradation(config.given):
        return None
    if not (is_images(path := Path(config.given)) or path.exists()):
        raise DataError(
            f"--given {files.show(config.given)}: no such file or folder, and no degradation",
            suggest(config.given.partition(":")[0], DEGRADATIONS),
        )
    return config.given


def paired(config: TrainConfig, images: Samples, given: Samples) -> Work[Pairs]:
    """The images with what was read beside them; says what has no pair.

    Raises:
        DataError: nothing has a pair, or, with --strict, something has none.
        UsageError: a pair of another kind of numbers.
    """
    own, theirs = images.unmeasured, given.unmeasured
    if (own.medium, own.levels, own.size) != (theirs.medium, theirs.levels, theirs.size):
        raise UsageError(f"--given {files.show(str(config.given))}: not samples as those of DATA")
    found = pair(images, given)
    for line in found.missing():
        if config.strict:
            raise DataError(line, "Leave --strict out to train on the pairs alone")
        yield Notice(line, warning=True)
    return found


def given_of(
    config: TrainConfig, space: Space, pairs: Pairs | None, trained: npt.NDArray[np.int64]
) -> Given | None:
    """What the model of a configuration is given.

    Args:
        trained: the samples that are trained on; what lies beside them has the mean and deviation
            that floats are standardised by.

    Raises:
        UsageError: a degradation that there is not, or that does not suit the images.
        DataError: numbers beside them that --transform is not defined for.
    """
    if config.given is None:
        return None
    scale: dict[str, tuple[Any, ...] | None] = {}
    if pairs and space.levels is None:
        theirs = pairs.given
        own = replace(theirs.unmeasured, transform=space.transform)
        mean, std = moments(own, theirs.stored, pairs.rows[trained], theirs.names)
        # A channel that never varies says nothing, and does no harm.
        varies = std > NOISE * np.abs(mean)
        scale = {"mean": tuple(mean.tolist()), "std": tuple(np.where(varies, std, 1.0).tolist())}
    elif pairs:
        scale = {"limits": limited(pairs.given.unmeasured, pairs.given.stored).limits}
    given = Given(
        channels=pairs.given.unmeasured.channels if pairs else space.channels,
        what=PAIRS if pairs else config.given,
        dropout=GIVEN_DROPOUT if config.given_dropout is None else config.given_dropout,
        noise=config.given_noise or 0.0,
        **scale,
    )
    return Giver(given, space).given


def check_pairs(config: TrainConfig, now: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuse other pairs than at a checkpoint.

    Raises:
        UsageError: their fingerprints differ.
    """
    if dict(now) != dict(expected):
        raise UsageError(
            f"what lies beside the images in {files.show(str(config.given))} is not what this run "
            "began with",
            "Put it back, under its names, or begin another run with --init",
        )
