"""Sounds from files to a model and back, as a user runs it."""

import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from diffuse_cli.commands.noise_demo import forward_process
from diffuse_cli.media import ReadSettings, settings_for
from diffuse_cli.media.audio import read as read_sound
from diffuse_cli.models import model_file
from diffuse_cli.models.image_conditioning import Conditioner

pytest.importorskip("soundfile", reason="of the extra [audio]")

RATE, LENGTH = 4000, 64


def write(path, levels, rate=RATE, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(levels, "<i2").tobytes())


@pytest.fixture
def sounds(tmp_path):
    """Tones of two heights, in class folders, shorter and longer than `LENGTH`."""
    draw = np.random.default_rng(2)
    for k in range(60):
        times = np.arange(LENGTH - 8 + k % 16) / RATE
        tone = np.sin(2 * np.pi * (200, 900)[k % 2] * times + draw.uniform(0, 6))
        write(tmp_path / "sounds" / ("low", "high")[k % 2] / f"{k:03d}.wav", 6000 * tone)
    return tmp_path / "sounds"


def test_a_run_of_sounds_says_what_becomes_of_them_and_is_resumed(sounds, recipe, diffuse):
    line = ("train", sounds, "--config", recipe, "--steps", 2, "--size", LENGTH, "--auto-resume")
    ran = diffuse(*line, "--stop-at", 1).ok()
    words = "cropped to their loudest part by up to 10 %, up to 13 % of it padding"
    for part in ("sounds at 4,000 Hz; pass --rate for another", "60 sounds", "mono", words):
        assert part in ran.err
    diffuse(*line, "-q").ok()
    assert "64 at 4,000 Hz, mono" in diffuse("info", "model.safetensors").out


def test_stereo_sounds_become_mono_if_asked_or_like_the_model(lab, recipe, diffuse):
    draw = np.random.default_rng(0)
    for k in range(4):
        write(Path("both", f"{k}.wav"), draw.integers(-9000, 9000, (256, 2)), 8000, channels=2)
    line = ("train", "both", "--steps", 1, "--size", 256)
    ran = diffuse(*line, "--config", recipe, "--channels", 1, "-o", "one.safetensors")
    assert (ran.code, "4 sounds in stereo, read as mono" in ran.err) == (0, True), ran.err
    ran = diffuse(*line, "--init", lab["sound"], "-o", "other.safetensors").ok()
    assert "mono like the model of --init. Use --channels 2 to train in stereo" in ran.err


def test_a_model_draws_wav_files_at_its_rate_which_are_data(lab, diffuse):
    for name in ("one", "two"):
        assert diffuse("sample", lab["sound"], "-n", 3, "--steps", 2, "-q", "-o", name).code == 0
    assert Path("one/00001.wav").read_bytes() == Path("two/00001.wav").read_bytes()
    with wave.open("one/00000.wav") as file:
        assert file.getparams()[:4] == (1, 2, 8000, 256)
    assert Path("one/grid.png").exists()
    space = diffuse("info", lab["sound"], "--json").json["space"]
    assert (space["rate"], space["medium"]) == (8000, "audio")
    ran = diffuse("info", "one", "--size", 256).ok()
    assert "3 usable of 3" in ran.out
    assert "PCM_16 at 8,000 Hz 3" in ran.out


def test_a_folder_is_measured_at_a_rate(sounds, diffuse):
    """Sounds at twice the rate are resampled."""
    for k in range(4):
        tone = 6000 * np.sin(np.arange(2 * LENGTH) * (k + 1) / 9)
        write(Path("generated", f"{k}.wav"), tone, 2 * RATE)
    line = ("eval", "generated", sounds, "-n", 4, "--metrics", "marginals")
    assert f"generated, mono, {2 * LENGTH}\n" in diffuse(*line).err
    assert f"generated, mono, {LENGTH}\n" in diffuse(*line, "--rate", RATE).ok().err


