"""The core and the compiled package work alone, and help and usage errors load nothing heavy."""

from __future__ import annotations

import compileall
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house import PACKAGE
from test_refusals import REFUSALS

from diffuse_cli.commands import COMMANDS


def test_the_core_works_without_the_rest_of_the_package(tmp_path: Path):
    alone = tmp_path / "diffuse_cli"
    shutil.copytree(PACKAGE / "core", alone / "core")
    (alone / "__init__.py").touch()
    code = """
import importlib.util
import torch
from diffuse_cli import core
assert importlib.util.find_spec("diffuse_cli.system") is None
for name in core.__all__:
    assert getattr(core, name) is not None
for table in (core.SCHEDULES, core.SPACINGS, core.TIMESTEP_DRAWS, core.TARGETS, core.VARIANCES,
              core.LOSSES, core.WEIGHTINGS, core.SAMPLERS, core.NETWORKS, core.DEGRADATIONS,
              core.RESTORATIONS):
    assert all(table[name] is not None for name in table)
unet, space = core.NETWORKS["unet"], core.Space(channels=1, size=(8,))
net = unet.build(unet.Config(width=8, groups=4), space, core.Conditions())
process = core.Process(core.SCHEDULES["cosine"](10))
denoiser = core.Denoiser(net, process, "v")
x, noise = torch.zeros(2, 1, 8), torch.randn(2, 1, 8)
core.LOSSES["simple"](denoiser, x, torch.tensor([0, 9]), noise).mean().backward()
*_, state = core.SAMPLERS["ddim"](denoiser, process, noise, process.times(3), noise=lambda k: noise)
assert state.x.shape == x.shape
"""
    done = python("-c", code, path=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_package_works_without_its_source(tmp_path: Path):
    shutil.copytree(PACKAGE, tmp_path / "diffuse_cli", ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(tmp_path, quiet=1, legacy=True)
    for source in tmp_path.rglob("*.py"):
        source.unlink()
    code = """
import diffuse_cli
from diffuse_cli.core import Denoiser, Process, cosine, sample, unet
assert "train" in dir(diffuse_cli)
assert diffuse_cli.UsageError.exit_code == 2
denoiser = Denoiser(unet(channels=1, size=4, width=32), Process(cosine(4)), "v")
assert sample(denoiser, (1, 1, 4, 4), steps=1).shape == (1, 1, 4, 4)
"""
    for arguments in (["-c", code], ["-m", "diffuse_cli", "--help"]):
        done = python(*arguments, path=tmp_path)
        assert done.returncode == 0, done.stderr


# -- in a fresh interpreter -----------------------------------------------------------------------

HEAVY = (
    "torch", "torchvision", "accelerate", "matplotlib", "safetensors", "diffusers", "pyarrow",
    "huggingface_hub",
)  # fmt: skip


def python(
    *arguments: str, path: Path = PACKAGE.parent, cwd: Path | None = None, said: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *arguments], input=said,
        capture_output=True, text=True, env=environment, check=False, cwd=cwd or path,
    )  # fmt: skip


LIGHT = {
    "the Python interface": "import diffuse_cli; assert 'train' in dir(diffuse_cli)",
    "figures": "import diffuse_cli.media.figures",
    "a schedule": (
        "from diffuse_cli.core import SCHEDULES; assert len(SCHEDULES['cosine'](10)) == 10"
    ),
    "tables": (
        "from diffuse_cli.core import SCHEDULES, TARGETS, VARIANCES, LOSSES, WEIGHTINGS, "
        "SAMPLERS, SPACINGS, NETWORKS, DEGRADATIONS, RESTORATIONS, Gaussian; "
        "from diffuse_cli.config.presets import PRESETS; "
        "from diffuse_cli.metrics import METRICS; "
        "from diffuse_cli.metrics.features import FEATURES; "
        "from diffuse_cli.data.sources import SOURCES; "
        "from diffuse_cli.commands import COMMANDS; "
        "from diffuse_cli.commands.convert.importers import FORMATS; "
        "from diffuse_cli.commands.convert.exporters import TARGETS as PROGRAMS; "
        "assert all(map(list, (SCHEDULES, TARGETS, VARIANCES, LOSSES, WEIGHTINGS, SAMPLERS, "
        "SPACINGS, NETWORKS, DEGRADATIONS, RESTORATIONS, PRESETS, FEATURES, METRICS, COMMANDS, "
        "FORMATS, SOURCES, PROGRAMS)))"
    ),
}


@pytest.mark.parametrize("name", LIGHT)
def test_nothing_heavy_is_loaded_for(name: str):
    end = f"; import sys; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = python("-c", LIGHT[name] + end)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


ASK = """
import contextlib, io, json, sys
from diffuse_cli.app import main
heavy, lines = json.load(sys.stdin)
for line in lines:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    loaded = sorted(set(sys.modules) & set(heavy))
    print(json.dumps([code, out.getvalue(), err.getvalue(), loaded]), flush=True)
"""
"""Gives one line after the other to a process that has only imported the app."""


def test_help_and_usage_errors_answer_without_torch(tmp_path: Path):
    answered = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    rows = [row.values[0] for row in REFUSALS]
    refused = [shlex.split(r.line) for r in rows if r.exit_code == 2 and "{" not in r.line]
    assert len(refused) > 30
    asked = json.dumps([HEAVY, answered + refused])
    done = python("-c", ASK, cwd=tmp_path, said=asked)
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    for line, (code, out, err, loaded) in zip(answered + refused, answers, strict=True):
        assert loaded == [], line
        assert (code, bool(out), err.count("\n")) == ((0, True, 0), (2, False, 1))[line in refused]


def test_the_module_runs_without_torch():
    done = python("-X", "importtime", "-m", "diffuse_cli", "--help")
    assert done.returncode == 0
    assert "diffuse_cli.app" in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.endswith(" torch")]
