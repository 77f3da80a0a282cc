"""Sounds as pictures: the waveform over the spectrogram."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from diffuse_cli.media import Array

Shades = npt.NDArray[np.uint8]

WIDEST, WAVE, BANDS, GAP = 192, 32, 64, 1
"""Pixels: of the width at most, of the heights of both parts, and between them."""
WINDOW = 0.025
"""Seconds that a column of the spectrogram looks at: some periods of a voice."""
LOUD, QUIET = 6.0, -54.0
"""Decibels that are black and white; 0 is a tone of three deviations."""
TALLEST = 8.0
"""Deviations that reach the edges of a waveform."""
PAPER, INK, RULE, LINE = 255, 40, 225, 0


def drawn(samples: Array, rate: int) -> Shades:
    """Sounds (N, C, L) in their deviations as greys (N, 1, H, W), channels one above the other."""
    samples = np.nan_to_num(samples).astype(np.float32)
    width = min(WIDEST, samples.shape[2])
    panels: list[Shades] = []
    for own in samples.swapaxes(0, 1):
        for part in (_waves(own, width), _shades(spectrogram(own, rate, width))):
            panels += [part, np.full((len(own), GAP, width), LINE, np.uint8)]
    return np.concatenate(panels[:-1], 1)[:, None]


def spectrogram(samples: Array, rate: int, columns: int) -> Array:
    """Decibels (N, BANDS, columns) of sounds (N, L), the highest frequency first.

    0 is a tone of three deviations, whatever its frequency. Columns are evenly spaced, each of a
    Hann window; a band is the loudest of the frequencies in it, so that a tone stays as dark.
    """
    length = samples.shape[1]
    size = min(max(2 * BANDS, 2 ** round(math.log2(rate * WINDOW))), 4096)
    centres = np.rint((np.arange(columns) + 0.5) * length / columns - 0.5).astype(np.int64)
    padded = np.pad(samples, ((0, 0), (size // 2, size - size // 2)))
    window = (0.5 - 0.5 * np.cos(2 * math.pi * (np.arange(size) + 0.5) / size)).astype(np.float32)
    frames = padded[:, centres[:, None] + np.arange(size)]
    found = np.abs(np.fft.rfft(frames * window, axis=2))[:, :, 1:] / (3 * window.sum() / 2)
    loudest = found.reshape(*found.shape[:2], BANDS, -1).max(3)
    decibels: Array = 20 * np.log10(np.maximum(loudest, 1e-6))
    return decibels.swapaxes(1, 2)[:, ::-1]


def _shades(decibels: Array) -> Shades:
    """White where it is quiet, black where it is loud."""
    dark = ((decibels - QUIET) / (LOUD - QUIET)).clip(0, 1)
    shades: Shades = np.rint(PAPER * (1 - dark)).astype(np.uint8)
    return shades


def _waves(samples: Array, width: int) -> Shades:
    """Sounds (N, L) as what each column spans, (N, WAVE, width)."""
    starts = np.arange(width) * samples.shape[1] // width
    heights = (1 - samples / TALLEST).clip(0, 2) * ((WAVE - 1) / 2)
    top = np.rint(np.minimum.reduceat(heights, starts, axis=1))[:, None]
    bottom = np.rint(np.maximum.reduceat(heights, starts, axis=1))[:, None]
    rows = np.arange(WAVE)[None, :, None]
    shades = np.full((len(samples), WAVE, width), PAPER, np.uint8)
    shades[:, WAVE // 2] = RULE
    shades[(rows >= top) & (rows <= bottom)] = INK
    return shades
