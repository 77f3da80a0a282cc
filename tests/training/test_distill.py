"""`diffuse distill`: a training with another loss, and what its model says and draws."""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import logged, manifest
from oracles import process_of

from diffuse_cli.commands.distill import configure
from diffuse_cli.config.sample_options import DrawConfig, SamplerChoice
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import Denoiser
from diffuse_cli.core.distillation import solve_trajectory
from diffuse_cli.core.guidance import clamp_denoised
from diffuse_cli.models import model_file, tensor_file
from diffuse_cli.sampling.sampling_settings import resolve_settings
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.training import teacher as teaching
from diffuse_cli.training.run_directory import RunDirectory

FAST = Path("fast.safetensors")


@pytest.fixture
def distill(diffuse, images):
    return lambda model, *more: diffuse("distill", model, images, "-o", FAST, *more)


@pytest.fixture
def teacher(lab):
    """A model of the quickest network, where it does not matter how it draws."""
    return lab.trained(*lab.quick, "--steps", 6)


@pytest.fixture
def guided(lab):
    """The same of classes."""
    return lab.trained(*lab.quick, "--steps", 6, "--classes")


@pytest.fixture
def fast(lab, teacher, images):
    """A distilled model of a few steps."""
    return lab.trained("distill", teacher, images, "--steps", 14)


def test_a_distilled_model_says_what_it_is(diffuse, fast, teacher, images):
    own = {"teacher": files.sha256(teacher)}
    found = model_file.load(fast)
    assert found.distilled == own
    assert str(found.sampling) == "consistency, 2 steps"
    assert f"from the model of SHA-256 {own['teacher']}" in diffuse("info", fast).out
    assert diffuse("info", fast, "--json").json["distilled"]["teacher"] == own["teacher"]
    assert "consistency, 2 steps" in diffuse("sample", fast, "-n", 2).ok().err
    record = manifest()
    assert (record["sampler"], record["steps"], record["distilled"]) == ("consistency", 2, own)
    ran = diffuse("eval", fast, images, "-n", 6, "--metrics", "spectrum", "--json").ok()
    settings = ran.json["settings"]
    assert (settings["sampler"], settings["steps"]) == ("consistency", 2)
    assert settings["teacher_sha256"] == own["teacher"]
    assert resolve_settings(DrawConfig(steps=4), found).sampler == "consistency"
    assert resolve_settings(DrawConfig(sampler="ddim"), found).sampler == "ddim"


def test_the_weights_of_a_teacher_are_read_once(distill, quick, teacher, monkeypatch):
    read, real = [], tensor_file.read_tensors
    monkeypatch.setattr(tensor_file, "read_tensors", lambda *file: read.append(1) or real(*file))
    assert distill(teacher, "--steps", 1, "-q").code == 0
    assert quick("--init", teacher, "--steps", 1, "-q").code == 0
    assert len(read) == 2


@pytest.mark.parametrize("stop", [4, 13], ids=["on paths", "with a critic"])
def test_stopped_and_resumed_equals_one_go(distill, diffuse, teacher, fast, stop, tmp_path):
    """The critic learns in the last two of the fourteen steps. The same teacher may be elsewhere,
    and the command that `info` prints resumes it."""
    own = shutil.copy(teacher, tmp_path / "teacher.safetensors")
    assert distill(own, "--steps", 14, "--stop-at", stop, "-q").code == 0
    if stop == 4:
        own.unlink()
        distill(own, "--resume", "-q").fails(4, "teacher.safetensors")
        assert distill(teacher, "--resume", "-q").code == 0
    else:
        line = shlex.split(diffuse("info", "fast.run", "--json").json["resume"])
        assert line[:2] == ["diffuse", "train"]
        assert diffuse(*line[1:], "-q").code == 0
    assert FAST.read_bytes() == fast.read_bytes()


def test_a_run_that_is_extended_forgets_the_paths_again(distill, teacher, each_step):
    """The average begins anew where the second part begins, which an extended run has twice."""
    reset = []
    each_step(after=lambda own, step: reset.append(own.ema.forgotten))
    assert distill(teacher, "--steps", 7, "-q").code == 0
    assert distill(teacher, "--resume", "--steps", 20, "-q").code == 0
    assert (reset[6], reset[7], reset[19]) == (6, 0, 17)
    # Of a model that is told nothing.
    distill(teacher, "--resume", "--guidance", 0).fails(2, "--guidance 0 differs from the run's 1.")


@pytest.mark.slow
def test_two_processes_distil_as_one_does(distill, guided, pair, images):
    """But for the order of sums, also in the last steps, where each has the critic learn a part."""
    line = ("--steps", 14, "--batch-size", 4, "-q")
    assert distill(guided, *line).code == 0
    whole = model_file.load(FAST)
    pair("distill", guided, images, "-o", "two.safetensors", *line).ok()
    other = model_file.load(Path("two.safetensors"))
    for name, weights in whole.ema.items():
        assert torch.allclose(weights, other.ema[name], atol=2e-5), name


