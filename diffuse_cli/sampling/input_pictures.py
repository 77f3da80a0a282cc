"""Pictures that a command reads: inputs of `sample --given` and of tasks, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.core import TRANSFORMS, Space, dimensions
from diffuse_cli.core.space import longest_side
from diffuse_cli.core.tiling import Tiling
from diffuse_cli.data import Dataset, file_hashes, is_images, match_pairs, read_images, summary
from diffuse_cli.media import (
    ALPHA,
    MEDIA,
    Array,
    Read,
    ReadSettings,
    Size,
    advice_for,
    check_fit,
    layout_name,
    mask_settings_for,
    settings_for,
)
from diffuse_cli.media.file_errors import public_name, read_required_file
from diffuse_cli.models import image_conditioning
from diffuse_cli.sampling.conditioning import guidance_scale
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.system import DataError, Notice, UsageError, Work, files, translate_errors

FAINT = 1 / 8
"""Fraction of white above which a mask is unknown, so that partly covered pixels are generated."""

THIN = 1 / 32
"""Fraction of transparency above which a pixel is unknown. Less of it is not visible."""


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
    if space.rate and max(sizes)[0] > space.size[0]:
        text = "--mask: of sounds longer than the model's, the parts may differ"
        hint = f"Cut the sounds and their masks to {space.size[0]} samples"
        raise DataError(text, hint, code="data_mismatch", path=path)
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
    shown = [files.show(public_name(name)) for name in names]
    listed = zip(shown, map(hashes.get, names), strict=True)
    return {"files": [{"name": name, "sha256": digest} for name, digest in listed]}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one shape.

    Attributes:
        names: names of their files.
        values: the pictures as stored, (N, C, *size).
        sizes: sizes before the pictures were fitted, (width, height) for images.
        notices: notices to yield once all inputs have been checked.
    """

    names: tuple[str, ...]
    values: Array
    sizes: frozenset[Size]
    notices: tuple[Notice, ...]


def read(path: str, loaded: LoadedModel, fit: str | None, space: Space) -> Work[Pictures]:
    """Read the pictures of a file, a folder or a zip file, fitted to a space.

    Args:
        fit: a name in `FITS`, None for the model's.

    Raises:
        DataError: a file is missing or not usable.
        UsageError: the medium does not support the fit.
    """
    medium, fit = space.medium, fit or loaded.fit
    with translate_errors():
        check_fit(medium, fit)
    MEDIA[medium].prepare()
    settings, size = settings_for(space), space.size
    if is_images(Path(path), single=True):
        samples = yield from read_images(
            path, **settings, background=loaded.background, fit=fit, medium=medium
        )
        lines = list(summary.skip_lines(samples.summary.skipped))
        names, values, sizes = samples.names, samples.stored, frozenset(samples.summary.sizes)
    else:
        read_settings = ReadSettings(**settings, background=rgb(loaded.background), fit=fit)
        one = read_picture(path, medium, read_settings)
        lines = [f"{files.show(path)}: {line}" for line in one.remarks]
        names, values, sizes = (Path(path).name,), one.values[None], frozenset([one.size])
    if space.limits is not None:
        low, high = space.limits
        bottom, top = int(values.min()), int(values.max())
        if bottom < low or top > high:
            text = f"{files.show(path)} has levels from {bottom:,} to {top:,}, which are clipped"
            lines.append(f"{text} to the model's {low:,} to {high:,}")
    notices = [Notice(line, warning=True) for line in lines]
    if sizes != {size[::-1]}:
        text = f"{summary.format_sizes(dict.fromkeys(sizes, 1))}: {MEDIA[medium].fitted} to "
        text += f"{dimensions(size)}{summary.describe_fit(sizes, size, fit, medium)}"
        notices.append(Notice(text + _suggest_size(sizes, loaded, size)))
    return Pictures(names, values, sizes, tuple(notices))


def check_transform(x: Tensor, space: Space, names: Sequence[str]) -> None:
    """Check that the transform of a space takes the known values of pictures.

    Args:
        x: the known values in the model's numbers, (N, ...). They are infinite or NaN otherwise.

    Raises:
        DataError: a picture has other values.
    """
    for name, values in zip(names, x, strict=True):
        if space.transform is not None and not bool(values.isfinite().all()):
            takes = f"{space.transform}, is for {TRANSFORMS[space.transform].takes}"
            text = f"the model's transform, {takes}, but {files.show(name)} has others"
            hint = "Replace them, or generate them with diffuse inpaint --mask FILE"
            raise DataError(text, hint, code="data_mismatch", path=name)


