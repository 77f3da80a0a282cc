"""Data sets of the hub: a server of the tests' own answers, in processes that ask it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import COMMIT, serving
from image_corpus import contents, fill
from test_sources import corpus, parquet_file, parquet_files, sharded

from diffuse_cli.data import open_index, read_images, save_index, sources
from diffuse_cli.data.sources import hub_dataset
from diffuse_cli.models import model_file
from diffuse_cli.system import hub
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.events import finish
from diffuse_cli.system.hub import HubFile, HubListing

NAME = "hf://datasets/some/set"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A data set in three shards, with a test split."""
    folder = tmp_path_factory.mktemp("hub")
    parquet_files(folder / "data", corpus(12))
    parquet_file(folder / "data" / "test-00000-of-00001.parquet", corpus(4))
    return {**contents(folder), "README.md": b"# a set", ".gitattributes": b""}


@pytest.fixture
def served():
    with serving() as server:
        yield server


@pytest.fixture
def info(process, served, tmp_path):
    """Run `diffuse info`, or another command, with the server as the hub."""

    def run(*arguments, offline=False):
        env = served.environment(tmp_path, offline)
        return process(*arguments, env=env)

    return run


def test_the_training_split_is_downloaded_once_and_serves_without_a_network(
    info, served, parts, recipe, tmp_path
):
    served.sets["some/set"] = parts
    first = info("info", NAME, "--json", "-q").ok()
    assert first.json["origin"] == f"{NAME}@{COMMIT}"
    assert (first.json["usable"], first.json["classes"]) == (12, {"a": 6, "b": 6})
    train = [name for name in parts if "train" in name]
    assert sorted(served.got) == sorted(train)
    for offline in (False, True):
        served.status = 503 if not offline else 0
        again = info("info", f"{NAME}@main", "--json", "-q", offline=offline)
        assert (again.code, again.json["fingerprint"]) == (0, first.json["fingerprint"])
    assert len(served.got) == 3
    part = info("info", f"{NAME}@{COMMIT}/data/test-*.parquet", "-q", offline=True)
    assert (part.code, part.out) == (3, "")
    assert "not in the cache, and HF_HUB_OFFLINE is set" in part.line
    line = ("train", NAME, "--config", recipe, "--steps", 1, "--batch-size", 2, "-q")
    assert info(*line, offline=True).code == 0
    told = model_file.load(tmp_path / "model.safetensors").data
    assert told["origin"] == f"{NAME}@{COMMIT}"


@pytest.mark.parametrize(
    ("name", "offline", "said"),
    [
        ("hf://datasets/some/none", False, "there is no data set hf://datasets/some/none"),
        ("hf://datasets/some/set@old", False, "has no revision old"),
        ("hf://datasets/some/gated", False, "is gated. Accept its terms at http"),
        ("hf://datasets/some/text", False, "@~parquet"),
        ("hf://datasets/some/set/val", False, "no files at val in"),
        ("hf://datasets/some/set", True, "not in the cache, and HF_HUB_OFFLINE is set"),
        ("hf://datasets/so me/set", False, "not a name of a data set"),
        ("hf://datasets/some/down", False, "answers 500"),
    ],
)
def test_what_cannot_be_had_is_one_line(info, served, parts, name, offline, said):
    served.sets = {"some/set": parts, "some/gated": parts, "some/text": {"a.csv": b"x"}}
    served.status = 500 if name.endswith("down") else 0
    ran = info("info", name, "-q", offline=offline)
    assert (ran.code, ran.out) == (3, "")
    assert said in ran.line


def test_what_is_not_what_the_hub_says_is_not_kept(info, served, parts, tmp_path):
    served.sets["some/set"] = parts
    served.broken = {"data/train-00001-of-00003.parquet"}
    ran = info("info", NAME, "-q")
    assert (ran.code, ran.out, "train-00001-of-00003.parquet" in ran.line) == (3, "", True)
    assert "does not match its size or checksum" in ran.line
    served.broken = set()
    again = info("info", NAME, "--json", "-q")
    assert (again.code, again.json["usable"]) == (0, 12)
    assert len(served.got) == 4
    served.sets["some/tar"] = contents(sharded(tmp_path / "x", corpus(12)))
    ran = info("info", "hf://datasets/some/tar", "--json", "-q")
    assert (ran.code, ran.json["usable"]) == (0, 12)


