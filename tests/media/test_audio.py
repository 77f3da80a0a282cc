"""Sounds: what each kind of file holds, what is refused and why, and what is written."""

import contextlib
import io
import struct
import wave
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.space import Space
from diffuse_cli.media import MEDIA, ReadSettings, array
from diffuse_cli.media import audio as medium
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array_figures import BANDS, LOUD, QUIET, spectrogram
from diffuse_cli.media.audio import find_loudest, resample_sound
from diffuse_cli.media.file_errors import Unusable

soundfile = pytest.importorskip("soundfile", reason="of the extra [audio]")

DRAW = np.random.default_rng(5)


def sound(values, rate=8000, kind="WAV", subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, np.asarray(values), rate, format=kind, subtype=subtype)
    return file.getvalue()


def headed(size: int, body: bytes, rate: int = 8000, channels: int = 1) -> bytes:
    """A WAV of 16 bits that says it has `size` bytes of samples."""
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * rate % 2**32, 2 * channels, 16)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + body
    return b"RIFF" + struct.pack("<I", min(len(chunks), 2**32 - 1)) + chunks


def tone(rate, hertz, seconds, phase=0.3):
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate + phase)[None]


def reason(data, **asked):
    with pytest.raises(Unusable) as caught:
        medium.read(data, ReadSettings(**asked))
    return caught.value.reason


LEVELS = DRAW.integers(-(2**15), 2**15, (600, 2)).astype(np.int16)


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_sound_of_16_bits_is_written_as_it_was(kind, channels):
    data = sound(LEVELS[:, :channels], 11_025, kind)
    read = medium.read(data, ReadSettings())
    assert read.values.dtype == np.float32
    assert np.array_equal(read.values, LEVELS[:, :channels].T / np.float32(2**15))
    space = Space(**{**vars(medium.space(read.values[None])), "rate": 11_025})
    medium.check(space)
    with wave.open(io.BytesIO(medium.encode(read.values, space))) as file:
        assert file.getparams()[:4] == (channels, 2, 11_025, 600)
        body = np.frombuffer(file.readframes(600), "<i2")
    assert np.array_equal(body, LEVELS[:, :channels].ravel())


def test_what_is_written_is_the_same_through_the_model_s_numbers():
    import torch

    values = medium.read(sound(LEVELS[:, 0]), ReadSettings()).values
    floats = {"levels": None, "mean": (0.01,), "std": (0.07,)}
    space = Space(channels=1, size=(600,), medium="audio", rate=8000, **floats)
    back = space.to_stored(space.to_model(torch.from_numpy(values[None]))).numpy()[0]
    assert medium.encode(back, space) == medium.encode(values, space)


def test_beyond_full_scale_is_cut_off_and_nothing_wraps_around():
    space = Space(**{**vars(medium.space(np.zeros((1, 1, 5)))), "rate": 8000})
    data = medium.encode(np.array([[1.0, 2.0, -1.0, -3.0, np.nan]]), space)
    assert np.frombuffer(data[44:], "<i2").tolist() == [32767, 32767, -32768, -32768, 0]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_way_to_store_a_sample(subtype):
    values = LEVELS[:, 0] / 2**15 * 0.9
    read = medium.read(sound(values, subtype=subtype), ReadSettings())
    off = np.abs(read.values[0] - values).max()
    assert off < {"PCM_U8": 1 / 127, "ULAW": 0.03}.get(subtype, 1e-6)
    assert read.mode == f"{subtype} at 8,000 Hz"


def test_a_sound_has_one_digest_whatever_holds_it_and_to_whatever_it_is_cut():
    own = medium.read(sound(LEVELS), ReadSettings()).digest
    cut = medium.read(sound(LEVELS, kind="FLAC"), ReadSettings(size=(64,), rate=4000))
    assert own == cut.digest
    for other in (sound(LEVELS, 11_025), sound(LEVELS[:-1]), sound(LEVELS[:, :1])):
        assert own != medium.read(other, ReadSettings()).digest


def test_stereo_becomes_its_mean_and_mono_fills_both_channels():
    both = medium.read(sound(LEVELS), ReadSettings()).values
    assert np.allclose(medium.read(sound(LEVELS), ReadSettings(channels=1)).values, both.mean(0))
    mono = medium.read(sound(LEVELS[:, 0]), ReadSettings(channels=2)).values
    assert np.array_equal(mono, both[[0, 0]])
    assert reason(sound(LEVELS), channels=3) == reasons.CHANNELS