def _suggest_size(sizes: frozenset[Size], loaded: LoadedModel, size: Sequence[int]) -> str:
    """Return a hint for keeping the size of pictures that are larger than the model's inputs."""
    if len(sizes) > 1:
        return ""
    (picture,) = sizes
    whole, max_side = loaded.space.size, longest_side(len(size))
    kept_size = tuple(p * w // s for p, w, s in zip(picture[::-1], whole, size, strict=True))
    if not all(w <= side <= max_side for w, side in zip(whole, kept_size, strict=True)):
        return ""
    count = len(Tiling(kept_size, whole).windows)
    cost = f", which takes {count:,} times as long" if count > 1 else ""
    return f". To keep it, pass --size {'x'.join(map(str, kept_size))}{cost}"


def enlarge_size(path: str, loaded: LoadedModel, factor: int) -> Size | None:
    """Return `factor` times the size of the picture in a file, or the length of a sound at the
    model's rate, which does not depend on its own rate, in multiples of `factor`.

    Returns None if a side would be less than the model's, or for several pictures.

    Raises:
        UsageError: a side would be longer than samples can be.
    """
    if is_images(Path(path), single=True):
        return None
    space = loaded.space
    MEDIA[space.medium].prepare()
    one = read_picture(path, space.medium, ReadSettings(**{**settings_for(space), "size": None}))
    size = tuple(
        -(-side // factor) * factor if space.rate else factor * side for side in one.size[::-1]
    )
    if not all(side >= model_side for side, model_side in zip(size, space.size, strict=True)):
        return None
    if max(size) > (limit := longest_side(space.dims)):
        text = f"--factor {factor}: the result is {dimensions(size)}, and a side is at most {limit}"
        hint = f"Pass a smaller --factor, or --size with sides of at most {limit}"
        raise UsageError(text, hint, code="invalid_value")
    return size


def rgb(color: str) -> tuple[int, ...]:
    """Return a color's red, green and blue, 0 ... 255."""
    from PIL import ImageColor

    return ImageColor.getrgb(color)[:3]


def read_picture(path: str, medium: str, settings: ReadSettings) -> Read:
    """Read the picture in a file.

    Raises:
        DataError: the file is missing or not usable.
    """
    kind = MEDIA[medium]
    hint = advice_for(path) or f"Use a file of {', '.join(sorted(kind.extensions))}"
    with read_required_file(Path(path), kind.one, hint) as data:
        return kind.read(data, settings)


def read_mask(path: str, loaded: LoadedModel, fit: str | None, sizes: frozenset[Size]) -> Array:
    """Read a mask as (1, 1, *size), 1 where the pictures are kept.

    Args:
        sizes: sizes of the pictures before they were fitted. The mask is fitted like them.

    Raises:
        DataError: the mask is not usable, has another size, or is all black or all white.
    """
    space, flag = loaded.space, f"--mask {files.show(path)}"
    settings = ReadSettings(**mask_settings_for(space), background=(0, 0, 0), fit=fit or loaded.fit)
    one = read_picture(path, space.medium, settings)
    if space.rate and one.size[0] > space.size[0]:
        text = f"{flag}: of sounds longer than the model's, the parts may differ"
        hint = f"Cut the sound and its mask to {space.size[0]} samples"
        raise DataError(text, hint, code="data_mismatch", path=path)
    for size in sorted(sizes - {one.size}):
        mask_size, image_size = (dimensions(shape[::-1]) for shape in (one.size, size))
        text = f"{flag} is {mask_size}, and the image is {image_size}"
        raise DataError(text, "Resize the mask", code="data_mismatch", path=path)
    whole = read_picture(path, space.medium, replace(settings, size=one.size[::-1])).values
    if (spread := whiten_ones(whole)) is whole:
        values = one.values
    else:
        whole = spread
        values = MEDIA[space.medium].fit(whole, settings)
    mask, points = is_dark(values)[None], MEDIA[space.medium].points
    if mask.all():
        if not is_dark(whole).all():
            text = f"{flag}: the part to generate is outside the {space.size_text} crop"
            raise DataError(text, "Pass --fit pad, or a larger --size", path=path)
        text = f"{flag} is black: it keeps all {points}"
        raise DataError(text, "Paint it white where to generate", path=path)
    if not mask.any():
        text = f"{flag} is white: it keeps no {points}"
        raise DataError(text, "Use diffuse sample instead", path=path)
    return mask


def read_alpha_mask(path: str, loaded: LoadedModel, fit: str | None) -> Array:
    """Return a mask from an image's transparency, (1, 1, *size), 1 where it is opaque.

    Transparency is the difference between the image on white and on black.

    Raises:
        DataError: the image is not usable, or all of it is transparent.
        UsageError: there are several images, or there is no transparent part.
    """
    if is_images(Path(path), single=True):
        hint = "Pass --mask FILE, or a single transparent image"
        raise UsageError("--mask is missing", hint, code="missing_argument")
    space, name = loaded.space, files.show(path)
    medium = MEDIA[space.medium]
    if layout_name(space.layout) == ALPHA:
        text = "--mask is missing: this model generates transparency, so it cannot be the mask"
        hint = "Pass --mask FILE, white where to generate"
        raise UsageError(text, hint, code="missing_argument")
    if not medium.bits:
        hint = f"Pass --mask FILE, a file like {name} with 1 where to generate and 0 elsewhere"
        raise UsageError("--mask is missing", hint, code="missing_argument")
    size = read_picture(path, space.medium, ReadSettings(space.size, 1)).size[::-1]
    grounds = (ReadSettings(size, 1, (level,) * 3) for level in (255, 0))
    white, black = (read_picture(path, space.medium, ground).values for ground in grounds)
    clear = np.where(white > black, white - black, 0).astype(white.dtype)
    clear = medium.fit(clear, ReadSettings(space.size, 1, (0, 0, 0), fit or loaded.fit))
    mask = is_dark(clear, THIN)[None]
    if mask.all():
        hint = "Pass --mask FILE, white where to generate, or erase that part of the image"
        text = f"--mask is missing: {name} has no transparent part"
        raise UsageError(text, hint, code="missing_argument")
    if not mask.any():
        text = f"{name} is all transparent: it keeps no pixels"
        raise DataError(text, "Use diffuse sample", path=path)
    return mask


def whiten_ones(mask: Array) -> Array:
    """Return a mask in black and white if its levels are only 0 and 1, as of a segmentation."""
    ones = mask.dtype.kind == "u" and mask.max() == 1
    return mask * np.iinfo(mask.dtype).max if ones else mask


def is_dark(values: Array, fraction: float = FAINT) -> Array:
    """Return 1 where stored values are at most a fraction of white, else 0, float32."""
    white = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    return (values <= white * fraction).astype(np.float32)
