"""Images of arrays and sounds: grey panels, lines, slices of volumes, and spectrograms."""

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


SOUND_WIDTH, WAVE, BANDS = 192, 32, 64
"""Largest width, height of the waveform and height of the spectrogram, in pixels."""
WINDOW = 0.025
"""Seconds per column of the spectrogram, some periods of a voice."""
LOUD, QUIET = 6.0, -54.0
"""Decibels of black and white. 0 is a tone of three standard deviations."""
TALLEST = 8.0
"""Standard deviations at the edges of a waveform."""


def plot_sounds(samples: Array, rate: int) -> Pixels:
    """Plot sounds (N, C, L) as images (N, 1, H, W): each channel's waveform over its spectrogram.

    Args:
        samples: float32, in standard deviations.
        rate: the sample rate, in Hz.
    """
    width = min(SOUND_WIDTH, samples.shape[2])
    panels = [
        part
        for signals in samples.swapaxes(0, 1)
        for part in (_plot_wave(signals, width), _shade(spectrogram(signals, rate, width)))
    ]
    return join_images(panels, 1)[:, None]


def spectrogram(samples: Array, rate: int, columns: int) -> Array:
    """Return decibels (N, BANDS, columns) of sounds (N, L), the highest frequency first.

    0 is a tone of three standard deviations at any frequency. Columns are evenly spaced, each with
    a Hann window. A band shows the loudest of its frequencies, so that a tone stays as dark.
    """
    length = samples.shape[1]
    size = min(max(2 * BANDS, 2 ** round(math.log2(rate * WINDOW))), 4096)
    centers = np.rint((np.arange(columns) + 0.5) * length / columns - 0.5).astype(np.int64)
    padded = np.pad(samples, ((0, 0), (size // 2, size - size // 2)))
    window = (0.5 - 0.5 * np.cos(2 * math.pi * (np.arange(size) + 0.5) / size)).astype(np.float32)
    frames = padded[:, centers[:, None] + np.arange(size)]
    magnitudes = np.abs(np.fft.rfft(frames * window, axis=2))[:, :, 1:] / (3 * window.sum() / 2)
    loudest = magnitudes.reshape(*magnitudes.shape[:2], BANDS, -1).max(3)
    decibels: Array = 20 * np.log10(np.maximum(loudest, 1e-6))
    return decibels.swapaxes(1, 2)[:, ::-1]


def _shade(decibels: Array) -> Pixels:
    """Return decibels as greys, white for quiet and black for loud."""
    dark = ((decibels - QUIET) / (LOUD - QUIET)).clip(0, 1)
    shades: Pixels = np.rint(PAPER * (1 - dark)).astype(np.uint8)
    return shades


def _plot_wave(samples: Array, width: int) -> Pixels:
    """Plot the range of sounds (N, L) in each column, (N, WAVE, width)."""
    starts = np.arange(width) * samples.shape[1] // width
    heights = (1 - samples / TALLEST).clip(0, 2) * ((WAVE - 1) / 2)
    return plot_ranges(heights, heights, starts, WAVE)
