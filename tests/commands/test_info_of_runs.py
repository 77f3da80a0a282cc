"""`info` of a run directory: how far the training is, and its newest model."""

from __future__ import annotations

import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
from conftest import MODEL, RUN


def shown(ran):
    """The rows by their labels."""
    return dict(
        re.split(r"\s{2,}", line, maxsplit=1) for line in ran.out.splitlines() if line[0] != " "
    )


@pytest.fixture
def halted(lab):
    """The folder of a run that was stopped at step 3 of 4."""
    options = ("--steps", 4, "--log-every", 1, "--preview-every", 2, "--save-every", 2)
    return lab.trained(*lab.tiny, *options, "--stop-at", 3).parent


def test_a_run_is_found_from_inside(halted, diffuse, monkeypatch):
    for folder, path in ((RUN, "."), (RUN / "checkpoints", "..")):
        monkeypatch.chdir(halted / folder)
        ran = diffuse("info", path).ok()
        assert f"-o {halted / MODEL}" in ran.out


@pytest.fixture
def stopped(halted, diffuse):
    """A copy of it here."""
    shutil.copytree(halted, Path(), dirs_exist_ok=True)
    return RUN


def test_a_stopped_run_says_how_to_go_on(stopped, diffuse, images):
    ran = diffuse("info", "model.run").ok()
    found = shown(ran)
    assert found["progress"] == "step 3 of 4, stopped"
    losses = diffuse("info", "model.run", "--json").json
    assert found["loss"] == "{loss:.4g}, held-out {held_out_loss:.4g}".format_map(losses)
    assert re.fullmatch(r"[\d,]+ images/s", found["speed"])
    assert found["step"] == "3"
    assert found["parameters"] == "12,825"
    line = shlex.split(found["resume with"])
    assert line == ["diffuse", "train", str(images), "--resume", "-o", "model.safetensors"]
    assert diffuse(*line[1:]).code == 0
    found = shown(diffuse("info", "model.run"))
    assert found["progress"] == "step 4 of 4, finished"
    assert found["model"] == "model.safetensors"
    assert "resume with" not in found


def test_json_has_the_run_and_its_model(stopped, diffuse):
    found = diffuse("info", "model.run", "--json").json
    assert (found["kind"], found["step"], found["steps"]) == ("run", 3, 4)
    assert found["process"] is found["seconds_left"] is None
    assert found["loss"] > 0 < found["held_out_loss"]
    assert found["model"]["kind"] == "model"
    assert found["model"]["path"] == "model.safetensors"
    assert found["resume"].startswith("diffuse train ")
    assert diffuse("info", next(RUN.glob("checkpoints/*")), "--json").json["kind"] == "model"


HELD = """
import time
from pathlib import Path
from diffuse_cli.training.trainer import Trainer
step = Trainer.step

def held(self, number):
    while number > 3 and not Path("looked").exists():
        time.sleep(0.01)
    return step(self, number)

Trainer.step = held
"""
"""Waits with three steps done until somebody has looked."""


def test_a_run_under_way_is_looked_at_and_goes_on(spawn, train, diffuse, images, recipe):
    """Nothing is locked, and the model file is that of a run at which nobody looked."""
    assert train("--steps", 8, "-o", "alone.safetensors", "-q").code == 0
    line = ("train", images, "--config", recipe, "--steps", 8, "--save-every", 2, "-q")
    child = spawn(*line, before=HELD)
    while not list(RUN.glob("checkpoints/*/manifest.json")):
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    looked = 0
    while child.poll() is None:
        found = diffuse("info", "model.run", "--json").ok()
        under_way = found.json["process"] == child.pid
        looked += under_way
        assert found.json["resume"] is None or not under_way
        Path("looked").touch()
    assert looked > 0
    assert child.wait() == 0
    assert MODEL.read_bytes() == Path("alone.safetensors").read_bytes()


def test_a_run_without_a_model_is_described_as_far_as_it_is(stopped, diffuse):
    shutil.rmtree(RUN / "checkpoints")
    MODEL.unlink()
    ran = diffuse("info", "model.run").ok()
    assert "warning: model.run has no complete checkpoint yet" in ran.err
    assert set(shown(ran)) == {"run", "progress", "loss", "speed", "resume with"}
    (RUN / "metrics.jsonl").unlink()
    found = shown(diffuse("info", "model.run"))
    assert (found["progress"], found["loss"]) == ("step 0 of 4, stopped", "none yet")


@pytest.mark.parametrize(
    ("before", "after"), [("steps = 4", "steps = 'x'"), ("batch_size = 8", "")]
)
def test_a_configuration_that_is_none_is_an_error(stopped, diffuse, before, after):
    path = RUN / "config.toml"
    path.write_text(path.read_text().replace(before, after))
    diffuse("info", "model.run", "-q").fails(4, "has no steps or no batch size")


def test_an_option_of_images_does_not_go_with_a_run(halted, diffuse):
    assert "-o is for images" in diffuse("info", halted / RUN, "-o", "x.png", "-q").line
