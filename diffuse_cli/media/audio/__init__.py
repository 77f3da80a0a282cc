"""Sounds in WAV and FLAC files: mono or stereo, floats at one rate and of one length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from diffuse_cli.core import InvalidArgument, Space
from diffuse_cli.media import Array, Medium, Read, ReadSettings, content_digest
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array_figures import PAPER, join_images, plot_ranges
from diffuse_cli.media.audio.sound_file import (
    RATES,
    check_installed,
    encode_wav,
    read_sound,
    read_sound_header,
)
from diffuse_cli.media.figures import Pixels
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.media.shapes import Lengths, Size

LONGEST = 16_384
"""Longest default length, in samples."""
USUAL_RATE = 16_000
"""Highest default rate, in Hz, which is enough for speech."""
MULTIPLE = 256
"""Divisor of a default length, so that a network can halve it."""

_CONVERT = "convert them to WAV or FLAC, for example with ffmpeg -i NAME.{0} NAME.wav"
_OTHERS = "mp3 ogg oga opus m4a aac wma aif aiff aifc au caf mka amr"

CLIPPED_RUN, FULL_SCALE = 3, 32_766 / 32_768
"""Number of consecutive samples at full scale that count as a clipped peak, and full scale."""


def crop(sample_size: Size, target_size: Size) -> tuple[Lengths, Lengths]:
    """Cut a longer sound to its loudest part, and put silence after a shorter sound."""
    size = (min(sample_size[0], target_size[0]),)
    return size, size


def complete_settings(settings: ReadSettings, files: Iterable[bytes]) -> tuple[ReadSettings, str]:
    """Return `settings` with the rate and length that suit some files, and a notice of them."""
    chosen: list[str] = []
    headers: list[tuple[int, int]] = []
    if settings.rate is None or settings.size is None:
        headers = [header for data in files if (header := read_sound_header(data))]
    if settings.rate is None:
        rates = Counter(rate for rate, _ in headers)
        usual = max(rates, key=lambda rate: (rates[rate], rate), default=USUAL_RATE)
        settings = replace(settings, rate=min(usual, USUAL_RATE))
        chosen.append(f"at {settings.rate:,} Hz; pass --rate for another")
    assert settings.rate is not None
    if settings.size is None:
        rate = settings.rate
        lengths = [-(-count * rate // file_rate) for file_rate, count in headers]
        side = min(-(-max(lengths, default=LONGEST) // MULTIPLE) * MULTIPLE, LONGEST)
        settings = replace(settings, size=(side,))
        chosen.append(f"{side} samples each, {side / rate:.2f} s; pass --size for more or fewer")
    return settings, f"sounds {'; '.join(chosen)}" if chosen else ""


def read(data: bytes, settings: ReadSettings) -> Read:
    """Read a sound at the requested rate: its loudest part, or all of it and silence after it."""
    sound = read_sound(data)
    samples = sound.samples
    if not np.isfinite(samples).all():
        raise Unusable(reasons.MISSING)
    digest = content_digest(f"{sound.rate} {samples.shape}", samples)
    channels, length = samples.shape
    remarks = _remarks(samples)
    rate = settings.rate or sound.rate
    whole = max(1, round(length * rate / sound.rate))
    target_length = settings.size[0] if settings.size else min(whole, LONGEST)
    if settings.fit == "pad" and whole > target_length:
        raise Unusable(reasons.LONGER)
    samples = _channels(samples, settings.channels)
    # Only the part that is kept is resampled.
    samples = samples[:, find_loudest(samples, -(-target_length * sound.rate // rate))]
    samples = resample_sound(samples, sound.rate, rate)
    values = fit(samples, replace(settings, size=(target_length,)))
    mode = f"{sound.stored} at {sound.rate:,} Hz"
    return Read(values, digest, mode, (whole,), channels, remarks)


def _remarks(samples: Array) -> tuple[str, ...]:
    """Return the flaws of a usable sound."""
    if not samples.any():
        return (reasons.SILENT,)
    full = np.abs(samples) >= FULL_SCALE
    run = full[:, : 1 - CLIPPED_RUN] & full[:, 1 : 2 - CLIPPED_RUN] & full[:, CLIPPED_RUN - 1 :]
    return (reasons.CLIPPED,) if run.any() else ()


def _channels(samples: Array, channels: int | None) -> Array:
    """Mix stereo to its mean, or copy mono to both channels."""
    if channels in (None, len(samples)):
        return samples
    if channels == 1:
        return np.asarray(samples.mean(0, keepdims=True))
    if channels == 2:
        return np.repeat(samples, 2, 0)
    raise Unusable(reasons.CHANNELS)


def fit(values: Array, settings: ReadSettings) -> Array:
    """Return the loudest part of a sound, or all of it and silence after it, float32."""
    assert settings.size is not None
    (length,) = settings.size
    loudest = values[:, find_loudest(values, length)]
    fitted = np.zeros((len(values), length), np.float32)
    fitted[:, : loudest.shape[1]] = loudest
    return fitted


def space(samples: Array) -> Space:
    """Return the space of floats, at the usual rate until the rate is known."""
    channels, length = map(int, samples.shape[1:])
    return Space(
        channels=channels,
        size=(length,),
        medium="audio",
        levels=None,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        rate=USUAL_RATE,
    )


def check(space: Space) -> None:
    """Check that sounds have one or two channels of floats and a supported rate."""
    if space.dims != 1 or space.channels > 2 or space.levels is not None:
        raise InvalidArgument("a sound has one or two channels of floats, in one dimension")
    if space.rate not in RATES:
        raise InvalidArgument(f"a sound has a rate of {RATES[0]:,} to {RATES[-1]:,} Hz")


def encode(sample: Array, space: Space) -> bytes:
    """Encode a sound as a 16-bit WAV at the rate of the training data."""
    return encode_wav(sample, space.rate or USUAL_RATE)


def render(samples: Array, space: Space) -> npt.NDArray[np.uint8]:
    """Plot the waveform of each channel over its spectrogram, as greys (N, 1, H, W)."""
    scale, rate = max(space.std, default=1.0), space.rate or USUAL_RATE
    samples = np.nan_to_num(samples / np.float32(scale)).astype(np.float32)
    width = min(WIDEST, samples.shape[2])
    panels = [
        part
        for signals in samples.swapaxes(0, 1)
        for part in (_waves(signals, width), _shades(spectrogram(signals, rate, width)))
    ]
    return join_images(panels, 1)[:, None]


# Resample a sound, and find the part that is kept.

TAPER = 0.1
"""Fraction of the common band, below its highest frequency, over which the spectrum fades."""
MARGIN = 256
"""Padding of a sound for resampling, in samples at the lower rate."""


def resample_sound(sound: Array, rate: int, target_rate: int) -> Array:
    """Resample a sound (C, L) from `rate` to `target_rate` Hz: cut or zero-pad its spectrum.

    The sound is padded with silence on both sides. Frequencies fall to zero along a cosine over the
    last `TAPER` of the band, because a sudden end would ring.
    """
    if rate == target_rate or not sound.shape[1]:
        return sound
    shared = math.gcd(rate, target_rate)
    into, onto = rate // shared, target_rate // shared
    length = sound.shape[1]
    target_length = max(1, round(length * target_rate / rate))
    blocks = -(-(length + 2 * math.ceil(MARGIN * max(1, rate / target_rate))) // into)
    total = blocks * into
    before = (total - length) // 2 // into * into
    padded = np.zeros((len(sound), total))
    padded[:, before : before + length] = sound
    spectrum = np.fft.rfft(padded, axis=1)
    num_frequencies = min(total, blocks * onto) // 2 + 1
    band = np.minimum(1, (1 - np.arange(num_frequencies) / num_frequencies) / TAPER)
    spectrum = spectrum[:, :num_frequencies] * (0.5 - 0.5 * np.cos(math.pi * band))
    result = np.fft.irfft(spectrum, blocks * onto, axis=1) * (onto / into)
    start = before // into * onto
    return result[:, start : start + target_length].astype(np.float32)


def find_loudest(sound: Array, length: int) -> slice:
    """Return the part of `length` samples with the most energy, the first of equal parts."""
    if sound.shape[1] <= length:
        return slice(0, sound.shape[1])
    energy = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64).sum(0))])
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return slice(start, start + length)


# Images of sounds: the waveform over the spectrogram.

WIDEST, WAVE, BANDS = 192, 32, 64
"""Largest width, height of the waveform and height of the spectrogram, in pixels."""
WINDOW = 0.025
"""Seconds per column of the spectrogram, some periods of a voice."""
LOUD, QUIET = 6.0, -54.0
"""Decibels of black and white. 0 is a tone of three standard deviations."""
TALLEST = 8.0
"""Standard deviations at the edges of a waveform."""


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


def _shades(decibels: Array) -> Pixels:
    """Return decibels as greys, white for quiet and black for loud."""
    dark = ((decibels - QUIET) / (LOUD - QUIET)).clip(0, 1)
    shades: Pixels = np.rint(PAPER * (1 - dark)).astype(np.uint8)
    return shades


def _waves(samples: Array, width: int) -> Pixels:
    """Plot the range of sounds (N, L) in each column, (N, WAVE, width)."""
    starts = np.arange(width) * samples.shape[1] // width
    heights = (1 - samples / TALLEST).clip(0, 2) * ((WAVE - 1) / 2)
    return plot_ranges(heights, heights, starts, WAVE)


MEDIUM = Medium(
    extensions=frozenset({".wav", ".flac"}),
    suffix=".wav",
    one="sound",
    many="sounds",
    sides={1: LONGEST},
    read=read,
    fit=fit,
    space=space,
    encode=encode,
    look=render,
    prepare=check_installed,
    check=check,
    settled=complete_settings,
    fits={"crop": crop, "pad": crop},  # to pad, `read` leaves out longer sounds
    advice={f".{name}": _CONVERT.format(name) for name in _OTHERS.split()},
    rates=RATES,
    mixed=True,
    kinds={1: "mono", 2: "stereo"},
    brought={None: (1, 2)},
    unpacked=True,
    fitted="cut or padded",
    cropped="to their loudest part",
    judged=False,
    flipped="in time",
    augmentations=("shift", "gain"),
)
