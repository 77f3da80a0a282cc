"""A package imports only from lower floors, and nothing heavy is imported to say what is wrong."""

from __future__ import annotations

import ast
import compileall
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house import (
    BASELINE,
    FLOORS,
    PACKAGE,
    arrows,
    at_run_time,
    circles,
    figures,
    imported,
    modules,
    packages_of,
    tree_of,
    variables,
)  # fmt: skip

import diffuse_cli

ALLOWED = {"torch", "numpy", "diffuse_cli"} | set(sys.stdlib_module_names)
"""What core may import beside itself."""

TESTS = Path(__file__).parent
OF_NO_PACKAGE = {"fuzz", "golden", "reliability", "test_benchmarks", "test_code_blocks",
                 "test_course", "test_docs", "test_entry_points", "test_layering",
                 "test_packaging", "test_prose", "test_site", "test_tutorials"}  # fmt: skip
"""Folders and files of tests that concern the whole program."""


def core() -> list[tuple[str, Path]]:
    """Return the modules of core."""
    return [(name, path) for name, path in modules().items() if name.split(".")[0] == "core"]


def test_every_package_has_its_floor():
    there = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()
    }
    assert there - {"__init__"} == {name for floor in FLOORS for name in floor}
    assert len(modules()) > 40


@pytest.mark.parametrize(("name", "path"), modules().items(), ids=lambda v: str(v)[-40:])
def test_a_package_imports_from_lower_floors(name: str, path: Path):
    found = packages_of(imported(tree_of(path), f"diffuse_cli.{name}"))
    if not name:  # the root: every module imports it
        assert found == {"api", "system"}
        assert packages_of(imported(tree_of(path, run_time=True), "diffuse_cli")) == {"system"}
        return
    own = name.split(".")[0]
    floor = next(k for k, names in enumerate(FLOORS) if own in names)
    allowed = {own, *(lower for names in FLOORS[:floor] for lower in names)}
    assert found <= allowed, f"{name} imports {sorted(found - allowed)}"


def test_no_files_import_each_other():
    assert circles(arrows(run_time=True)) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_figures_only_fall():
    """After a fall, or a rise with a reason: `python tests/house.py --record`."""
    limits, (now, places) = json.loads(BASELINE.read_text()), figures()
    assert now.keys() == limits.keys()
    higher = {name: (n, places.get(name)) for name, n in now.items() if n > limits[name]}
    assert higher == {}, "python tests/house.py"


def test_assigned_names_and_arguments_are_variables():
    tree = ast.parse("def f(found, *own):\n    a = b.made = [left for left in found]")
    assert sorted(variables(tree)) == ["a", "found", "left", "own"]


@pytest.mark.parametrize(("name", "path"), core(), ids=lambda v: str(v)[-40:])
def test_the_core_imports_torch_numpy_the_standard_library_and_itself_alone(name: str, path: Path):
    found = set(imported(tree_of(path), f"diffuse_cli.{name}"))
    assert {full.split(".")[0] for full in found} <= ALLOWED
    ours = {full for full in found if full.split(".")[0] == "diffuse_cli"} - {"diffuse_cli"}
    assert all(full.split(".")[1] == "core" for full in ours), sorted(ours)


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


