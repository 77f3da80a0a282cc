"""Generated images against the real ones that they were drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.givens import Giver, Inputs, misfits
from diffuse_cli.metrics.answers import likeness

if TYPE_CHECKING:
    from diffuse_cli.evaluation.images import Labelled
    from diffuse_cli.media import Array
    from diffuse_cli.sampling import Loaded


def answered(
    loaded: Loaded,
    real: Labelled,
    inputs: Inputs,
    seed: int,
    rows: Sequence[int],
    first: Array,
    second: Array,
) -> dict[str, Array]:
    """The numbers of `metrics.answers` of some real images, by key.

    Args:
        inputs: what all real images are given, with draws of `seed`.
        rows: the places of these among them.
        first, second: images drawn of what each is given, by its place.
    """
    import torch

    giver = Giver.of(loaded.model.blueprint)
    assert giver is not None
    space, chosen = loaded.space, list(rows)
    truth, *drawn = (of[chosen] for of in (real.samples, first, second))
    span = space.levels - 1.0 if space.levels else 2.0
    given = None
    if giver.given.channels in (1, space.channels):
        given = giver.look(inputs.at(rows, torch.device("cpu")))
        given = np.broadcast_to(given, truth.shape)
    values = likeness(truth, drawn[0], drawn[1], given, span)
    if giver.degradation:
        off = [misfits(giver, each, truth, seed, rows) for each in (*drawn, truth)]
        values |= {"inconsistency": (off[0] + off[1]) / 2, "inconsistency_of_real": off[2]}
    return values
