"""Sounds in WAV and FLAC files: mono or stereo, floats at one rate and of one length."""

from __future__ import annotations

import io
import math
import struct
import wave
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from diffuse_cli import media
from diffuse_cli.core import InvalidArgument, Space
from diffuse_cli.media import Array, Read, ReadSettings, Unusable
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array_figures import plot_sounds
from diffuse_cli.system import extra_package

if TYPE_CHECKING:
    from soundfile import SoundFile
from diffuse_cli.media import Size

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


FORMATS = {"WAV", "WAVEX", "FLAC"}
MARKS = (b"RIFF", b"fLaC")
RATES = range(1000, 384_001)
"""Supported rates, in Hz. Other rates are mistakes or not audible."""

MOST_NUMBERS = 2**25
"""Largest number of values in a sound: 35 minutes of mono at 16,000 Hz."""

_NUMBER = 4
_AT_ONCE = 2**18
_UNKNOWN = 2**40
"""Number of frames above which libsndfile does not know the length of a FLAC."""
_STREAMED = (0, 0xFFFF_FFFF)
"""Placeholder sizes of a WAV chunk whose writer did not know its size."""


class Sound(NamedTuple):
    """Sound of a file.

    Attributes:
        samples: float32 (C, L), where 1 is full scale.
        rate: the sample rate, in Hz.
        stored: the subtype of the file.
    """

    samples: Array
    rate: int
    stored: str


def read_sound(data: bytes) -> Sound:
    """Read a whole sound.

    Raises:
        Unusable: the file has no usable sound.
    """
    import soundfile

    if not data:
        raise Unusable(reasons.EMPTY)
    if not data.startswith(MARKS):
        cut = any(mark.startswith(data[:4]) for mark in MARKS)
        raise Unusable(reasons.CORRUPT if cut else reasons.NOT_A_SOUND)
    with reasons.errors_as(reasons.CORRUPT), soundfile.SoundFile(io.BytesIO(data)) as file:
        _check_header(file, data)
        with reasons.lock_large(file.frames * file.channels * _NUMBER):
            return Sound(_unpack_samples(file), file.samplerate, file.subtype)


def read_sound_header(data: bytes) -> tuple[int, int] | None:
    """Return the rate and length of a sound by its header, or None for an unusable file."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, data)
            return (file.samplerate, file.frames) if 0 < file.frames < _UNKNOWN else None
    except (Unusable, soundfile.LibsndfileError, RuntimeError, ValueError):
        return None


def _check_header(file: SoundFile, data: bytes) -> None:
    """Refuse an unusable file by its header, before anything is unpacked."""
    if file.format not in FORMATS:
        raise Unusable(reasons.OTHER_FORMAT)
    if file.channels > 2:
        raise Unusable(reasons.SPEAKERS)
    if file.samplerate not in RATES:
        raise Unusable(reasons.RATE)
    if data.startswith(b"RIFF") and _is_cut(data):
        raise Unusable(reasons.CORRUPT)


def _is_cut(data: bytes) -> bool:
    """Whether a WAV has less data than its header promises, which libsndfile does not report."""
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        if name == b"data":
            return size not in _STREAMED and size > len(data) - place - 8
        place += 8 + size + size % 2
    return True


def _unpack_samples(file: SoundFile) -> Array:
    """Read (C, L) in blocks, because a header may promise more data than follows, or none."""
    blocks, count = [], 0
    while len(block := file.read(_AT_ONCE, dtype="float32", always_2d=True)):
        blocks.append(block)
        count += len(block)
        if count * file.channels > MOST_NUMBERS:
            raise Unusable(reasons.LONG)
    if not count:
        raise Unusable(reasons.SOUNDLESS)
    if count < file.frames < _UNKNOWN:
        raise Unusable(reasons.CORRUPT)
    return np.ascontiguousarray(np.concatenate(blocks).T)


def crop(sample_size: Size, target_size: Size) -> tuple[media.Lengths, media.Lengths]:
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
    digest = media.content_digest(f"{sound.rate} {samples.shape}", samples)
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
    """Encode a sound as a 16-bit WAV without metadata, clipped at full scale."""
    levels = np.rint(np.asarray(sample, np.float64) * 2**15).clip(-(2**15), 2**15 - 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(levels))
        file.setsampwidth(2)
        file.setframerate(space.rate or USUAL_RATE)
        file.writeframes(np.nan_to_num(levels).T.astype("<i2").tobytes())
    return buffer.getvalue()


def render(samples: Array, space: Space) -> npt.NDArray[np.uint8]:
    """Plot the waveform of each channel over its spectrogram, as greys (N, 1, H, W)."""
    scale = np.float32(max(space.std, default=1.0))
    return plot_sounds(np.nan_to_num(samples / scale), space.rate or USUAL_RATE)


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


MEDIUM = media.Medium(
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
    prepare=partial(extra_package, "soundfile", "audio", "reading sounds needs soundfile"),
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