# -- which files ----------------------------------------------------------------------------------


NAMES = (f"some/set{k}" for k in itertools.count())
"""New ones: a name stands for the same files as long as a process runs."""

Chosen = Callable[..., tuple[list[str], Path]]


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """Let the cache, in `tmp_path`, have files of a data set; its name."""

    def list_files(names):
        listing = HubListing("some/set", COMMIT, tuple(HubFile(name, 1, None) for name in names))
        monkeypatch.setattr(HubListing, "snapshot", tmp_path)
        monkeypatch.setattr(hub, "list_repository", lambda *_: listing)
        return Path(f"hf://datasets/{next(NAMES)}")

    return list_files


@pytest.fixture
def chosen(monkeypatch, tmp_path, listed):
    """Open a data set of so many files; which are downloaded, and what of them is opened."""
    got, opened = [], []

    def open_it(path):
        opened.append(path.relative_to(tmp_path))
        return SimpleNamespace()

    def choose(names, path=""):
        got.clear()
        name = listed(names)
        with monkeypatch.context() as patch:
            patch.setattr(hub.HubListing, "download_file", lambda _, file: got.append(file.name))
            patch.setattr(sources, "open_source", open_it)
            patch.setattr(hub_dataset, "Folder", lambda path, names: open_it(path))
            hub_dataset.HubDataset.open(name / path)
        return sorted(got), opened[-1]

    return choose


def test_which_files_are_meant(chosen):
    names = ["README.md", "data/test.parquet", "data/train.parquet", "x/a.png"]
    assert chosen(names) == (["data/train.parquet"], Path("data/train.parquet"))
    assert chosen(names, "data/test.parquet") == (["data/test.parquet"], Path("data/test.parquet"))
    assert chosen(names, "data/*.parquet")[0] == names[1:3]
    assert chosen(names, "x") == (["x/a.png"], Path("x"))
    assert chosen(["a/train/0.parquet", "default/train/0.parquet"])[0][0].startswith("default")
    assert chosen(["a.parquet", "b.parquet"])[0] == ["a.parquet", "b.parquet"]
    assert chosen(["s-0.tar", "s-1.tar", "metadata.csv"])[0] == ["s-0.tar", "s-1.tar"]
    train = ["train/a/1.png", "train/b/2.png", "train/metadata.csv"]
    assert chosen(["metadata.csv", "test/a/1.png", *train]) == (train, Path("train"))
    assert chosen(["photos.zip", "notes.txt"]) == (["photos.zip"], Path("photos.zip"))


@pytest.mark.parametrize(
    ("names", "path", "said"),
    [
        (["a/train.parquet", "b/train.parquet"], "", "has several configurations: a, b"),
        (["a.zip", "b.zip"], "", "2 zip files"),
        ([], "", "no files in"),
        ([".git/a.png"], "", "no files in"),
        (["x/1.png", "x/2.png"], "x/1.png", "names single files in hf"),
        (["x/1.png", "x/2.png"], "x/*.png", "names single files in hf"),
    ],
)
def test_what_is_not_clear_is_asked_for(chosen, names, path, said):
    with pytest.raises(DataError, match=said):
        chosen(names, path)


def test_files_that_another_command_downloaded_are_not_used(listed, tmp_path):
    names = ["test/3.png", "train_a/1.png", "train_b/2.png", "train_b/metadata.csv"]
    fill(tmp_path, dict.fromkeys(names, b"x"))
    source = hub_dataset.HubDataset.open(listed(names))
    assert sorted(entry.name for entry in source.entries()) == names[1:]


def test_what_other_processes_decode_lies_where_the_first_opened_it(listed, tmp_path, monkeypatch):
    parquet_files(tmp_path / "data", corpus(12))
    name = listed([f"data/{path.name}" for path in sorted((tmp_path / "data").iterdir())])
    images = finish(read_images(name, keep=0, cache=tmp_path / "cache", workers=1))
    save_index(images, tmp_path / "cache")
    monkeypatch.undo()
    again = open_index(tmp_path / "cache")
    assert len(again) == 12
    assert (again.stored[:3] == images.stored[:3]).all()
