"""Features of real images between evaluations: the same numbers, and never a reason to fail."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from file_operations import FULL, failing

from diffuse_cli.metrics.features import FeatureNetwork, extract_features, feature_cache
from diffuse_cli.system import files
from diffuse_cli.system.events import Notice, Progress, finish
from diffuse_cli.system.team import Team


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where features are kept in this test; not made yet."""
    monkeypatch.setenv("DIFFUSE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


class Counting:
    """A feature network that knows how many images it was shown."""

    def __init__(self, name="counting", weights="w" * 64):
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
def test_processes_share_whole_batches(n, size, batch):
    shares = [Team(size, index).share(n, batch) for index in range(size)]
    assert [k for own in shares for k in own] == list(range(n))
    assert all(own.start % batch == 0 for own in shares if own)


def test_what_was_computed_once_is_not_computed_again(folder):
    measure = Counting()
    first, again = measure(noise()), measure(noise())
    assert measure.shown == 6
    assert first.tobytes() == again.tobytes()
    assert again.dtype == np.float32
    assert [path.suffix for path in kept(folder)] == [".npz"]
    said, told = (
        list(feature_cache.cache_features(measure.network, noise(seed), tell=True))
        for seed in (1, 0)
    )
    assert [type(event) for event in said] == [Progress]
    (notice,) = told
    assert isinstance(notice, Notice)
    assert str(folder) in notice.text


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: np.concatenate([pixels[:5], pixels[5:] ^ (np.arange(8) == 3)]),
        lambda pixels: pixels[::-1].copy(),
        lambda pixels: pixels[:5],
        lambda pixels: pixels.reshape(6, 3, 4, 16),
        lambda pixels: noise(1),
    ],
    ids=["pixel", "order", "fewer", "shape", "all"],
)
def test_other_images_are_other_features(folder, change):
    pixels, measure = change(noise()), Counting()
    measure(noise())
    found = measure(pixels)
    assert measure.shown == 6 + len(pixels)
    assert found.tobytes() == finish(extract_features(Counting().network, pixels)).tobytes()
    assert len(kept(folder)) == 2


def test_another_network_or_version_of_the_program_has_its_own(folder, monkeypatch):
    """Also on another device, or with another resize, for which the pixels do not stand."""
    measure = Counting()
    measure(noise())
    other = replace(measure.network, forward=lambda pixels: torch.zeros(len(pixels), 3))
    changes = {"name": "other", "weights": "v" * 64, "device": torch.device("meta"), "resize": "9"}
    for name, value in changes.items():
        changed = replace(other, **{name: value})
        assert not finish(feature_cache.cache_features(changed, noise())).any()
    assert len(kept(folder)) == 1 + len(changes)
    monkeypatch.setattr(feature_cache, "__version__", "0.0.1")
    measure(noise())
    assert measure.shown == 12


def packed(**arrays):
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data, features: b"",
        lambda data, features: b"hello",
        lambda data, features: data[: len(data) // 2],
        lambda data, features: data.replace(features, bytes([features[0] ^ 1]) + features[1:]),
        lambda *_: packed(features=np.zeros((5, 3), np.float32)),
        lambda *_: packed(features=np.zeros((6, 3), np.float64)),
        lambda *_: packed(features=np.full((6, 3), np.nan, np.float32)),
        lambda *_: packed(features=np.array([{}] * 6, object)),
        lambda *_: packed(other=np.zeros((6, 3), np.float32)),
    ],
    ids=["empty", "text", "cut", "a bit", "shape", "type", "nan", "pickle", "name"],
)
def test_a_damaged_file_is_made_anew(folder, damage):
    measure = Counting()
    first = measure(noise()).tobytes()
    (path,) = kept(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole, first))
    assert path.read_bytes() != whole
    assert measure(noise()).tobytes() == measure(noise()).tobytes() == first
    assert measure.shown == 12


def test_where_none_can_be_kept_they_are_computed(folder, tmp_path, monkeypatch):
    """In a folder that cannot be written, on a full disk, of more than the cache may hold, and
    where the variable is empty."""
    (tmp_path / "file").write_text("in the way")
    measure = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "LARGEST", 71)
        measure(noise())
    assert not folder.exists()
    monkeypatch.chdir(tmp_path)
    for place in ("file", "file/below", ""):
        monkeypatch.setenv("DIFFUSE_CACHE", place and str(tmp_path / place))
        measure(noise())
    assert (tmp_path / "file").read_text() == "in the way"
    assert kept(tmp_path) == [tmp_path / "file"]
    monkeypatch.setenv("DIFFUSE_CACHE", str(folder))
    monkeypatch.setattr(files, "operation", failing("sync", FULL))
    measure(noise())
    assert kept(folder) == []
    assert measure.shown == 5 * 6


def test_where_features_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFUSE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert files.cache_folder() == tmp_path / ".cache" / "diffuse"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert files.cache_folder() == tmp_path / ".cache" / "diffuse"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert files.cache_folder() == tmp_path / "x" / "diffuse"


def test_the_least_recently_used_go_first_and_files_of_others_stay(folder, monkeypatch):
    folder.mkdir()
    (folder / "samples.npz").write_bytes(bytes(9000))
    measure, known = Counting(), {folder / "samples.npz"}
    for seed in range(3):
        measure(noise(seed))
        (path,) = {*kept(folder)} - known
        known.add(path)
        os.utime(path, (seed, seed))
    monkeypatch.setattr(feature_cache, "LARGEST", 3 * path.stat().st_size)
    measure(noise(0))  # used again: now the newest
    measure(noise(3))
    assert len(kept(folder)) == 1 + 3
    shown = measure.shown
    for seed in (0, 2, 3):
        measure(noise(seed))
    assert measure.shown == shown
    measure(noise(1))
    assert measure.shown == shown + 6


def test_an_evaluation_gives_the_same_numbers_with_and_without(diffuse, lab, folder, monkeypatch):
    line = ("eval", lab["unconditional"], lab["grey"], "-n", 5, "--steps", 2, "--metrics", "kid")
    first, again = (diffuse(*line, "--precision", "fp32", "--json") for _ in range(2))
    monkeypatch.setenv("DIFFUSE_CACHE", "")
    plain = diffuse(*line, "--precision", "fp32", "--json").json
    assert "using cached features" not in first.err
    assert "using cached features" in again.err
    for ran in (first, again):
        assert {**ran.json, "seconds": 0} == {**plain, "seconds": 0}
    # Of the real images, and of further ones for the floor.
    assert len(kept(folder)) == 2
