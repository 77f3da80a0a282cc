"""Pictures that a task reads, and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from diffuse_cli.core import TRANSFORMS, Space, dimensions
from diffuse_cli.core.space import longest_side
from diffuse_cli.core.tiling import Tiling
from diffuse_cli.data import is_images, read_images, summary
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
from diffuse_cli.media.file_errors import read_required_file
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.system import DataError, Notice, UsageError, Work, files, translate_errors

FAINT = 1 / 8
"""Fraction of white above which a mask is unknown, so that partly covered pixels are generated."""

THIN = 1 / 32
"""Fraction of transparency above which a pixel is unknown. Less of it is not visible."""


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
    check_mask_length(space, one.size[0], path)
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


def check_mask_length(space: Space, length: int, path: str) -> None:
    """Refuse the mask of a sound that is cut to its loudest part, because the mask's part differs.

    Raises:
        DataError: the sound is longer than the model's.
    """
    if space.rate and length > space.size[0]:
        text = f"--mask {files.show(path)}: the sound is longer than the model's samples"
        hint = f"Cut the sound and its mask to {space.size[0]} samples"
        raise DataError(text, hint, code="data_mismatch", path=path)


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
