"""What another package adds by entry points is used from the command line as our own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from private_models import POINTWISE

import diffuse_cli
from diffuse_cli.core import NETWORKS, registry

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

TOY = """\
from dataclasses import dataclass

import torch
from torch import nn

from diffuse_cli.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    hidden: int = setting(8, 1, 64)


class Toy(nn.Module):
    def __init__(self, hidden, channels, out):
        super().__init__()
        self.first = nn.Conv2d(channels + 1, hidden, 3, padding=1)
        self.last = nn.Conv2d(hidden, out, 3, padding=1)

    def forward(self, x, t, label=None):
        shown = (t / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.last(torch.relu(self.first(torch.cat([x, shown.to(x)], 1))))


def build(config, space, conditions, out_channels=None):
    return Toy(config.hidden, space.channels, out_channels or space.channels)


def describe(config, space):
    return [f"a toy of {config.hidden} channels"]
"""

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
    "networks": "toy = added_toy",
}


@pytest.fixture
def added(tmp_path: Path, process: Callable[..., Any]) -> Callable[..., Any]:
    """Run `diffuse` with the package installed."""
    site = tmp_path / "site"
    info = site / "added-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "added.py").write_text(MODULE)
    (site / "added_toy.py").write_text(TOY)
    (site / "added_features.py").write_text(FEATURES)
    (site / "added_format.py").write_text(FORMAT)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    lines = [f"[diffuse.{group}]\n{line}\n" for group, line in POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    root = Path(diffuse_cli.__file__).parents[1]
    path = os.pathsep.join(map(str, (root, site)))
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
    ran = added("eval", model, images, *line).ok()
    assert ran.json["features"]["name"] == "means"
    (tmp_path / "a.zeros").write_bytes(b"0")
    added("convert", "a.zeros", "--format", "zeros", "-o", "converted.safetensors", "-q").ok()
    assert added("info", "converted.safetensors", "-q").code == 0


def test_a_subcommand_runs(added):
    assert "hello" in added("--help").out
    assert added("hello", "-h").code == 0
    assert added("hello", "--name", "me").out == "hello me\n"


def test_a_network_trains_resumes_samples_is_measured_and_described(
    added, images: Path, tmp_path: Path
):
    (tmp_path / "toy.toml").write_text("batch_size = 8\nnum_timesteps = 50\n[toy]\nhidden = 12\n")
    line = ["train", images, "--config", "toy.toml", "--network", "toy", "-q"]
    for options in (("--steps", 4, "--stop-at", 2), ("--resume",)):
        added(*line, *options).ok()
    ran = added("info", "model.safetensors", "-q")
    assert (ran.code, "a toy of 12 channels" in ran.out) == (0, True), ran.err
    added("sample", "model.safetensors", "-n", 2, "--steps", 3, "-q").ok()
    line = ["eval", "model.safetensors", images, "-n", 4, "--steps", 3, "--timesteps", 3]
    ran = added(*line, "--json", "-q").ok()
    assert ran.json["bits_per_dim"] > 0


def test_a_network_of_a_package_that_is_not_there_is_refused(process, images: Path):
    process("train", images, "--network", "toy", "-q").fails(2, "--network: there is no 'toy'")


def test_a_command_whose_source_does_not_parse_is_named_in_the_help(diffuse, monkeypatch, tmp_path):
    (tmp_path / "odd_command.py").write_text('"""Odd."""\ndef (:\n')
    monkeypatch.syspath_prepend(tmp_path)
    odd = EntryPoint("odd", "odd_command", "diffuse.commands")
    monkeypatch.setattr(registry, "extension_points", lambda: {"commands": {"odd": odd}})
    ran = diffuse("--help").ok()
    assert "cannot be loaded: SyntaxError" in " ".join(ran.out.split())


@pytest.mark.slow
def test_broken_extensions_break_no_training_and_no_completion(images: Path, tmp_path: Path):
    """The page of a run shows the other metrics."""
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: broken\nVersion: 1\n")
    path = os.pathsep.join(map(str, (Path(diffuse_cli.__file__).parents[1], tmp_path)))

    def run(group: str, *line: Any, **more: str) -> subprocess.CompletedProcess[str]:
        (info / "entry_points.txt").write_text(f"[diffuse.{group}]\nbroken = no_such_package\n")
        env = {**os.environ, "PYTHONPATH": path, **more}
        typed = [sys.executable, "-m", "diffuse_cli", *map(str, line)]
        return subprocess.run(typed, cwd=tmp_path, env=env, capture_output=True, text=True)

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


def test_an_extension_that_is_broken_breaks_nothing_else(diffuse, model, monkeypatch):
    broken = EntryPoint("broken", "no_such_package", "diffuse.commands")
    monkeypatch.setattr(registry, "extension_points", lambda: {"commands": {"broken": broken}})
    ran = diffuse("--help").ok()
    assert "cannot be loaded: ModuleNotFoundError" in " ".join(ran.out.split())
    diffuse("sample", model, "--bogus").fails(2, "there is no option --bogus")
    diffuse("broken").fails(2, "the extension no_such_package cannot be loaded")
