"""--resume: the same bytes as a run in one go, what it says, and what it refuses."""

from __future__ import annotations

import os
import shutil
import time
import tomllib
from pathlib import Path

import pytest
from conftest import MODEL, RUN, WHOLE, in_process, log_rows
from file_operations import watching
from lab import QUICK, write_images
from safetensors.torch import load_file

from diffuse_cli.models import model_file
from diffuse_cli.system import devices, files
from diffuse_cli.training.run_directory import Checkpoint, RunDirectory
from diffuse_cli.training.trainer import Trainer


def test_data_in_a_folder_whose_name_is_not_utf_8(diffuse, images):
    name = os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(images, name)
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system has only names in UTF-8")
    assert diffuse("train", name, "--config", QUICK, "--steps", 2, "--stop-at", 1, "-q").code == 0
    ran = diffuse("train", "--resume", "-o", MODEL, "-q")
    assert ran.code == 0, ran.err


def steps_of(run=RUN, name="loss"):
    return [m["step"] for m in log_rows(run) if name in m]


def checkpoints():
    return sorted(p.name for p in (RUN / "checkpoints").iterdir())


def damage(step, name="model.safetensors"):
    path = RUN / f"checkpoints/step-{step:08d}" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def refuse(self, step):
    raise AssertionError("computed")


# -- the same bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        (
            "--steps 4 --accumulation 2 --flip --weighting min-snr --target eps --schedule linear",
            2,
        ),
        ("--steps 5 --save-every 2 --weighting none --loss vlb --config dropout.toml", 3),
        ("--steps 4 --warmup 10 --target x0 --variance large", 1),
        ("--steps 14 --timestep-draw importance --num-timesteps 3", 2),
        (
            "--steps 14 --timestep-draw importance --num-timesteps 3 --classes --variance learned "
            "--label-dropout 0.5 --flip --accumulation 2",
            9,
        ),
        ("--steps 4 --precision bf16 --gradient-checkpointing --config dropout.toml", 2),
        ("--steps 4 --ema-decay 0.5 --batch-size 54 --lr 0.01 --optimizer muon", 2),
        ("--steps 16 --batch-size 7 --log-every 9 --timestep-draw weight", 11),
        ("--steps 4 --classes --variance learned --config {transformer}", 2),
    ],
)
def test_stopped_and_resumed_equals_one_go(quick, recipe, transformer, options, stop):
    """Of the U-Net where it drops out, of the transformer that does too, else of the quickest."""
    options = options.format(transformer=transformer)
    Path("dropout.toml").write_text(recipe.read_text() + "dropout = 0.3\n")
    quick(*options.split(), "-o", WHOLE)
    ran = quick(*options.split(), "--stop-at", stop, "--json", "--log-every", 1)
    assert ran.code == 0
    assert ran.json["step"] == stop
    half = MODEL.read_bytes()
    ran = quick(*options.split(), "--resume", "--log-every", 1)
    assert ran.code == 0
    assert f"resuming from step {stop}" in ran.err
    assert MODEL.read_bytes() == WHOLE.read_bytes() != half
    last = int(options.split()[1])
    assert steps_of() == list(range(1, last + 1))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("--preview-every 2 --workers 1", "--preview-every 100 --workers 4"),
        ("--preview-every 100 --save-every 1", "--preview-every 3 --save-every 100"),
        ("--log tensorboard", "--log-every 1"),
    ],
)
def test_what_cannot_change_the_weights_may_change_at_a_resume(quick, first, then, model_at_5):
    quick("--steps", 6, "--stop-at", 2, *first.split())
    assert quick("--steps", 6, "--resume", *then.split()).code == 0
    assert MODEL.read_bytes() == (model_at_5 / WHOLE).read_bytes()


def test_dropout_is_in_effect(train, recipe):
    Path("dropout.toml").write_text(recipe.read_text() + "dropout = 0.3\n")
    train("--steps", 4, "-o", WHOLE)
    train("--steps", 4, "--config", "dropout.toml")
    plain, dropped = load_file(WHOLE), load_file(MODEL)
    assert not plain["conv_out.weight"].equal(dropped["conv_out.weight"])


