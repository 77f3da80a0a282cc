"""Images that are decoded as training uses them: the weights, and what becomes of lost images."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import MODEL, RUN, logged
from lab import QUICK, write_images

from diffuse_cli.data import decoding_threads, match_pairs, read_images, stream
from diffuse_cli.system.events import finish
from diffuse_cli.training import batches as training_batches
from diffuse_cli.training.batches import Batches
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.training_data import TrainingData

LINE = ("--classes", "--flip", "--steps", 8, "--preview-every", 4, "--log-every", 3)


@pytest.fixture
def run(run):
    """The same with these options."""
    return lambda *arguments: run(*LINE, *arguments)


@pytest.fixture
def in_memory(lab):
    """The model file of such a run that keeps its images."""
    return lab.trained(*lab.quick, *LINE)


# -- the weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["0", "1KiB"])
def test_a_streamed_run_equals_one_from_memory(run, in_memory, cache):
    run("--cache", cache).ok()
    assert MODEL.read_bytes() == in_memory.read_bytes()
    before = in_memory.with_suffix(".run")
    assert logged("loss") == logged("loss", before)
    assert logged("held_out_loss") == logged("held_out_loss", before)
    last = "previews/step-00000008.png"
    assert (RUN / last).read_bytes() == (before / last).read_bytes()
    assert (RUN / "index/images.jsonl").exists()
    assert not (RUN / "cache").exists()


def test_it_is_resumed_with_another_cache(run, folder, in_memory, monkeypatch):
    read = []
    original = decoding_threads.decode_files
    monkeypatch.setattr(
        decoding_threads, "decode_files", lambda plan, e: read.extend(e) or original(plan, e)
    )
    assert run("--cache", 0, "--stop-at", 3).code == 0
    (folder / "dark/new.png").write_bytes((folder / "dark/000.png").read_bytes())
    read.clear()
    assert run("--resume", "--cache", "1KiB", "--stop-at", 5).code == 0
    assert 16 <= len(read) < 60  # what is kept, and what is looked up, but not the set again
    assert run("--resume", "--cache", "1GiB").code == 0
    assert MODEL.read_bytes() == in_memory.read_bytes()


@pytest.mark.parametrize("pairs", ["negatives", "maps"])
def test_pairs_and_parts_of_a_batch_are_those_of_a_run_from_memory(run, lab, pairs):
    line = ("--accumulation", 3, "--eval-every", 8, "--eval-images", 4, "--given", lab[pairs])
    assert run(*line, "-o", "whole.safetensors").code == 0
    assert run(*line, "--cache", 0).code == 0
    assert MODEL.read_bytes() == Path("whole.safetensors").read_bytes()
    assert logged("kid") == logged("kid", Path("whole.run"))
    last = "previews/step-00000008.png"
    assert (RUN / last).read_bytes() == (Path("whole.run") / last).read_bytes()


@pytest.mark.slow
def test_two_processes_each_decode_their_own(pair, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = ("train", folder, "--config", QUICK, *LINE, "--steps", 4, "-q")
    assert pair(*line, "-o", "whole.safetensors").code == 0
    assert pair(*line, "--cache", 0, "--stop-at", 2).code == 0
    (folder / "dark/new.png").write_bytes((folder / "dark/000.png").read_bytes())
    assert pair(*line, "--cache", 0, "--resume").code == 0
    assert MODEL.read_bytes() == Path("whole.safetensors").read_bytes()


def test_minutes_and_dry_runs(diffuse, images, untimed):
    line = ("train", images, "--config", QUICK, "--minutes", 0.02)
    assert "cache" not in diffuse(*line, "--cache", "1KiB", "--dry-run").ok().out
    assert not RUN.exists()
    assert diffuse(*line, "--cache", 0).code == 0


# -- lost images ----------------------------------------------------------------------------------


def spoil(folder):
    """Lose an image of each part, change one and cut one."""
    (folder / "dark/000.png").unlink()
    (folder / "light/003.png").write_bytes((folder / "light/005.png").read_bytes())
    os.truncate(folder / "dark/004.png", 60)


def test_a_lost_image_is_replaced_and_named_also_after_resume(run, folder, monkeypatch, each_step):
    def spoil_once(trainer, step):
        if step == 0 and (folder / "dark/000.png").exists():
            spoil(folder)

    each_step(spoil_once)
    monkeypatch.setattr(training_batches, "STEPS_AHEAD", 1)
    line = ("--cache", 0, "--steps", 15, "--log-every", 1)
    ran = run(*line, "-o", "whole.safetensors").ok()
    for name, reason in (
        ("dark/000.png", "vanished"),
        ("light/003.png", "changed since it was listed"),
        ("dark/004.png", "truncated or corrupt"),
    ):
        assert ran.err.count(f"{name}: {reason}: the next readable image") == 1
    shutil.rmtree(folder)
    write_images(folder)
    assert run(*line, "--stop-at", 2).code == 0
    again = run(*line, "--resume").ok()
    assert again.err.count("dark/000.png: vanished: the next readable image") == 1
    assert "have changed since this run started" not in again.err
    assert MODEL.read_bytes() == Path("whole.safetensors").read_bytes()


def test_without_any_the_run_ends_with_a_checkpoint(
    run, folder, negatives, monkeypatch, tmp_path, each_step
):
    """Without those beside them, too."""
    pairs, lost = shutil.copytree(negatives, tmp_path / "pairs"), []

    def lose_once(trainer, step):
        gone = pairs if "pairs" in str(trainer.plan.config.given) else folder
        if step == 3 and gone not in lost:
            lost.append(gone)
            gone.rename(gone.with_name("away"))

    each_step(lose_once)
    monkeypatch.setattr(training_batches, "STEPS_AHEAD", 1)
    for name, more in (("own", ()), ("pairs", ("--given", pairs, "--overwrite"))):
        ran = run("--cache", 0, *more)
        assert ran.code == 3, ran.err
        assert f"{name} no longer holds its images" in ran.err
        assert "checkpoint saved" in ran.err
        (tmp_path / "away").rename(tmp_path / name)
        assert run("--resume", "--cache", 0).code == 0


# -- the queue ------------------------------------------------------------------------------------


@pytest.fixture
def plan(images, negatives):
    """A plan of streamed pairs."""
    own, beside = (finish(read_images(str(f), keep=0)) for f in (images, negatives))
    every, held_out = np.arange(60), own.held_out
    pairs = match_pairs(own, beside)
    config = SimpleNamespace(seed=0)
    made = Plan(config, None, TrainingData(own, every[~held_out], every[held_out], pairs))
    with contextlib.closing(made.data):
        yield made


@pytest.fixture
def asked(monkeypatch):
    """How many images are loaded at a time."""
    counts, original = [], TrainingData.load
    monkeypatch.setattr(
        TrainingData, "load", lambda data, k: counts.append(len(k)) or original(data, k)
    )
    return counts


def test_a_pair_is_replaced_as_a_whole(plan, tmp_path, negatives, monkeypatch):
    own = shutil.copytree(negatives, tmp_path / "negatives")
    stream = plan.data.pairs.given.stored
    stream.source = str(own)
    moved = [e._replace(key=e.key.replace(str(negatives), str(own))) for e in stream.entries]
    stream.entries = moved
    first, second = plan.data.train[:2]
    (own / plan.data.images.names[first]).unlink()
    assert plan.data.find_readable(np.array([second, first])).tolist() == [second, second]
    last = plan.data.held_out[-1]
    (own / plan.data.images.names[last]).unlink()
    assert plan.data.find_readable(np.array([last])).tolist() == [plan.data.held_out[0]]


def test_it_takes_images_in_their_order_and_is_bounded(plan, images, asked, monkeypatch):
    monkeypatch.setattr(training_batches, "STEPS_AHEAD", 3)
    batches = Batches(plan, 8, None, range(2, 6))
    whole = finish(read_images(str(images)))
    kept = TrainingData(whole, plan.data.train, plan.data.held_out)
    plain = Batches(Plan(plan.config, None, kept), 8, None, range(8))
    monkeypatch.setattr(stream, "decode_all", lambda *a: pytest.fail("decoded late"))
    for k in (0, 1, 2, 3, 7, 8, 2):  # also back and forth
        wanted = plain.find_indices(k, range(2, 6))
        assert batches.find_indices(k, range(2, 6)).tolist() == wanted.tolist()
        assert batches.find_indices(k, range(4, 5)).tolist() == wanted[2:3].tolist()
        assert np.array_equal(plan.data.images.stored[wanted], whole.stored[wanted])
    assert sum(asked) <= 4 * (4 + 3 + 1 + 3 + 4 + 4)
    batches.close()


def test_large_images_are_not_read_far_ahead(plan, asked, monkeypatch):
    monkeypatch.setattr(training_batches, "AHEAD", 0)
    small = Batches(plan, 8, None, range(8))
    small.find_indices(0, range(8))
    small.find_indices(1, range(8))
    small.close()
    assert 16 <= sum(asked) <= 24


def test_memory_does_not_grow(plan, monkeypatch):
    monkeypatch.setattr(stream, "REMEMBERED", 2**12)
    batches = Batches(plan, 8, None, range(8))
    of_package = [tracemalloc.Filter(True, "*/diffuse_cli/*")]  # other libraries fill caches
    sizes = []
    tracemalloc.start()
    for k in range(120):
        batches.find_indices(k, range(8))
        plan.data.images.stored[plan.data.held_out]
        if k in (40, 119):
            gc.collect()
            traces = tracemalloc.take_snapshot().filter_traces(of_package).traces
            sizes.append(sum(trace.size for trace in traces))
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 2**16  # the queue holds up to 2**15
