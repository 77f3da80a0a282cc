"""Several processes: one model from two, the same samples, and one run at a time on an output."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import Ran, free_port, logged, mostly_slow
from forked_launchers import StandIns
from lab import QUICK, write_images
from PIL import Image

from diffuse_cli import app
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.system import outputs
from diffuse_cli.system.errors import DataError, UsageError
from diffuse_cli.system.events import finish
from diffuse_cli.training import training_data
from diffuse_cli.training.decisions import check_batch
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.trainer import Trainer

STEPS = ("--steps", 4, "--log-every", 1, "--num-timesteps", 8)


@pytest.fixture
def launch(spawn, tmp_path):
    """Run `diffuse` in two processes by torchrun or by accelerate: those it starts stand in for
    two that have everything imported already, with the arguments and the environment it gives."""
    stand_ins = StandIns(tmp_path / "launched")

    def run(launcher, *arguments):
        torchrun = ("--nproc_per_node", 2, "--master_port", free_port())
        accelerate = ("--multi_gpu", "--num_processes", 2, "--main_process_port", free_port())
        module, options = {
            "torchrun": ("torch.distributed.run", torchrun),
            "accelerate": ("accelerate.commands.launch", accelerate),
        }[launcher]
        line = [module, *map(str, (*options, "-m", "diffuse_cli", *arguments))]
        before = f"import sys; sys.argv = {line}; from {module} import main; main(); sys.exit(0)"
        started = spawn(before=before, env={"PYTHONPATH": str(stand_ins.folder)})
        asked = [stand_ins.asked(rank, started) for rank in range(2)]
        ranks = [spawn(*arguments, env=env) for arguments, env in asked]
        said = [rank.communicate(timeout=120) for rank in ranks]
        for k, rank in enumerate(ranks):
            stand_ins.tell(k, rank.wait())
        err = started.communicate(timeout=60)[1]
        return Ran(started.wait(), *map("".join, zip(*said, ("", err), strict=True)))

    return run


@pytest.mark.parametrize("launcher", mostly_slow(["torchrun", "accelerate"], always=1))
def test_two_processes_train_one_model_as_one_does(launch, diffuse, lab, launcher):
    """They draw the same timesteps and labels. The losses that decide the timesteps are noted in
    the order of the batch, by each alike."""
    options = (
        "--steps", 4, "--batch-size", 20, "--log-every", 1, "--timestep-draw", "importance",
        "--num-timesteps", 3, "--classes", "--label-dropout", 0.5, "--variance", "learned",
        "--flip", "--accumulation", 2,
    )  # fmt: skip
    ran = launch(launcher, *lab.quick, *options, "--json").ok()
    assert ran.json["processes"] == 2
    assert [str(p) for p in Path().glob("*.safetensors")] == ["model.safetensors"]
    assert ran.err.count("step 4/4") == 1
    assert diffuse(*lab.quick, *options, "-o", "one.safetensors").code == 0
    assert len(logged("loss")) == 4
    for name in ("loss", "grad_norm"):  # Adam takes no notice of the gradient's scale
        assert logged(name) == pytest.approx(logged(name, "one.run"), rel=1e-3)
    two, one = (RunDirectory(f"{name}.safetensors").load()[0].history for name in ("model", "one"))
    assert int(one["counts"].min()) >= 10
    assert torch.equal(two["counts"], one["counts"])
    assert torch.allclose(two["losses"], one["losses"], rtol=1e-3)


@pytest.mark.slow
def test_two_processes_agree_that_a_look_for_copies_is_due_where_they_resume(
    pair, lab, tmp_path, monkeypatch
):
    """Only the first compares. The first run is too short for looks, and the second has two."""
    monkeypatch.chdir(tmp_path)
    line = (*lab.quick, "--batch-size", 64, "--num-timesteps", 2, "--preview-every", 160, "-q")
    assert pair(*line, "--steps", 160).code == 0
    assert not logged("memorized_pixels")
    pair(*line, "--steps", 320, "--resume").ok()
    assert len(logged("memorized_pixels")) == 2


def test_two_processes_stopped_and_resumed_equal_one_go(pair, lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = (
        *lab.quick, "--steps", 4, "--timestep-draw", "importance",
        "--batch-size", 20, "--num-timesteps", 3, "--classes", "--label-dropout", 0.5,
        "--variance", "learned", "--flip", "--accumulation", 2, "--eval-every", 2,
        "--eval-images", 4, "--ema-lengths", 4, "-q",
    )  # fmt: skip
    assert pair(*line, "-o", "whole.safetensors").code == 0
    assert pair(*line, "--stop-at", 3).code == 0
    half = Path("model.safetensors").read_bytes()
    assert pair(*line, "--resume").code == 0
    assert Path("model.safetensors").read_bytes() == Path("whole.safetensors").read_bytes() != half
    assert logged("kid") == logged("kid", "whole.run")
    best = Path("whole.best.safetensors").read_bytes()
    assert Path("model.best.safetensors").read_bytes() == best
    snapshots = [sorted(Path(f"{name}.run/ema").iterdir()) for name in ("model", "whole")]
    assert [p.name for p in snapshots[0]] == [p.name for p in snapshots[1]]
    assert [p.read_bytes() for p in snapshots[0]] == [p.read_bytes() for p in snapshots[1]]
    assert len(snapshots[0]) == 4


@pytest.mark.parametrize("runs_out", mostly_slow([False, True], always=1))
def test_two_processes_resume_a_batch_that_one_computed_image_by_image(
    pair, diffuse, images, monkeypatch, runs_out
):
    """It was split before the first step, or where memory ran out."""
    line = ("train", images, "--config", QUICK, *STEPS, "--batch-size", 8)
    if runs_out:
        real = Trainer.losses

        def losses(self, denoiser, step, positions):
            if len(positions) > 1:
                raise MemoryError
            return real(self, denoiser, step, positions)

        monkeypatch.setattr(Trainer, "losses", losses)
    else:
        line = (*line, "--accumulation", 8)
    assert diffuse(*line, "-o", "one.safetensors").code == 0
    assert diffuse(*line, "--stop-at", 2).code == 0
    assert RunDirectory("model.safetensors").load()[0].state["accumulation"] == 8
    config = Path("model.run/config.toml").read_bytes()
    ran = pair(*line, "--auto-resume").ok()
    assert "batch 8 in 4 parts on 2 processes" in ran.err
    assert logged("loss") == pytest.approx(logged("loss", "one.run"), rel=1e-3)
    assert Path("model.run/config.toml").read_bytes() == config  # the same options resume again


def test_a_run_resumes_with_as_many_processes_as_images_of_a_batch(diffuse, images):
    line = ("train", images, "--config", QUICK, *STEPS, "--batch-size", 8, "--accumulation", 4)
    assert diffuse(*line, "--stop-at", 2).code == 0
    own = {"data": str(images), "batch_size": 8, "accumulation": 4}
    check_batch(TrainConfig(**own, auto_resume=True), 8, True)
    with pytest.raises(UsageError, match=r"the run's --batch-size 8 .* Resume with 8 processes or"):
        check_batch(TrainConfig(**own, auto_resume=True), 9, True)
    with pytest.raises(UsageError, match=r"8 processes x --accumulation 4. Set --batch-size 32"):
        check_batch(TrainConfig(**own, auto_resume=True, out="new.safetensors"), 8, False)
    with pytest.raises(UsageError, match="--batch-size 64 is less than 65 processes x"):
        check_batch(TrainConfig(data=str(images), out="new.safetensors"), 65, False)


def test_two_processes_sample_the_images_of_one(pair, diffuse, conditional):
    options = ("-n", 5, "--steps", 4, "--precision", "fp32", "--gif")
    options += ("--class", "light", "--class", "dark")
    ran = pair("sample", conditional, *options, "-o", "two", "--json").ok()
    assert ran.json["processes"] == 2
    diffuse("sample", conditional, *options, "-o", "one")
    one, two = (sorted(path.name for path in Path(at).iterdir()) for at in ("one", "two"))
    assert one == two
    for name in [name for name in one if name.endswith(".png")]:
        pixels = [np.asarray(Image.open(f"{at}/{name}"), int) for at in ("one", "two")]
        assert np.abs(pixels[0] - pixels[1]).max() <= 2
    told = [json.loads(Path(f"{at}/manifest.json").read_text()) for at in ("one", "two")]
    assert [each["n"] for each in told] == [5, 5]
    assert all(each["classes"] == ["light", "dark", "light", "dark", "light"] for each in told)


def test_two_processes_evaluate_as_one_does(pair, diffuse, images, conditional, tmp_path):
    """Batches are dealt out whole, so that not a digit differs."""
    other = write_images(tmp_path / "other", 11, seed=7)
    line = (
        "eval", conditional, other, "-n", 9, "--batch-size", 2, "--steps", 2, "--timesteps", 3,
        "--precision", "fp32", "--json",
    )  # fmt: skip
    kept = {"DIFFUSE_CACHE": str(tmp_path / "kept")}
    first = pair(*line, "--plot", "bound.png", env=kept).ok()
    assert first.err.count("real images:") == 1
    again = pair(*line, env=kept)
    assert again.err.count("using cached features") == 1
    one = diffuse(*line).json
    for ran in (first, again):
        assert {**ran.json, "seconds": 0, "plot": None} == {**one, "seconds": 0}
    assert Path("bound.png").exists()


@pytest.mark.parametrize(
    "text",
    mostly_slow(
        [
            "compare {unconditional} {classes} {grey} -n 6 --batch-size 2 --steps 2 --timesteps 3",
            "eval {beside} {grey} -n 6 --train-n 9 --metrics kid,memorization",
            "ema {unconditional} {grey} -n 4 --steps 2",
            "compare {unconditional} {classes}",
        ]
    ),
)
def test_two_processes_say_what_one_does(pair, diffuse, lab, text):
    """Also where the second has nothing to do: one batch, a choice or no images."""
    precision = ("--precision", "fp32") if " -n " in text else ()
    line = (*lab.line(text), *precision, "--json")
    two = pair(*line).ok()
    assert {**two.json, "seconds": 0} == {**diffuse(*line).json, "seconds": 0}


def test_two_processes_tune_as_one_does(pair, diffuse, images, conditional):
    """Every digit but the seconds, and so of the evaluation after it; the first alone writes."""
    line = (
        "tune", conditional, images, "-n", 5, "--batch-size", 2, "--precision", "fp32",
        "--samplers", "ddpm", "--steps", 2, "--guidance", "2,1", "--json",
    )  # fmt: skip
    two = pair(*line, "-o", "two.safetensors", "--report", "two.html").ok()
    assert two.err.count("tune: 2 settings of 5 images") == 1
    one = diffuse(*line, "-o", "one.safetensors", "--report", "one.html").json
    both = two.json, one
    for found in both:
        assert all(row.pop("seconds") > 0 for row in found["sweep"]["rows"])
        assert found["sweep"].pop("out")
        assert Path(found.pop("report")).exists()
    assert {**both[0], "seconds": 0} == {**both[1], "seconds": 0}
    assert Path("two.safetensors").read_bytes() == Path("one.safetensors").read_bytes()


@pytest.fixture
def machines(spawn, tmp_path):
    """Run one process on each of two machines, where the second has another folder."""
    second = tmp_path / "second"
    second.mkdir()

    def run(*arguments):
        job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        places = "", f"import os; os.chdir({str(second)!r})\n"
        ranks = [
            spawn(*arguments, env={**job, "RANK": str(k)}, before=place)
            for k, place in enumerate(places)
        ]
        said = [rank.communicate(timeout=100) for rank in ranks]
        return [Ran(rank.wait(), *each) for rank, each in zip(ranks, said, strict=True)]

    return run


@pytest.mark.parametrize("files", [None, "broken"])
def test_a_machine_that_cannot_read_its_images_says_why(machines, images, tmp_path, files):
    (tmp_path / "data").symlink_to(images)
    if files:
        (tmp_path / "second/data").mkdir()
        (tmp_path / "second/data/1.png").write_bytes(b"broken")
    first, second = machines("train", "data", "--config", QUICK, *STEPS, "-q")
    assert first.code == 76
    assert "See the error of the other process" in first.err
    second.fails(3, "data")
    assert second.err.count("diffuse: ") == 1


@pytest.mark.parametrize("behind", [False, True], ids=["none", "earlier"])
def test_machines_with_a_checkpoint_each_do_not_wait_for_each_other(
    machines, diffuse, images, tmp_path, behind
):
    """Where -o is on a disk of each machine."""
    line = ("train", images, "--config", QUICK, *STEPS)
    if behind:
        assert diffuse(*line, "--stop-at", 1, "-o", "second/model.safetensors").code == 0
    assert diffuse(*line, "--stop-at", 2).code == 0
    first, second = machines(*line, "--auto-resume", "-q")
    found = "step 1 and step 2" if behind else "no checkpoint and step 2"
    said = "Set -o to a folder on a disk that all machines share"
    first.fails(2, f"found different checkpoints in model.run: {found}", said)
    assert (second.code, second.err) == (2, "")


def test_a_process_that_cannot_map_the_images_of_its_machine_says_why(tmp_path):
    process: Any = SimpleNamespace(
        num_processes=2, is_main_process=False, is_local_main_process=False,
        local_main_process_first=contextlib.nullcontext,
    )  # fmt: skip
    config, run = TrainConfig(data="data"), RunDirectory(tmp_path / "model.safetensors")
    with pytest.raises(DataError) as raised:
        finish(training_data.read_data(config, process, run, None, False))
    assert not raised.value.of_all


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("eval DATA DATA --features inception", 4, "no weights of inception"),
        ("eval DATA DATA --features dinov2 --feature-weights w.pth", 4, "w.pth is not the weights"),
        ("train DATA --steps 0", 2, "--steps must be at least 1"),
    ],
)
def test_a_failure_of_two_processes_is_said_once(pair, images, tmp_path, line, code, said):
    """None is left waiting for the one that would have downloaded weights."""
    (tmp_path / "w.pth").write_bytes(b"other")
    ran = pair(*(images if word == "DATA" else word for word in line.split()))
    assert ran.code == code
    assert ran.err.count(f"diffuse: {said}") == 1


def test_a_world_size_without_a_launcher_is_a_usage_error(process, images):
    assert "torchrun" in process("train", images, "-q", env={"WORLD_SIZE": "2"}).line


# -- one run at a time ----------------------------------------------------------------------------

HOLDER = """
import sys
from diffuse_cli.training.run_directory import RunDirectory
run = RunDirectory("model.safetensors")
with run.hold_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def script(spawn):
    """Run Python in a process of its own; that, and a file to write to its stdin."""
    files = []

    def start(program):
        reading, writing = os.pipe()
        files.append(os.fdopen(writing, "w"))
        child = spawn(before=f"{program}\nsys.exit(0)", stdin=reading)
        os.close(reading)
        return child, files[-1]

    yield start
    for file in files:
        file.close()


