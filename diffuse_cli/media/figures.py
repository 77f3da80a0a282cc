"""Grids, PNG, GIF, and sheets with text and plots.

The same pixels give the same bytes, because files hold no time or version. Matplotlib is imported
only to draw a sheet.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.text import Text

Pixels = npt.NDArray[np.uint8]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's palette, whose colors color-blind readers can tell apart."""


def to_image(pixels: Pixels) -> Image.Image:
    """Return pixels (C, H, W) as a grey or RGB image of the first one or three channels."""
    channels = 3 if pixels.shape[0] >= 3 else 1
    planes = np.ascontiguousarray(pixels[:channels].transpose(1, 2, 0))
    return Image.fromarray(planes if channels == 3 else planes[:, :, 0])


def shrink_image(picture: Image.Image, side: int) -> Image.Image:
    """Scale an image down to at most `side` pixels per side."""
    longest = max(picture.size)
    if longest <= side:
        return picture
    width, height = (max(1, round(length / longest * side)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


CELL = 64
"""Smallest longer side of images in a grid. Smaller images are enlarged."""


def arrange_grid(pixels: Pixels, columns: int | None = None, padding: int = 2) -> Image.Image:
    """Arrange images (N, C, H, W) row by row on white, by default as near to a square as possible.

    Small images are enlarged by the least whole factor that makes their longer side `CELL` or more.
    torchvision's `make_grid` is 3 times as slow, and its import takes as long as torch's.

    Raises:
        ValueError: there is no image or no column.
    """
    if not len(pixels) or (columns is not None and columns < 1):
        raise ValueError("a grid needs at least one image and one column")
    count, _, *sides = pixels.shape
    height, width = (side * math.ceil(CELL / max(sides)) for side in sides)
    pitch_y, pitch_x = height + padding, width + padding
    if columns is None:
        columns = math.ceil(math.sqrt(count * pitch_y / pitch_x))
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    mode = "RGB" if pixels.shape[1] >= 3 else "L"
    size = (columns * pitch_x - padding, rows * pitch_y - padding)
    sheet = Image.new(mode, size, "white")
    for i, image in enumerate(pixels):
        large = to_image(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(large, (i % columns * pitch_x, i // columns * pitch_y))
    return sheet


def name_rows(sheet: Image.Image, names: Sequence[str]) -> Image.Image:
    """Return a grid with the names of its rows on the left, cut to a fifth of its width."""
    font, gap = ImageFont.load_default(16), 8
    name_width = int(min(sheet.width / 5, max(map(font.getlength, names))))
    page = Image.new(sheet.mode, (name_width + gap + sheet.width, sheet.height), "white")
    draw = ImageDraw.Draw(page)
    for k, name in enumerate(names):
        middle = (k + 0.5) * sheet.height / len(names)
        draw.text((0, middle), name, "black", font, anchor="lm")
    page.paste("white", (name_width, 0, name_width + gap, sheet.height))
    page.paste(sheet, (name_width + gap, 0))
    return page


def arrange_rows(groups: Iterable[Sequence[Pixels]]) -> Image.Image:
    """Arrange a row for each group of single images (C, H, W) or arrays of images (N, C, H, W).

    Grey and color images can be in one row. Smaller images are padded with white, shorter groups
    end in white, and short groups share a row.
    """
    parts = [[batch if batch.ndim == 4 else batch[None] for batch in group] for group in groups]
    shapes = [batch.shape[1:] for group in parts for batch in group]
    largest = tuple(map(max, zip(*shapes, strict=True)))
    rows = [np.concatenate([_pad_with_white(batch, largest) for batch in group]) for group in parts]
    longest = max(map(len, rows))
    blank = np.full_like(rows[0][:1], 255)
    filled = [np.concatenate([row, *[blank] * (longest - len(row))]) for row in rows]
    across = max(1, round(math.sqrt(len(rows) / longest)))
    return arrange_grid(np.concatenate(filled), longest * across)


def _pad_with_white(images: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Pad images (N, c, h, w), with c = C or 1, to (N, C, H, W) with white."""
    channels, height, width = shape
    deep = np.repeat(images, channels // images.shape[1], axis=1)
    below, beside = height - images.shape[2], width - images.shape[3]
    return np.pad(deep, ((0, 0), (0, 0), (0, below), (0, beside)), constant_values=255)


def encode_png(picture: Image.Image | Pixels) -> bytes:
    """Encode an image, or pixels (C, H, W), as a PNG without metadata."""
    bare = picture.copy() if isinstance(picture, Image.Image) else to_image(picture)
    bare.info = {}
    buffer = io.BytesIO()
    bare.save(buffer, "PNG")
    return buffer.getvalue()


def encode_gif(frames: Sequence[Image.Image], *, seconds: float, hold: float) -> bytes:
    """Encode an endless animation of `seconds`, whose last frame stays `hold` seconds longer.

    Grey frames keep their 256 levels, and greys in colored frames stay neutral.

    Raises:
        ValueError: there is no frame.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    duration = max(20, round(seconds * 100 / len(frames)) * 10)  # browsers slow down faster GIFs
    durations = [duration] * len(frames)
    durations[-1] += round(hold * 100) * 10
    first, *next_frames = [_quantize_frame(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=next_frames, duration=durations, loop=0)
    return buffer.getvalue()


def _quantize_frame(frame: Image.Image) -> Image.Image:
    """Reduce a frame to 256 colors: evenly spaced greys, and a palette for the other pixels."""
    if frame.mode == "L":
        return frame
    rgb = np.asarray(frame.convert("RGB"))
    neutral = (rgb[..., 0] == rgb[..., 1]) & (rgb[..., 1] == rgb[..., 2])
    if neutral.all():
        return Image.fromarray(rgb[..., 0])
    greys, colored = rgb[neutral][:, 0], rgb[~neutral]
    ladder, rungs = _choose_grey_levels(greys, len(colored))
    strip = Image.fromarray(colored[None]).quantize(256 - len(ladder), Image.Quantize.MEDIANCUT)
    indices = np.empty(neutral.shape, np.uint8)
    indices[neutral] = rungs
    indices[~neutral] = np.asarray(strip)[0] + len(ladder)
    result = Image.fromarray(indices).convert("P")
    result.putpalette([*np.repeat(ladder, 3).tolist(), *(strip.getpalette() or [])])
    return result


def _choose_grey_levels(greys: Pixels, colored: int) -> tuple[Pixels, Pixels]:
    """Return the grey levels to keep, and the index of the nearest level for each grey pixel.

    Greys and colors share the 256 entries in proportion to their pixels.
    """
    if not len(greys):
        return greys, greys
    levels = np.unique(greys)
    shades = int(((greys > 0) & (greys < 255)).sum())
    room = min(224, max(32, round(256 * shades / (shades + colored))))
    if len(levels) > room:
        levels = np.linspace(0, 255, room).round().astype(np.uint8)
    distance = np.abs(np.arange(256)[:, None] - levels[None].astype(int))
    return levels, distance.argmin(1).astype(np.uint8)[greys]


INK, FAINT, RULE = "#222222", "#6b6b6b", "#d9d9d9"

_PLAIN: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
}

_STYLE: dict[str, Any] = {
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": INK,
    "grid.color": "#eeeeee",
    "grid.linewidth": 0.7,
    "xtick.color": "#9a9a9a",
    "ytick.color": "#9a9a9a",
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


_entered: list[Mapping[str, Any]] = []
"""Stack of the styles whose blocks are entered. The last one is set."""


@contextmanager
def matplotlib_style(params: Mapping[str, Any] = _STYLE) -> Iterator[None]:
    """Set Matplotlib's defaults and our style inside the block, without the user's matplotlibrc.

    A nested block of the same style does not set it again, because that takes milliseconds.
    """
    from matplotlib import style

    if _entered and _entered[-1] is params:
        yield
        return
    with style.context(["default", {**_PLAIN, **params}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        _entered.append(params)
        try:
            yield
        finally:
            _entered.pop()


class Sheet:
    """White page for text, plots and images, in inches from its top left corner.

    Images are pasted last, dot by dot, without resampling.
    """

    def __init__(self, width: float, height: float, dpi: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with matplotlib_style():
            self.figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
            self.canvas: Any = FigureCanvasAgg(self.figure)
        self.width, self.height, self.dpi = width, height, dpi
        self.images: list[tuple[int, int, Image.Image]] = []

    def text(self, x: float, y: float, words: str, within: float = math.inf, **style: Any) -> Text:
        """Write `words`, shrunk to the width `within`. Other keywords go to matplotlib's `Text`."""
        with matplotlib_style():
            text = self.figure.text(x / self.width, 1 - y / self.height, words, **style)
            if within < math.inf:
                wide = text.get_window_extent().width / self.dpi
                if wide > within:
                    text.set_fontsize(float(text.get_fontsize()) * within / wide)
            return text

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add a plot whose frame has this top left corner and size."""
        with matplotlib_style():
            bottom = self.height - y - height
            w, h = self.width, self.height
            return self.figure.add_axes((x / w, bottom / h, width / w, height / h))

    def image(self, x: float, y: float, pixels: Pixels, zoom: int = 1) -> None:
        """Paste pixels (C, H, W), each a square of `zoom` dots, in a hairline frame."""
        large = to_image(pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)).convert("RGB")
        left, top = round(x * self.dpi), round(y * self.dpi)
        frame = Image.new("RGB", (large.width + 2, large.height + 2), RULE)
        self.images += [(left - 1, top - 1, frame), (left, top, large)]

    def render(self) -> Image.Image:
        """Render the page as RGB. You can change it afterwards and render it again."""
        with matplotlib_style():
            self.canvas.draw()
        page = Image.fromarray(np.array(self.canvas.buffer_rgba())).convert("RGB")
        for left, top, picture in self.images:
            page.paste(picture, (left, top))
        return page


def color(i: int) -> str:
    """Return the color of the i-th entry of a plot."""
    return COLORS[i % len(COLORS)]


def number_axis(axis: Axis, spec: str) -> None:
    """Label an axis with numbers in a format.

    A logarithmic axis has ticks at equal steps in less than a decade, at 1, 2 and 5 in less than
    two decades, and at powers of ten otherwise.
    """
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter

    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        subs = (1, 2, 5) if high < 100 * low else (1,)
        axis.set_major_locator(AutoLocator() if high < 10 * low else LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format(value, spec)))


def format_fraction(value: float) -> str:
    """Format a number in [0, 1] in few characters, as mathtext if it needs a power of ten."""
    if value == 0 or value >= 0.0095:
        return f"{value:.2f}" if value else "0"
    digits, exponent = f"{value:.0e}".split("e")
    return rf"${digits}\!\cdot\!10^{{{int(exponent)}}}$"