def test_the_core_knows_no_files_no_printing_and_no_accelerate():
    banned = {
        "accelerate",
        "rich",
        "typer",
        "pathlib",
        "diffuse_cli.system",
        "safetensors",
        "os",
    }
    for name, path in core():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = set(imported(tree, f"diffuse_cli.{name}"))
        assert not names & banned, path.name
        calls = {n.func.id for n in ast.walk(tree)
                 if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
        assert not calls & {"print", "open"}, path.name


def test_the_checker_sees_every_kind_of_import():
    source = """
if TYPE_CHECKING:
    from diffuse_cli.app import main
def f():
    import diffuse_cli.commands.noise_demo.demo_page
    from diffuse_cli import training
from . import api
from .core.process import Process
"""
    tree = ast.parse(source)
    assert packages_of(imported(tree, "diffuse_cli.system")) == {
        "app", "commands", "training", "api", "core",
    }  # fmt: skip
    assert "app" not in packages_of(imported(at_run_time(tree), "diffuse_cli.system"))


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


def loads_nothing_heavy(code: str) -> None:
    end = f"; import sys; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = python("-c", code + end)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_app_loads_nothing_heavy():
    loads_nothing_heavy("import diffuse_cli.app")


def test_the_python_interface_is_imported_when_it_is_used():
    loads_nothing_heavy("import diffuse_cli; assert 'train' in dir(diffuse_cli)")


def test_tables_are_listed_without_torch():
    loads_nothing_heavy(
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
    )


def test_schedules_are_computed_without_torch():
    loads_nothing_heavy(
        "from diffuse_cli.core import SCHEDULES; assert len(SCHEDULES['cosine'](10)) == 10"
    )


ANSWERS: dict[str, tuple[list[str], int, str]] = {
    "help": (["--help"], 0, "noise-demo"),
    "version": (["--version"], 0, diffuse_cli.__version__),
    "train help": (["train", "--help"], 0, "--schedule"),
    "sample help": (["sample", "--help"], 0, "--sampler"),
    "restore help": (["restore", "--help"], 0, "low-res:4"),
    "interpolate help": (["interpolate", "--help"], 0, "--steps"),
    "demo help": (["noise-demo", "--help"], 0, "--gif"),
    "eval help": (["eval", "--help"], 0, "--timesteps"),
    "tune help": (["tune", "--help"], 0, "--samplers"),
    "ema help": (["ema", "--help"], 0, "--metric"),
    "compare help": (["compare", "--help"], 0, "Compare two runs or models"),
    "info help": (["info", "--help"], 0, "contact sheet"),
    "convert help": (["convert", "--help"], 0, "--attention-order"),
    "unknown command": (["trian"], 2, "trian"),
    "unknown option": (["train", "x", "--stepz", "3"], 2, "--stepz"),
    "unknown schedule": (["train", "x", "--schedule", "cosin"], 2, "Did you mean 'cosine'"),
    "unknown sampler": (["sample", "x", "--sampler", "dddim"], 2, "Did you mean 'ddim'"),
    "unknown sampler to try": (["tune", "x", "y", "--samplers", "a,unipk"], 2, "Choose from"),
    "unknown metric": (["ema", "x", "y", "--metric", "kidd"], 2, "Did you mean 'kid'"),
    "a synonym": (["train", "x", "--learning-rate", "1"], 2, "Did you mean '--lr'"),
    "an old name": (["eval", "x", "y", "--sweep"], 2, "Did you mean 'diffuse tune MODEL DATA'"),
    "drawing for a loss": (["ema", "x", "y", "--metric", "held-out", "--eta", "1"], 2, "--eta"),
    "unknown preset": (["train", "x", "--preset", "tinny"], 2, "Did you mean 'tiny'"),
    "unknown precision": (["train", "x", "--precision", "bf61"], 2, "Did you mean 'bf16'"),
    "unknown format": (["convert", "x", "--format", "openia"], 2, "Did you mean 'openai'"),
    "unknown target": (["convert", "x", "--to", "difusers"], 2, "Did you mean 'diffusers'"),
    "no such scheduler": (
        ["convert", "x", "y", "--to", "diffusers", "--sampler", "heun"],
        2,
        "no scheduler in diffusers",
    ),
    "unknown degradation": (
        ["restore", "x", "y", "--degradation", "blurr:2"],
        2,
        "Did you mean 'blur'",
    ),
    "unknown method": (
        ["inpaint", "x", "y", "--mask", "z", "--method", "pigmd"],
        2,
        "Did you mean 'pigdm'",
    ),
    "no image": (["inpaint", "x"], 2, "IMAGE is missing"),
    "zero steps": (["train", "x", "--steps", "0"], 2, "--steps must be at least 1"),
    "not a number": (["train", "x", "--lr", "nan"], 2, "--lr must be a finite number"),
    "not an integer": (["train", "x", "--steps", "many"], 2, "--steps"),
    "no data": (["train"], 2, "DATA is missing"),
    "no model": (["sample"], 2, "MODEL is missing"),
    "no path": (["info"], 2, "PATH is missing"),
    "no source": (["convert"], 2, "SOURCE is missing"),
    "bad size": (["train", "x", "--size", "wide"], 2, "--size 'wide'"),
    "bad color": (["train", "x", "--background", "nocolor"], 2, "--background"),
    "unknown prediction": (["train", "x", "--target", "epss"], 2, "Did you mean 'eps'"),
    "unknown variance": (["train", "x", "--variance", "smal"], 2, "Did you mean 'small'"),
    "unknown loss": (["train", "x", "--loss", "simpel"], 2, "Did you mean 'simple'"),
    "unknown weighting": (["train", "x", "--weighting", "minsnr"], 2, "Did you mean 'min-snr'"),
    "unknown tracker": (["train", "x", "--log", "tensorbord"], 2, "Did you mean 'tensorboard'"),
    "unknown spacing": (["sample", "x", "--spacing", "trail"], 2, "Did you mean 'trailing'"),
    "too many parts": (["train", "x", "--accumulation", "9", "--batch-size", "8"], 2, "--accum"),
    "opposites": (["train", "x", "--resume", "--overwrite"], 2, "exclude each other"),
    "two weightings": (["train", "x", "--loss", "vlb", "--weighting", "min-snr"], 2, "--weighting"),
    "suffix of a model": (["train", "x", "-o", "model.bin"], 2, ".safetensors"),
    "suffix of a picture": (["noise-demo", "x", "-o", "a.jpg"], 2, ".png"),
    "no betas": (["noise-demo", "x", "--betas", "y"], 2, "--betas"),
    "a picture that is there": (["noise-demo", "x", "-o", "a.png"], 5, "a.png exists already"),
}


def test_tests_lie_in_the_folder_of_their_package():
    paths = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    packages = {name for floor in FLOORS for name in floor}
    odd = [path for path in paths if path.parts[0].removesuffix(".py") not in
           packages | OF_NO_PACKAGE]  # fmt: skip
    assert odd == []


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


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str]]]:
    """The exit code and the streams of each of the cases, and what is loaded after it."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "a.png").touch()
    asked = json.dumps([HEAVY, [arguments for arguments, *_ in ANSWERS.values()]])
    done = python("-c", ASK, cwd=folder, said=asked)
    assert done.returncode == 0, done.stderr
    return dict(zip(ANSWERS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", list(ANSWERS))
def test_help_and_usage_errors_answer_without_torch(answers, case: str):
    _, code, text = ANSWERS[case]
    found, out, err, loaded = answers[case]
    assert found == code, err
    assert loaded == []
    assert text in (out if code == 0 else err)
    if code:
        assert out == ""
        assert err.count("\n") == 1, err


def test_the_module_runs_without_torch():
    done = python("-X", "importtime", "-m", "diffuse_cli", "--help")
    assert done.returncode == 0
    assert "diffuse_cli.app" in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.endswith(" torch")]
