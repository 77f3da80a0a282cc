"""What tests of the training share: images to change, and what stands in for slow parts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from lab import QUICK

from diffuse_cli.core import LOSSES
from diffuse_cli.core.losses import simple
from diffuse_cli.models import model_file
from diffuse_cli.training import monitor, previews
from diffuse_cli.training.trainer import Trainer

BEST = Path("model.best.safetensors")


def step_of(path):
    return model_file.load(path).step


@pytest.fixture
def folder(images, tmp_path):
    """The images, to be changed."""
    return shutil.copytree(images, tmp_path / "own")


@pytest.fixture
def run(diffuse, folder):
    """Train on the folder with the quickest network."""
    return lambda *arguments: diffuse("train", folder, "--config", QUICK, *arguments)


def measure_by_step(patch, kids, before):
    """Let evaluations find KIDs by the number of updates behind the EMA weights, of which each is
    passed to `before`."""

    def measure(self):
        yield from ()
        step = self.trainer.ema.updates
        before(step)
        return {"kid": kids.get(step, 1.0), "kid_standard_error": 0.01}

    patch.setattr(monitor.Monitor, "measure_kid", measure)


@pytest.fixture
def undrawn(monkeypatch):
    """Looks without a picture."""
    monkeypatch.setattr(previews, "draw_preview", lambda trainer: iter(()))


@pytest.fixture
def spoil(monkeypatch):
    """Make the loss of some calls NaN; with one microbatch a call is a step."""

    def break_(bad, change=lambda value: value * math.nan):
        calls = iter(range(10**6))

        def loss(denoiser, *arguments, **cond):
            value = simple(denoiser, *arguments, **cond)
            return change(value) if value.requires_grad and bad(next(calls)) else value

        monkeypatch.setitem(LOSSES, "simple", loss)

    return break_


@pytest.fixture(scope="session")
def negatives(lab):
    """The negative of each image, under its name."""
    return lab["negatives"]


@pytest.fixture
def copy_run(lab, tmp_path):
    """Copy the model and the run of a command line of the lab into the folder of the test."""
    return lambda *line: shutil.copytree(lab.trained(*line).parent, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def trainers(monkeypatch):
    """Every trainer that is made."""
    made, start = [], Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a: (made.append(self), start(self, *a))[1]
    )
    return made


@pytest.fixture
def each_step(monkeypatch):
    """Do something before or after each step of a run, for its trainer and its number."""

    def act(before=lambda *_: None, after=lambda *_: None):
        real = Trainer.step

        def step(self, number):
            before(self, number)
            outcome = real(self, number)
            after(self, number)
            return outcome

        monkeypatch.setattr(Trainer, "step", step)

    return act
