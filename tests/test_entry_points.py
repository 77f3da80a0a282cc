"""What another package adds by entry points is used from the command line as our own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import JUDGE
from lab import ROOT, write_package
from private_models import POINTWISE
from test_docs import BLOCK

from diffuse_cli.core import NETWORKS, registry
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.media import MEDIA

MODULE = '''\
"""A subcommand that says hello."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diffuse_cli.core.degradations import Degradation
from diffuse_cli.core.losses import simple
from diffuse_cli.core.masks import MaskKind
from diffuse_cli.core.networks._unet_modules import ResBlock
from diffuse_cli.core.restoration import RESTORATIONS, Restoration
from diffuse_cli.core.samplers import SAMPLERS
from diffuse_cli.core.losses import TimestepDraw, uniform
from diffuse_cli.config.options import Options, option
from diffuse_cli.config.presets import Preset

NEEDS = ()


def schedule(n):
    return [0.02] * (n - 1) + [0.5]


def target(alpha, sigma, c1, c2):
    return 2.0, 0.0


def variance(pair, raw):
    return pair.log_beta_tilde


def loss(*args, **cond):
    return 3 * simple(*args, **cond)


def weighting(snr):
    return snr.clamp(max=2.0)


def spacing(n, log_snrs):
    return list(range(n - 1, -1, -1))


draw = TimestepDraw(uniform)


def optimizer(net, *, lr, weight_decay):
    return torch.optim.RMSprop(net.parameters(), lr=lr, weight_decay=weight_decay)


def sampler(denoise, process, x, times, *, noise):
    yield from SAMPLERS["ddim"](denoise, process, x, times, noise=noise)


class Block(ResBlock):
    pass


class Halved(Degradation):
    NAME, EXAMPLE = "added-degradation", "added-degradation"

    def apply(self, x0):
        return x0 / 2

    def pinv(self, y):
        return 2 * y

    def transpose(self, y):
        return y / 2


def restore(denoise, process, degradation, y, sigma):
    return RESTORATIONS["ddnm"](denoise, process, degradation, y, sigma)


restoration = Restoration(restore)
mask = MaskKind(lambda u, size: u.reshape(-1, 1, *size) < 0.5, math.prod)

