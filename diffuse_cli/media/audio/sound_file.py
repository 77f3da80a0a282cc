"""The sound in the bytes of a WAV or FLAC file."""

from __future__ import annotations

import io
import struct
import wave
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffuse_cli.media import LARGE, Array, Large, failing_as
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.errors import extra_package

if TYPE_CHECKING:
    from soundfile import SoundFile

FORMATS = {"WAV", "WAVEX", "FLAC"}
MARKS = (b"RIFF", b"fLaC")
RATES = range(1000, 384_001)
"""Hz. Rates beyond them are mistakes, or of no sound."""

MOST_NUMBERS = 2**25
"""In one sound: 35 minutes of mono at 16,000 Hz."""

_NUMBER = 4
_AT_ONCE = 2**18
_UNKNOWN = 2**40
"""libsndfile has more frames than this for a FLAC that does not say how many."""
_STREAMED = (0, 0xFFFF_FFFF)
"""Sizes of a part of a WAV whose writer did not know it."""


class Sound(NamedTuple):
    """Samples (C, L), float32, where 1 is full scale; the rate in Hz, and how they were stored."""

    samples: Array
    rate: int
    stored: str


def check_installed() -> None:
    """Refuse to read without the library.

    Raises:
        DataError
    """
    extra_package("soundfile", "audio", "reading sounds needs soundfile")


def heard(data: bytes, shared: bool = False) -> Sound:
    """All of a sound.

    Raises:
        Unusable: with the reason.
        Large: `shared`, and it is to be unpacked alone.
    """
    import soundfile

    if not data:
        raise Unusable(reasons.EMPTY)
    if not data.startswith(MARKS):
        cut = any(mark.startswith(data[:4]) for mark in MARKS)
        raise Unusable(reasons.CORRUPT if cut else reasons.NOT_A_SOUND)
    with failing_as(reasons.CORRUPT), soundfile.SoundFile(io.BytesIO(data)) as file:
        _check(file, data, shared)
        return Sound(_unpacked(file), file.samplerate, file.subtype)


def measured(data: bytes) -> tuple[int, int] | None:
    """The rate and the number of samples by a file's header; None for a file that is of no use."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check(file, data, shared=False)
            return (file.samplerate, file.frames) if 0 < file.frames < _UNKNOWN else None
    except (Unusable, soundfile.LibsndfileError, RuntimeError, ValueError):
        return None


def _check(file: SoundFile, data: bytes, shared: bool) -> None:
    """Refuse by the header, before anything is unpacked."""
    if file.format not in FORMATS:
        raise Unusable(reasons.OTHER_FORMAT)
    if file.channels > 2:
        raise Unusable(reasons.SPEAKERS)
    if file.samplerate not in RATES:
        raise Unusable(reasons.RATE)
    if data.startswith(b"RIFF") and _is_cut(data):
        raise Unusable(reasons.CORRUPT)
    if shared and file.frames * file.channels * _NUMBER > LARGE:
        raise Large


def _is_cut(data: bytes) -> bool:
    """Whether a WAV has less data than it says; libsndfile reads what is there."""
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        if name == b"data":
            return size not in _STREAMED and size > len(data) - place - 8
        place += 8 + size + size % 2
    return True


def _unpacked(file: SoundFile) -> Array:
    """(C, L), in blocks: a header may promise more than follows, or nothing."""
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


def written(samples: Array, rate: int) -> bytes:
    """Samples (C, L) as a WAV of 16 bits, cut off beyond full scale, without metadata."""
    levels = np.rint(np.asarray(samples, np.float64) * 2**15).clip(-(2**15), 2**15 - 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(levels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.nan_to_num(levels).T.astype("<i2").tobytes())
    return buffer.getvalue()
