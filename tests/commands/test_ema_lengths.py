"""`ema`: averages of many lengths from one run, measured, and the best written."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import MODEL, RUN, in_process

from diffuse_cli.commands.ema import ema_lengths
from diffuse_cli.core.losses import simple
from diffuse_cli.models import model_file, tensor_file
from diffuse_cli.system.descriptors import open_regular_file
from diffuse_cli.system.rng import training_draws
from diffuse_cli.system.run_reader import run_folder
from diffuse_cli.training.ema_weights import gamma_of, list_snapshots
from diffuse_cli.training.trainer import Trainer

QUICK = ("-n", 6, "--precision", "fp32")
PLAIN = ("-n", 6, "--steps", 3, "--precision", "fp32", "--metrics", "kid")


@pytest.fixture(scope="module")
def followed(images, recipe, tmp_path_factory):
    """A run of 60 steps with 20 snapshots, and the last weights of its network after each step."""
    raw, real = [], Trainer.step

    def step(self, number):
        outcome = real(self, number)
        raw.append(self.net.conv_out.weight.detach().double().clone())
        return outcome

    out = tmp_path_factory.mktemp("followed") / MODEL
    line = ["train", images, "--config", recipe, "--steps", 60, "--ema-lengths", 20, "-q"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        assert in_process([*line, "--warmup", 0, "-o", out]) == 0
    return out, raw


@pytest.fixture(scope="module")
def kept(followed, tmp_path_factory):
    """The same with 4 of the snapshots, which are enough for most lengths. Do not write here."""
    out = copied(followed[0], tmp_path_factory.mktemp("kept"))
    for step, path in list_snapshots(run_folder(out) / "ema"):
        if step % 15:
            path.unlink()
    return out


def copied(model, folder=Path()):
    """A copy of a model and its run that a test may change."""
    shutil.copytree(run_folder(model), folder / RUN)
    return Path(shutil.copy(model, folder / MODEL))


@pytest.fixture
def ema(diffuse, images, kept):
    def run(*options, model=kept):
        drawn = () if "held-out" in options else ("--steps", 3)
        return diffuse("ema", model, images, *QUICK, *drawn, *options)

    return run


def test_a_table_of_lengths_with_the_best_named_and_written(
    ema, diffuse, images, kept, monkeypatch
):
    monkeypatch.setattr(ema_lengths, "LENGTHS", (0.05, 0.08, 0.12))
    Path("best.safetensors").write_text("mine")
    ran = ema("-o", "best.safetensors", "--overwrite", "--json").ok()
    found = ran.json
    kids = {row["length"]: row["values"]["kid"] for row in found["rows"]}
    assert [*kids] == [0.05, 0.08, 0.12]
    assert found["best"] == min(kids, key=kids.get)
    assert found["metric"] == "kid"
    assert (found["step"], found["updates"], found["real"]) == (60, 60, 6)
    assert len({round(kid, 12) for kid in kids.values()}) == len(kids)
    assert "real images: the held-out part" in ran.err
    made = model_file.load("best.safetensors")
    assert made.step == 60
    assert made.data["ema_length"] == found["best"]
    assert made.raw["conv_out.weight"].equal(model_file.load(kept).raw["conv_out.weight"])
    again = diffuse("eval", "best.safetensors", images, *PLAIN, "--json").json
    assert again["kid"] == pytest.approx(kids[found["best"]], rel=1e-6)
    plain = diffuse("eval", kept, images, *PLAIN, "--json").json
    assert found["file"]["kid"] == pytest.approx(plain["kid"], rel=1e-6)


def test_the_table_in_text(ema, monkeypatch):
    monkeypatch.setattr(ema_lengths, "LENGTHS", (0.02, 0.08, 0.1))
    ran = ema("-o", "best.safetensors")
    assert "left out, as they need more snapshots than 4: 0.02\n" in ran.err
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["length", "0.08", "0.10"]
    assert lines[-3].startswith("in the file")
    assert lines[-2].startswith("best: 0.")
    assert lines[-1] == "best.safetensors"


def test_a_length_is_what_averaging_every_step_would_have_given(ema, monkeypatch, followed):
    """The weights after each step of the run, averaged by the definition."""
    whole, raw = followed
    monkeypatch.setattr(ema_lengths, "LENGTHS", (0.08,))
    assert ema("-o", "made.safetensors", model=whole).code == 0
    expected = torch.zeros_like(raw[0])
    for t, weight in enumerate(raw, 1):
        expected.lerp_(weight, 1 - (1 - 1 / t) ** (gamma_of(0.08) + 1))
    made = model_file.load("made.safetensors").ema["conv_out.weight"].double()
    moved = float((raw[-1] - raw[29]).norm())
    assert float((made - expected).norm()) < 0.01 * moved
    assert float((model_file.load(whole).ema["conv_out.weight"] - expected).norm()) > 0.02 * moved


def test_the_held_out_loss_decides_where_it_is_asked_to(ema, monkeypatch):
    """That of the training: an independent sum of sigmoid weights, the target v, and draws that
    belong to positions."""
    seen = []
    real = ema_lengths.EMA_METRICS["held-out"]

    def make(config, loaded, sides, accelerator):
        seen.append((loaded, sides.real))
        return real(config, loaded, sides, accelerator)

    monkeypatch.setattr(ema_lengths, "EMA_METRICS", {"held-out": make})
    ran = ema("--metric", "held-out", "--json")
    assert "left out, as they need more snapshots than 4: 0.02, 0.03, 0.15, 0.20, 0.25" in ran.err
    found = ran.json
    losses = {row["length"]: row["values"]["held_out_loss"] for row in found["rows"]}
    assert [*losses] == [0.04, 0.05, 0.06, 0.08, 0.1, 0.12]
    assert found["best"] == min(losses, key=losses.get)
    assert found["metric"] == "held_out_loss"
    assert all(row["values"]["held_out_loss_standard_error"] > 0 for row in found["rows"])
    assert all(row["error"] < 0.1 for row in found["rows"])
    [(loaded, images)] = seen
    draws = training_draws(
        0, 0, range(6), shape=(1, 8, 8), device=torch.device("cpu"), purpose="held-out"
    )
    t = (draws.u.double() * 100).long()
    x0 = torch.from_numpy(images.samples).float() / 127.5 - 1
    denoiser = loaded.model.blueprint.denoiser(loaded.model.network())
    snr = denoiser.process.alpha_bars / (1 - denoiser.process.alpha_bars)
    weight = (snr.sqrt() / (1 + snr / math.e**2) / 2)[t].float()
    with torch.no_grad():
        expected = float(simple(denoiser, x0, t, draws.noise, weight).mean())
    assert found["file"]["held_out_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kids", "best", "said"),
    [
        ((3, 2, 1, 2, 3), 0.06, None),
        ((1, 2, 2, 2, 3), 0.04, "the best length is the shortest that was tried"),
        ((3, 2, 2, 1, 3), 0.08, "the best length is the longest that was tried"),
        ((3, 2, 1, 2, 0.5), 0.06, "the model file's own average is better than all of these"),
        ((math.nan, 2, 1, 2, 3), 0.06, None),
    ],
)
def test_the_best_is_the_lowest_and_what_the_table_does_not_say_is_said(
    ema, monkeypatch, kids, best, said
):
    given = iter(kids)

    def make(config, loaded, images, accelerator):
        yield from ()

        def measure(denoiser):
            yield from ()
            return {"kid": next(given)}

        return "kid", measure

    monkeypatch.setattr(ema_lengths, "EMA_METRICS", {"kid": make})
    monkeypatch.setattr(ema_lengths, "LENGTHS", (0.04, 0.05, 0.06, 0.08))
    ran = ema("-o", "made.safetensors")
    assert f"best: {best:.2f}" in ran.out
    assert model_file.load("made.safetensors").data["ema_length"] == best
    assert "length 0.05, 2 of 4" in ran.err
    for text in ("shortest that", "longest that", "own average is better"):
        assert (text in ran.err) == (said is not None and text in said)


def test_the_best_model_of_a_run_has_the_snapshots_up_to_it(ema, diffuse, images, recipe):
    line = ("--steps", 12, "--ema-lengths", 6, "--eval-every", 7, "--eval-images", 4, "-q")
    diffuse("train", images, "--config", recipe, *line, "--stop-at", 7)
    assert model_file.load("model.best.safetensors").step == 7
    best = model_file.load("model.best.safetensors")
    earlier = {**best.training, "weak_after": 0.25}  # an option of earlier versions
    model_file.save(Path("model.best.safetensors"), dataclasses.replace(best, training=earlier))
    found = ema("--metric", "held-out", "--json", model="model.best.safetensors").json
    assert (found["step"], found["updates"]) == (6, 6)


@pytest.mark.parametrize("fault", ["cut", "another", "nan"])
def test_a_damaged_snapshot_is_refused(ema, kept, fault):
    copied(kept)
    path = RUN / "ema/step-00000060.safetensors"
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        tensors = tensor_file.read(path)
        with open_regular_file(path) as file:
            metadata = tensor_file.read_header(file).metadata
        name = "0.05/conv_out.weight"
        tensors[name] = tensors[name][:, :2] if fault == "another" else tensors[name] * torch.nan
        tensor_file.write(path, tensors, metadata)
    ema("-q", "-o", "x.safetensors", model=MODEL).fails(4, "model.run/ema cannot be used")
    assert not Path("x.safetensors").exists()


def test_snapshots_after_the_model_are_not_its_own(ema, kept):
    """Of a model of step 32, which no snapshot is of."""
    copied(kept)
    model_file.save(MODEL, dataclasses.replace(model_file.load(kept), step=32))
    ran = ema("--json", "--metric", "held-out", "-o", "made.safetensors", model=MODEL)
    assert ran.json["step"] == 30
    assert model_file.load(MODEL).raw is not None
    assert model_file.load("made.safetensors").raw is None  # those are of step 32
    assert "the last snapshot is of step 30, and the model of step 32" in ran.err
