"""What tests of the training share: images to change, and what stands in for slow parts."""

from __future__ import annotations

import shutil

import pytest

from diffuse_cli.training import monitor, previews
from diffuse_cli.training.trainer import Trainer


@pytest.fixture
def folder(images, tmp_path):
    """The images, to be changed."""
    return shutil.copytree(images, tmp_path / "own")


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
