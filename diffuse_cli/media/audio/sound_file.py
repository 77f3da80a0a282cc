"""Read and write the bytes of sound files: WAV and FLAC."""

from __future__ import annotations

import io
import struct
import wave
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffuse_cli.media import LARGE, Array, errors_as, lock_large
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.errors import extra_package

if TYPE_CHECKING:
    from soundfile import SoundFile

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


def check_installed() -> None:
    """Check that the library is installed.

    Raises:
        DataError: it is not installed.
    """
    extra_package("soundfile", "audio", "reading sounds needs soundfile")


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
    with errors_as(reasons.CORRUPT), soundfile.SoundFile(io.BytesIO(data)) as file:
        _check_header(file, data)
        with lock_large(file.frames * file.channels * _NUMBER > LARGE):
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


def encode_wav(samples: Array, rate: int) -> bytes:
    """Encode samples (C, L) as a 16-bit WAV without metadata, clipped at full scale."""
    levels = np.rint(np.asarray(samples, np.float64) * 2**15).clip(-(2**15), 2**15 - 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(levels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.nan_to_num(levels).T.astype("<i2").tobytes())
    return buffer.getvalue()