def test_the_history_of_losses_decides_the_timesteps_after_a_while(quick):
    """What the runs above resume is in effect: after 9 steps the draw is no longer uniform."""
    options = ("--steps", 14, "--num-timesteps", 3, "--stop-at", 9)
    quick(*options, "--timestep-draw", "importance")
    saved = RunDirectory(MODEL).load()[0]
    assert int(saved.history["counts"].sum()) == 9 * 8
    assert int(saved.history["counts"].min()) >= 10
    assert saved.history["losses"].shape == (3, 10)
    quick(*options, "-o", WHOLE)
    assert RunDirectory(WHOLE).load()[0].history == {}
    assert MODEL.read_bytes() != WHOLE.read_bytes()


HANGS = """
from time import sleep

from diffuse_cli.training.trainer import Trainer

real = Trainer.step
Trainer.step = lambda self, step: (sleep(100 if step == 7 else 0), real(self, step))[1]
"""


def test_a_killed_run_resumes_to_the_same_bytes(spawn, quick, images):
    """It does not come to its end before it is killed, however slow this process is."""
    options = ("--steps", 10, "--save-every", 3)
    quick(*options, "-o", WHOLE)
    child = spawn("train", images, "--config", QUICK, *options, "-q", before=HANGS)
    while not list(RUN.glob("checkpoints/step-*/manifest.json")):
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -9
    assert not MODEL.exists()
    assert quick(*options, "--resume").code == 0
    assert MODEL.read_bytes() == WHOLE.read_bytes()
    assert steps_of() == [10]


OFTEN = ("--steps", 6, "--save-every", 2, "--log-every", 1)


@pytest.fixture(scope="module")
def model_at_5(images, tmp_path_factory):
    """A run of 6 steps that stopped after 5, and the same in one go."""
    folder = tmp_path_factory.mktemp("often")
    line = ["train", images, "--config", QUICK, *OFTEN, "-q"]
    assert in_process([*line, "-o", folder / WHOLE]) == 0
    assert in_process([*line, "--stop-at", 5, "-o", folder / MODEL]) == 0
    return folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "history.safetensors", "manifest.json"]
)
def test_a_damaged_checkpoint_falls_back_and_says_so(quick, tmp_path, model_at_5, name):
    shutil.copytree(model_at_5, tmp_path, dirs_exist_ok=True)
    assert checkpoints() == ["step-00000004", "step-00000005"]
    damage(5, name) if name != "manifest.json" else (
        RUN / "checkpoints/step-00000005/manifest.json"
    ).write_text("{")
    ran = quick(*OFTEN, "--resume")
    assert ran.code == 0
    assert "step-00000005 is damaged" in ran.err
    assert "resuming from step 4" in ran.err
    assert MODEL.read_bytes() == WHOLE.read_bytes()
    assert steps_of() == list(range(1, 7))


def test_checkpoints_after_a_fall_back_are_kept(quick):
    quick("--steps", 6, "--save-every", 2)
    damage(4)
    damage(6)
    MODEL.unlink()
    ran = quick("--steps", 6, "--resume", "--stop-at", 3, "--save-every", 2)
    assert "starting at step 0" in ran.err
    assert checkpoints() == ["step-00000002", "step-00000003"]
    assert RunDirectory(MODEL).load()[0].step == 3


def test_a_copy_of_a_checkpoint_is_none(quick, diffuse):
    quick("--steps", 4, "--save-every", 2)
    own = RunDirectory(Path("model.safetensors")).checkpoints
    copy = own / "step-00000002.bak"
    shutil.copytree(own / "step-00000002", copy)
    assert diffuse("info", "model.run").code == 0
    assert quick("--steps", 6, "--save-every", 2, "--resume").code == 0
    names = sorted(path.name for path in own.iterdir())
    assert names == ["step-00000002.bak", "step-00000004", "step-00000006"]