@pytest.fixture
def holder(script):
    """Another process that holds the run directory."""
    child, _ = script(HOLDER)
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize("option", ["--resume", "--overwrite", "--seed=0"])
def test_the_second_run_on_an_output_names_the_first(train, holder, model, option):
    """Also where a model stands there."""
    Path("model.safetensors").write_bytes(model.read_bytes())
    train("--steps", 2, option, "-q").fails(75, f"process {holder.pid} ")
    assert Path("model.safetensors").read_bytes() == model.read_bytes()


RACE = """
import sys
from pathlib import Path
from diffuse_cli.system import outputs
from diffuse_cli.system.errors import BusyError
sys.stdin.readline()
try:
    with outputs.hold_lock(Path("out/lock")):
        print("held", flush=True)
        sys.stdin.readline()
except BusyError as error:
    print(error, flush=True)
"""


def test_of_many_processes_one_holds_an_output_and_is_named(script, tmp_path):
    """All at once, and again and again: each time the holder removes the file of the lock."""
    for _ in range(2):
        children = [script(RACE) for _ in range(5)]
        for _, stdin in children:
            stdin.write("go\n")
            stdin.flush()
        said = [child.stdout.readline() for child, _ in children]
        [holder] = [c for (c, _), line in zip(children, said, strict=True) if line == "held\n"]
        others = [line for line in said if line != "held\n"]
        assert all("is writing to out" in line for line in others)
        named = {line.split()[1] for line in others}
        assert named <= {str(holder.pid), "another"}
        for child, stdin in children:
            stdin.close()
            assert child.wait(30) == 0
        assert not (tmp_path / "out" / "lock").exists()


