"""--eval-every: the best model is kept, whatever happens to the run, and nothing else changes."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import signal
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from conftest import MODEL, RUN, log_rows, mostly_slow
from lab import QUICK, write_images
from PIL import Image
from safetensors.torch import load_file

from diffuse_cli.config.sample_options import SAMPLING_STEPS
from diffuse_cli.core.space import Space
from diffuse_cli.metrics import Measurement, baselines, kid
from diffuse_cli.metrics.features import feature_cache
from diffuse_cli.models import model_file
from diffuse_cli.sampling.setting_search import FeatureMeasure
from diffuse_cli.system import files
from diffuse_cli.system.events import finish
from diffuse_cli.training import checkpoints, ema_weights, previews, validation
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.trainer import Trainer
from training.conftest import BEST, measure_by_step, step_of

EVAL = ("--eval-every", 2, "--eval-images", 6)

KIDS = {2: 0.9, 4: 0.4, 6: 0.6, 8: 0.5, 10: 0.3, 12: 0.7, 14: 0.2, 16: 0.8}
"""A course of the metric: the best is at 4, then at 10, then at 14."""


@pytest.fixture
def course(monkeypatch):
    """The course as what is measured; the steps at which it was."""
    asked = []
    measure_by_step(monkeypatch, KIDS, asked.append)
    return asked


def kids(run=RUN):
    return {m["step"]: m["kid"] for m in log_rows(run) if "kid" in m}


# -- what is measured -----------------------------------------------------------------------------


def test_classes_are_drawn_in_the_shares_of_the_data(run, folder, monkeypatch):
    """2 of the data's 32 images are dark: few of those that are drawn."""
    drawn, real = [], previews.make_settings
    for path in sorted((folder / "dark").iterdir())[2:]:
        path.unlink()

    def watched(*arguments, **more):
        if "classes" in more:  # previews have none
            drawn.append(more["classes"])
        return real(*arguments, **more)

    monkeypatch.setattr(previews, "make_settings", watched)
    line = ("--steps", 2, "--eval-every", 2, "--eval-images", 9)
    assert run(*line, "--classes").code == 0
    assert run(*line, "--overwrite").code == 0
    told, untold = drawn
    assert (len(told), untold) == (9, [])
    assert told.count(0) <= 2  # of dark
    assert told.count(1) >= 7


def test_an_evaluation_touches_nothing(quick):
    quick("--steps", 8, "-o", "plain.safetensors")
    ran = quick("--steps", 8, "--eval-every", 4, "--eval-images", 6, "--json").ok()
    assert MODEL.read_bytes() == Path("plain.safetensors").read_bytes()
    assert set(kids()) == {4, 8}
    best = ran.json["best"]
    assert best["kid"] == min(kids().values()) == kids()[best["step"]]
    assert best["kid_standard_error"] > 0
    assert step_of(BEST) == best["step"]
    assert "compares with training" not in ran.err
    assert f"KID {Measurement(best['kid'], best['kid_standard_error'])}" in ran.err


def test_the_kid_is_that_of_drawn_images_against_held_out_ones(diffuse, quick, monkeypatch):
    """The same number from images that `sample` draws from the model file, and from features. Those
    of the real images are computed once."""
    seen, real = [], feature_cache.extract_features
    monkeypatch.setattr(
        feature_cache, "extract_features", lambda *own: seen.append(own) or real(*own)
    )
    monkeypatch.setattr(conftest, "PREVIEW_STEPS", SAMPLING_STEPS)
    conftest.do_less(monkeypatch)
    quick("--steps", 10, "--eval-every", 5, "--eval-images", 9)
    assert [len(images) for _, images in seen] == [6, 9, 9, baselines.IMAGES]  # the last is noise
    assert diffuse("sample", MODEL, "-n", 9, "-o", "drawn").code == 0
    (network, held_out), _, (_, fakes), _ = seen
    drawn = np.stack([np.asarray(Image.open(f"drawn/{i:05d}.png"))[None] for i in range(9)])
    assert np.abs(drawn.astype(int) - fakes).max() <= 2
    x, y = (finish(real(network, p)).astype(np.float64) for p in (held_out, fakes))
    expected = kid.mmd(kid.sum_within(x), kid.sum_within(y), kid.sum_between(x, y))
    assert kids()[10] == pytest.approx(expected, rel=1e-9)


