"""A training step: what it averages, what it does with a gradient that is not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import MODEL, RUN, WHOLE, logged
from lab import QUICK

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import LOSSES
from diffuse_cli.core.losses import simple
from diffuse_cli.data import read_images
from diffuse_cli.models import model_file
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import draw_noise
from diffuse_cli.training import ema_weights
from diffuse_cli.training.ema_weights import read_snapshot
from diffuse_cli.training.optimization import ProgressSchedule, Updater, lr_at
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.trainer import Trainer


def weights_of(trainer):
    powers = trainer.powers.tensors() if trainer.powers else {}
    parts = (trainer.net.state_dict(), trainer.ema.net.state_dict(), powers)
    return [t.clone() for part in parts for t in part.values()]


@pytest.fixture
def watched(monkeypatch):
    """Each step's weights before and after, with its outcome."""
    seen = []
    real = Trainer.step

    def step(self, number):
        before = weights_of(self)
        outcome = real(self, number)
        seen.append((before, weights_of(self), outcome))
        return outcome

    monkeypatch.setattr(Trainer, "step", step)
    return seen


@pytest.mark.parametrize(("accumulation", "optimizer"), [(1, "adamw"), (2, "adamw"), (1, "muon")])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_average(
    quick, spoil, watched, accumulation, optimizer
):
    spoil(lambda call: call // accumulation == 2)
    options = ("--log-every", 1, "--accumulation", accumulation, "--ema-lengths", 4)
    options += ("--optimizer", optimizer)
    assert quick("--steps", 4, *options).code == 0
    for number, (before, after, outcome) in enumerate(watched):
        same = all(a.equal(b) for a, b in zip(before, after, strict=True))
        assert same == (number == 2)
        assert math.isfinite(outcome.grad_norm) == (number != 2)
    assert all(t.isfinite().all() for t in watched[-1][1])
    snapshot = read_snapshot(Path("model.run/ema/step-00000004.safetensors"))
    assert [p.updates for p in snapshot.profiles.values()] == [3, 3]


@pytest.fixture
def deaf(monkeypatch):
    """An optimizer that is told neither what to divide by nor whether to go, as Metal's is."""
    real = Updater.__init__

    def init(self, *arguments, **options):
        real(self, *arguments, **options)
        assert self.obeys
        self.obeys = False

    monkeypatch.setattr(Updater, "__init__", init)


@pytest.mark.parametrize(
    ("optimizer", "told"), [("adamw", False), ("muon", False), ("adamw", True)]
)
def test_a_step_changes_nothing_where_its_loss_is_infinite_or_the_optimizer_is_not_told(
    quick, spoil, watched, request, optimizer, told
):
    """A constant has no gradient, so that the gradient of an infinite loss is finite."""
    if told:
        spoil(lambda call: call == 2, lambda value: value + math.inf)
    else:
        request.getfixturevalue("deaf")
        spoil(lambda call: call == 2)
    assert quick("--steps", 4, "--log-every", 1, "--optimizer", optimizer).code == 0
    same = [all(a.equal(b) for a, b in zip(*seen[:2], strict=True)) for seen in watched]
    assert same == [False, False, True, False]


@pytest.mark.parametrize("clip", [1e-3, 1e3], ids=["clipped", "not clipped"])
def test_the_optimizer_clips_as_pytorch_does(quick, watched, clip, request):
    """Adam takes no notice of a gradient's scale, except beside its epsilon: so it is the moments
    that are compared."""

    def moments():
        quick("--steps", 3, "--grad-clip", clip, "--log-every", 1, "--overwrite")
        return RunDirectory(MODEL).load()[0].optimizer

    told = moments()
    request.getfixturevalue("deaf")
    clipped = moments()
    norms = [float(outcome.grad_norm) for *_, outcome in watched]
    assert (min(norms) > clip) == (clip < 1)
    assert any(name.endswith("exp_avg_sq") for name in told)
    for name, moment in told.items():
        rounding = 1e-6 * float(moment.abs().max())  # where summands nearly cancel
        assert torch.allclose(moment, clipped[name], rtol=1e-4, atol=rounding), name


def test_bad_steps_are_counted_on_after_a_resume(quick, spoil):
    spoil(lambda call: call >= 7)
    assert quick("--steps", 40, "--stop-at", 12, "--log-every", 1).code == 0
    assert "NaN" not in (RUN / "metrics.jsonl").read_text()
    assert [loss is None for loss in logged("loss")] == [False] * 7 + [True] * 5
    quick("--steps", 40, "--resume", "-q").fails(6, "up to 17 ")


def test_a_resume_between_two_moves_of_the_average_is_exact(quick, spoil, monkeypatch):
    """The steps since the last move, one of them bad, are part of the state."""
    monkeypatch.setattr(ema_weights, "EAGER", 0)
    spoil(lambda call: call in (5, 15))
    quick("--steps", 10, "-o", WHOLE)
    quick("--steps", 10, "--stop-at", 6)
    quick("--steps", 10, "--resume")
    assert MODEL.read_bytes() == WHOLE.read_bytes()


def test_ten_bad_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(quick, spoil):
    spoil(lambda call: call >= 7)
    quick("--steps", 40, "--save-every", 3, "-q").fails(6, "checkpoint is step 15.", "--lr")
    assert not MODEL.exists()
    checkpoint, faults = RunDirectory(MODEL).load()
    assert not faults
    assert checkpoint.step == 15
    assert all(t.isfinite().all() for t in checkpoint.model.values())


def test_bad_steps_that_are_not_in_a_row_do_not_end_the_run(quick, spoil):
    spoil(lambda call: call % 10 != 0)
    assert quick("--steps", 25).code == 0


def test_an_absurd_learning_rate_ends_with_the_last_good_checkpoint(train):
    rate = ("--lr", 10, "--weight-decay", 1)  # weights become -9 times as large
    ran = train("--steps", 400, *rate, "--warmup", 0, "--save-every", 2, "-q")
    ran.fails(6, "the last good checkpoint is step")
    saved, passed = RunDirectory(MODEL).load()
    assert passed == []
    for part in (saved.model, saved.ema):
        assert all(t.isfinite().all() for t in part.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("time_embedding.linear_2", ()),
        ("conv_in", ("--accumulation", 2)),
        ("mid_block.resnets.0.conv1", ("--timestep-draw", "importance")),
    ],
)
def test_debug_names_the_first_module_that_was_not_finite(train, monkeypatch, name, options):
    """The output of a module is infinite from its third pass on."""
    real, calls = Trainer.__init__, iter(range(10**6))

    def init(self, *arguments):
        real(self, *arguments)
        module = self.net.get_submodule(name)
        module.register_forward_hook(lambda m, i, y: y * math.inf if next(calls) >= 2 else y)

    monkeypatch.setattr(Trainer, "__init__", init)
    ran = train("--steps", 40, "-q", "--debug", *options)
    assert ran.code == 6
    line = ran.err.splitlines()[0]
    assert f"; {name} was the first module whose output was not finite. Lower --lr" in line