def test_a_lock_file_that_its_holder_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """It was opened before the holder removed it: others would open another file of that name."""
    path, real, tries = tmp_path / "lock", fcntl.flock, []

    def racing(file, how):
        if not tries:
            path.unlink()
        tries.append(how)
        return real(file, how)

    monkeypatch.setattr(fcntl, "flock", racing)
    with outputs.hold_lock(path):
        assert path.exists()
        assert len(tries) == 2


def test_a_forked_child_does_not_keep_the_lock(script, tmp_path, monkeypatch):
    """A loader's worker may outlive the process that was killed."""
    program = HOLDER.replace(
        "sys.stdin.read()", "import os; os.fork() and os._exit(9)\n    sys.stdin.read()"
    )
    child, _ = script(program)
    assert child.wait(30) == 9
    monkeypatch.chdir(tmp_path)
    with RunDirectory("model.safetensors").hold_lock():
        pass


@pytest.mark.parametrize("shared", [True, False])
def test_the_cache_of_another_machine_is_removed_from_its_own_disk_alone(tmp_path, shared):
    run = RunDirectory(tmp_path / "model.safetensors")
    with run.hold_lock() if shared else contextlib.nullcontext():
        run.cache.mkdir(parents=True)
        with run.remove_local_cache():
            assert run.cache.exists()
        assert run.path.exists() == run.cache.exists() == shared