def test_without_held_out_images_those_of_the_training_are_taken_and_it_is_said(diffuse, tmp_path):
    """A run that cannot be evaluated replaces nothing, with --overwrite either."""
    few = write_images(tmp_path / "few", 20)
    line = ("--config", QUICK, "--steps", 2, *EVAL)
    assert "compares with training images" in diffuse("train", few, *line).ok().err
    before = MODEL.read_bytes()
    one = write_images(tmp_path / "one", 1)
    said = "needs 2 real images, and the data has 1"
    diffuse("train", one, *line, "--overwrite", "-q").fails(2, said)
    assert MODEL.read_bytes() == before
    assert (RUN / "checkpoints/step-00000002").is_dir()


def test_out_of_memory_leaves_an_evaluation_and_the_held_out_loss_out(quick, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FeatureMeasure, "compare", full)
    monkeypatch.setattr(Trainer, "held_out_losses", full)
    ran = quick("--steps", 2, "--preview-every", 1, *EVAL).ok()
    assert "out of memory while evaluating: skipped" in ran.err
    assert ran.err.count("out of memory while measuring the held-out loss: skipped") == 2
    assert list((RUN / "previews").iterdir())
    assert not BEST.exists()


# -- samples that are noise -----------------------------------------------------------------------


@pytest.mark.parametrize("levels", [256, None])
def test_noise_is_recognized_by_its_kid(levels):
    """Not where the data is noise itself."""
    scale = () if levels else (100.0,)
    medium = "image" if levels else "array"
    space = Space(channels=1, size=(8, 8), medium=medium, levels=levels, mean=scale, std=scale)
    rng, dtype = np.random.default_rng(0), np.uint8 if levels else np.float32
    smooth = (rng.normal(120, 30, (60, 1, 1, 1)) + 3 * np.arange(8)).clip(0, 255).astype(dtype)
    noise = rng.uniform(0, 256, (60, 1, 8, 8)) if levels else rng.normal(100, 100, (60, 1, 8, 8))
    network = validation.choose_network(space, smooth, torch.device("cpu"))
    for real, samples, found in (
        (smooth[:30], noise.astype(dtype), True),
        (smooth[:30], smooth[30:], False),
        (noise[:30].astype(dtype), noise[30:].astype(dtype), False),
    ):
        measure = FeatureMeasure(network, space, real)
        values = finish(measure.compare(samples))
        kid_of_samples = Measurement(values[network.kid], values[f"{network.kid}_standard_error"])
        assert finish(measure.is_noise(kid_of_samples)) is found


@pytest.mark.parametrize(
    ("side", "more"), mostly_slow([(72, ", or start again with --size 64"), (8, "")], always=1)
)
def test_a_run_whose_samples_are_noise_says_so(diffuse, tmp_path, monkeypatch, side, more):
    measure_by_step(monkeypatch, {2: 99.0, 4: -99.0}, lambda step: None)
    (tmp_path / "flat").mkdir()
    for k in range(60):
        Image.new("L", (side, side), 4 * k).save(tmp_path / "flat" / f"{k}.png")
    line = ("--config", QUICK, "--size", side, "--steps", 2, "--eval-every", 2)
    ran = diffuse("train", "flat", *line, "--eval-images", 6)
    says = "The images are not better than noise by KID. Train longer: diffuse "
    [advice] = [line for line in ran.err.splitlines() if line.startswith(says)]
    assert advice.endswith(f"--steps 4{more}")
    assert "Generate images with" not in ran.err
    command = shlex.split(advice.partition("longer: ")[2].partition(", or")[0])
    assert "\nGenerate images with: diffuse sample " in diffuse(*command[1:]).ok().err
    assert step_of(MODEL) == 4


# -- the best model -------------------------------------------------------------------------------


