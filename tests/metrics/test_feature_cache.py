"""Features of real images between evaluations: the same numbers, and never a reason to fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from file_operations import FULL, failing
from lab import write_images

from diffuse_cli.metrics.features import FeatureNetwork, extract_features, feature_cache
from diffuse_cli.system import files
from diffuse_cli.system.events import Notice, Progress, finish


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where features are kept in this test; not made yet."""
    monkeypatch.setenv("DIFFUSE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


class Counting:
    """A feature network that knows how many images it was shown."""

    def __init__(self, name: str = "counting", weights: str = "w" * 64) -> None:
        self.shown = 0
        self.network = FeatureNetwork(name, 3, weights, torch.device("cpu"), self._forward)

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.shown += len(pixels)
        return pixels.float().mean((2, 3)) / 7

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return finish(feature_cache.cache_features(self.network, pixels))


def noise(seed: int = 0, n: int = 6, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize(("n", "size", "batch"), [(10, 1, 4), (10, 2, 4), (9, 3, 4), (3, 4, 2)])
def test_processes_share_whole_batches(n: int, size: int, batch: int) -> None:
    shares = [feature_cache.Team(size, index).share(n, batch) for index in range(size)]
    assert [k for own in shares for k in own] == list(range(n))
    assert all(own.start % batch == 0 for own in shares if own)


def test_files_of_others_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "LARGEST", 1000)
    folder.mkdir()
    (folder / "samples.npz").write_bytes(bytes(2000))
    for seed in range(8):
        Counting()(noise(seed))
    assert (folder / "samples.npz").exists()
    assert len(kept(folder)) < 8


def test_what_was_computed_once_is_not_computed_again(folder: Path) -> None:
    measure = Counting()
    first, again = measure(noise()), measure(noise())
    assert measure.shown == 6
    assert first.tobytes() == again.tobytes()
    assert again.dtype == np.float32
    assert [path.suffix for path in kept(folder)] == [".npz"]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "a pixel": lambda pixels: np.concatenate([pixels[:5], pixels[5:] ^ (np.arange(8) == 3)]),
    "order": lambda pixels: pixels[::-1].copy(),
    "fewer": lambda pixels: pixels[:5],
    "shape": lambda pixels: pixels.reshape(6, 3, 4, 16),
    "all": lambda pixels: noise(1),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_other_images_are_other_features(folder: Path, what: str) -> None:
    pixels = CHANGES[what](noise())
    measure = Counting()
    measure(noise())
    found = measure(pixels)
    assert measure.shown == 6 + len(pixels)
    assert found.tobytes() == finish(extract_features(Counting().network, pixels)).tobytes()
    assert len(kept(folder)) == 2


@pytest.mark.parametrize("change", [{"name": "other"}, {"weights": "v" * 64}])
def test_another_network_has_its_own(folder: Path, change: dict[str, str]) -> None:
    Counting()(noise())
    other = Counting(**change)
    other(noise())
    assert other.shown == 6


@pytest.mark.parametrize(
    "change",
    [{"device": torch.device("meta")}, {"resize": "9x9, nearest"}],
    ids=["device", "resize"],
)
def test_another_device_or_resize_of_the_network_has_its_own(
    folder: Path, change: dict[str, Any]
) -> None:
    """The pixels do not stand for them."""
    Counting()(noise())
    other = replace(Counting().network, forward=lambda pixels: torch.zeros(len(pixels), 3))
    found = finish(feature_cache.cache_features(replace(other, **change), noise()))
    assert not found.any()
    assert len(kept(folder)) == 2


def test_another_version_of_the_program_has_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Counting()
    measure(noise())
    monkeypatch.setattr(feature_cache, "__version__", "0.0.1")
    measure(noise())
    assert measure.shown == 12
    assert len(kept(folder)) == 2


DAMAGE: dict[str, Callable[[bytes, bytes], bytes]] = {
    "empty": lambda data, features: b"",
    "text": lambda data, features: b"hello",
    "cut": lambda data, features: data[: len(data) // 2],
    "a bit": lambda data, features: data.replace(features, bytes([features[0] ^ 1]) + features[1:]),
}


@pytest.mark.parametrize("what", list(DAMAGE))
def test_a_damaged_file_is_made_anew(folder: Path, what: str) -> None:
    measure = Counting()
    first = measure(noise())
    (path,) = kept(folder)
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[what](whole, first.tobytes()))
    assert path.read_bytes() != whole
    assert measure(noise()).tobytes() == first.tobytes()
    assert measure.shown == 12
    assert measure(noise()).tobytes() == first.tobytes()
    assert measure.shown == 12


@pytest.mark.parametrize(
    "arrays",
    [
        {"features": np.zeros((5, 3), np.float32)},
        {"features": np.zeros((6, 3), np.float64)},
        {"features": np.full((6, 3), np.nan, np.float32)},
        {"features": np.array([{}] * 6, object)},
        {"other": np.zeros((6, 3), np.float32)},
    ],
    ids=["shape", "type", "nan", "pickle", "name"],
)
def test_other_contents_are_no_features(folder: Path, arrays: dict[str, Any]) -> None:
    measure = Counting()
    first = measure(noise())
    (path,) = kept(folder)
    np.savez(path, **arrays)
    assert measure(noise()).tobytes() == first.tobytes()
    assert measure.shown == 12


def test_a_folder_that_cannot_be_written_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    measure = Counting()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("DIFFUSE_CACHE", str(place))
        measure(noise())
    assert measure.shown == 12
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_does_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "operation", failing("sync", FULL))
    assert Counting()(noise()).shape == (6, 3)
    assert kept(folder) == []