# -- rate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "wanted"), [(22_050, 8000), (8000, 16_000), (44_100, 44_099)])
def test_a_tone_below_both_highest_frequencies_is_the_same_at_another_rate(own, wanted):
    """An ideal resampling has an exact answer: the tone itself, sampled at the other rate."""
    found = resample_sound(tone(own, 440.7, 0.5).astype(np.float32), own, wanted)
    exact = tone(wanted, 440.7, 0.5)
    assert found.shape == exact.shape
    inner = slice(400, -400)  # it was cut off at its ends
    assert np.abs(found - exact)[:, inner].max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_gone():
    found = resample_sound(tone(22_050, 5000, 0.5).astype(np.float32), 22_050, 8000)
    assert np.abs(found[:, 400:-400]).max() < 1e-3


def test_the_loudest_part_is_the_one_with_the_most_energy():
    quiet = np.zeros((2, 50), np.float32)
    assert find_loudest(quiet, 20) == slice(0, 20)
    assert find_loudest(quiet, 60) == slice(0, 50)
    quiet[1, 30:34] = 1
    quiet[0, 5] = 1.5
    found = find_loudest(quiet, 8)
    assert found.start <= 30
    assert found.stop >= 34
    read = medium.read(sound(quiet.T * 0.5), ReadSettings(size=(8,)))
    assert np.array_equal(read.values, quiet[:, found] * 0.5)


def test_a_shorter_sound_ends_in_silence_and_pad_refuses_a_longer_one():
    read = medium.read(sound(LEVELS), ReadSettings(size=(700,), fit="pad"))
    assert np.array_equal(read.values[:, :600], LEVELS.T / np.float32(2**15))
    assert not read.values[:, 600:].any()
    assert read.size == (600,)
    assert reason(sound(LEVELS), size=(599,), fit="pad") == reasons.LONGER
    slow = ReadSettings(size=(300,), rate=4000, fit="pad")
    assert medium.read(sound(LEVELS), slow).size == (300,)
    wide = medium.fit(read.values, ReadSettings(size=(900,)))
    assert wide.shape == (2, 900)


def test_without_a_size_a_long_sound_keeps_a_second_or_two():
    read = medium.read(sound(np.zeros(20_000)), ReadSettings())
    assert (read.values.shape, read.size) == ((1, medium.LONGEST), (20_000,))


def test_the_usual_rate_and_the_longest_length_are_chosen():
    ends = [sound(np.zeros(n), rate) for n, rate in ((100, 8000), (700, 11_025), (900, 11_025))]
    asked, told = medium.complete_settings(ReadSettings(), [*ends, b"RIFF", b""])
    assert (asked.rate, asked.size) == (11_025, (1024,))
    assert told == (
        "sounds at 11,025 Hz; pass --rate for another; 1024 samples each, 0.09 s; pass --size for "
        "more or fewer"
    )
    assert medium.complete_settings(ReadSettings(), [sound(np.zeros(9), 44_100)])[0].rate == 16_000
    asked = ReadSettings(size=(9,), rate=8000)
    assert medium.complete_settings(asked, [b"never read"]) == (asked, "")


# -- what cannot be used --------------------------------------------------------------------------


WHOLE, PACKED = sound(LEVELS), sound(np.tile(LEVELS, (40, 1)), kind="FLAC")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", reasons.EMPTY),
        (b"RI", reasons.CORRUPT),
        (b"text, not a sound", reasons.NOT_A_SOUND),
        (sound(LEVELS, kind="OGG", subtype="VORBIS"), reasons.NOT_A_SOUND),
        (WHOLE[:-9], reasons.CORRUPT),
        (WHOLE[:30], reasons.CORRUPT),
        (PACKED[: len(PACKED) // 2], reasons.CORRUPT),
        (PACKED[:60], reasons.CORRUPT),
        (sound(np.zeros(0)), reasons.SOUNDLESS),
        (sound(np.zeros((50, 3))), reasons.SPEAKERS),
        (sound(np.full(50, np.nan), subtype="FLOAT"), reasons.MISSING),
        (sound(np.full(50, np.inf), subtype="FLOAT"), reasons.MISSING),
        (sound(LEVELS, 999), reasons.RATE),
        (headed(100, bytes(100), rate=10**6), reasons.RATE),
        (headed(2**31, bytes(100)), reasons.CORRUPT),
        (headed(0, b""), reasons.SOUNDLESS),
    ],
)
def test_what_cannot_be_used_has_a_reason(data, expected):
    assert reason(data) == expected