def test_the_best_model_is_that_of_its_step(quick, course):
    ran = quick("--steps", 16, *EVAL, "--json")
    assert ran.json["best"] == {
        "model": str(BEST), "step": 14, "kid": 0.2, "kid_standard_error": 0.01, "images": 6,
    }  # fmt: skip
    assert "best by KID at step 14: 0.200 ± 0.010, model.best.safetensors" in ran.err
    assert kids() == KIDS
    assert (step_of(BEST), step_of(MODEL)) == (14, 16)
    quick("--steps", 16, "--stop-at", 14, "-o", "other.safetensors")
    stopped = model_file.load("other.safetensors")
    # Errors of x_0 are only measured at the end of a run.
    model_file.save(Path("other.safetensors"), dataclasses.replace(stopped, errors=None))
    assert Path("other.safetensors").read_bytes() == BEST.read_bytes()


@pytest.fixture(scope="module")
def short_course(lab):
    """The model file of a run through the begin of the course, which also looks at its end."""
    with pytest.MonkeyPatch.context() as patch:
        measure_by_step(patch, KIDS, lambda step: None)
        return lab.trained(*lab.quick, "--steps", 5, *EVAL)


@pytest.mark.parametrize("stop", [3, 4])
def test_stopped_and_resumed_keeps_the_same_best_file(quick, course, short_course, stop):
    """A stop is no evaluation, and the end is."""
    quick("--steps", 5, *EVAL, "--stop-at", stop)
    assert course == [2, 4][: stop // 2]
    assert quick("--resume").code == 0
    assert BEST.read_bytes() == short_course.with_name(BEST.name).read_bytes()
    assert MODEL.read_bytes() == short_course.read_bytes()
    assert kids() == kids(short_course.with_suffix(".run")) == {2: 0.9, 4: 0.4, 5: 1}
    assert course == [2, 4, 5]


@pytest.mark.parametrize("left", ["later", "none", "damaged", "nothing"])
def test_what_a_killed_run_left_heals(quick, course, left):
    """The checkpoint knows of step 4; the file is of a step after it, or is not there."""
    quick("--steps", 16, *EVAL, "--stop-at", 5)
    expected = BEST.read_bytes()
    shutil.copytree(RUN, "kept")
    if left == "later":
        quick("--resume", "--stop-at", 11)
        assert step_of(BEST) == 10
    elif left == "none":
        BEST.unlink()
    elif left == "damaged":
        BEST.write_bytes(expected[:1000])
    shutil.rmtree(RUN)
    shutil.move("kept", RUN)
    quick("--resume", "--stop-at", 7)
    assert BEST.read_bytes() == expected


def test_a_best_model_of_a_course_that_was_left_goes(quick, course):
    quick("--steps", 16, *EVAL, "--stop-at", 5)
    shutil.rmtree(RUN / "checkpoints")
    MODEL.unlink()
    assert "starting at step 0" in quick("--resume", "--stop-at", 1).err
    assert not BEST.exists()
    quick("--resume")
    assert step_of(BEST) == 14


def test_a_finished_run_writes_a_missing_best_model_again(
    quick, course, short_course, copy_run, lab, instead_of_networks
):
    copy_run(*lab.quick, "--steps", 5, *EVAL)
    BEST.unlink()
    instead_of_networks()
    assert quick("--resume").code == 0
    assert BEST.read_bytes() == short_course.with_name(BEST.name).read_bytes()
    assert course == []
    assert "starts again" not in quick("--resume", "--eval-images", 8).ok().err
    assert BEST.read_bytes() == short_course.with_name(BEST.name).read_bytes()


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [4, 5])
def test_a_signal_abandons_an_evaluation_which_is_made_up_for(
    quick, course, short_course, monkeypatch, at
):
    """At the last step, too, where nothing else is left to do."""
    finished = []

    def interrupted(step):
        if step == at:
            signal.raise_signal(signal.SIGTERM)
            finished.append(True)

    with monkeypatch.context() as patch:
        measure_by_step(patch, KIDS, interrupted)
        quick("--steps", 5, *EVAL, "-q").fails(143, f"at step {at}: checkpoint saved")
        assert finished == []
        assert at not in kids()
        quick("--resume", "-q").fails(143, f"at step {at}: its checkpoint is complete")
    assert quick("--resume").code == 0
    assert BEST.read_bytes() == short_course.with_name(BEST.name).read_bytes()
    assert MODEL.read_bytes() == short_course.read_bytes()
    assert kids() == kids(short_course.with_suffix(".run"))
    course.clear()
    assert quick("--resume").code == 0
    assert course == []


