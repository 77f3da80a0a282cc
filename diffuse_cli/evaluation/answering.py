"""Generated images against the real ones that they were drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.givens import Giver, Inputs, beside, degrading, misfits
from diffuse_cli.metrics._nearest import blocks, merge
from diffuse_cli.metrics.answers import likeness

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.evaluation.images import Labelled
    from diffuse_cli.media import Array
    from diffuse_cli.sampling import Loaded


def answered(
    loaded: Loaded,
    truth: Array,
    drawn: Sequence[Array],
    others: Mapping[str, Array],
    seed: int,
    rows: Sequence[int],
) -> dict[str, Array]:
    """The numbers of `metrics.answers` of some real images, by key.

    Args:
        truth: the real images (M, C, *size), whose inputs have draws of `seed`.
        drawn: two images of what each is given.
        others: what else could stand for them, by name.
        rows: their places among the real images.
    """
    space, giver = loaded.space, Giver.of(loaded.model.blueprint)
    assert giver is not None
    span = space.levels - 1.0 if space.levels else 2.0
    values = likeness(truth, drawn[0], drawn[1], others, span)
    if giver.degradation:
        off = [misfits(giver, each, truth, seed, rows) for each in (*drawn, truth)]
        values |= {"inconsistency": (off[0] + off[1]) / 2, "inconsistency_of_real": off[2]}
    return values


def given_itself(loaded: Loaded, inputs: Inputs, count: int) -> Array | None:
    """What the first real images are given, as samples (count, C, *size); None if its channels are
    not theirs."""
    import torch

    giver, space = Giver.of(loaded.model.blueprint), loaded.space
    assert giver is not None
    if giver.given.channels not in (1, space.channels):
        return None
    given = giver.look(inputs.at(range(count), torch.device("cpu")))
    return np.broadcast_to(given, (count, *space.shape))


def nearest(loaded: Loaded, inputs: Inputs, count: int, training: Labelled, seed: int) -> Array:
    """The place of the training image that comes nearest to what each of the first real images is
    given, where that is known: (count,)."""
    import torch

    giver = Giver.of(loaded.model.blueprint)
    assert giver is not None
    told = inputs.at(range(count), torch.device("cpu")).double()
    values, known = told[:, :-1], told[:, -1:]
    known = known.expand_as(values).flatten(1)
    kept = None
    for part in blocks(len(training)):
        theirs = _known_whole(giver, training[part], seed).double().flatten(1)
        # |k (x - y)|^2 less |k y|^2, which is the same for all x.
        found = known @ theirs.square().T - 2 * values.flatten(1) @ theirs.T
        kept = merge(kept, found, part.start, 1)
    assert kept is not None
    places: Array = kept[1][:, 0].numpy()
    return places


def _known_whole(giver: Giver, images: Labelled, seed: int) -> Tensor:
    """What would be given of images if nothing of it were hidden, (B, C', *size)."""
    import torch

    if giver.masks:
        return giver.space.to_model(torch.from_numpy(images.samples))
    if images.pairs is not None:
        inputs = beside(giver, images.pairs)
    else:
        inputs = degrading(giver, images.samples, seed, "looked up")
    return inputs.at(range(len(images)), torch.device("cpu"))[:, :-1]