def test_debug_says_where_no_module_was(quick, spoil):
    spoil(lambda call: True)
    quick("--steps", 40, "-q").fails(6, "no checkpoint")
    ran = quick("--steps", 40, "-q", "--debug", "--overwrite")
    assert ran.code == 6
    assert "every module's output was finite, the gradient was not" in ran.err.splitlines()[0]


@pytest.fixture
def at_once(lab):
    """The run directory of 6 steps without accumulation."""
    return lab.trained(*lab.quick, "--steps", 6, "--log-every", 1).with_suffix(".run")


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_does_not_change_the_losses(quick, at_once, parts):
    """Of 8 images in 3 parts each still weighs as much as the others. Adam takes no notice of the
    gradient's scale, so its norm is compared too."""
    quick("--steps", 6, "--log-every", 1, "--accumulation", parts)
    assert logged("loss") == pytest.approx(logged("loss", at_once), rel=1e-4)
    assert logged("grad_norm") == pytest.approx(logged("grad_norm", at_once), rel=1e-3)


def test_each_part_of_a_batch_has_dropout_of_its_own(quick, monkeypatch):
    """Part by part, the trainer seeds what modules draw: by the step, the part and the process."""
    seen = []

    def loss(denoiser, *arguments, **cond):
        value = simple(denoiser, *arguments, **cond)
        if value.requires_grad:
            seen.append(tuple(torch.rand(8).tolist()))
        return value

    monkeypatch.setitem(LOSSES, "simple", loss)
    assert quick("--steps", 2, "--accumulation", 4).code == 0
    assert len(seen) == len(set(seen)) == 8
    assert quick("--steps", 2, "--accumulation", 4, "--overwrite").code == 0
    assert seen[8:] == seen[:8]