# -- what is not its own --------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_best_model_is_not_replaced(quick, course):
    BEST.write_text("mine")
    quick("--steps", 2, *EVAL, "-q").fails(5, "model.best.safetensors exists already")
    quick("--steps", 2)
    assert quick("--resume", *EVAL, "--steps", 4, "-q").code == 5
    assert quick("--steps", 2, "--overwrite").code == 0
    assert BEST.read_text() == "mine"
    assert quick("--steps", 2, *EVAL, "--overwrite").code == 0
    assert step_of(BEST) == 2
    assert quick("--steps", 1, "--overwrite").code == 0
    assert not BEST.exists()


def test_the_model_of_another_run_is_never_the_place(quick, course):
    quick("--steps", 2, "-o", BEST)
    for options in ((), ("--overwrite",)):
        quick("--steps", 4, *EVAL, "-q", *options).fails(5, "belongs to another run")
    assert step_of(BEST) == 2


def test_another_number_of_images_begins_anew(quick, course):
    quick("--steps", 16, *EVAL, "--stop-at", 5)
    ran = quick("--resume", "--eval-images", 8, "--stop-at", 7)
    assert "found with 6 images per evaluation, not 8" in ran.err
    assert "the search starts again and replaces model.best.safetensors" in ran.err
    assert step_of(BEST) == 6


def test_a_run_without_evaluations_keeps_nothing_of_them(quick, monkeypatch):
    monkeypatch.setattr(FeatureMeasure, "__init__", lambda *a: pytest.fail("made"))
    assert quick("--steps", 4, "--json").json["best"] is None
    assert "eval" not in (RUN / "config.toml").read_text()
    [newest] = (RUN / "checkpoints").iterdir()
    assert not (newest / "best.safetensors").exists()
    assert not BEST.exists()


def test_the_estimate_of_disk_grows_by_each_kind_of_weights(quick, monkeypatch):
    """Each checkpoint has the weights, and the best model is replaced next to the old one."""
    totals = []
    monkeypatch.setattr(files, "check_room", lambda folder, total, largest: totals.append(total))
    last = ("--keep", "last")
    for more in (last, (*last, *EVAL), (*last, "--ema-lengths", 4), ()):
        line = ("--steps", 2, "--no-keep-weak", "-q")
        quick(*line, "-o", f"{len(totals)}.safetensors", *more)
        model = sum(tensor.nbytes for tensor in load_file("0.safetensors").values())
    assert totals[1] - totals[0] == (checkpoints.KEPT + 1 + 2) * model
    weights = model // 2  # the model file has raw weights too
    powers = len(ema_weights.KEPT_LENGTHS) * weights
    assert totals[2] - totals[0] == (checkpoints.KEPT + 1 + 4 + 2) * powers
    assert totals[3] - totals[0] == (checkpoints.KEPT + 1) * model


@pytest.mark.parametrize("options", [(), ("--no-keep-weak",), EVAL, ("--ema-lengths", 4)])
def test_the_estimate_of_disk_covers_what_a_run_writes(quick, course, monkeypatch, options):
    asked = []
    monkeypatch.setattr(files, "check_room", lambda folder, *sizes: asked.append(sizes))
    quick("--steps", 6, *options, "--save-every", 1, "--preview-every", 2, "-q")
    [(total, largest)] = asked
    run = RunDirectory(MODEL)
    models = sum(files.measure_size(path) for path in Path().glob("*.safetensors"))
    used = files.measure_size(run.path) + models
    of_one = files.measure_size(run.checkpoints / "step-00000006")
    assert used + of_one + models <= total
    sizes = [p.stat().st_size for p in run.path.rglob("*.safetensors")]
    headers = 32_768 * (len(sizes) + 2 * 5)
    assert sum(sizes) + of_one + 2 * models <= total - checkpoints.SPARE + headers
    assert max(sizes) <= largest + 65_536
    assert total - checkpoints.SPARE < 2 * (used + of_one)
