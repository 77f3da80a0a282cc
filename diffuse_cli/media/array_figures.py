"""Images of arrays: grey panels for fields, lines for signals, slices for volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.media.figures import Pixels

PANELS = 8
"""Number of channels that are shown."""


GAP, LINE = 1, 0
"""Width of the line between panels of a sample, and its grey."""


HEIGHT, WIDEST = 48, 256
"""Pixels of the plot of a signal. A longer signal has several values per column."""


PAPER, INK, RULE = 255, 40, 225
"""Greys of empty space, of a plotted signal, and of the rule at half its height."""


def plot_channels(shades: Pixels) -> Pixels:
    """Plot greys (N, C, *size), of one to three dimensions, as images (N, 1, H, W)."""
    draw = {1: _lines, 2: _fields, 3: _slices}[shades.ndim - 2]
    return draw(shades[:, :PANELS])[:, None]


def _fields(shades: Pixels) -> Pixels:
    """Arrange channels side by side, as near to a square as possible."""
    panels = [*shades.swapaxes(0, 1)]
    across = round(math.sqrt(len(panels) * shades.shape[2] / shades.shape[3]))
    across = max(1, min(across, len(panels)))
    panels += [np.full_like(panels[0], PAPER)] * (-len(panels) % across)
    rows = [join_images(panels[k : k + across], 2) for k in range(0, len(panels), across)]
    return join_images(rows, 1)


def _slices(shades: Pixels) -> Pixels:
    """Arrange a row for each channel, with the middle slice across each axis."""
    rows = []
    for volume in shades.swapaxes(0, 1):
        middles = [side // 2 for side in volume.shape[1:]]
        cuts = [np.take(volume, middle, axis) for axis, middle in enumerate(middles, 1)]
        tallest = max(cut.shape[1] for cut in cuts)
        rows.append(join_images([_pad_height(cut, tallest) for cut in cuts], 2))
    return join_images(rows, 1)


def _pad_height(pictures: Pixels, height: int) -> Pixels:
    missing = height - pictures.shape[1]
    return np.pad(pictures, ((0, 0), (0, missing), (0, 0)), constant_values=PAPER)


def join_images(parts: Sequence[Pixels], axis: int) -> Pixels:
    """Join images (N, H, W) along an axis, with a line between them."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, LINE, np.uint8)
    spaced = [piece for part in parts for piece in (part, gap)][:-1]
    return np.concatenate(spaced, axis)


def _lines(shades: Pixels) -> Pixels:
    """Plot each channel as a line, one plot above the other."""
    return join_images([_plot(signals) for signals in shades.swapaxes(0, 1)], 1)


def _plot(signals: Pixels) -> Pixels:
    """Plot signals (N, L) as lines (N, HEIGHT, W), with the mean of floats at half height."""
    length = signals.shape[1]
    heights = np.rint((255 - signals.astype(np.float32)) * ((HEIGHT - 1) / 255)).astype(np.int64)
    nexts = np.concatenate([heights[:, 1:], heights[:, -1:]], 1)
    low, high = np.minimum(heights, nexts), np.maximum(heights, nexts)
    starts = np.unique(np.arange(min(length, WIDEST)) * length // min(length, WIDEST))
    return plot_ranges(low, high, starts, HEIGHT)


def plot_ranges(low: Array, high: Array, starts: Array, height: int) -> Pixels:
    """Plot the range from the least to the largest height (N, L) in each column, (N, height, W).

    A column covers the values from its start to the next start. A rule marks half the height.
    """
    top = np.rint(np.minimum.reduceat(low, starts, axis=1))[:, None]
    bottom = np.rint(np.maximum.reduceat(high, starts, axis=1))[:, None]
    rows = np.arange(height)[None, :, None]
    plots = np.full((len(low), height, len(starts)), PAPER, np.uint8)
    plots[:, height // 2] = RULE
    plots[(rows >= top) & (rows <= bottom)] = INK
    return plots