def test_none_is_kept_where_the_variable_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSE_CACHE", "")
    measure = Counting()
    measure(noise())
    measure(noise())
    assert measure.shown == 12
    assert kept(tmp_path) == []


def test_where_features_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFUSE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert files.cache_folder() == tmp_path / ".cache" / "diffuse"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert files.cache_folder() == tmp_path / ".cache" / "diffuse"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert files.cache_folder() == tmp_path / "x" / "diffuse"


def test_the_least_recently_used_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Counting()
    known: set[Path] = set()
    for seed in range(3):
        measure(noise(seed))
        (path,) = {*kept(folder)} - known
        known.add(path)
        os.utime(path, (seed, seed))
    monkeypatch.setattr(feature_cache, "LARGEST", 3 * path.stat().st_size)
    measure(noise(0))  # used again: now the newest
    measure(noise(3))
    assert len(kept(folder)) == 3
    shown = measure.shown
    for seed in (0, 2, 3):
        measure(noise(seed))
    assert measure.shown == shown
    measure(noise(1))
    assert measure.shown == shown + 6


def test_features_larger_than_the_cache_are_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "LARGEST", 71)
    Counting()(noise())
    assert not folder.exists()


def test_what_is_said(folder: Path) -> None:
    network = Counting().network
    first, again = (
        list(feature_cache.cache_features(network, noise(), tell=True)) for _ in range(2)
    )
    assert [type(event) for event in first] == [Progress]
    (notice,) = again
    assert isinstance(notice, Notice)
    assert str(folder) in notice.text


def test_an_evaluation_gives_the_same_numbers_with_and_without(
    diffuse: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_images(tmp_path / "data", 8, seed=4)
    line = ("eval", model, data, "-n", 5, "--steps", 2, "--timesteps", 2, "--precision", "fp32")
    plain = diffuse(*line, "--json").json
    monkeypatch.setenv("DIFFUSE_CACHE", str(tmp_path / "kept"))
    first, again = diffuse(*line, "--json"), diffuse(*line, "--json")
    assert "using cached features" not in first.err
    assert "using cached features" in again.err
    for ran in (first, again):
        assert {**ran.json, "seconds": 0} == {**plain, "seconds": 0}
    # Of the real images, of further ones for the floor, and of landmarks.
    assert len(kept(tmp_path / "kept")) == 3