def test_a_new_checkpoint_is_whole_before_an_old_one_goes(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "model.safetensors")
    for step in (1, 2, 3):
        run.save(Checkpoint(step=step, model={}, ema={}, optimizer={}, history={}, state={}))
    order = []
    monkeypatch.setattr(files, "operation", watching(order))
    run.save(Checkpoint(step=4, model={}, ema={}, optimizer={}, history={}, state={}))
    new, old = order.index(("rename", "step-00000004")), order.index(("rename", "step-00000002"))
    assert ("sync-folder", "checkpoints") in order[new:old]


# -- what it says, what it refuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "typed", "stored"),
    [
        ("--lr 0.5", "0.5", "0.002"),
        ("--seed 7", "7", "0"),
        ("--batch-size 4", "4", "8"),
        ("--size 16", "16x16", "8x8"),
        ("--target eps", "eps", "v"),
        ("--schedule linear", "linear", "cosine"),
        ("--preset small", "small", "tiny"),
        ("--flip", "True", "False"),
        ("--timestep-draw importance", "importance", "uniform"),
        ("--classes", "True", "False"),
        ("--label-dropout 0.2", "0.2", "0.1"),
        ("--variance learned", "learned", "small"),
        ("--precision bf16", "bf16", "fp32"),
        ("--config other.toml", "16", "8"),
    ],
)
def test_a_typed_option_that_differs_is_named_with_both_values(
    diffuse, images, stopped, option, typed, stored
):
    Path("other.toml").write_text("[unet]\nwidth = 16\n")
    ran = diffuse("train", images, "--resume", *option.split())
    assert ran.code == 2
    assert typed in ran.line
    assert stored in ran.line.split(typed, 1)[1]


@pytest.fixture
def stopped(tmp_path, model_at_2):
    """A run of 4 steps that stopped after 2, in the folder of the test."""
    shutil.copytree(model_at_2, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def model_at_2(images, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    line = ["train", images, "--config", recipe, "--steps", 4, "--stop-at", 2, "-q"]
    assert in_process([*line, "-o", folder / "model.safetensors"]) == 0
    return folder


def test_options_that_are_the_same_or_cannot_matter_are_accepted(train, stopped):
    options = "--log-every 1 --save-every 2 --preview-every 2 --workers 1 --precision auto"
    ran = train("--resume", *options.split(), "--size", 8, "--seed", 0, "--schedule", "cosine")
    assert ran.code == 0, ran.err
    assert steps_of() == [2, 3, 4]


def test_resume_needs_neither_data_nor_configuration(diffuse, stopped, train):
    assert diffuse("train", "--resume").code == 0
    train("--steps", 4, "-o", WHOLE)
    assert MODEL.read_bytes() == WHOLE.read_bytes()


def test_an_unknown_key_is_refused_on_resume_too(diffuse, stopped):
    Path("odd.toml").write_text("stepps = 3\n")
    assert "Did you mean 'steps'?" in diffuse("train", "--resume", "--config", "odd.toml").err


def test_more_steps_extend_the_run_and_say_so(quick):
    quick("--steps", 4)
    ran = quick("--steps", 6, "--resume", "--json")
    assert ran.code == 0
    assert "6 steps instead of 4" in ran.err
    assert ran.json["step"] == 6
    assert tomllib.loads((RUN / "config.toml").read_text())["steps"] == 6


def test_fewer_steps_than_are_done_are_refused(quick):
    quick("--steps", 4)
    before = (RUN / "config.toml").read_text()
    ran = quick("--steps", 3, "--resume", "-q")
    assert ran.code == 2
    assert "the 4 steps already taken" in ran.line
    assert (RUN / "config.toml").read_text() == before


def test_a_finished_run_is_left_alone(quick, monkeypatch):
    quick("--steps", 4)
    kept = [MODEL, *RUN.rglob("*.safetensors"), RUN / "metrics.jsonl"]
    before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in kept[:-1]]
    lines = kept[-1].read_text()
    monkeypatch.setattr(Trainer, "step", refuse)
    ran = quick("--steps", 4, "--resume")
    assert ran.code == 0
    assert ran.out == "model.safetensors\n"
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in kept[:-1]] == before
    assert kept[-1].read_text() == lines