def test_what_unpacks_to_too_much_is_refused_and_an_unknown_length_is_read_to_its_end(monkeypatch):
    read = medium.read(headed(0xFFFF_FFFF, LEVELS[:, 0].tobytes()), ReadSettings())
    assert read.values.shape == (1, 600)
    silence = sound(np.zeros(2**20, np.int16), kind="FLAC")
    assert len(silence) < 2**14
    monkeypatch.setattr(medium, "MOST_NUMBERS", 2**19)
    assert reason(silence) == reasons.LONG


np.savez(NPZ := io.BytesIO(), x=np.zeros(1200, np.float32))


@pytest.mark.parametrize(
    ("own", "data", "size"), [(medium, WHOLE, 600 * 2 * 4), (array, NPZ.getvalue(), 1200 * 4 + 128)]
)
def test_what_is_large_is_unpacked_alone(monkeypatch, own, data, size):
    lock = Mock(return_value=contextlib.nullcontext())
    monkeypatch.setattr(reasons, "lock_large", lock)
    assert own.read(data, ReadSettings()).values.size == 1200
    lock.assert_called_once_with(size)


def test_silent_and_clipped_sounds_are_remarked_on():
    loud = np.array([0, 9000, 32767, 32767, 32767, 5], np.int16)
    for values, said in ((0 * loud, (reasons.SILENT,)), (loud, (reasons.CLIPPED,)), (loud[:4], ())):
        assert medium.read(sound(values), ReadSettings()).remarks == said


def test_spaces_that_are_no_sound():
    floats = {"levels": None, "mean": (0.0,), "std": (1.0,), "medium": "audio"}
    for change in (
        {"size": (8, 8)},
        {"rate": None},
        {"rate": 10},
        {"levels": 256, "mean": (), "std": ()},
        {"channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3},
    ):
        with pytest.raises(InvalidArgument):
            medium.check(Space(**{"channels": 1, "size": (8,), "rate": 8000, **floats, **change}))


def test_a_size_of_one_number_is_a_length():
    assert MEDIA["audio"].resolve_size((9000, 9000)) == (9000,)
    assert MEDIA["array"].resolve_size((9000, 9000)) == (9000,)  # longer than a side of a field
    assert MEDIA["array"].resolve_size((90, 90)) == (90, 90)
    for medium_, size in (("audio", (9, 8)), ("image", (9000, 9000)), ("array", (5000, 4000))):
        with pytest.raises(InvalidArgument):
            MEDIA[medium_].resolve_size(size)


# -- pictures -------------------------------------------------------------------------------------


def test_a_tone_is_dark_in_the_band_of_its_frequency():
    """0 dB is a tone of three deviations."""
    rate, band = 8000, 20
    hertz = (band + 0.5) * rate / 2 / BANDS
    found = spectrogram(3 * tone(rate, hertz, 1).astype(np.float32), rate, 100)[0, :, 10:-10]
    assert (found.argmax(0) == BANDS - 1 - band).all()
    assert np.abs(found.max(0)).max() < 0.2
    assert (found[:40] < QUIET).all()


def test_pictures_of_silence_and_of_both_channels():
    space = medium.space(np.zeros((1, 2, 500)))
    seen = medium.render(np.zeros((3, 2, 500), np.float32), space)
    assert seen.shape[:2] == (3, 1)
    assert (seen[:, :, -BANDS:] == 255).all()
    both = medium.render(np.stack([np.zeros((2, 500)), np.ones((2, 500)) * [[0], [1]]]), space)
    half = both.shape[2] // 2
    assert np.array_equal(both[0, 0, :half], both[1, 0, :half])
    assert LOUD > QUIET


# -- changed at random ----------------------------------------------------------------------------

REASONS = {value for value in vars(reasons).values() if isinstance(value, str)}


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([WHOLE, sound(LEVELS, kind="FLAC"), sound(LEVELS / 2**15, subtype="FLOAT")]),
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 3000),
)
def test_a_changed_file_is_a_sound_or_has_a_reason(data, changes, kept):
    changed, found = bytearray(data), ""
    for place, byte in changes:
        changed[place] = byte
    try:
        read = medium.read(bytes(changed[:kept]), ReadSettings(size=(64,), rate=4000))
        assert read.values.shape == (read.channels, 64)
        assert np.isfinite(read.values).all()
    except Unusable as error:
        found = error.reason
    assert found in {"", *REASONS}
