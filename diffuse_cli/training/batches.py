"""Training batches: samples and conditions at positions of the global batch, on the device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffuse_cli.core.augmentations import augment
from diffuse_cli.core.space import expand_batch, send
from diffuse_cli.media import Indices
from diffuse_cli.system.rng import permutation
from diffuse_cli.training.feed import Feed, find_streams
from diffuse_cli.training.plan import Plan


class Changes(NamedTuple):
    """Random changes of samples by --flip and --augment.

    Attributes:
        flip: whether to mirror each sample, (B,), or None without --flip.
        augmentations: names in `AUGMENTATIONS`.
        u: the random numbers of the augmentations, as for `augment`. None without any.
    """

    flip: Tensor | None
    augmentations: tuple[str, ...]
    u: Tensor | None

    def apply(self, x: Tensor, *, paired: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return changed samples (B, C, *size), and the augmentations' parameters, if any.

        Args:
            paired: whether x are paired samples, which only move.
        """
        if self.flip is not None:
            x = torch.where(expand_batch(self.flip, x), x.flip(-1), x)
        if self.u is None:
            return x, None
        return augment(x, self.augmentations, self.u, paired=paired)


class Batches:
    """Training images in shuffled epochs, one after another."""

    def __init__(self, plan: Plan, batch_size: int, device: torch.device, mine: range) -> None:
        """Start to read ahead if the images are streamed.

        Args:
            mine: this process's positions of the batch.
        """
        self.plan, self.batch_size, self.device = plan, batch_size, device
        seed, n = plan.config.seed, len(plan.data.train)
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, n))
        self.feed: Feed | None = None
        if find_streams(plan.data):
            self.feed = Feed(plan.data, self._shuffle_indices, mine)

    def find_indices(self, step: int, positions: range) -> Indices:
        """Return the indices of the images at positions of the batch after `step` steps."""
        if self.feed is not None:
            return self.feed.find_indices(step, positions)
        return self._shuffle_indices(step, positions)

    def close(self) -> None:
        """Stop reading ahead."""
        if self.feed is not None:
            self.feed.close()

    def _shuffle_indices(self, step: int, positions: range) -> Indices:
        n = len(self.plan.data.train)
        places = np.arange(positions.start, positions.stop) + step * self.batch_size
        epochs, offsets = places // n, places % n
        chosen = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            chosen[in_epoch] = self._order(int(epoch))[offsets[in_epoch]]
        return self.plan.data.train[chosen]

    def samples(self, indices: Indices) -> Tensor:
        """Return samples x_0 in the model's space, on the device."""
        stored = self._to_device(self.plan.data.images.stored[indices])
        return self.plan.blueprint.space.to_model(stored)

    def condition(
        self, indices: Indices, x0: Tensor, changes: Changes, step: int, positions: range
    ) -> dict[str, Tensor]:
        """Return the conditions of these samples, by the network's keywords.

        Args:
            x0: the changed samples.
            changes: their changes, for the paired samples.
            step, positions: the keys of the random numbers that degrade the samples.
        """
        images = self.plan.data.images
        labels = self._to_device(images.labels[indices])
        row = None if images.rows is None else self._to_device(images.rows[indices])
        given = self._conditioning_input(indices, x0, changes, step, positions)
        return self.plan.blueprint.conditions.make_keywords(labels, given, row)

    def _conditioning_input(
        self, indices: Indices, x0: Tensor, changes: Changes, step: int, positions: range
    ) -> Tensor | None:
        encoder, pairs = self.plan.encoder, self.plan.data.pairs
        if encoder is None:
            return None
        draws = encoder.draw_numbers(self.plan.config.seed, "given", step, positions, self.device)
        if pairs is None:
            conditioning = encoder.encode_samples(x0, draws)
        else:
            beside = encoder.input_space.to_model(self._to_device(pairs[indices]))
            beside, _ = changes.apply(beside, paired=True)
            conditioning = encoder.encode_observations(beside)
        return encoder.add_noise(conditioning, draws)

    def _to_device(self, values: npt.NDArray[Any]) -> Tensor:
        return send(torch.from_numpy(values), self.device)