def test_a_critic_learns_what_is_drawn_in_the_second_part_alone(distill, teacher, monkeypatch):
    """Twice a step of the last of twenty, from the model's own weights on; there the student's rate
    is lower, and so is its loss, which is not called overfitting."""
    learned, begun = [], []

    def simple(critic, x0, t, noise, **cond):
        if not learned:
            begun.extend(w.detach().clone() for w in critics[0].net.parameters())
        learned.append((len(x0), x0.requires_grad))
        return known(critic, x0, t, noise, **cond)

    critics, known = [], teaching.simple
    made = teaching.DistributionMatching.__init__
    monkeypatch.setattr(
        teaching.DistributionMatching,
        "__init__",
        lambda self, *a: (made(self, *a), critics.append(self))[0],
    )
    monkeypatch.setattr(teaching, "simple", simple)
    line = ("--steps", 20, "--batch-size", 3, "--log-every", 1, "--preview-every", 2)
    distill(teacher, *line).ok()
    assert RunDirectory(FAST).load()[0].state["watch"]["overfitting"]["best"] is None
    paths = round(teaching.PATHS * 20)
    assert learned == [(6 * teaching.NOISES, False)] * (20 - paths) * teaching.UPDATES
    first = [*model_file.load(teacher).network().parameters()]
    assert all(map(torch.equal, begun, first))
    assert not all(map(torch.equal, critics[0].net.parameters(), first))
    rates = logged("lr", Path("fast.run"))
    cosines = [0.5 * (1 + math.cos(math.pi * k / n)) for n in (paths, 20 - paths) for k in range(n)]
    [_, peak, *shares] = [r / c for r, c in zip(rates, cosines, strict=True)]  # warmed up in two
    assert shares == pytest.approx([peak] * (paths - 2) + [peak * teaching.SLOWER] * (20 - paths))


def test_one_step_draws_what_the_model_draws_in_many(distill, model):
    """From pure noise a denoiser expects the mean of all images, and what it is distilled to comes
    near to the end of the path."""
    line = ("--steps", 20, "--batch-size", 4, "--lr", 0.004, "-q")
    assert distill(model, *line).code == 0
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    teacher, student = (
        found.blueprint.denoiser(found.network()) for found in map(model_file.load, (model, FAST))
    )
    known = solve_trajectory(clamp_denoised(teacher, teacher), teacher.process, noise)
    with torch.no_grad():
        off = [float((d(noise, known.times[0]).x0 - known.end).std()) for d in (teacher, student)]
    assert off[1] < 0.75 * off[0]


def test_a_guided_model_is_followed_at_its_scale(distill, guided, diffuse, images):
    assert distill(guided, "--steps", 2, "--guidance", 1.5, "-q").code == 0
    found = model_file.load(FAST)
    assert found.distilled == {"teacher": files.sha256(guided), "guidance": 1.5}
    assert found.sampling.guidance == 1.0
    diffuse("sample", FAST, "-n", 2, "--class", "dark", "-o", "drawn", "-q").ok()
    assert "guided at 1.5" in diffuse("info", FAST).out
    for line in (("sample", FAST), ("tune", FAST, images)):
        diffuse(*line, "-n", 2, "--guidance", 3, "-q").fails(2, "has its guidance in its weights")
    assert distill(guided, "--steps", 2, "--guidance", 1, "--overwrite", "-q").code == 0
    other = model_file.load(FAST).ema
    assert any(not torch.equal(weights, other[name]) for name, weights in found.ema.items())
    assert distill(guided, "--steps", 1, "--overwrite", "-q").code == 0
    assert model_file.load(FAST).distilled["guidance"] == 2.0  # the scale of the model


def test_a_model_does_not_replace_the_one_it_starts_from(diffuse, images, teacher):
    own = Path(shutil.copy(teacher, "own.safetensors"))
    for line in (("train", images, "--init", own), ("distill", own, images)):
        diffuse(*line, "-o", own, "--overwrite", "--steps", 1, "-q").fails(2, "is the input itself")
        assert own.read_bytes() == teacher.read_bytes()


@pytest.mark.parametrize("part", ["model.run", "model.run/checkpoints/step-00000006"])
def test_an_overwrite_does_not_remove_the_run_it_starts_from(diffuse, images, teacher, part):
    shutil.copytree(teacher.with_suffix(".run"), "model.run")
    before = sorted(Path("model.run").rglob("*"))
    for line in (("train", images, "--init", part), ("distill", part, images)):
        ran = diffuse(*line, "-o", "model.safetensors", "--overwrite", "--steps", 1)
        ran.fails(2, f"--overwrite would remove {part}")
    assert sorted(Path("model.run").rglob("*")) == before


def test_a_training_from_a_distilled_model_is_a_plain_one(quick, fast):
    for more in ((), ("--loss", "simple")):
        assert quick("--init", fast, "--steps", 1, "--overwrite", *more).code == 0
        made = model_file.load(Path("model.safetensors"))
        assert made.distilled is None
        assert made.training.get("keep_weak") is not False


