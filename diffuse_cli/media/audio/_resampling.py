"""Sound at another rate, and the part of it that is kept."""

from __future__ import annotations

import math

import numpy as np

from diffuse_cli.media import Array

TAPER = 0.1
"""The part of the band below the lower of both highest frequencies over which it is let go."""
MARGIN = 256
"""Samples beside a part, at the lower rate, that its resampling looks at."""


def resampled(sound: Array, own: int, wanted: int) -> Array:
    """Sound (C, L) at a rate of `own` Hz, at `wanted` Hz: its spectrum, cut or continued by zeros.

    Both ends are mirrored into odd continuations, which a spectrum takes for periods without a
    jump. Frequencies fall to zero along a cosine over the last `TAPER` of the band: a sudden end
    would ring.
    """
    if own == wanted or not sound.shape[1]:
        return sound
    shared = math.gcd(own, wanted)
    into, onto = own // shared, wanted // shared
    length = sound.shape[1]
    kept = max(1, round(length * wanted / own))
    blocks = -(-(length + 2 * math.ceil(MARGIN * max(1, own / wanted))) // into)
    total = blocks * into
    before = (total - length) // 2 // into * into
    padded = np.zeros((len(sound), total))
    padded[:, before : before + length] = sound
    spectrum = np.fft.rfft(padded, axis=1)
    both = min(total, blocks * onto) // 2 + 1
    band = np.minimum(1, (1 - np.arange(both) / both) / TAPER)
    spectrum = spectrum[:, :both] * (0.5 - 0.5 * np.cos(math.pi * band))
    result = np.fft.irfft(spectrum, blocks * onto, axis=1) * (onto / into)
    start = before // into * onto
    return result[:, start : start + kept].astype(np.float32)


def loudest(sound: Array, length: int) -> slice:
    """The part of so many samples that has the most energy, the first one of several."""
    if sound.shape[1] <= length:
        return slice(0, sound.shape[1])
    energy = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64).sum(0))])
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return slice(start, start + length)
