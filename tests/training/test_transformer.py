"""A transformer with context leaves for other programs."""

from __future__ import annotations

import torch

from diffuse_cli.commands.convert.exporters._graph import draw_inputs
from diffuse_cli.models import model_file


@torch.no_grad()
def test_it_leaves_as_a_program_of_torch(diffuse, lab, images, transformer):
    line = ("train", images, "--config", transformer, "--classes", "--steps", 3)
    diffuse("convert", lab.trained(*line), "out.pt2", "-q").ok()
    model = model_file.load(lab.trained(*line))
    program, net = torch.export.load("out.pt2").module(), model.network()
    for n in (1, 3):
        fed = draw_inputs(model.blueprint, n, seed=n)
        expected = net(**fed)
        found = program(fed.pop("x"), fed.pop("t"), **fed)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