def test_a_finished_run_writes_a_missing_model_again(quick, monkeypatch):
    quick("--steps", 4)
    before = MODEL.read_bytes()
    MODEL.unlink()
    monkeypatch.setattr(Trainer, "step", refuse)
    assert quick("--resume").code == 0
    assert MODEL.read_bytes() == before


def test_a_model_without_a_run_directory_cannot_be_resumed(train, model):
    shutil.copy(model, MODEL)
    ran = train("--steps", 4, "--resume")
    assert ran.code == 5
    assert "--init model.safetensors" in ran.line


@pytest.mark.parametrize("lost", ["removed", "damaged"])
def test_a_model_that_no_checkpoint_leads_to_is_not_replaced(quick, lost):
    quick("--steps", 4, "--save-every", 2, "--eval-every", 2, "--eval-images", 4)
    if lost == "removed":
        shutil.rmtree(RUN / "checkpoints")
    else:
        damage(2)
        damage(4)
    kept = [MODEL, Path("model.best.safetensors"), RUN / "config.toml", RUN / "metrics.jsonl"]
    before = [path.read_bytes() for path in kept]
    for flag in ("--resume", "--auto-resume"):
        ran = quick("--steps", 4, flag)
        assert ran.code == 5
        assert "model.safetensors exists, but model.run has no complete checkpoint" in ran.err
        assert "--init model.safetensors" in ran.err
        assert [path.read_bytes() for path in kept] == before
    MODEL.unlink()
    ran = quick("--resume")
    assert ran.code == 0
    assert "starting at step 0" in ran.err
    assert MODEL.read_bytes() == before[0]


def test_no_run_to_resume_is_refused_with_those_that_are_there(train, stopped):
    before = sorted(Path().iterdir())
    ran = train("--steps", 3, "--resume", "-o", "modle.safetensors", "-q")
    assert ran.code == 5
    assert "there is no run modle.run to resume. Did you mean 'model.safetensors'?" in ran.line
    assert "To start a run, leave out --resume, or use --auto-resume" in ran.line
    ran = train("--steps", 3, "--resume", "-o", "far/from.safetensors", "-q")
    assert ran.code == 5
    assert "there is no run far/from.run to resume. To start a run" in ran.line
    assert sorted(Path().iterdir()) == before


def test_auto_resume_begins_where_there_is_nothing_and_goes_on_where_there_is(quick, model_at_5):
    """The loop of a job that is queued again until it is done: the same line each time."""
    line = ("--steps", 6, "--auto-resume")
    ran = quick(*line, "--stop-at", 3)
    assert ran.code == 0
    assert "starting at step 0" in ran.err
    ran = quick(*line)
    assert ran.code == 0
    assert "resuming from step 3" in ran.err
    whole = (model_at_5 / WHOLE).read_bytes()
    assert MODEL.read_bytes() == whole
    assert quick(*line).code == 0
    assert quick(*line, "--seed", 7).code == 2
    assert quick(*line, "--overwrite", "-q").code == 2
    assert MODEL.read_bytes() == whole


def test_auto_resume_warns_of_what_a_new_run_warns_of(quick, monkeypatch):
    monkeypatch.setattr(devices, "bfloat16_width", lambda device: None)
    line = ("--steps", 2, "--auto-resume", "--precision", "bf16")
    ran = quick(*line, "--stop-at", 1)
    assert (ran.code, "--precision bf16 may be slower" in ran.err) == (0, True), ran.err
    ran = quick(*line)
    assert (ran.code, "--precision bf16 may be slower" in ran.err) == (0, False), ran.err


def test_auto_resume_does_not_begin_in_the_place_of_a_model(train, model):
    shutil.copy(model, MODEL)
    before = MODEL.read_bytes()
    assert train("--steps", 4, "--auto-resume").code == 5
    assert MODEL.read_bytes() == before


def test_a_stop_beyond_the_last_step_is_refused(train, stopped):
    ran = train("--steps", 4, "--stop-at", 5, "-o", WHOLE, "-q")
    assert ran.code == 2
    assert "--stop-at 5 is beyond the 4 steps of the run" in ran.line
    assert train("--resume", "--stop-at", 5).code == 2
    assert train("--resume", "--stop-at", 4).code == 0


