"""`--variance` of `sample` and `eval`, and the errors that `train` measures for `optimal`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import manifest

from diffuse_cli.core.denoising_errors import LEAST
from diffuse_cli.models import model_file
from diffuse_cli.training import monitor
from diffuse_cli.training.chores import PREVIEW
from diffuse_cli.training.trainer import Trainer

BOUND = ("--metrics", "likelihood", "--respaced", 10, "--timesteps", "all", "-n", 40, "--json")
DDPM = ("--sampler", "ddpm", "--steps", 5, "-n", 2, "--no-grid")


def test_a_model_file_has_errors_of_held_out_images_that_fall_with_the_noise(train, monkeypatch):
    measured: list[bool] = []
    real = Trainer.losses_on

    def watched(self: Trainer, chosen: Any) -> Any:
        held_out = self.plan.data.held_out
        measured.append(len(chosen) > 0 and bool(np.isin(chosen, held_out).all()))
        return real(self, chosen)

    monkeypatch.setattr(Trainer, "losses_on", watched)
    assert train("--steps", 60, "-q").code == 0
    assert {*measured} == {True}
    errors = model_file.load("model.safetensors").errors.errors
    assert len(errors) > 2
    assert LEAST < errors[0] < errors[-1] < 1
    assert list(errors) == sorted(errors)


def test_ddpm_takes_another_variance(diffuse, model):
    assert diffuse("sample", model, *DDPM, "-o", "own").code == 0
    files, own = {}, manifest("own")
    assert "variance" not in own
    for name in ("small", "large", "optimal"):
        assert diffuse("sample", model, *DDPM, "--variance", name, "-o", name).code == 0
        assert manifest(name)["variance"] == name
        files[name] = manifest(name)["files"]["00000.png"]
    assert own["files"]["00000.png"] == files["small"]
    assert len(set(files.values())) == 3


@pytest.mark.parametrize(("source", "own"), [("model", "small"), ("conditional", "learned")])
def test_the_bound_of_the_optimal_variance_is_the_lowest(diffuse, request, images, source, own):
    line = ("eval", request.getfixturevalue(source), images, *BOUND)
    bits = {}
    for name in ("small", "large", "optimal", own):
        found = diffuse(*line, "--variance", name).json
        assert found["settings"]["variance"] == name
        bits[name] = found["bits_per_dim"]
    assert bits["optimal"] < min(bits["small"], bits["large"])
    assert diffuse(*line).json["bits_per_dim"] == bits[own]


def test_a_resumed_run_measures_errors_that_its_file_lacks(train, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(monitor, "WORK", {PREVIEW: monitor.WORK[PREVIEW]})
        assert train("--steps", 8, "-q").code == 0
    whole = Path("model.safetensors")
    assert model_file.load(whole).errors is None
    assert train("--resume", "-q").code == 0
    added = whole.read_bytes()
    assert model_file.load(whole).errors is not None
    assert train("--steps", 8, "--overwrite", "-q").code == 0
    assert whole.read_bytes() == added


def test_errors_are_measured_where_a_run_ends_and_not_before(train):
    """The run goes on with the errors of step 4, and saves its state before it measures again."""
    assert train("--steps", 8, "--stop-at", 4, "-q").code == 0
    first = model_file.load("model.safetensors").errors
    assert train("--resume", "--save-every", 6, "--stop-at", 7, "-q").code == 0
    second = model_file.load("model.safetensors").errors
    assert None not in (first, second)
    assert first != second
    checkpoints = sorted(Path("model.run/checkpoints").iterdir())
    assert [path.name[-1] for path in checkpoints] == ["6", "7"]
    assert [model_file.load(path).errors for path in checkpoints] == [None, second]


def test_other_weights_have_no_errors(lab, train, diffuse, images):
    assert model_file.load(lab["distilled"]).errors is None
    assert train("--steps", 8, "--eval-every", 4, "--eval-images", 8, "-q").code == 0
    assert model_file.load("model.best.safetensors").errors is None
    assert train("--steps", 24, "--ema-lengths", 24, "-o", "many.safetensors", "-q").code == 0
    line = ("many.safetensors", images, "--metric", "held-out", "-n", 8, "-o", "ema.safetensors")
    assert diffuse("ema", *line).code == 0
    assert model_file.load("ema.safetensors").errors is None


def test_a_model_of_an_earlier_version_says_what_adds_errors(diffuse, model, images):
    earlier = Path("earlier.safetensors")
    model_file.save(earlier, replace(model_file.load(model), errors=None))
    for line in (("sample", earlier, *DDPM), ("eval", earlier, images, *BOUND)):
        diffuse(*line, "--variance", "optimal").fails(2, "diffuse train DATA --resume")
    assert diffuse("eval", earlier, images, *BOUND, "--variance", "large").code == 0


def test_an_evaluation_samples_with_a_variance(diffuse, model, images):
    line = ("eval", model, images, "-n", 4, "--json", "--steps", 2, "--metrics", "kid")
    assert diffuse(*line, "--variance", "optimal", "--sampler", "ddpm").code == 0
