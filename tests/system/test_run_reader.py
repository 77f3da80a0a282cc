"""A run directory stands where a model does, also while the training writes there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import MODEL, RUN, in_process

from diffuse_cli.models import model_file, tensor_file
from diffuse_cli.sampling import model_loading
from diffuse_cli.system import files, run_reader
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import Notice, finish


def checkpoint(step: int, run: Path = RUN) -> Path:
    return run / f"checkpoints/step-{step:08d}"


@pytest.fixture(scope="module")
def made(lab, tmp_path_factory):
    """A run of 8 steps, stopped after 6, with checkpoints at 4 and 6 and no model file; that of
    each step lies at 4.safetensors and 6.safetensors."""
    folder = tmp_path_factory.mktemp("stopped")
    for step in (4, 6):
        line = [*lab.tiny, "--steps", 8, "--save-every", 2, "--stop-at", step, "--auto-resume"]
        assert in_process([*line, "-q", "-o", folder / MODEL]) == 0
        shutil.copy(folder / MODEL, folder / f"{step}.safetensors")
    (folder / MODEL).unlink()
    return folder


@pytest.fixture
def stopped(made, tmp_path, monkeypatch):
    """A copy of it here."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return RUN


def found(path) -> tuple[Path, int, list[str]]:
    """The file and step of the model at a path, and what is said."""
    events = []
    model = finish(model_file.find(path), events.append)
    assert all(isinstance(event, Notice) for event in events)
    said = [("warning: " if event.warning else "") + event.text for event in events]
    return model.path, model.model.step, said


def files_of(folder):
    return [path.read_bytes() for path in sorted(Path(folder).glob("0*.png"))]


# -- what is found --------------------------------------------------------------------------------


def test_a_run_is_sampled_as_the_model_file_of_its_newest_checkpoint(stopped, diffuse):
    ran = diffuse("sample", "model.run", "-n", 3, "-o", "run").ok()
    assert "the model of step 6: model.run/checkpoints/step-00000006\n" in ran.err
    assert diffuse("sample", "6.safetensors", "-n", 3, "-o", "file").code == 0
    assert files_of("run") == files_of("file")
    assert len(files_of("run")) == 3


def test_a_checkpoint_is_a_model_too(stopped, diffuse):
    diffuse("sample", checkpoint(4), "-n", 2, "-o", "folder").ok()
    assert diffuse("sample", checkpoint(4) / "ema.safetensors", "-n", 2, "-o", "file").code == 0
    assert diffuse("sample", "4.safetensors", "-n", 2, "-o", "model").code == 0
    assert files_of("folder") == files_of("file") == files_of("model")


def test_a_checkpoint_says_of_its_model_what_the_model_file_says(stopped):
    one, other = (model_file.load(path) for path in (checkpoint(6), "6.safetensors"))
    left_out = dict.fromkeys(("ema", "raw", "weak", "weak_step"))
    assert {**vars(one), **left_out} == {**vars(other), **left_out}
    assert all(one.ema[name].equal(tensor) for name, tensor in other.ema.items())


@pytest.mark.parametrize(("file", "expected"), [("6.safetensors", True), ("4.safetensors", False)])
def test_the_model_file_counts_where_it_is_not_older(stopped, file, expected):
    shutil.copy(file, MODEL)
    path, step, _ = found(RUN)
    assert step == 6
    assert (path == MODEL) is expected


def test_a_damaged_checkpoint_is_passed_over_and_said(stopped):
    path = checkpoint(6) / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    at, step, said = found(RUN)
    assert (at, step) == (checkpoint(4) / "ema.safetensors", 4)
    assert said[0] == (
        "warning: model.run/checkpoints/step-00000006 is damaged (ema.safetensors does not match "
        "its checksum): trying the one before"
    )
    with pytest.raises(ModelFileError, match="does not match its checksum"):
        finish(model_file.find(checkpoint(6)))
    MODEL.write_bytes(Path("6.safetensors").read_bytes()[:-4])
    at, step, said = found(RUN)
    assert (at, step) == (checkpoint(4) / "ema.safetensors", 4)
    assert said[0].startswith("warning: model.safetensors is not a valid model file")


def test_a_checkpoint_that_the_training_removes_meanwhile_is_no_loss(stopped, monkeypatch):
    """It saves two while the newest is read: what was listed is gone, and newer ones are there."""
    real, removed = run_reader.find_damage, []

    def fault(path, *names):
        if not removed:
            removed.append(path)
            for step in (4, 6):
                checkpoint(step).rename(checkpoint(step + 4))
        return real(path, *names)

    monkeypatch.setattr(run_reader, "find_damage", fault)
    at, _, said = found(RUN)
    assert removed == [checkpoint(6)]
    assert at == checkpoint(10) / "ema.safetensors"
    assert said == ["the model of step 6: model.run/checkpoints/step-00000010"]


def test_a_run_without_a_checkpoint_says_so(stopped, diffuse):
    shutil.rmtree(RUN / "checkpoints")
    for line in (("sample", RUN), ("info", RUN, "--toml")):
        ran = diffuse(*line, "--json")
        assert (ran.code, ran.json["error"]["code"]) == (4, "checkpoint_missing")
        assert "model.run has no complete checkpoint yet" in ran.line


