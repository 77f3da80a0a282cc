"""Build the network's conditioning input from degraded samples or paired images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffuse_cli.core import (
    LABELS,
    ConditioningArray,
    InvalidArgument,
    Space,
    degradations,
)
from diffuse_cli.media import ALPHA, MEDIA, layout_name, render_samples
from diffuse_cli.system import DataError, UsageError, show, translate_errors
from diffuse_cli.system.rng import BLOCK, GivenDraws, draw_blocks

if TYPE_CHECKING:
    from diffuse_cli.core import Degradation
    from diffuse_cli.media import Array
    from diffuse_cli.models.blueprint import Blueprint


AT_ONCE = 256
"""Label maps that are read at a time."""

SAME = 1e-6
"""Relative difference below which squared standard deviations count as equal."""


def check_pairs_option(path: str | None, *models: ConditioningArray | None) -> None:
    """Check --given of a command that reads DATA: only models trained on pairs take it.

    Raises:
        UsageError: --given is missing, or the models do not take it.
    """
    paired = any(given is not None and given.is_paired for given in models)
    if paired and path is None:
        text = "the model was trained on pairs"
        hint = "Pass --given PATH, the images paired with DATA"
        raise UsageError(text, hint, code="missing_argument", option="--given")
    if path is not None and not paired:
        ways = [f"with --given {m.what}, which is computed from DATA" for m in models if m]
        way = next(iter(ways), "without --given")
        text = f"--given: the model was trained {way}"
        raise UsageError(text, "Leave it out", code="option_unsuited")


def observed_space(space: Space, degradation: Degradation) -> Space:
    """Return the space of stored observations of samples under a degradation.

    Averaged float channels have the average of their means, and their common standard deviation.
    Sounds of fewer samples have a lower rate.

    Raises:
        InvalidArgument: the standard deviations of averaged channels differ, so that averaging
            stored channels differs from averaging the model's channels, or the samples do not suit
            `degradation`.
    """
    channels, *size = degradation.observation_shape(space.shape)
    changes: dict[str, Any] = {}
    if space.rate is not None:  # an observation of fewer samples lasts as long
        rate = round(space.rate * size[0] / space.size[0])
        changes["rate"] = max(MEDIA[space.medium].rates[0], rate)
    if space.levels is None and channels != space.channels:
        mean, std = (_observe_values(v, space, degradation) for v in (space.mean, space.std))
        changes |= {"mean": mean, "std": std}
        squares = _observe_values([d**2 for d in space.std], space, degradation)
        if any(s > (1 + SAME) * d**2 for s, d in zip(squares, std, strict=True)):
            text = f"{degradation.text} averages channels, but their standard deviations differ"
            raise InvalidArgument(text, "Scale the channels to the same standard deviation first")
    return dataclasses.replace(space, channels=channels, size=tuple(size), **changes)


def check_observed_files(space: Space, observed: Space, degradation: Degradation) -> None:
    """Check that files can hold observations.

    Args:
        space: the space of the samples.
        observed: the space of the files.

    Raises:
        UsageError: observations are averages of colors and transparency.
    """
    if layout_name(space.layout) == ALPHA and observed.channels != space.channels:
        text = "averages colors with transparency, and no image file holds the result"
        hint = "Pass --degrade, with original images"
        raise UsageError(f"{degradation.text} {text}", hint, code="option_unsuited")


def _observe_values(
    values: Sequence[float], space: Space, degradation: Degradation
) -> tuple[float, ...]:
    """Return the observed channels of constant channels."""
    column = torch.tensor(values, dtype=torch.float64).reshape(1, -1, *[1] * space.dims)
    y = degradation.fit_shape(space.shape).apply(column.expand(1, -1, *space.size))
    return tuple(y.flatten(2)[0, :, 0].tolist())


def _rendered_space(given: ConditioningArray, space: Space) -> Space:
    """Return the space of a conditioning array's values, in samples of `space`."""
    if given.labels:
        return Space(channels=1, size=space.size, medium=space.medium, layout=LABELS)
    changes: dict[str, Any] = {n: getattr(given, n) for n in ("mean", "std") if given.mean}
    if given.is_paired:
        changes["limits"] = given.limits
    layout = space.layout
    if layout and layout.isupper() and "C" not in layout and given.channels > 1:
        layout = None  # a layout such as HW has no axis for channels
    return dataclasses.replace(space, channels=given.channels, layout=layout, **changes)