preset = Preset("4 K", {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": ()},
                {"lr": 1e-3})


def compute(evaluation):
    return {"seven": 7.0}


@dataclass(frozen=True, kw_only=True)
class Hello(Options):
    name: str = option("you", "Who is greeted.")


CONFIG = Hello


def run(config, console):
    print(f"hello {config.name}")
'''

FEATURES = """\
from pathlib import Path

import torch


class Published:
    network, sha256, ways = "means", "0" * 64, ""

    def find(self):
        yield from ()
        return Path(__file__)


PUBLISHED, DIM, RESIZE = Published(), 3, "not at all"


def build(file):
    return torch.nn.Identity()


def preprocess(pixels):
    return pixels.float().mean((2, 3))
"""

FORMAT = """\
from diffuse_cli.core.networks import unet
from diffuse_cli.core.space import Space
from diffuse_cli.commands.convert.importers.assembly import ForeignModel, Net

OPTIONS = ()


def recognizes(source):
    return False  # it is named with --format


def read(source, config):
    import torch

    shape = unet.Config(width=8, multipliers=(1,), blocks=1, attention=(), groups=4, heads=1)
    net = Net(config=shape, space=Space(channels=1, size=(8, 8)), out_channels=1, num_classes=0)
    tensors = {name: torch.zeros(shape) for name, shape in net.shapes.items()}
    process = {"schedule": "linear", "num_timesteps": 50, "variance": "small"}
    return ForeignModel(unet=net, diffusion=process, tensors=tensors)
"""

POINTS = {
    "spacings": "added-spacing = added:spacing",
    "features": "means = added_features",
    "formats": "zeros = added_format",
    "schedules": "added-schedule = added:schedule",
    "targets": "added-target = added:target",
    "variances": "added-variance = added:variance",
    "losses": "added-loss = added:loss",
    "weightings": "added-weighting = added:weighting",
    "timestep_draws": "added-draw = added:draw",
    "optimizers": "added-optimizer = added:optimizer",
    "samplers": "added-sampler = added:sampler",
    "blocks": "added-block = added:Block",
    "degradations": "added-degradation = added:Halved",
    "restorations": "added-restoration = added:restoration",
    "masks": "added-mask = added:mask",
    "presets": "added-preset = added:preset",
    "metrics": "added-metric = added",
    "commands": "hello = added",
}


@pytest.fixture
def added(tmp_path: Path, process: Callable[..., Any]) -> Callable[..., Any]:
    """Run `diffuse` with the package installed."""
    lines = [f"[diffuse.{group}]\n{line}\n" for group, line in POINTS.items()]
    modules = {"added.py": MODULE, "added_features.py": FEATURES, "added_format.py": FORMAT}
    write_package(tmp_path / "site", "added", "\n".join(lines), modules)
    path = os.pathsep.join(map(str, (ROOT, tmp_path / "site")))
    return lambda *arguments: process(*arguments, env={"PYTHONPATH": path})


@pytest.mark.parametrize(
    "names",
    [("schedule", "target", "variance"), ("loss", "weighting", "timestep-draw", "optimizer")],
    ids=" ".join,
)
def test_entries_train(added, images: Path, recipe: Path, tmp_path: Path, names: tuple[str, ...]):
    entries = {name: f"added-{name.removeprefix('timestep-')}" for name in names}
    options = [word for name, entry in entries.items() for word in (f"--{name}", entry)]
    added("train", images, "--config", recipe, "--steps", 2, "-q", *options).ok()
    config = tomllib.loads((tmp_path / "model.run" / "config.toml").read_text())
    assert {name: config[name.replace("-", "_")] for name in names} == entries


def test_a_preset_and_a_block_train(added, images: Path, tmp_path: Path):
    (tmp_path / "block.toml").write_text('[unet]\nblock = "added-block"\n')
    line = ["train", images, "--preset", "added-preset", "--config", "block.toml", "-q"]
    added(*line, "--steps", 2).ok()
    assert added("info", "model.safetensors", "--json").json["network"]["block"] == "added-block"


def test_a_sampler_draws_and_a_metric_measures(added, images: Path, model: Path):
    own = ("--sampler", "added-sampler", "--spacing", "added-spacing")
    added("sample", model, "-n", 2, "--steps", 3, *own, "-q").ok()
    ran = added("eval", model, images, "-n", 4, "--steps", 3, "--timesteps", 3, "--json", "-q").ok()
    assert ran.json["seven"] == 7


def test_a_degradation_a_mask_and_a_restoration_restore(added, images: Path, model: Path):
    own = ("--method", "added-restoration", "--sampler", "added-sampler", "--steps", 3, "-q")
    for form, *more in (("added-degradation",), ("mask:added-mask", "--degrade")):
        line = ("restore", model, images / "dark" / "000.png", "-n", 1, "-o", form[:4])
        added(*line, "--degradation", form, *more, *own).ok()


def test_a_feature_network_measures_and_a_format_is_read(
    added, model: Path, images: Path, tmp_path: Path
):
    line = ("-n", 4, "--steps", 3, "--timesteps", 3, "--features", "means", "--json", "-q")
    assert added("eval", model, images, *line).ok().json["features"]["name"] == "means"
    (tmp_path / "a.zeros").write_bytes(b"0")
    added("convert", "a.zeros", "--format", "zeros", "-o", "converted.safetensors", "-q").ok()
    assert added("info", "converted.safetensors", "-q").code == 0


def test_a_subcommand_runs(added):
    assert "hello" in added("--help").out
    assert added("hello", "-h").code == 0
    assert added("hello", "--name", "me").out == "hello me\n"


@pytest.mark.slow
def test_broken_extensions_break_no_training_and_no_completion(images: Path, tmp_path: Path):
    """The page of a run shows the other metrics."""

    def run(group: str, *line: Any, **more: str) -> subprocess.CompletedProcess[str]:
        write_package(tmp_path / group, "broken", f"[diffuse.{group}]\nbroken = no_such_package\n")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, tmp_path / group)))}
        typed = [sys.executable, "-m", "diffuse_cli", *map(str, line)]
        return subprocess.run(typed, cwd=tmp_path, env=env | more, capture_output=True, text=True)

    ran = run("metrics", "train", images, "--steps", 1, "--batch-size", 2)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("the extension broken cannot be loaded: ModuleNotFoundError") == 1
    assert "Update it, or uninstall it" in ran.stderr
    assert (tmp_path / "model.run" / "index.html").exists()
    words = {"_DIFFUSE_COMPLETE": "complete_bash", "COMP_WORDS": "diffuse ", "COMP_CWORD": "1"}
    ran = run("commands", **words)
    assert "train" in ran.stdout.split(), ran.stderr
    assert "broken" not in ran.stdout.split()


@pytest.mark.parametrize(
    ("group", "value", "line"),
    [
        ("media", "no_such_package", "info {images} --json"),
        ("media", "json", "noise-demo {images}/dark/000.png -o demo.png --overwrite"),
        ("schedules", "no_such_package", "noise-demo {images}/dark/000.png --overwrite --json"),
        ("sources", "no_such_package", "info {images} --json"),
        ("sources", "json", "info {images} --json"),
        ("presets", "math:nothing", "train {images} --network pointwise --augment none --dry-run"),
        ("metrics", "math:nothing", "eval {images} {images} -n 4 --metrics marginals --json"),
    ],
)
def test_a_broken_entry_is_named_once_and_skipped(
    diffuse, images, monkeypatch, group: str, value: str, line: str
):
    monkeypatch.setitem(NETWORKS, "pointwise", POINTWISE)  # which no preset has
    words = line.format(images=images).split()
    whole = diffuse(*words)
    assert (whole.code, "cannot be loaded" in whole.err) == (0, False), whole.err
    broken = EntryPoint("broken", value, f"diffuse.{group}")
    monkeypatch.setattr(registry, "extension_points", lambda: {group: {"broken": broken}})
    ran = diffuse(*words).ok()
    [warning] = [text for text in ran.err.splitlines() if "cannot be loaded" in text]
    assert warning.startswith("warning: the extension ")
    if "--json" in words:
        assert {**ran.json, "seconds": 0} == {**whole.json, "seconds": 0}
    quiet = diffuse(*words, "-q")
    assert (quiet.code, quiet.err) == (0, "")


def test_an_extension_that_is_broken_breaks_nothing_else(diffuse, model, monkeypatch, tmp_path):
    (tmp_path / "unparsed.py").write_text('"""Odd."""\ndef (:\n')
    monkeypatch.syspath_prepend(tmp_path)
    for module, error in (("unparsed", "SyntaxError"), ("no_such_package", "ModuleNotFoundError")):
        points = {"commands": {"broken": EntryPoint("broken", module, "diffuse.commands")}}
        monkeypatch.setattr(registry, "extension_points", lambda points=points: points)
        help_text = diffuse("--help").ok().out
        assert f"cannot be loaded: {error}" in " ".join(help_text.split())
    diffuse("sample", model, "--bogus").fails(2, "there is no option --bogus")
    diffuse("broken").fails(2, "the extension no_such_package cannot be loaded")


def test_a_module_without_a_medium_is_refused(monkeypatch):
    points = {"media": {"dots": EntryPoint("dots", "json", "diffuse.media")}}
    monkeypatch.setattr(registry, "extension_points", lambda: points)
    with pytest.raises(InvalidArgument, match="dots cannot be loaded: it has no MEDIUM"):
        MEDIA["dots"]


# -- the package of docs/extending.md --------------------------------------------------------------


@pytest.fixture
def dots(tmp_path: Path, process: Callable[..., Any]) -> Callable[..., Any]:
    """Run `diffuse` with the package of docs/extending.md installed."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    tables = re.findall(r"^```toml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    groups = tomllib.loads(tables[0])["project"]["entry-points"]
    lines = [f"[{group}]\n{name} = {at}\n" for group, entries in groups.items()
             for name, at in entries.items()]  # fmt: skip
    modules = {code.split()[1]: code for code in BLOCK.findall(text)}
    write_package(tmp_path / "site", "dots", "".join(lines), modules)
    (tmp_path / "plain.toml").write_text(tables[1])
    paths = os.pathsep.join(map(str, (tmp_path / "site", ROOT)))
    return lambda *line, **options: process(*line, env={"PYTHONPATH": paths}, **options)


def test_the_code_that_adds_things_works(dots: Callable[..., Any], tmp_path: Path):
    (tmp_path / "data").mkdir()
    for k in range(8):
        values = [(i + k) % 16 for i in range(64)]
        (tmp_path / f"data/{k}.dots").write_bytes(bytes([8, 8, *values]))
    dots("train", "data", "--schedule", "ramp", "--config", "plain.toml", "--steps", 2).ok()
    lines = [f"data/{k}.dots {'ab'[k % 2]}" for k in range(8)]
    (tmp_path / "some.list").write_text("\n".join(lines))
    ran = dots("info", "some.list", "--json")
    assert ran.json["classes"] == {"a": 4, "b": 4}, ran.err
    told = dots("info", "model.safetensors").out
    assert "two convolutions over 16 channels" in told
    assert "schedule ramp" in told
    dots("sample", "model.safetensors", "-n", 2, "--steps", 2).ok()
    assert len((tmp_path / "samples" / "00000.dots").read_bytes()) == 66


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


def test_a_medium_and_a_network_train_resume_sample_and_are_measured(dots, tmp_path):
    draw = np.random.default_rng(1)
    for k in range(60):
        path = tmp_path / "data" / "ab"[k % 2] / f"{k:02d}.dots"
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = draw.integers(0, 8, 64) + 8 * (k % 2)
        path.write_bytes(bytes([8, 8, *levels.tolist()]))
    (tmp_path / "data" / "torn.dots").write_bytes(b"\x08\x08\x01")
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
    whole = dots(*line, before=judged + SEVERAL).ok()
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
