"""A transformer with context leaves for other programs."""

from __future__ import annotations

import torch

from diffuse_cli.commands.convert.network_graph import draw_inputs
from diffuse_cli.models import model_file


def test_it_leaves_as_a_program_of_torch(diffuse, lab, images, transformer):
    line = ("train", images, "--config", transformer, "--classes", "--steps", 3)
    trained = lab.trained(*line)
    diffuse("convert", trained, "out.pt2", "-q").ok()
    model = model_file.load(trained)
    program, net = torch.export.load("out.pt2").module(), model.network()
    for n in (1, 3):
        fed = draw_inputs(model.blueprint, n, seed=n)
        with torch.no_grad():
            expected = net(**fed)
            found = program(fed.pop("x"), fed.pop("t"), **fed)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
