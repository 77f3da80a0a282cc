"""Sounds from files to a model and back, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import in_process

from diffuse_cli.commands.noise_demo import forward_process
from diffuse_cli.media import ReadSettings, settings_for
from diffuse_cli.media.audio import read as read_sound
from diffuse_cli.models import model_file
from diffuse_cli.models.image_conditioning import Conditioner

pytest.importorskip("soundfile", reason="of the extra [audio]")

RATE, LENGTH = 4000, 64


def write(path: Path, levels: Any, rate: int = RATE, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(levels, "<i2").tobytes())


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones of two heights, in class folders, shorter and longer than `LENGTH`."""
    folder, draw = tmp_path_factory.mktemp("sounds"), np.random.default_rng(2)
    for k in range(60):
        times = np.arange(LENGTH - 8 + k % 16) / RATE
        tone = np.sin(2 * np.pi * (200, 900)[k % 2] * times + draw.uniform(0, 6))
        write(folder / ("low", "high")[k % 2] / f"{k:03d}.wav", 6000 * tone)
    return folder


@pytest.fixture(scope="module")
def model(sounds: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    line = ["train", sounds, "--config", recipe, "--steps", 3, "--size", LENGTH, "-o", path, "-q"]
    assert in_process(line) == 0
    return path


def test_what_becomes_of_sounds_is_said(
    sounds: Path, recipe: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    ran = diffuse("train", sounds, "--config", recipe, "--steps", 1, "--size", LENGTH,
                  "-o", tmp_path / "m.safetensors")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "sounds at 4,000 Hz; pass --rate for another" in ran.err
    assert "60 sounds" in ran.err
    assert "mono" in ran.err
    assert "cropped to their loudest part by up to 10 %, up to 13 % of it padding" in ran.err


def test_stereo_sounds_become_mono_if_asked_or_like_the_model(
    model: Path, recipe: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for k in range(4):
        levels = draw.integers(-9000, 9000, (LENGTH, 2))
        write(tmp_path / "both" / f"{k}.wav", levels, channels=2)
    line = ("train", tmp_path / "both", "--steps", 1, "--size", LENGTH)
    ran = diffuse(*line, "--config", recipe, "--channels", 1, "-o", tmp_path / "one.safetensors")
    assert (ran.code, "4 sounds in stereo, read as mono" in ran.err) == (0, True), ran.err
    ran = diffuse(*line, "--init", model, "-o", tmp_path / "other.safetensors")
    assert ran.code == 0, ran.err
    assert "mono like the model of --init. Use --channels 2 to train in stereo" in ran.err


def test_the_same_line_resumes_a_run_of_sounds(
    sounds: Path, recipe: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    line = ("train", sounds, "--config", recipe, "--steps", 2, "--size", LENGTH, "--auto-resume")
    line += ("-o", tmp_path / "m.safetensors", "-q")
    assert diffuse(*line, "--stop-at", 1).code == 0
    ran = diffuse(*line)
    assert ran.code == 0, ran.err


def test_a_model_draws_wav_files_at_its_rate(
    model: Path,
    sounds: Path,
    diffuse: Callable[..., Any],
    tmp_path: Path,
) -> None:
    line = ["sample", model, "-n", 2, "--steps", 2, "-q", "-o"]
    for name in ("one", "two"):
        assert diffuse(*line, tmp_path / name).code == 0
    one, two = ((tmp_path / name / "00001.wav").read_bytes() for name in ("one", "two"))
    assert one == two
    with wave.open(str(tmp_path / "one" / "00000.wav")) as file:
        assert file.getparams()[:4] == (1, 2, RATE, LENGTH)
    assert (tmp_path / "one" / "grid.png").exists()
    told = json.loads(diffuse("info", model, "--json").out)
    assert (told["space"]["rate"], told["space"]["medium"]) == (RATE, "audio")
    assert f"{LENGTH} at 4,000 Hz, mono" in diffuse("info", model).out
    found = diffuse("eval", model, sounds, "-n", 3, "--steps", 2, "--timesteps", 4, "--json",
                    "--report", tmp_path / "page.html")  # fmt: skip
    assert found.code == 0, found.err
    assert np.isfinite(json.loads(found.out)["bits_per_dim"])


def test_drawn_sounds_are_data_at_their_rate(
    model: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    assert diffuse("sample", model, "-n", 3, "--steps", 2, "-o", tmp_path / "s", "-q").code == 0
    ran = diffuse("info", tmp_path / "s", "--size", LENGTH)
    assert ran.code == 0, ran.err
    assert "3 usable of 3" in ran.out
    assert "PCM_16 at 4,000 Hz 3" in ran.out


def test_a_folder_is_measured_at_a_rate(
    sounds: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    """Sounds at twice the rate are resampled."""
    for k in range(4):
        tone = 6000 * np.sin(np.arange(2 * LENGTH) * (k + 1) / 9)
        write(tmp_path / "generated" / f"{k}.wav", tone, 2 * RATE)
    line = ("eval", tmp_path / "generated", sounds, "-n", 4, "--metrics", "marginals")
    assert f"generated, mono, {2 * LENGTH}\n" in diffuse(*line).err
    ran = diffuse(*line, "--rate", RATE)
    assert ran.code == 0, ran.err
    assert f"generated, mono, {LENGTH}\n" in ran.err


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[[int, int], Path]:
    """Make the sounds again at another rate and of another length, in half their loudness."""

    def make(rate: int, length: int) -> Path:
        for k in range(60):
            tone = np.sin(2 * np.pi * (200, 900)[k % 2] * np.arange(length) / rate)
            write(tmp_path / "pairs" / ("low", "high")[k % 2] / f"{k:03d}.wav", 3000 * tone, rate)
        return tmp_path / "pairs"

    return make


def test_pairs_of_sounds_have_one_rate_and_are_not_cut(
    sounds: Path,
    recipe: Path,
    pairs: Callable[[int, int], Path],
    diffuse: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """The loudest part of one may be another part of the other."""
    line = ["train", sounds, "--given", pairs(RATE // 2, 32), "--config", recipe, "--steps", 1]
    ran = diffuse(*line, "--size", LENGTH, "-o", tmp_path / "m.safetensors", "-q")
    assert ran.code == 2
    assert "of sounds longer than --size, the parts of a pair may differ" in ran.line
    ran = diffuse(*line, "--size", 72, "-o", tmp_path / "m.safetensors", "--classes")
    assert ran.code == 0, ran.err
    assert ran.err.count("sounds at 4,000 Hz") == 1
    assert "2,000 Hz;" not in ran.err


def test_a_longer_sound_is_varied_in_windows(
    model: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    write(tmp_path / "long.wav", 6000 * np.sin(np.arange(5000) / 3))
    line = ["vary", model, tmp_path / "long.wav", "--steps", 2, "--strength", 0.5]
    ran = diffuse(*line, "--size", 5000, "-o", tmp_path / "out", "-q")
    assert ran.code == 0, ran.err
    with wave.open(str(tmp_path / "out" / "00000.wav")) as file:
        assert file.getnframes() == 5000


def test_a_sound_of_low_resolution_lasts_as_long(
    sounds: Path, recipe: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    """All of it conditions the samples, and not its loudest quarter."""
    sharper, low = tmp_path / "m.safetensors", tmp_path / "low.wav"
    line = ["train", sounds, "--config", recipe, "--steps", 1, "--size", LENGTH, "-q"]
    assert diffuse(*line, "--given", "low-res:4", "-o", sharper).code == 0
    write(low, [1000] * 4 + [4000] * 12, RATE // 4)
    encoder = Conditioner.from_blueprint(model_file.load(sharper).blueprint)
    assert encoder is not None
    given = read_sound(low.read_bytes(), ReadSettings(**settings_for(encoder.input_space)))
    assert given.values.shape == (1, LENGTH // 4)
    assert np.allclose(given.values[0], np.array([1000] * 4 + [4000] * 12) / 2**15, atol=1e-4)
    ran = diffuse("sample", sharper, "--given", low, "--steps", 2, "-o", tmp_path / "out", "-q")
    assert ran.code == 0, ran.err


def test_an_enlarged_sound_is_whole(
    model: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    """Its parts are as loud as those of the sound, which is not cut to its loudest quarter."""
    for rate, levels in ((RATE // 4, [1000] * 12 + [4000] * 4), (1333, [1000] * 23)):
        low, out = tmp_path / f"{rate}.wav", tmp_path / f"out-{rate}"
        write(low, levels, rate)
        ran = diffuse("upscale", model, low, "--factor", 4, "--steps", 3, "-o", out, "-q")
        assert ran.code == 0, ran.err
    with wave.open(str(tmp_path / f"out-{RATE // 4}" / "00000.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert len(samples) == LENGTH
    means = samples.reshape(16, 4).mean(1)
    assert means[12:].mean() > 2 * means[:12].mean() > 0


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Animations of few frames."""
    monkeypatch.setattr(forward_process, "FRAMES", 8)


@pytest.mark.usefixtures("brief")
def test_the_processes_of_a_sound_are_shown(
    model: Path, sounds: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    line = ["noise-demo", sounds / "low" / "000.wav", "--steps", 2, "-q"]
    for more in (("--schedule", "cosine", "--gif"), ("--model", model)):
        ran = diffuse(*line, *more, "-o", tmp_path / "a.png", "--overwrite")
        assert ran.code == 0, ran.err
    assert (tmp_path / "a.gif").stat().st_size


@pytest.mark.usefixtures("brief")
def test_an_array_of_one_dimension_moves(diffuse: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.sin(np.arange(40.0)))
    ran = diffuse("noise-demo", tmp_path / "x.npy", "--schedule", "cosine", "--steps", 2, "--gif",
                  "-o", tmp_path / "a.png", "-q")  # fmt: skip
    assert ran.code == 0, ran.err


def test_what_cannot_be_used_is_named(diffuse: Callable[..., Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    tone = 9000 * np.sin(np.arange(300) / 5)
    for k in range(4):
        write(data / f"k{k}.wav", tone * (k + 1) / 4, 8000)
    write(data / "silent.wav", 0 * tone, 8000)
    write(data / "a-three.wav", np.zeros(30), channels=3)
    write(data / "b-empty.wav", [])
    (data / "c-cut.wav").write_bytes((data / "k0.wav").read_bytes()[:200])
    (data / "d-text.flac").write_text("not a sound")
    (data / "e.mp3").write_bytes(b"ID3")
    ran = diffuse("info", data, "--rate", 4000)
    assert ran.code == 0, ran.err
    for name, why in (
        ("a-three.wav", "over two channels"),
        ("b-empty.wav", "a sound without samples"),
        ("c-cut.wav", "truncated or corrupt"),
        ("d-text.flac", "not a sound"),
    ):
        assert f"{why}: {name}" in ran.out
    assert "1 of 5 sounds, silent: silent.wav" in ran.out
    assert "5 usable of 9" in ran.out
    assert "1 .mp3 (convert them to WAV or FLAC" in ran.out
    ran = diffuse("train", data, "--strict", "--steps", 1, "-o", tmp_path / "m.safetensors", "-q")
    assert (ran.code, "a-three.wav: over two channels" in ran.err) == (3, True)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--rate", "10"], 2, "--rate"),
        (["--size", "8x4"], 2, "--size sounds have 1 side, not 2"),
        (["--size", "2000000"], 2, "--size"),
        (["--fit", "stretch"], 2, "--fit: there is no 'stretch'"),
        (["--layout", "L"], 2, "--layout sounds have no layout"),
        (["--transform", "log"], 3, "--transform log is for numbers above 0"),
    ],
)
def test_what_does_not_go_with_sounds_is_one_line(
    options: list[str],
    code: int,
    says: str,
    sounds: Path,
    diffuse: Callable[..., Any],
    tmp_path: Path,
) -> None:
    ran = diffuse("train", sounds, "--steps", 1, "-o", tmp_path / "m.safetensors", *options, "-q")
    assert ran.code == code, ran.err
    assert says in ran.line


def test_images_have_no_rate(diffuse: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    ran = diffuse("train", images, "--rate", 8000, "-o", tmp_path / "m.safetensors", "-q")
    assert (ran.code, "--rate images have no rate" in ran.line) == (2, True)


def test_without_the_library_one_line_says_what_to_install(sounds: Path, tmp_path: Path) -> None:
    """Nothing else needs it: a folder of images is read without."""
    program = (
        "import sys; sys.modules['soundfile'] = None\n"
        "from diffuse_cli.app import main; sys.exit(main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", program, "info", str(sounds)]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert ran.stderr == (
        "diffuse: reading sounds needs soundfile. Install it: in the folder of diffuse's source, "
        "run `pip install '.[audio]'`\n"
    )
