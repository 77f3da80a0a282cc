"""Conditioning images of `sample --given`, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.core import Space
from diffuse_cli.data import Dataset, file_hashes, match_pairs, read_images, summary
from diffuse_cli.media import Array, mask_settings_for, settings_for
from diffuse_cli.media.file_errors import public_name
from diffuse_cli.models import image_conditioning
from diffuse_cli.sampling.conditioning import guidance_scale
from diffuse_cli.sampling.input_pictures import check_mask_length, is_dark, whiten_ones
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.system import DataError, Notice, UsageError, Work, files


def read_inputs(
    config: SampleConfig, loaded: LoadedModel
) -> Work[tuple[image_conditioning.ConditioningInputs | None, dict[str, Any]]]:
    """Read the inputs of the images, if the model takes any, and return their manifest entries too.

    Raises:
        UsageError: `--given` is missing, or the model takes no input.
        DataError: an input cannot be used.
    """
    encoder = loaded.encoder
    if encoder is None:
        if config.given:
            text = "--given: the model was trained without --given"
            hint = "Leave it out, or train a model with --given"
            raise UsageError(text, hint, code="option_unsuited")
        return None, {}
    if config.given is None:
        if guidance_scale(config, loaded.model) == 0:
            return None, {}
        space = encoder.input_space
        color = {1: "grey ", 3: "color "}.get(space.channels, "")
        noun = "label maps" if encoder.given.labels else f"{color}images"
        text = f"{noun} of {space.size_text} ({encoder.given.what})"
        dropped = loaded.model.has_unconditional
        free = ", or --guidance 0 to generate without any" if dropped else ""
        text = f"--given is missing: the model is conditioned on {text}"
        raise UsageError(text, f"Pass --given PATH{free}", code="missing_argument")
    _check_options(config, encoder)
    space = encoder.space if config.degrade or config.mask else encoder.input_space
    if encoder.degradation is not None:
        image_conditioning.check_observed_files(encoder.space, space, encoder.degradation)
    samples = yield from _read_stored(config.given, loaded, settings_for(space))
    sizes = samples.summary.sizes
    if [size[::-1] for size in sizes] != [space.size]:
        fit = summary.describe_fit(sizes, space.size, loaded.fit, space.medium)
        text = f"--given of {summary.format_sizes(sizes)}"
        yield Notice(f"{text}: resized to {space.size_text}{fit}")
    described = _describe_files(config.given, samples.names)
    if config.mask:
        settings = {**mask_settings_for(encoder.space), "size": space.size, "background": "black"}
        masks = yield from _read_stored(config.mask, loaded, settings)
        known_pixels = _known_pixels(samples, masks, Path(config.mask), space)
        inputs = encoder.masked_inputs(samples.stored, known_pixels)
        described["mask"] = _describe_files(config.mask, masks.names)
    elif config.degrade:
        inputs = encoder.degraded_inputs(samples.stored, config.seed, "given")
        described["degraded"] = encoder.given.what
    else:
        stored = encoder.match_labels(samples.stored, config.given)
        inputs = encoder.stored_inputs(stored)
    return inputs, {"given": described}


def _read_stored(path: str, loaded: LoadedModel, settings: dict[str, Any]) -> Work[Dataset]:
    """Read samples, fitted as in training unless the settings say otherwise."""
    defaults = {"background": loaded.background, "fit": loaded.fit, "medium": loaded.space.medium}
    return (yield from read_images(path, **{**defaults, **settings}, single=True))


def _check_options(config: SampleConfig, encoder: image_conditioning.Conditioner) -> None:
    """Refuse options that do not suit the model's kind of input."""
    masks = encoder.masks
    if config.degrade and encoder.degradation is None:
        text = "--degrade: the model was trained on pairs"
        raise UsageError(text, "Leave it out", code="option_unsuited")
    if config.mask and not masks:
        text = f"--mask: the model was trained with --given {encoder.given.what}"
        raise UsageError(text, "Leave it out", code="option_unsuited")
    if masks and not (config.mask or config.degrade):
        raise UsageError(
            f"--mask is missing: the model is conditioned on masked images ({encoder.given.what})",
            "Pass --mask PATH, white where to generate, or --degrade to mask as in training",
            code="missing_argument",
        )


def _known_pixels(samples: Dataset, masks: Dataset, path: Path, space: Space) -> Array:
    """Return 1 where each sample is known, by one mask for all, or by masks of the same names.

    Raises:
        DataError: a mask is missing, or has another size than its sample.
    """
    sizes, mask_sizes = samples.summary.sizes, masks.summary.sizes
    if {*sizes} - {*mask_sizes}:
        text = f"--mask of {summary.format_sizes(mask_sizes)}, and "
        text += f"--given of {summary.format_sizes(sizes)}"
        hint = "Resize the mask" if len(sizes) == 1 else "Pass a mask for each image"
        raise DataError(text, hint, code="data_mismatch", path=path)
    check_mask_length(space, max(sizes)[0], str(path))
    stored = masks.stored
    if len(masks) > 1 or path.is_dir():
        pairs = match_pairs(samples, masks)
        if not pairs.matched.all():
            line = next(pairs.describe_unpaired())
            hint = "Pass a mask for each image, or one for all"
            raise DataError(f"--mask: {line}", hint, code="data_mismatch", path=path)
        stored = stored[pairs.rows]
    return is_dark(whiten_ones(stored))


def _describe_files(path: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the name and SHA-256 of each file, for the manifest.

    Image k is conditioned on file k, modulo the number of files.
    """
    hashes = file_hashes(Path(path), names)
    public_names = [files.show(public_name(name)) for name in names]
    listed = zip(public_names, map(hashes.get, names), strict=True)
    return {"files": [{"name": name, "sha256": digest} for name, digest in listed]}