def test_a_resume_that_takes_no_step_says_why_and_what_to_do(train, stopped):
    for stop in (1, 2):
        ran = train("--resume", "--stop-at", stop)
        assert ran.code == 0, ran.err
        text = f"--stop-at {stop} is not after step 2, which the run has taken: nothing to do"
        assert text in ran.err
        assert "finished" not in ran.err
    assert train("--resume").code == 0
    ran = train("--resume")
    assert (ran.code, ran.out) == (0, f"{MODEL}\n")
    line = "the run is finished, at step 4. To train more, resume with --steps 8\n"
    assert line in ran.err
    ran = train("--resume", "--steps", 8)
    assert ran.code == 0, ran.err
    assert "step 8 of 8" in ran.err
    assert "is finished" not in ran.err


def test_a_stop_beyond_the_steps_that_minutes_hold_is_said(quick, step_takes):
    step_takes(100.0)
    ran = quick("--minutes", 10, "--stop-at", 41)
    assert ran.code == 0
    assert "--stop-at 41 is beyond the end of the run, 40 steps" in ran.err


def test_other_images_are_a_warning_and_with_strict_an_error(diffuse, stopped, tmp_path):
    other = write_images(tmp_path / "other", 50, seed=2)
    ran = diffuse("train", other, "--resume", "--strict")
    assert ran.code == 3
    ran = diffuse("train", other, "--resume")
    assert ran.code == 0
    assert "warning: the images in" in ran.err


def test_a_run_from_init_resumes_without_that_model(diffuse, images, model_at_5):
    shutil.copy(model_at_5 / WHOLE, "old.safetensors")
    line = ("train", images, "--init", "old.safetensors", "--steps", 4)
    diffuse(*line, "-o", WHOLE)
    diffuse(*line, "--stop-at", 2)
    Path("old.safetensors").unlink()
    ran = diffuse("train", "--resume")
    assert ran.code == 0, ran.err
    assert MODEL.read_bytes() == WHOLE.read_bytes()


def test_another_version_is_said_and_kept_in_the_run(quick, model_at_5, monkeypatch):
    here = model_file.versions()
    older = {"diffuse": here["diffuse"], "torch": "2.5.0"}
    with monkeypatch.context() as patch:
        patch.setattr(model_file, "versions", lambda: older)
        assert quick("--steps", 6, "--stop-at", 2).code == 0
    ran = quick("--resume", "--stop-at", 4)
    assert (
        f"warning: the checkpoint was written by torch 2.5.0, and this is torch {here['torch']}: "
        "rounding may make results differ" in ran.err
    )
    assert "written by" not in quick("--resume").err
    kept = RunDirectory(MODEL).load()[0].state["versions"]
    assert kept == [{**older, "step": 0}, {**here, "step": 2}]
    assert MODEL.read_bytes() == (model_at_5 / WHOLE).read_bytes()


def test_a_torn_line_of_metrics_is_dropped(train, stopped):
    with (RUN / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    train("--resume", "--log-every", 1)
    assert steps_of() == [2, 3, 4]


def test_previews_of_steps_to_be_taken_again_are_removed(tmp_path):
    run = RunDirectory(tmp_path / MODEL)
    run.previews.mkdir(parents=True)
    run.snapshots.mkdir()
    for step in (4, 8):
        (run.previews / f"step-{step:08d}.png").touch()
        (run.snapshots / f"step-{step:08d}.safetensors").touch()
    run.rewind(4)
    assert [p.name for p in run.previews.iterdir()] == ["step-00000004.png"]
    assert [p.name for p in run.snapshots.iterdir()] == ["step-00000004.safetensors"]


def test_a_damaged_configuration_is_named_as_the_runs(train, stopped):
    (RUN / "config.toml").write_text("steps = [")
    ran = train("--resume", "-q")
    assert ran.code == 2
    assert "the run's model.run/config.toml is not TOML" in ran.line
