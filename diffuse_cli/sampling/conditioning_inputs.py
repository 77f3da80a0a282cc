"""Conditioning inputs of `sample --given`, which are read, fitted and listed in the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.core import Space, dimensions
from diffuse_cli.data import Dataset, file_hashes, match_pairs, read_images
from diffuse_cli.data.summary import describe_fit, format_sizes
from diffuse_cli.media import MEDIA, Array, ReadSettings, mask_settings_for, settings_for
from diffuse_cli.models.image_conditioning import (
    Conditioner,
    ConditioningInputs,
    check_observed_files,
    degraded_inputs,
    masked_inputs,
    stored_inputs,
)
from diffuse_cli.sampling.conditioning import guidance_scale
from diffuse_cli.sampling.model_loading import LoadedModel, describe_channels
from diffuse_cli.system import DataError, Notice, UsageError, Work, files

FAINT = 1 / 8
"""Fraction of white above which a mask is unknown, so that partly covered pixels are generated."""


@dataclass(frozen=True)
class SampleInputs:
    """Conditioning inputs of the images of a command.

    Attributes:
        inputs: the model's inputs.
        per: the number of images per `-n`, one for each input.
        described: entries of the manifest.
    """

    inputs: ConditioningInputs | None = None
    per: int = 1
    described: dict[str, Any] = field(default_factory=dict)


def read_inputs(config: SampleConfig, loaded: LoadedModel) -> Work[SampleInputs]:
    """Read the inputs of the images, if the model takes any.

    Raises:
        UsageError: `--given` is missing, or the model takes no input.
        DataError: an input cannot be used.
    """
    encoder = loaded.encoder
    if encoder is None:
        if config.given:
            text = "--given: the model was trained without --given"
            raise UsageError(text, "Leave it out, or train a model with --given")
        return SampleInputs()
    if config.given is None:
        if guidance_scale(config, loaded.model) != 0:
            colors = {1: "grey ", 3: "color "}.get(encoder.input_space.channels, "")
            what = (
                f"{colors}images of {dimensions(encoder.input_space.size)} ({encoder.given.what})"
            )
            dropped = loaded.model.has_unconditional
            free = ", or --guidance 0 to generate without any" if dropped else ""
            text = f"--given is missing: the model is conditioned on {what}"
            raise UsageError(text, f"Pass --given PATH{free}")
        return SampleInputs()
    _check_options(config, encoder)
    background, medium = loaded.background, encoder.space.medium
    read = partial(read_images, background=background, fit=loaded.fit, medium=medium, single=True)
    space = encoder.space if config.degrade or config.mask else encoder.input_space
    if encoder.degradation is not None:
        check_observed_files(encoder.space, space, encoder.degradation)
    samples = yield from read(config.given, **settings_for(space))
    sizes = samples.summary.sizes
    if [size[::-1] for size in sizes] != [space.size]:
        fit = describe_fit(sizes, space.size, loaded.fit, encoder.space.medium)
        yield Notice(f"--given of {format_sizes(sizes)}: resized to {dimensions(space.size)}{fit}")
    described = _describe_files(config.given, samples.names)
    if config.mask:
        settings = {**mask_settings_for(encoder.space), "size": space.size}
        masks = yield from read(config.mask, **{**settings, "background": "black"})
        if {*sizes} - {*masks.summary.sizes}:
            mask_size, given_size = format_sizes(masks.summary.sizes), format_sizes(sizes)
            hint = "Resize the mask" if len(sizes) == 1 else "Pass a mask for each image"
            raise DataError(f"--mask of {mask_size}, and --given of {given_size}", hint)
        if space.rate and max(sizes)[0] > space.size[0]:
            text = "--mask: of sounds longer than the model's, the parts may differ"
            raise DataError(text, f"Cut the sounds and their masks to {space.size[0]} samples")
        known_pixels = _known_pixels(samples, masks, Path(config.mask))
        inputs = masked_inputs(encoder, samples.stored, known_pixels)
        described["mask"] = _describe_files(config.mask, masks.names)
    elif config.degrade:
        inputs = degraded_inputs(encoder, samples.stored, config.seed, "given")
        described["degraded"] = encoder.given.what
    else:
        inputs = stored_inputs(encoder, samples.stored)
    return SampleInputs(inputs, len(samples), {"given": described})


def _check_options(config: SampleConfig, encoder: Conditioner) -> None:
    """Refuse options that do not suit the model's kind of input."""
    masks = encoder.masks
    if config.degrade and encoder.degradation is None:
        raise UsageError("--degrade: the model was trained on pairs", "Leave it out")
    if config.mask and not masks:
        text = f"--mask: the model was trained with --given {encoder.given.what}"
        raise UsageError(text, "Leave it out")
    if masks and not (config.mask or config.degrade):
        raise UsageError(
            f"--mask is missing: the model is conditioned on masked images ({encoder.given.what})",
            "Pass --mask PATH, white where to generate, or --degrade to mask as in training",
        )


def _known_pixels(samples: Dataset, masks: Dataset, path: Path) -> Array:
    """Return 1 where each sample is known, by one mask for all, or by masks of the same names."""
    if len(masks) > 1 or path.is_dir():
        pairs = match_pairs(samples, masks)
        if not pairs.matched.all():
            line = next(pairs.describe_unpaired())
            raise DataError(f"--mask: {line}", "Pass a mask for each image, or one for all")
        chosen = masks.stored[pairs.rows]
    else:
        chosen = masks.stored
    return is_dark(whiten_ones(chosen))


def whiten_ones(mask: Array) -> Array:
    """Return a mask in black and white if its levels are only 0 and 1, as of a segmentation."""
    ones = mask.dtype.kind == "u" and mask.max() == 1
    return mask * np.iinfo(mask.dtype).max if ones else mask


def is_dark(values: Array, fraction: float = FAINT) -> Array:
    """Return 1 where stored values are at most a fraction of white, else 0, float32."""
    white = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    return (values <= white * fraction).astype(np.float32)


def _describe_files(path: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the name and SHA-256 of each file, for the manifest.

    Image k is conditioned on file k, modulo the number of files.
    """
    hashes = file_hashes(Path(path), names)
    return {"files": [{"name": files.show(name), "sha256": hashes[name]} for name in names]}


def check_follows(space: Space, loaded: LoadedModel, path: str) -> None:
    """Refuse a model that cannot be conditioned on samples of a space.

    Raises:
        UsageError: the model takes no input, needs a mask, or takes other channels or levels.
    """
    encoder, flag = loaded.encoder, f"--then {files.show(path)}"
    if encoder is None or encoder.masks:
        why = f"needs masks ({encoder.given.what})" if encoder else "was trained without --given"
        hint = "Name a model that is conditioned on MODEL's samples, for example --given low-res:4"
        raise UsageError(f"{flag}: the model {why}", hint)
    input_space = encoder.input_space
    # Float samples have the scale of the files, so mean and standard deviation may differ.
    kinds = [(s.medium, s.channels, s.levels, s.layout, s.dims) for s in (space, input_space)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{flag}: the model is conditioned on {describe_channels(input_space)}, "
            f"and MODEL generates {describe_channels(space)}"
        )
    # Rates are rounded.
    if space.rate and input_space.rate and abs(space.rate - input_space.rate) > 1:
        text = f"{flag}: the model is conditioned on sounds at {input_space.rate:,} Hz"
        raise UsageError(text, f"MODEL generates them at {space.rate:,} Hz")


def from_samples(
    samples: Sequence[Array], space: Space, loaded: LoadedModel, first: int
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
    return stored_inputs(encoder, np.stack(fitted), first)
