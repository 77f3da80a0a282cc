"""A transformer where a U-Net stands in the other tests: processes, seeds, what leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import logged, pixels

from diffuse_cli.commands.convert.exporters._graph import draw_inputs
from diffuse_cli.core.networks import vit
from diffuse_cli.models import model_file

STEPS = ("--steps", 3, "--log-every", 1, "-q")


@pytest.fixture
def trained(lab, images, transformer) -> Path:
    """A transformer of 3 steps, told classes."""
    return lab.trained("train", images, "--config", transformer, "--classes", *STEPS)


@pytest.mark.slow
def test_two_processes_train_one_as_one_does(pair, diffuse, images, transformer):
    line = ("train", images, "--config", transformer, *STEPS)
    assert pair(*line).code == 0
    assert diffuse(*line, "-o", "one.safetensors").code == 0
    for name in ("loss", "grad_norm"):
        two, one = logged(name), logged(name, Path("one.run"))
        assert len(two) == 3
        assert two == pytest.approx(one, abs=1e-4)


def test_an_image_is_the_same_in_any_batch(diffuse, trained):
    line = ("sample", trained, "-n", 3, "--steps", 3, "--seed", 5, "-q")
    assert diffuse(*line, "-o", "one", "--batch-size", 1).code == 0
    assert diffuse(*line, "-o", "all", "--batch-size", 3).code == 0
    for k in range(3):
        assert np.abs(pixels("one", k) - pixels("all", k)).max() <= 1


@torch.no_grad()
def test_it_leaves_as_a_program_of_torch(diffuse, trained):
    assert diffuse("convert", trained, "out.pt2", "-q").code == 0
    model = model_file.load(trained)
    assert isinstance(model.blueprint.config, vit.Config)
    program, net = torch.export.load("out.pt2").module(), model.network()
    for n in (1, 3):
        fed = draw_inputs(model.blueprint, n, seed=n)
        expected = net(**fed)
        found = program(fed.pop("x"), fed.pop("t"), **fed)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