def test_the_learning_rate_rises_and_falls_to_0(quick):
    quick("--steps", 40, "--log-every", 1, "--warmup", 4, "--lr", 0.001)
    rates = logged("lr")
    assert rates[0] == pytest.approx(0.00025)
    assert max(rates) == rates[3] < 0.001
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.00002
    for steps, peak in ((30, 2), (5, 0)):  # the rise takes a tenth of a short run
        config = TrainConfig(data="x", steps=steps, warmup=100, lr=1.0)
        rates = [lr_at(config, ProgressSchedule.of(steps), step) for step in range(steps)]
        assert rates[0] == pytest.approx(1 / (peak + 1))
        assert rates.index(max(rates)) == peak


def test_a_warmup_that_is_cut_is_said(quick, step_takes):
    said = "is more than a tenth of 20 steps: the learning rate rises over 2"
    assert f"--warmup 3 {said}" in quick("--steps", 20, "--warmup", 3, "--stop-at", 1).err
    step_takes(1.0)
    options = ("--steps", 20, "--dry-run", "--warmup")
    assert f"--warmup 3 {said}" in quick(*options, 3).err
    assert "--warmup" not in quick(*options, 2).err
    assert "--warmup" not in quick(*options, 100).err  # the default


def test_a_short_run_samples_from_sensible_averaged_weights(images, model):
    """The average is not worse than the raw weights on held-out images, far from the start."""
    model = model_file.load(model)
    pixels = finish(read_images(str(images), workers=1)).stored
    x0 = torch.from_numpy(pixels).float().repeat(4, 1, 1, 1) / 127.5 - 1
    t = torch.arange(len(x0)) * 37 % model.blueprint.diffusion.num_timesteps
    noise = draw_noise(5, "test", shape=x0.shape)
    found = {}
    with torch.no_grad():
        for name in ("ema", "raw"):
            denoiser = model.blueprint.denoiser(model.network(name))
            found[name] = float(simple(denoiser, x0, t, noise).mean())
    assert found["ema"] <= found["raw"] * 1.05
    assert found["ema"] < 0.5


def test_keep_raw_keeps_the_weights_before_averaging(quick, tmp_path):
    quick("--steps", 4)
    model = model_file.load(MODEL)
    checkpoint, _ = RunDirectory(MODEL).load()
    assert all(model.raw[name].equal(t) for name, t in checkpoint.model.items())
    own, _, _ = model_file.split_weights(checkpoint.ema)
    assert all(model.ema[name].equal(t) for name, t in own.items())
    assert not model.raw["patch_out.weight"].equal(model.ema["patch_out.weight"])
    plain = tmp_path / "plain.toml"
    plain.write_text(QUICK.read_text().replace("keep_raw = true", ""))
    quick("--steps", 1, "--config", plain, "-o", "plain.safetensors")
    assert model_file.load("plain.safetensors").raw is None
