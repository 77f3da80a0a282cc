"""Two processes compute what one does, whatever the network and what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import MODEL, WHOLE, logged
from lab import QUICK

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("images", "--config {transformer}"),
        ("images", "--given {negatives} --given-noise 0.3 --flip --accumulation 2"),
        ("images", "--given {maps} --augment rotate,flip"),
        ("images", "--augment flip,zoom,rotate,shift,color"),
        ("shades", "--condition-on level,side --label-dropout 0.3 --accumulation 2"),
    ],
)
def test_two_processes_train_as_one_does_and_resume_exactly(pair, diffuse, lab, data, options):
    line = ("train", lab[data], "--config", QUICK, *options.format_map(lab).split())
    line = (*line, "--steps", 4, "--log-every", 1)
    assert pair(*line, "-o", WHOLE, "--json").ok().json["processes"] == 2
    diffuse(*line, "-o", "one.safetensors").ok()
    for name in ("loss", "grad_norm"):
        two, one = logged(name, Path("whole.run")), logged(name, Path("one.run"))
        assert len(two) == 4
        assert two == pytest.approx(one, rel=1e-3)
    pair(*line, "--stop-at", 2).ok()
    half = MODEL.read_bytes()
    pair(*line, "--resume").ok()
    assert MODEL.read_bytes() == WHOLE.read_bytes() != half