@dataclass(frozen=True)
class Conditioner:
    """Encoder of conditioning images (B, C', *size), as `ConditioningArray` describes them.

    Attributes:
        given: the description of the conditioning images.
        space: the space of the model's samples.
        degradation: the degradation that computes a conditioning image from a sample; None for
            pairs.
        rendered_space: the space of the images from `render_input`.
        input_space: the space of the input for sampling: a paired image, or an observation.

    Raises:
        UsageError: the degradation is unknown or does not suit the samples.
    """

    given: ConditioningArray
    space: Space
    degradation: Degradation | None = field(init=False, compare=False)
    rendered_space: Space = field(init=False, compare=False)
    input_space: Space = field(init=False, compare=False)

    @classmethod
    def from_blueprint(cls, blueprint: Blueprint) -> Conditioner | None:
        """Return the encoder of a model, or None if the model has no conditioning image."""
        given = blueprint.conditions.given
        return cls(given, blueprint.space) if given else None

    def __post_init__(self) -> None:
        given, space = self.given, self.space
        degradation: Degradation | None = None
        input_space: Space | None = None
        if not given.is_paired:
            if given.channels != space.channels:
                text = f"has {given.channels} channels, but samples have {space.channels}"
                raise UsageError(f"{given.what} {text}")
            with translate_errors(lambda _: "--given"):
                degradation = degradations.parse(given.what).fit_shape(space.shape)
                input_space = observed_space(space, degradation)
        rendered_space = _rendered_space(given, space)
        object.__setattr__(self, "degradation", degradation)
        object.__setattr__(self, "rendered_space", rendered_space)
        object.__setattr__(self, "input_space", input_space or rendered_space)

    @property
    def masks(self) -> bool:
        """Whether the degradation hides a part of the sample."""
        return self.degradation is not None and self.degradation.HIDES

    def encode_samples(self, x0: Tensor, draws: GivenDraws) -> Tensor:
        """Return the conditioning input from samples (B, C, *size) that are degraded here."""
        assert self.degradation is not None
        degradation = self.degradation.draw_parts(draws.u)
        return self.encode_observations(degradation.observe(x0, draws.noise), degradation)

    def to_model(self, stored: Tensor) -> Tensor:
        """Convert stored values of `input_space` to the model's numbers. Labels stay."""
        return stored if self.given.labels else self.input_space.to_model(stored)

    def encode_observations(self, y: Tensor, degradation: Degradation | None = None) -> Tensor:
        """Return the conditioning input from observations, by their pseudo-inverse, or from pairs.

        Other labels than the model's are unknown.

        Args:
            y: observations or pairs, as from `to_model`.
            degradation: the degradation, if it was drawn for these samples.
        """
        degradation = degradation or self.degradation
        if self.given.labels:
            class_planes = torch.cat([y == label for label in self.given.labels], 1).float()
            return self.append_mask(class_planes, class_planes.sum(1, keepdim=True))
        if degradation is None:
            return self.append_mask(y)
        return self.append_mask(degradation.pinv(y), degradation.known_mask(y))

    def match_labels(self, stored: Array, path: str) -> Array:
        """Return the label maps (N, 1, H, W) of --given with the labels of the model.

        Maps with other labels have the model's classes in the same order if their values are evenly
        spread, for example 0, 127 and 254 for labels 0, 1 and 2. Inputs of other models are
        returned as they are.

        Raises:
            DataError: a label is not the model's.
        """
        if not self.given.labels:
            return stored
        labels, count = np.array(self.given.labels), self.given.channels
        parts = (stored[k : k + AT_ONCE] for k in range(0, len(stored), AT_ONCE))
        values = np.unique(np.concatenate([np.unique(part) for part in parts]))
        unknown = np.setdiff1d(values, labels)
        if not len(unknown):
            return stored
        even = np.arange(count)
        spreads = [even, even * (255 // (count - 1)), even * 255 / (count - 1)]
        spreads += [np.linspace(values[0], values[-1], count)] * (len(values) == count)
        for spread in spreads:
            step = spread[1] - spread[0]
            places = np.rint((values - spread[0]) / step).astype(np.int64).clip(0, count - 1)
            if np.abs(values - spread[places]).max() < min(1, step / 4):
                table = np.zeros(256, np.uint8)
                table[values] = labels[places]
                maps: Array = table[stored[:]]
                return maps
        label_texts = ", ".join(map(show, self.given.label_texts))
        raise DataError(
            f"--given {show(path)}: label {unknown[0]} is not one of the model's: {label_texts}",
            "Change it to one of them",
            code="data_mismatch",
            path=path,
        )

    def append_mask(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Append the mask of known places, 1 or 0, to values (B, C, *size) as a last channel."""
        if mask is None:
            mask = values.new_ones(len(values), 1, *values.shape[2:])
        mask = mask[:, :1].expand(len(values), 1, *values.shape[2:])
        return torch.cat([values.where(mask > 0, 0), mask], 1)  # hidden ones may be infinite

    def add_noise(self, conditioning: Tensor, draws: GivenDraws) -> Tensor:
        """Add noise to the known places of a conditioning input.

        Its standard deviation is drawn for each sample, up to `given.noise`.
        """
        if not self.given.noise:
            return conditioning
        level = self.given.noise * draws.level.reshape(-1, *[1] * (conditioning.ndim - 1))
        values, mask = conditioning[:, :-1], conditioning[:, -1:]
        return self.append_mask(values + level * draws.more, mask)

    def draw_numbers(
        self, seed: int, purpose: str, step: int, positions: range, device: torch.device
    ) -> GivenDraws:
        """Draw the random numbers for some positions of a step."""
        degradation, shape, none = self.degradation, self.space.shape, (0,)
        uniforms = degradation.uniforms if degradation else 0
        has_noise = degradation is not None and degradation.sigma > 0
        observed = degradation.observation_shape(shape) if degradation and has_noise else none
        added = (self.given.channels, *self.space.size) if self.given.noise else none

        def draw(**options: Any) -> tuple[Tensor, ...]:
            u = torch.rand((BLOCK, uniforms + 1), **options)
            noise, more = (torch.randn((BLOCK, *sizes), **options) for sizes in (observed, added))
            return u[:, 1:], u[:, 0], noise, more

        return GivenDraws(*draw_blocks(seed, step, positions, device, purpose, draw))

    def render_input(self, conditioning: Tensor) -> Array:
        """Return a conditioning input in `rendered_space`, stored, mid-range where unknown.

        A label map has its first label there.
        """
        if self.given.labels:
            places = conditioning[:, :-1].argmax(1, keepdim=True).cpu().numpy()
            maps: Array = np.array(self.given.labels, np.uint8)[places]
            return maps
        numbers: Array = self.rendered_space.to_stored(conditioning[:, :-1]).cpu().numpy()
        return numbers

    def look(self, conditioning: Tensor) -> Array:
        """Return pictures of a conditioning input, uint8 (B, 1 or 3, H, W)."""
        return render_samples(self.rendered_space, self.render_input(conditioning))

    def stored_inputs(self, stored: Array, first: int = 0) -> ConditioningInputs:
        """Return inputs from pairs or observations, stored values of `input_space`."""
        return ConditioningInputs(
            stored, lambda y, _: self.encode_observations(self.to_model(y)), first
        )

    def masked_inputs(self, stored: Array, mask: Array) -> ConditioningInputs:
        """Return inputs from stored samples that are hidden except where `mask` is true.

        Samples are (N, C, *size), and `mask` is (N, 1, *size) or (1, 1, *size).
        """
        known_mask = np.broadcast_to(mask, (len(stored), 1, *stored.shape[2:]))
        masked_samples = np.concatenate([stored, known_mask.astype(stored.dtype)], 1)

        def make(batch: Tensor, rows: Sequence[int]) -> Tensor:
            return self.append_mask(self.space.to_model(batch[:, :-1]), batch[:, -1:].float())

        return ConditioningInputs(masked_samples, make)

    def degraded_inputs(self, samples: Array, seed: int, purpose: str) -> ConditioningInputs:
        """Return inputs from stored samples that are degraded, each with its own random numbers.

        These are drawn on the CPU, so that they are the same on every device.
        """

        def make(batch: Tensor, rows: Sequence[int]) -> Tensor:
            draws = (values.to(batch.device) for values in self._draw_rows(seed, purpose, rows))
            return self.encode_samples(self.space.to_model(batch), GivenDraws(*draws))

        return ConditioningInputs(samples, make)

    def measure_residuals(
        self, samples: Array, truths: Array, seed: int, rows: Sequence[int]
    ) -> Array:
        """Return the mean of |A(x) - y| over known places, (B,), on the model's scale.

        x are stored samples, and y are observations of the truths in the rows of `degraded_inputs`.
        """
        assert self.degradation is not None
        draws = self._draw_rows(seed, "given", rows)
        degradation = self.degradation.draw_parts(draws.u)
        x, x0 = (self.space.to_model(torch.from_numpy(stored)) for stored in (samples, truths))
        gap = (degradation.apply(x) - degradation.observe(x0, draws.noise)).abs()
        mask = degradation.known_mask(x0)
        if mask is not None:
            count = mask.expand_as(gap).flatten(1).sum(1).clamp(min=1)
            numbers: Array = ((gap * mask).flatten(1).sum(1) / count).numpy()
        else:
            numbers = gap.flatten(1).mean(1).numpy()
        return numbers

    def choose_inputs(self, samples: Array, pairs: Array | None, seed: int) -> ConditioningInputs:
        """Return reproducible inputs of stored samples: their pairs, or their degradations."""
        if pairs is not None:
            return self.stored_inputs(pairs)
        return self.degraded_inputs(samples, seed, "given")

    def _draw_rows(self, seed: int, purpose: str, rows: Sequence[int]) -> GivenDraws:
        """Return the random numbers of each row, on the CPU. They depend only on its index.

        A block is drawn once.
        """
        cpu = torch.device("cpu")
        blocks = {
            k: self.draw_numbers(seed, purpose, 0, range(k * BLOCK, (k + 1) * BLOCK), cpu)
            for k in sorted({row // BLOCK for row in rows})
        }
        draws = [[values[row % BLOCK] for values in blocks[row // BLOCK]] for row in rows]
        return GivenDraws(*map(torch.stack, zip(*draws, strict=True)))


@dataclass(frozen=True, eq=False)
class ConditioningInputs:
    """Conditioning inputs of samples: sample k gets row k modulo the number N of rows.

    Attributes:
        stored: the stored values of the rows, (N, ...).
        make: the function from stored values of some rows, and their indices, to inputs.
        first: the index of the first sample.
    """

    stored: Array
    make: Callable[[Tensor, Sequence[int]], Tensor]
    first: int = 0

    def encode(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Return the conditioning inputs of these samples, (B, C', *size)."""
        rows = [(i - self.first) % len(self.stored) for i in indices]
        batch = torch.from_numpy(np.ascontiguousarray(self.stored[rows])).to(device)
        return self.make(batch, rows)

    def __len__(self) -> int:
        return len(self.stored)
