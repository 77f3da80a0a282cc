"""A second medium and a second network, from another package, with no file of ours touched."""

import json
import os
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from conftest import JUDGE

from diffuse_cli.core import registry
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.media import MEDIA

TOY = """
import numpy as np
from xxhash import xxh3_128
from diffuse_cli.media import Medium, Read, Space
from diffuse_cli.media.file_errors import CORRUPT, Unusable

def read(data, asked):
    height, width, *dots = data
    if len(dots) != height * width or max(dots) > 15:
        raise Unusable(CORRUPT)
    values = np.array(dots, np.uint8).reshape(1, height, width)
    values = values if asked.size is None else fit(values, asked)
    return Read(values, xxh3_128(data).digest(), "dots", (width, height), 1)

def fit(values, asked):
    height, width = asked.size
    return np.ascontiguousarray(values[:, :height, :width])

def space(samples):
    return Space(channels=1, size=samples.shape[2:], medium="dots", levels=16)

def encode(sample, space):
    return bytes(space.size) + sample.tobytes()

def look(samples, space):
    return samples * np.uint8(17)

MEDIUM = Medium(
    extensions=frozenset({".dots"}), suffix=".dots", one="field", many="fields", sides={2: 64},
    read=read, fit=fit, space=space, encode=encode, look=look,
)
"""

NETWORK = """
from dataclasses import dataclass
import torch
from torch import nn
from diffuse_cli.core.settings import Settings, setting

@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    hidden: int = setting(8, 1, 512)

class Net(nn.Module):
    def __init__(self, config, space, out_channels):
        super().__init__()
        self.first = nn.Conv2d(space.channels + 1, config.hidden, 3, padding=1)
        self.last = nn.Conv2d(config.hidden, out_channels, 3, padding=1)

    def forward(self, x, t):
        times = (t / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.last(torch.relu(self.first(torch.cat([x, times], 1))))

def build(config, space, conditions, out_channels=None):
    return Net(config, space, out_channels or space.channels)

def describe(config, space):
    return [f"two convolutions over {config.hidden} channels"]
"""


@pytest.fixture
def package(tmp_path):
    """A folder with an installed distribution that has both."""
    site = tmp_path / "site"
    info = site / "dots-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "dots_medium.py").write_text(TOY)
    (site / "dots_network.py").write_text(NETWORK)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dots\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[diffuse.media]\ndots = dots_medium\n[diffuse.networks]\nplain = dots_network\n"
    )
    return site


SEVERAL = """
import contextlib, io, json
from pathlib import Path
from diffuse_cli.app import main

def ran(line):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(line)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

Path("said.json").write_text(json.dumps([ran(line) for line in LINES]))
"""
"""Runs commands before that of the process, and writes what they said."""


def test_they_train_resume_sample_and_evaluate(package, tmp_path, process):
    draw = np.random.default_rng(1)
    for k in range(60):
        path = tmp_path / "data" / "ab"[k % 2] / f"{k:02d}.dots"
        path.parent.mkdir(parents=True, exist_ok=True)
        dots = draw.integers(0, 8, 64) + 8 * (k % 2)
        path.write_bytes(bytes([8, 8, *dots.tolist()]))
    (tmp_path / "data" / "torn.dots").write_bytes(b"\x08\x08\x01")
    paths = os.pathsep.join([str(package), str(Path(__file__).parents[2])])
    train = "train data --network plain --steps 8 --batch-size 8 --num-timesteps 50 "
    lines = [
        train + "--gradient-checkpointing -q",
        train + "--fit pad -q",
        train + "--stop-at 3 -o halves.safetensors",
        "train data --resume -o halves.safetensors",
        "info halves.safetensors --json",
        "sample halves.safetensors -n 4 --steps 5 -o out",
        "eval halves.safetensors data -n 6 --steps 5 --timesteps all --json --report page.html",
    ]
    # Noise has its edges at full size alone.
    judged = f"import {JUDGE}; {JUDGE}.SIZE = 128\nLINES = {[x.split() for x in lines]!r}\n"
    line = (*train.split(), "-o", "whole.safetensors")
    whole = process(*line, env={"PYTHONPATH": paths}, before=judged + SEVERAL).ok()
    assert "skipped 1 file, truncated or corrupt: torn.dots" in whole.err
    said = json.loads((tmp_path / "said.json").read_text())
    assert [ran["code"] for ran in said] == [2, 2, 0, 0, 0, 0, 0], said
    refused, unfit, *_, info, _, measured = said
    assert "does not work with network 'plain'" in refused["err"]
    assert "--fit: there is no 'pad'. Choose from: crop" in unfit["err"]
    one, two = (tmp_path / f"{name}.safetensors" for name in ("whole", "halves"))
    assert one.read_bytes() == two.read_bytes()

    told = json.loads(info["out"])
    assert told["network"] == {"name": "plain", "hidden": 8}
    assert told["space"] == {
        "channels": 1, "size": [8, 8], "medium": "dots", "levels": 16, "mean": [], "std": [],
        "quantities": [],
    }  # fmt: skip
    written = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".")
    assert written == [*(f"0000{k}.dots" for k in range(4)), "grid.png", "manifest.json"]
    sample = (tmp_path / "out" / "00000.dots").read_bytes()
    assert sample[:2] == b"\x08\x08"
    assert max(sample[2:]) <= 15

    found = json.loads(measured["out"])
    assert 4 < found["bits_per_dim"] < 20
    assert any("which takes 4: " in remark for remark in found["remarks"])
    assert found["kid_of_mean"] > 0.2 > abs(found["kid_of_noise"])  # the data are noise
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6 + 4 + 2 * 6


def test_a_module_without_a_medium_is_refused(monkeypatch):
    points = {"media": {"dots": EntryPoint("dots", "json", "diffuse.media")}}
    monkeypatch.setattr(registry, "extension_points", lambda: points)
    with pytest.raises(InvalidArgument, match="dots cannot be loaded: it has no MEDIUM"):
        MEDIA["dots"]
