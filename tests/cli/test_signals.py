"""SIGINT and SIGTERM: the last finished step is saved, and the line that goes on is said."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
from conftest import write_images

from diffuse_cli.training.trainer import Trainer

MODEL, RUN = Path("model.safetensors"), Path("model.run")


def newest():
    return max(int(p.name[5:]) for p in (RUN / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_last_step_and_says_how_to_go_on(
    spawn, diffuse, images, recipe, whole, number, code
):
    child = spawn("train", images, "--config", recipe, "--steps", 40, "--log-every", 1)
    for line in child.stderr:
        if line.startswith("step 4/"):
            break
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == code
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert f"at step {newest()}: checkpoint saved" in last
    assert not MODEL.exists()
    logged = [json.loads(text)["step"] for text in (RUN / "metrics.jsonl").read_text().splitlines()]
    assert max(logged) == newest()
    command = shlex.split(re.search(r"diffuse (train .*)", last)[1])
    assert diffuse(*command).code == 0
    assert MODEL.read_bytes() == whole


@pytest.fixture
def at_step(monkeypatch):
    """Send signals to this process while a step is under way."""

    def send(step, *numbers):
        real = Trainer.step

        def take(self, number):
            if number == step:
                for each in numbers:
                    signal.raise_signal(each)
            return real(self, number)

        monkeypatch.setattr(Trainer, "step", take)

    return send


def test_the_step_under_way_is_finished_first(train, at_step):
    at_step(4, signal.SIGTERM)
    ran = train("--steps", 9, "-q")
    assert ran.code == 143
    assert newest() == 5
    assert "--resume -o model.safetensors" in ran.line


def test_a_second_signal_stops_at_once_and_the_last_checkpoint_stands(train, at_step, monkeypatch):
    at_step(4, signal.SIGINT, signal.SIGINT)
    assert train("--steps", 9, "--save-every", 3, "-q").code == 130
    assert newest() == 3
    monkeypatch.undo()
    assert not list(RUN.rglob("*.tmp"))


def test_a_signal_while_images_are_read_leaves_nothing_behind(train, monkeypatch, tmp_path):
    from diffuse_cli.training import preparing

    def interrupted(*arguments, **options):
        yield from ()
        signal.raise_signal(signal.SIGINT)
        yield from real(*arguments, **options)

    real = preparing.read_images
    monkeypatch.setattr(preparing, "read_images", interrupted)
    ran = train("--steps", 9, "-q")
    assert ran.code == 130
    assert ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_line_that_goes_on_survives_a_space_in_a_name(diffuse, recipe, tmp_path, at_step):
    data = write_images(tmp_path / "my images", 8)
    at_step(1, signal.SIGINT)
    line = diffuse("train", data, "--config", recipe, "--steps", 3, "-o", "a b.safetensors").err
    command = shlex.split(line.strip().splitlines()[-1].split("Go on with: ")[1])
    assert diffuse(*command[1:]).code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_sampling_ends_it_without_a_traceback(
    diffuse, model, monkeypatch, number, code
):
    monkeypatch.setattr("diffuse_cli.sampling.image_noise", lambda *a: signal.raise_signal(number))
    ran = diffuse("sample", model, "-q")
    assert ran.code == code
    assert ran.err.count("\n") == 1
    assert not Path("samples").exists()
