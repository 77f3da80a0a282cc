"""--resume: the same bytes as a run in one go, what it says, and what it refuses."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

import pytest
from conftest import MODEL, RUN, WHOLE, log_rows, logged, mostly_slow
from file_operations import watching
from lab import QUICK
from safetensors.torch import load_file

from diffuse_cli.media import MEDIA
from diffuse_cli.models import model_file
from diffuse_cli.system import devices, files
from diffuse_cli.training.run_directory import Checkpoint, RunDirectory


def test_data_in_a_folder_whose_name_is_not_utf_8(diffuse, images):
    name = os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(images, name)
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system has only names in UTF-8")
    assert diffuse("train", name, "--config", QUICK, "--steps", 2, "--stop-at", 1, "-q").code == 0
    diffuse("train", "--resume", "-o", MODEL, "-q").ok()


OFTEN = ("--steps", 6, "--save-every", 2, "--log-every", 1)
AUGMENT = ",".join(MEDIA["image"].augmentations)


def steps_of():
    return [row["step"] for row in log_rows() if "loss" in row]


def checkpoints():
    return sorted(p.name for p in (RUN / "checkpoints").iterdir())


def damage(step, name="model.safetensors"):
    path = RUN / f"checkpoints/step-{step:08d}" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# -- the same bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options", "stop"),
    mostly_slow(
        [
            ("images", "--steps 4 --classes --variance learned --config {transformer}", 2),
            (
                "images",
                "--steps 14 --timestep-draw importance --num-timesteps 3 --classes --flip "
                "--variance learned --label-dropout 0.5 --accumulation 2",
                9,
            ),
            ("images", "--steps 5 --save-every 2 --weighting none --loss vlb --config own.toml", 3),
            ("images", "--steps 16 --batch-size 7 --log-every 9 --timestep-draw weight", 11),
            ("images", "--steps 4 --given {negatives} --given-noise .2 --flip --accumulation 2", 2),
            ("images", "--steps 4 --given {maps} --augment rotate,flip --given-noise .2", 2),
            (
                "shades",
                "--steps 4 --condition-on level,side --label-dropout 0.3 --given mask:half "
                "--flip --accumulation 2 --preview-every 3",
                2,
            ),
            ("images", f"--steps 8 --augment {AUGMENT} --accumulation 2 --classes", 3),
            (
                "images",
                "--steps 4 --accumulation 2 --flip --weighting min-snr --target eps "
                "--schedule linear",
                2,
            ),
            ("images", "--steps 4 --warmup 10 --target x0 --variance large", 1),
            ("images", "--steps 14 --timestep-draw importance --num-timesteps 3", 2),
            ("images", "--steps 4 --precision bf16 --gradient-checkpointing --config own.toml", 2),
            ("images", "--steps 4 --ema-decay 0.5 --batch-size 54 --lr 0.01 --optimizer muon", 2),
            ("images", "--steps 4 --given mask:random+noise:0.1 --classes --given-dropout 0.4", 2),
            ("shades", "--steps 4 --condition-on level,side --gradient-checkpointing", 2),
            ("images", f"--steps 8 --augment {AUGMENT} --ema-lengths 4", 3),
        ],
        always=8,
    ),
)
def test_stopped_and_resumed_equals_one_go(diffuse, lab, data, options, stop):
    """Of the U-Net where it drops out, of the transformer that does too, else of the quickest."""
    Path("own.toml").write_text(
        lab["tiny"].read_text() + 'dropout = 0.3\ntime_embedding = "fourier"\n'
    )
    line = ("train", lab[data], "--config", QUICK, *options.format_map(lab).split())
    diffuse(*line, "-o", WHOLE)
    assert diffuse(*line, "--stop-at", stop, "--json", "--log-every", 1).ok().json["step"] == stop
    half = MODEL.read_bytes()
    ran = diffuse("train", lab[data], "--resume", "--log-every", 1).ok()
    assert f"resuming from step {stop}" in ran.err
    assert MODEL.read_bytes() == WHOLE.read_bytes() != half
    last = int(options.split()[1])
    assert steps_of() == list(range(1, last + 1))
    previews = [run / f"previews/step-{last:08d}.png" for run in (RUN, WHOLE.with_suffix(".run"))]
    assert previews[0].read_bytes() == previews[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("images", "--config {transformer}"),
        ("images", "--given {negatives} --given-noise 0.3 --flip --accumulation 2"),
        ("images", "--given {maps} --augment rotate,flip"),
        ("images", "--augment flip,zoom,rotate,shift,color"),
        ("shades", "--condition-on level,side --label-dropout 0.3 --accumulation 2"),
    ],
)
def test_two_processes_train_as_one_does_and_resume_exactly(pair, diffuse, lab, data, options):
    line = ("train", lab[data], "--config", QUICK, *options.format_map(lab).split())
    line = (*line, "--steps", 4, "--log-every", 1)
    assert pair(*line, "-o", WHOLE, "--json").ok().json["processes"] == 2
    diffuse(*line, "-o", "one.safetensors").ok()
    for name in ("loss", "grad_norm"):
        two, one = logged(name, Path("whole.run")), logged(name, Path("one.run"))
        assert len(two) == 4
        assert two == pytest.approx(one, rel=1e-3)
    pair(*line, "--stop-at", 2).ok()
    half = MODEL.read_bytes()
    pair(*line, "--resume").ok()
    assert MODEL.read_bytes() == WHOLE.read_bytes() != half


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("--preview-every 2 --workers 1", "--preview-every 100 --workers 4"),
        ("--preview-every 100 --save-every 1", "--preview-every 3 --save-every 100"),
        ("--log tensorboard", "--log-every 1"),
    ],
)
def test_what_cannot_change_the_weights_may_change_at_a_resume(quick, first, then, often):
    quick("--steps", 6, "--stop-at", 2, *first.split())
    assert quick("--steps", 6, "--resume", *then.split()).code == 0
    assert MODEL.read_bytes() == often


def test_dropout_is_in_effect(train, recipe):
    Path("dropout.toml").write_text(recipe.read_text() + "dropout = 0.3\n")
    train("--steps", 4, "-o", WHOLE)
    train("--steps", 4, "--config", "dropout.toml")
    plain, dropped = load_file(WHOLE), load_file(MODEL)
    assert not plain["conv_out.weight"].equal(dropped["conv_out.weight"])


@pytest.fixture
def often(lab):
    """The model file of such a run in one go."""
    return lab.trained(*lab.quick, *OFTEN).read_bytes()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "history.safetensors", "manifest.json"]
)
def test_a_damaged_checkpoint_falls_back_and_says_so(quick, lab, copy_run, often, name):
    copy_run(*lab.quick, *OFTEN, "--stop-at", 5)
    assert checkpoints() == ["step-00000004", "step-00000005"]
    damage(5, name)
    ran = quick(*OFTEN, "--resume").ok()
    assert "step-00000005 is damaged" in ran.err
    assert "resuming from step 4" in ran.err
    assert MODEL.read_bytes() == often
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


def test_a_copy_of_a_checkpoint_is_none(quick, diffuse, lab, copy_run):
    copy_run(*lab.quick, "--steps", 4, "--save-every", 2)
    folder = RUN / "checkpoints"
    shutil.copytree(folder / "step-00000002", folder / "step-00000002.bak")
    assert diffuse("info", RUN).code == 0
    assert quick("--steps", 6, "--save-every", 2, "--resume").code == 0
    assert checkpoints() == ["step-00000002.bak", "step-00000004", "step-00000006"]


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


def test_an_option_that_differs_is_refused_with_both_values(diffuse, images, stopped):
    Path("other.toml").write_text("[unet]\nwidth = 16\n")
    for line, typed, stored in [
        ("--lr 0.5", "0.5", "0.002"),
        ("--seed 7", "7", "0"),
        ("--size 16", "16x16", "8x8"),
        ("--preset small", "small", "tiny"),
        ("--flip", "True", "False"),
        ("--classes", "True", "False"),
        ("--variance learned", "learned", "small"),
        ("--precision bf16", "bf16", "fp32"),
        ("--config other.toml", "16", "8"),
        ("--ema-lengths 4", "4", "None"),
        ("--augment color", "color", "none"),
        ("--given low-res:2", "low-res:2", "None"),
    ]:
        ran = diffuse("train", images, "--resume", *line.split()).fails(2, typed)
        assert stored in ran.line.split(typed, 1)[1]
    Path("odd.toml").write_text("stepps = 3\n")
    assert "Did you mean 'steps'?" in diffuse("train", "--resume", "--config", "odd.toml").line
    (RUN / "config.toml").write_text("steps = [")
    diffuse("train", "--resume").fails(2, "the run's model.run/config.toml is not TOML")


@pytest.fixture
def stopped(lab, copy_run):
    """A run of 4 steps that stopped after 2, in the folder of the test."""
    copy_run(*lab.tiny, "--steps", 4, "--stop-at", 2)


def test_options_that_are_the_same_or_cannot_matter_are_accepted(train, stopped):
    """The line of metrics that a kill has cut is dropped."""
    with (RUN / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    options = "--log-every 1 --save-every 2 --preview-every 2 --workers 1 --precision auto"
    train("--resume", *options.split(), "--size", 8, "--seed", 0, "--schedule", "cosine").ok()
    assert steps_of() == [2, 3, 4]


def test_more_steps_extend_the_run_and_fewer_than_are_done_are_refused(quick, copy_run, lab):
    copy_run(*lab.quick, "--steps", 4)
    before = (RUN / "config.toml").read_text()
    quick("--steps", 3, "--resume", "-q").fails(2, "the 4 steps already taken")
    assert (RUN / "config.toml").read_text() == before
    ran = quick("--steps", 6, "--resume", "--json").ok()
    assert "6 steps instead of 4" in ran.err
    assert ran.json["step"] == 6
    assert tomllib.loads((RUN / "config.toml").read_text())["steps"] == 6


def test_a_finished_run_is_left_alone_and_writes_a_missing_model_again(
    quick, copy_run, lab, instead_of_networks
):
    copy_run(*lab.quick, "--steps", 4)
    kept, lines = [MODEL, *RUN.rglob("*.safetensors")], log_rows()
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    instead_of_networks()
    ran = quick("--steps", 4, "--resume")
    assert (ran.code, ran.out) == (0, "model.safetensors\n")
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept] == before
    assert log_rows() == lines
    MODEL.unlink()
    assert quick("--resume").code == 0
    assert MODEL.read_bytes() == before[0][0]


def test_a_model_without_a_run_directory_cannot_be_resumed(train, model):
    shutil.copy(model, MODEL)
    for flag in ("--resume", "--auto-resume"):
        train("--steps", 4, flag, "-q").fails(5, "--init model.safetensors")
        assert MODEL.read_bytes() == model.read_bytes()


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
        said = "model.safetensors exists, but model.run has no complete checkpoint"
        quick("--steps", 4, flag, "-q").fails(5, said, "--init model.safetensors")
        assert [path.read_bytes() for path in kept] == before
    MODEL.unlink()
    assert "starting at step 0" in quick("--resume").ok().err
    assert MODEL.read_bytes() == before[0]


def test_no_run_to_resume_is_refused_with_those_that_are_there(train, stopped):
    before = sorted(Path().iterdir())
    said = "there is no run modle.run to resume. Did you mean 'model.safetensors'?"
    train("--steps", 3, "--resume", "-o", "modle.safetensors", "-q").fails(5, said)
    assert sorted(Path().iterdir()) == before


def test_auto_resume_begins_where_there_is_nothing_and_goes_on_where_there_is(quick, often):
    """The loop of a job that is queued again until it is done: the same line each time."""
    line = ("--steps", 6, "--auto-resume")
    assert "starting at step 0" in quick(*line, "--stop-at", 3).ok().err
    assert "resuming from step 3" in quick(*line).ok().err
    assert MODEL.read_bytes() == often
    assert quick(*line).code == 0
    assert quick(*line, "--seed", 7).code == 2
    assert quick(*line, "--overwrite", "-q").code == 2
    assert MODEL.read_bytes() == often


def test_auto_resume_warns_of_what_a_new_run_warns_of(quick, monkeypatch):
    monkeypatch.setattr(devices, "bfloat16_width", lambda device: None)
    line = ("--steps", 2, "--auto-resume", "--precision", "bf16")
    assert "--precision bf16 may be slower" in quick(*line, "--stop-at", 1).ok().err
    assert "--precision bf16 may be slower" not in quick(*line).ok().err


def test_a_resume_that_takes_no_step_says_why_and_what_to_do(train, stopped):
    assert train("--resume", "--stop-at", 5).code == 2
    for stop in (1, 2):
        ran = train("--resume", "--stop-at", stop).ok()
        text = f"--stop-at {stop} is not after step 2, which the run has taken: nothing to do"
        assert text in ran.err
        assert "finished" not in ran.err
    assert train("--resume", "--stop-at", 4).code == 0
    ran = train("--resume")
    assert (ran.code, ran.out) == (0, f"{MODEL}\n")
    text = "the run is finished, at step 4. To train more: diffuse train "
    assert text in ran.err
    assert f" --resume -o {MODEL} --steps 8\n" in ran.err
    ran = train("--resume", "--steps", 8).ok()
    assert "step 8 of 8" in ran.err
    assert "is finished" not in ran.err


def test_a_stop_beyond_the_steps_that_minutes_hold_is_said(quick, step_takes):
    step_takes(100.0)
    ran = quick("--minutes", 10, "--stop-at", 41).ok()
    assert "--stop-at 41 is beyond the end of the run, 40 steps" in ran.err
    assert "on cpu; --minutes 10\n" in ran.err


def test_another_version_is_said_and_kept_in_the_run(quick, often, monkeypatch):
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
    assert MODEL.read_bytes() == often