def test_a_scale_that_the_model_does_not_support_is_refused(quick, images):
    quick("--steps", 1, "--given", "mask:half", "--given-dropout", 0, "-q").ok()
    own = {"model": "model.safetensors", "data": str(images)}
    with pytest.raises(UsageError, match=r"^--guidance 3: the model was never trained without its"):
        configure({**own, "guidance": 3.0})
    assert configure({**own, "guidance": 1.0}).teacher_guidance == 1
    assert configure(own).teacher_guidance == 1


def test_guidance_by_the_early_checkpoint_is_not_distilled(weak, tmp_path):
    own = tmp_path / "own.safetensors"
    config = TrainConfig(data="", loss="consistency", init=str(own))
    for scale, said in ((1.0, []), (2.0, [True])):
        sampling = SamplerChoice("unipc", 4, weak_guidance=scale)
        model_file.save(own, replace(model_file.load(weak), sampling=sampling))
        notices = list(teaching.load_teacher(config))
        assert [n.warning and "is not distilled" in n.text for n in notices] == said


def test_times_that_no_path_looks_at_are_not_taken_from_the_model(distill, teacher, tmp_path):
    own = tmp_path / "own.safetensors"
    training = {**model_file.load(teacher).training, "timestep_draw": "importance"}
    model_file.save(own, replace(model_file.load(teacher), training=training))
    assert distill(own, "--steps", 1, "-q").code == 0
    assert model_file.load(FAST).training["timestep_draw"] == "uniform"


def test_another_teacher_or_scale_is_refused_on_resume(distill, guided, tmp_path):
    own = shutil.copy(guided, tmp_path / "teacher.safetensors")
    assert distill(own, "--steps", 2, "--stop-at", 1, "--guidance", 1.5, "-q").code == 0
    model_file.save(own, replace(model_file.load(guided), step=5))
    distill(own, "--resume", "-q").fails(2, "not the model that this run distils")
    distill(guided, "--resume", "--guidance", 3).fails(2, "--guidance 3 differs from the run's 1.5")
    distill(guided, "--resume", "--guidance", 1.5, "-q").ok()


def test_a_step_takes_a_quarter_of_the_models_batch(teacher, fast, images, tmp_path):
    """Each path counts at four times."""
    before, after = (model_file.load(each).training for each in (teacher, fast))
    assert (before["batch_size"], after["batch_size"]) == (8, 2)
    larger, found = tmp_path / "larger.safetensors", model_file.load(teacher)
    model_file.save(larger, replace(found, training={**found.training, "batch_size": 16}))
    assert configure({"model": str(larger), "data": str(images)}).batch_size == 4
    in_parts = {**found.training, "accumulation": 8}
    model_file.save(larger, replace(found, training=in_parts))
    assert configure({"model": str(larger), "data": str(images)}).accumulation == 1
    assert after["lr"] == before["lr"] / 2


def test_a_length_on_the_command_line_replaces_that_of_the_file(teacher, images):
    own = {"model": str(teacher), "data": str(images)}
    found = configure({**own, "minutes": 5.0}, {"steps": 2000})
    assert (found.steps, found.minutes) == (None, 5)
    found = configure({**own, "steps": 20}, {"minutes": 5.0})
    assert (found.steps, found.minutes) == (20, None)
    assert configure(own, {"steps": 2000}).steps == 2000


def test_only_targets_that_say_much_of_the_image_can_be_distilled(quick, distill):
    for target, good in [("v", True), ("x0", True), ("flow", True), ("eps", False), ("mu", False)]:
        denoiser = Denoiser(lambda x, t: x, process_of("cosine", 100), target)
        with contextlib.nullcontext() if good else pytest.raises(UsageError):
            teaching.check_distillation(target, denoiser)
    quick("--steps", 1, "--target", "eps", "--schedule", "cosine", "-q").ok()
    distill("model.safetensors", "-q").fails(2, "target eps cannot be distilled", "--target v")


def test_what_is_distilled_is_told_what_its_teacher_is(diffuse, guided, images, tmp_path):
    """Else a class or a column would be another one's for the teacher, or not there at all."""
    other = tmp_path / "other"
    for name in ("dark", "light"):
        shutil.copytree(images / name, other / f"very {name}")
    diffuse("distill", guided, other, "-q").fails(2, "was trained with other classes")


def test_pairs_are_distilled(diffuse, lab):
    own, data = lab["pairs"], lab["grey"]
    line = ("distill", own, data, "--given", lab["beside"], "--steps", 2, "-q", "-o", FAST)
    assert diffuse(*line, "--stop-at", 1).code == 0
    assert diffuse("distill", own, data, "--resume", "-o", FAST, "-q").code == 0
    found = model_file.load(FAST)
    assert found.blueprint.conditions.given == model_file.load(own).blueprint.conditions.given
    assert found.step == 2