def test_the_second_sampling_into_a_folder_names_the_first(process, diffuse, model):
    line = ("sample", model, "-n", 1, "--steps", 2, "-q")
    with outputs.hold_lock(Path("samples/.lock")):
        process(*line).fails(75, "is writing to samples")
    assert diffuse(*line).code == 0
    assert not Path("samples/.lock").exists()


def test_a_killed_process_holds_nothing(train, holder):
    holder.kill()
    holder.wait()
    assert train("--steps", 2).code == 0


def test_a_rank_without_a_launcher_is_the_first_process(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert app.main(["info", "/missing", "-q"]) == 3
    assert "/missing" in capsys.readouterr().err


def test_a_dry_run_of_two_processes_is_said_once(pair, images, recipe):
    ran = pair("train", images, "--config", recipe, *STEPS, "--dry-run", "--json", "-q")
    assert (ran.code, ran.json["config"]["steps"]) == (0, 4), ran.err


@pytest.mark.parametrize(
    ("error", "said"),
    [(DataError("gone"), ""), (DataError("gone").mark_local(), "diffuse: gone\n")],
)
def test_an_error_that_another_process_may_not_have_is_said_by_each(
    monkeypatch, capsys, error, said
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(app, "build", lambda: Mock(side_effect=error))
    assert app.main([]) == 3
    assert capsys.readouterr().err == said
