"""Images of 8 or 16 bits per channel, grey or RGB, on a background or with their transparency.

A transparent image is stored as it looks on its background, with its alpha as the last channel. So
a color counts by its visibility: the model does not learn invisible colors, edges are as smooth
as in other images, and every channel can be scaled, averaged and added to noise independently.
Files have straight colors again.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image
from xxhash import xxh3_128_digest

from diffuse_cli import media
from diffuse_cli.core import LABELS, InvalidArgument, Space
from diffuse_cli.media import Array, Read, ReadSettings, Size, Unusable, figures
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array_figures import plot_channels
from diffuse_cli.media.image import decoding, image_metadata, label_maps, planes

SIDE = 64
"""Default size of images, unless all have the same smaller size."""
MODES = {1: "L", 3: "RGB"}


def read(data: bytes, settings: ReadSettings) -> Read:
    """Read the first frame, upright, in sRGB, at the requested size.

    It is opaque, or composited on the background with its alpha as the last channel.
    """
    if settings.layout == media.PAGES:
        values, mode = decoding.read_pages(data)
        if settings.channels not in (None, len(values)):
            raise Unusable(reasons.CHANNELS)
        return _read_planes(values, mode, settings, len(values), media.PAGES)
    if settings.layout == LABELS:
        values, mode = label_maps.read_labels(data)
        return _read_planes(values, mode, settings, 1, LABELS)
    alpha = settings.layout is not None
    if alpha:
        settings = replace(settings, background=_background(settings.layout, settings.background))
    decoded = decoding.decode_image(data, settings.background, alpha=alpha, deep=True)
    if decoded.planes is None:
        return _read_opaque(decoded, settings)
    layout = f"{media.ALPHA}:{bytes(settings.background).hex()}" if alpha else None
    channels = len(decoded.planes) - alpha
    return _read_planes(decoded.planes, decoded.mode, settings, channels, layout, decoded.remarks)


def _read_planes(
    values: Array,
    mode: str,
    settings: ReadSettings,
    channels: int,
    layout: str | None,
    remarks: tuple[str, ...] = (),
) -> Read:
    values = np.ascontiguousarray(values)
    name = media.content_digest(f"{mode} {values.shape}", values)
    size = values.shape[:0:-1]
    fitted = fit(values, replace(settings, size=_result_size(size, settings)))
    return Read(fitted, name, mode, size, channels, remarks, layout)


def _background(layout: str | None, otherwise: Size = ()) -> Size:
    """Return the RGB background in a layout, or `otherwise` if it has none."""
    _, named, color = (layout or "").partition(":")
    return tuple(bytes.fromhex(color)) if named else otherwise


def _result_size(size: Size, settings: ReadSettings) -> Size:
    """Return the size to which an image of a size (width, height) is fitted."""
    if settings.size is not None:
        return settings.size
    return (SIDE, SIDE) if max(size) > SIDE else size[::-1]


def _read_opaque(decoded: decoding.DecodedImage, settings: ReadSettings) -> Read:
    image, to_srgb = decoded.image, decoded.to_srgb
    assert image is not None
    mode = MODES[settings.channels] if settings.channels is not None else _mode(image, settings)

    def finish(part: Image.Image) -> Image.Image:
        part = to_srgb(part) if to_srgb else part
        return part if part.mode == mode else part.convert(mode)

    fitted, size = image if to_srgb else finish(image), _result_size(image.size, settings)
    fitted = planes.fit_image(fitted, size, settings.fit, settings.background, finish)
    values = np.asarray(fitted)
    name = planes.pixel_digest(values) if fitted is image else planes.image_digest(image)
    if to_srgb:  # equal values are other colors under another profile
        name = xxh3_128_digest(name + decoded.profile)
    channels = len(image.getbands())
    levels = planes.rescale_levels(planes.channels_first(values), settings.numbers or "uint8")
    return Read(levels, name, decoded.mode, image.size, channels, decoded.remarks)


def _mode(image: Image.Image, settings: ReadSettings) -> str:
    """Return the mode of the result: grey stays grey unless it is padded in a color."""
    colored = settings.fit == "pad" and len(set(settings.background)) > 1
    return "L" if image.mode == "L" and not colored else "RGB"


def fit(values: Array, settings: ReadSettings) -> Array:
    """Fit stored levels to the requested size, as `read` does."""
    assert settings.size is not None
    alpha = settings.layout is not None
    if settings.layout == LABELS:
        fitted = planes.fit_planes(values, settings.size, settings.fit, [0], nearest=True)
    elif settings.layout == media.PAGES:
        below = planes.scale_background(settings.background, values)
        grey = int(planes.convert_channels(below, 1, False).flat[0])
        fitted = planes.fit_planes(values, settings.size, settings.fit, [grey] * len(values))
    elif values.dtype == np.uint8 and not alpha:
        picture = figures.to_image(values)
        picture = planes.fit_image(picture, settings.size, settings.fit, settings.background)
        fitted = planes.to_pixels(picture)
    else:
        background = _background(settings.layout, settings.background)
        below, plain = planes.scale_background(background, values), len(set(background)) == 1
        grey = len(values) - alpha == 1 and (plain or settings.fit != "pad")
        channels = settings.channels or (1 if grey else 3) + alpha
        values = planes.convert_channels(values, channels, alpha)
        fill = [*planes.convert_channels(below, channels - alpha, False).flat, *[0] * alpha]
        fitted = planes.fit_planes(values, settings.size, settings.fit, fill)
    return planes.rescale_levels(fitted, settings.numbers or fitted.dtype.name)


def space(samples: Array) -> Space:
    """Return the space of images, with 256 or 65,536 levels."""
    channels, *size = map(int, samples.shape[1:])
    levels = planes.TOP[samples.dtype.name] + 1
    return Space(channels=channels, size=tuple(size), medium="image", levels=levels)


def check(space: Space) -> None:
    """Check that a space has two dimensions, 256 or 65,536 levels and a valid layout."""
    if space.dims != 2 or space.levels not in (256, 65_536):
        raise InvalidArgument("an image has height and width, and 256 or 65,536 levels")
    if space.layout in (None, media.PAGES):
        return
    name, _, color = space.layout.partition(":")
    transparent = name == media.ALPHA and space.channels in (2, 4)
    if not transparent or not re.fullmatch("[0-9a-f]{6}", color):
        text = f"an image of {space.channels} channels cannot have layout {space.layout}"
        raise InvalidArgument(text)


def encode(sample: Array, space: Space) -> bytes:
    """Encode a sample as a PNG without metadata, or as a TIFF of pages."""
    sample = sample.astype(space.stored_dtype, copy=False)
    if space.layout == media.PAGES:
        return planes.encode_tiff(sample)
    if space.layout is not None:
        return planes.encode_png(planes.remove_background(sample, _background(space.layout)))
    return figures.encode_png(sample) if space.levels == 256 else planes.encode_png(sample)


def render(samples: Array, space: Space) -> npt.NDArray[np.uint8]:
    """Return images in 8 bits, black and white at the limits of their levels.

    Transparent images are on their background, and pages are side by side. Other images show their
    first three channels or the first. Label maps have a color for each label.
    """
    samples = samples.astype(space.stored_dtype, copy=False)
    if space.layout == LABELS:
        return label_maps.color_labels(samples)
    if space.limits is not None:
        low, high = space.limits
        shades = (samples.clip(low, high).astype(np.float32) - low) * (255 / (high - low))
        samples = np.rint(shades).astype(np.uint8)
    if space.layout == media.PAGES:
        return plot_channels(planes.rescale_levels(samples, "uint8"))
    if space.layout is not None and samples.shape[1] in (2, 4):
        background = _background(space.layout)
        samples = np.stack([planes.clamp_composite(sample, background)[:-1] for sample in samples])
    samples = planes.rescale_levels(samples, "uint8")
    channels = samples.shape[1]
    return samples if channels in MODES else samples[:, : 3 if channels > 3 else 1]


MEDIUM = media.Medium(
    extensions=image_metadata.EXTENSIONS,
    suffix=".png",
    one="image",
    many="images",
    sides={2: SIDE},
    read=read,
    fit=fit,
    space=space,
    encode=encode,
    look=render,
    prepare=image_metadata.silence_pillow,
    check=check,
    fits=media.FITS,
    advice=reasons.ADVICE,
    layouts=(*media.OF_IMAGES, LABELS),
    mixed=True,
    alike=(media.PAGES, LABELS),
    kinds={1: "grey", 2: "grey and transparency", 3: "color", 4: "color and transparency"},
    brought={None: (1, 3), media.ALPHA: (2, 4)},
    bits=(8, 16),
    unjudged=(media.PAGES, LABELS),
    suffixes={media.PAGES: ".tif"},
    augmentations=("flip", "zoom", "rotate", "shift", "color"),
    channel_names={
        1: ("grey",),
        2: ("grey", "transparency"),
        3: ("red", "green", "blue"),
        4: ("red", "green", "blue", "transparency"),
    },
    low_high=("dark", "bright"),
    points="pixels",
)