@pytest.mark.parametrize("name", ["ema", "model"])
def test_weights_of_a_checkpoint_without_a_description_are_not_taken_for_another_program_s(
    stopped, diffuse, name
):
    """Checkpoints of version 0.1, and those of what a checkpoint has besides the average."""
    path = checkpoint(6) / f"{name}.safetensors"
    tensor_file.write(path, tensor_file.read(path))
    ran = diffuse("sample", path, "-q").fails(4, "is a part of a checkpoint")
    assert "diffusers" not in ran.line


def test_the_processes_of_one_command_take_the_same_checkpoint(stopped, monkeypatch):
    """Another process found an older one; it looks again, and so does this."""
    from accelerate import Accelerator

    answers = [["other"], []]

    def gather(values):
        return values + (answers.pop(0) if answers else [])

    monkeypatch.setattr(model_loading, "gather_object", gather)
    loaded = finish(model_loading.load_denoiser(RUN, "ema", Accelerator(cpu=True)))
    assert loaded.model.step == 6
    assert answers == []


# -- wherever a model stands ----------------------------------------------------------------------


def test_the_toml_of_a_run_is_that_of_its_newest_model(stopped, diffuse):
    newest = run_reader.list_checkpoints(RUN / "checkpoints")[0]
    ran = diffuse("info", RUN, "--toml")
    assert ran.out == diffuse("info", newest, "--toml").out
    assert 'schedule = "cosine"' in ran.out


def test_eval_measures_a_run_and_its_report_has_its_curves(stopped, diffuse, images):
    more = ("-n", 6, "--timesteps", 4, "--train-n", 0, "--json", "--steps", 3)
    one = diffuse("eval", "model.run", images, *more, "--report", "page.html")
    other = diffuse("eval", "6.safetensors", images, *more)
    assert one.code == 0, one.err
    for name in ("kid", "bits_per_dim"):
        assert one.json[name] == other.json[name]
    assert "Loss over steps: loss of training" in Path("page.html").read_text()


def test_init_starts_from_a_run(stopped, train):
    still = ("--steps", 1, "--warmup", 0, "--lr", 0, "--weight-decay", 0)
    one, other = (
        train(*still, "--init", path, "-o", f"{name}.safetensors")
        for name, path in (("a", "model.run"), ("b", "6.safetensors"))
    )
    assert (one.code, other.code) == (0, 0), one.err
    assert "the model of step 6" in one.err
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_ema_finds_the_snapshots_of_a_run(lab, diffuse, images):
    model = lab.trained(*lab.quick, "--steps", 4, "--ema-lengths", 4)
    more = ("-n", 6, "--metric", "held-out", "--json")
    one, other = (diffuse("ema", p, images, *more) for p in (model.with_suffix(".run"), model))
    assert one.code == 0, one.err
    assert one.json["rows"] == other.json["rows"]


def test_a_run_is_no_images_and_needs_no_conversion(stopped, diffuse):
    for command, code, said in (
        ("train", (3, "data_unsupported"), "is the run directory of a model, not images"),
        ("convert", (2, "model_mismatch"), "is a diffuse model already"),
    ):
        ran = diffuse(command, RUN, "-o", "other.safetensors", "--json")
        assert (ran.code, ran.json["error"]["code"]) == code
        assert f"model.run {said}" in ran.line


@pytest.mark.parametrize("name", ["images", "images.run"])
def test_a_folder_of_images_is_none(tmp_path, name):
    folder = tmp_path / name
    (folder / "checkpoints").mkdir(parents=True)
    assert run_reader.find_run(folder) is None
    (folder / "manifest.json").write_text("{}")
    assert run_reader.find_run(folder) is None


def test_a_name_that_no_system_takes_is_no_run(diffuse):
    assert run_reader.find_run(Path("x" * 5000)) is None
    assert diffuse("sample", "x" * 5000, "-q").code == 4


def test_the_run_of_a_model(tmp_path, stopped):
    assert run_reader.run_folder(Path("a/b.safetensors")) == Path("a/b.run")
    assert run_reader.run_folder(Path("b.best.safetensors")) == Path("b.run")
    assert run_reader.run_folder(RUN) == run_reader.run_folder(checkpoint(4)) == RUN
    assert run_reader.model_path(RUN) == MODEL


def test_old_checkpoints_are_removed_as_before(stopped):
    assert [
        run_reader.checkpoint_step(path)
        for path in run_reader.list_checkpoints(RUN / "checkpoints")
    ] == [6, 4]
    assert run_reader.find_damage(checkpoint(6)) == ""
    manifest = checkpoint(6) / "manifest.json"
    sums = json.loads(manifest.read_text())["files"]
    assert set(sums) == {p.name for p in checkpoint(6).iterdir()} - {manifest.name}
    files.remove(checkpoint(6) / "state.json")
    assert "state.json" in run_reader.find_damage(checkpoint(6))
    assert run_reader.find_damage(checkpoint(6), "ema.safetensors") == ""


@pytest.mark.parametrize(
    ("data", "minutes", "line"),
    [
        ("my data", None, "diffuse train 'my data' --resume -o m.safetensors --steps 8"),
        ("my data", 2.5, "diffuse train 'my data' --resume -o m.safetensors --minutes 5"),
        ("memory:1", None, "diffuse.train(data, out='m.safetensors', resume=True, steps=8)"),
        ("memory:1", 10, "diffuse.train(data, out='m.safetensors', resume=True, minutes=20)"),
    ],
)
def test_a_line_that_resumes_is_extended(data, minutes, line):
    resume = run_reader.resume_line(data, "m.safetensors")
    assert run_reader.extend_line(resume, 4, minutes) == line