def test_pairs_of_sounds_have_one_rate_and_are_not_cut(sounds, recipe, diffuse):
    """The loudest part of one may be another part of the other."""
    for k in range(60):
        tone = np.sin(2 * np.pi * (200, 900)[k % 2] * np.arange(32) / (RATE // 2))
        path = Path("pairs", ("low", "high")[k % 2], f"{k:03d}.wav")
        write(path, 3000 * tone, RATE // 2)
    line = ("train", sounds, "--given", "pairs", "--config", recipe, "--steps", 1)
    ran = diffuse(*line, "--size", LENGTH, "-q")
    words = "of sounds longer than --size, the parts of a pair may differ"
    assert (ran.code, words in ran.line) == (2, True)
    ran = diffuse(*line, "--size", 72, "--classes").ok()
    assert ran.err.count("sounds at 4,000 Hz") == 1
    assert "2,000 Hz;" not in ran.err


def test_a_longer_sound_is_varied_in_windows(lab, diffuse):
    write(Path("long.wav"), 6000 * np.sin(np.arange(5000) / 3), 8000)
    line = ("vary", lab["sound"], "long.wav", "--steps", 2, "--strength", 0.5, "--size", 5000)
    diffuse(*line, "-o", "out", "-q").ok()
    with wave.open("out/00000.wav") as file:
        assert file.getnframes() == 5000


def test_a_sound_of_low_resolution_lasts_as_long(sounds, recipe, diffuse):
    """All of it conditions the samples, and not its loudest quarter."""
    line = ("train", sounds, "--config", recipe, "--steps", 1, "--size", LENGTH, "-q")
    assert diffuse(*line, "--given", "low-res:4").code == 0
    write(Path("low.wav"), [1000] * 4 + [4000] * 12, RATE // 4)
    encoder = Conditioner.from_blueprint(model_file.load("model.safetensors").blueprint)
    settings = ReadSettings(**settings_for(encoder.input_space))
    (given,) = read_sound(Path("low.wav").read_bytes(), settings).values
    assert given == pytest.approx(np.array([1000] * 4 + [4000] * 12) / 2**15, abs=1e-4)
    line = ("sample", "model.safetensors", "--given", "low.wav", "--steps", 2, "-o", "out", "-q")
    diffuse(*line).ok()


def test_an_enlarged_sound_is_whole(lab, diffuse):
    """Its parts are as loud as those of the sound, which is not cut to its loudest quarter."""
    for rate, levels in ((2000, [1000] * 48 + [4000] * 16), (2667, [1000] * 92)):
        write(Path(f"{rate}.wav"), levels, rate)
        line = ("upscale", lab["sound"], f"{rate}.wav", "--factor", 4, "--steps", 3, "-q")
        diffuse(*line, "-o", f"out-{rate}").ok()
    with wave.open("out-2000/00000.wav") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert len(samples) == 256
    means = samples.reshape(16, 16).mean(1)
    assert means[12:].mean() > 2 * means[:12].mean() > 0


def test_the_processes_of_sounds_and_signals_are_shown(lab, diffuse, monkeypatch):
    monkeypatch.setattr(forward_process, "FRAMES", 8)
    np.save("x.npy", np.sin(np.arange(40.0)))
    moving = ("--schedule", "cosine", "--gif")
    for path, more in (
        (lab.sample("sounds"), moving),
        (lab.sample("sounds"), ("--model", lab["sound"])),
        ("x.npy", moving),
    ):
        line = ("noise-demo", path, "--steps", 2, "-q", *more, "-o", "a.png", "--overwrite")
        diffuse(*line).ok()
        assert Path("a.gif").stat().st_size


def test_the_demo_of_a_sound_fits_it_as_asked(diffuse, tmp_path):
    write(tmp_path / "long.wav", 9000 * np.sin(np.arange(300) / 5))
    line = ("noise-demo", "long.wav", "--size", 200, "-q", "-o", "a.png", "--fit")
    assert "longer than the size; pass --fit crop" in diffuse(*line, "pad").fails(3).err
    assert "--fit: there is no 'stretch'" in diffuse(*line, "stretch").fails(2).err
    diffuse(*line, "crop").ok()


def test_what_cannot_be_used_is_named(diffuse, tmp_path):
    data, tone = tmp_path / "data", 9000 * np.sin(np.arange(300) / 5)
    for k in range(4):
        write(data / f"k{k}.wav", tone * (k + 1) / 4, 8000)
    write(data / "silent.wav", 0 * tone, 8000)
    write(data / "a-three.wav", np.zeros(30), channels=3)
    (data / "d-text.flac").write_text("not a sound")
    (data / "e.mp3").write_bytes(b"ID3")
    told = diffuse("info", data, "--rate", 4000).ok().out
    for words in (
        "over two channels: a-three.wav",
        "not a sound: d-text.flac",
        "1 of 5 sounds, silent: silent.wav",
        "5 usable of 7",
        "1 .mp3 (convert them to WAV or FLAC",
    ):
        assert words in told
    ran = diffuse("train", data, "--strict", "--steps", 1, "-q")
    assert (ran.code, "a-three.wav: over two channels" in ran.err) == (3, True)


def test_without_the_library_one_line_says_what_to_install(diffuse, lab, monkeypatch):
    """Nothing else needs it: a folder of images is read without."""
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert diffuse("info", lab["sounds"]).fails(3).line == (
        "diffuse: reading sounds needs soundfile. Install it: in the folder of diffuse's source, "
        "run `pip install '.[audio]'`\n"
    )
    assert diffuse("info", lab["images"]).code == 0
