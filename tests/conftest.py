"""What tests of the command line share: images, a tiny network, and `diffuse` as a user runs it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported: equal bytes need equal threads, here and in processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# No test reads or fills the cache of whoever runs it.
os.environ["DIFFUSE_CACHE"] = ""

import numpy as np
import pytest
from lab import QUICK, ROOT, Lab
from PIL import Image
from process_server import Forked, Server
from unplotted_pages import Undrawn

MODEL, RUN, WHOLE = Path("model.safetensors"), Path("model.run"), Path("whole.safetensors")
"""A model in an empty folder, its run directory, and a model of a run that nothing stopped."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which is one JSON object and nothing else."""
        return json.loads(self.out)

    def ok(self) -> Ran:
        """The same, of a command that did not fail."""
        assert self.code == 0, self.err
        return self

    def fails(self, code: int, *words: str) -> Ran:
        """The same, of a command that ended with this code and one line with these words."""
        assert self.code == code, self.err
        assert [each for each in words if each not in self.line] == []
        return self

    @property
    def line(self) -> str:
        """stderr, which is one line and nothing else."""
        assert self.err.count("\n") == 1, self.err
        return self.err


IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
CACHES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "npm_config_cache")
"""Variables that name the caches of npm, Chromium, ONNX Runtime and others."""


def pytest_configure() -> None:
    """Let other programs write their caches into a temporary folder."""
    if not IS_WORKER:
        os.environ.update(dict.fromkeys(CACHES, tempfile.mkdtemp(prefix="diffuse-caches-")))


def pytest_unconfigure() -> None:
    """Remove that folder."""
    if not IS_WORKER:
        shutil.rmtree(os.environ[CACHES[0]], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.accelerator.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


def mostly_slow(cases: Iterable[Any], always: int = 2) -> list[Any]:
    """Mark the cases after the first ones as slow, for `parametrize`."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    slow = [(), (pytest.mark.slow,)]
    return [pytest.param(*row, marks=slow[k >= always]) for k, row in enumerate(rows)]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a process that a test starts."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **changes}


PREVIEW_STEPS = 2
"""In how many steps a run draws its previews and what it measures KID of."""


JUDGE = "diffuse_cli.metrics.features.efficientnet_lite0"


def less(arguments: Sequence[Any]) -> dict[str, int]:
    """What a command does less of, by where its number is.

    Images are judged at 32 x 32, which takes a tenth of the time and measures their likeness as
    well; tests of the features and of golden results judge them at full size.
    """
    found = {f"{JUDGE}.SIZE": 32}
    if arguments[:1] == ["train"]:
        found["diffuse_cli.training.previews.SAMPLING_STEPS"] = PREVIEW_STEPS
        found["diffuse_cli.core.denoising_errors.POINTS"] = 4
    return found


@functools.cache
def builder() -> Callable[[Path], Any]:
    """What builds the network that judges, once per file: nothing changes it."""
    from diffuse_cli.metrics.features.efficientnet_lite0 import build

    return functools.cache(build)


def do_less(
    patch: pytest.MonkeyPatch,
    arguments: Sequence[Any] = ("train",),
    *,
    full_size: bool = False,
    plots: bool = False,
) -> None:
    """Let this process do less; features see images at 32 x 32 unless at their full size, and
    pages have no plots unless they are asked for."""
    for place, number in less(list(arguments)).items():
        if not (full_size and place.startswith(JUDGE)):
            patch.setattr(place, number)
    patch.setattr(f"{JUDGE}.build", builder())
    if not plots:
        patch.setattr("diffuse_cli.pages.charts.Plot", Undrawn)


def in_process(arguments: Sequence[Any], *, plots: bool = False) -> int:
    from diffuse_cli.app import main

    line = [str(a) for a in arguments]
    with pytest.MonkeyPatch.context() as patch:
        do_less(patch, line, plots=plots)
        return main(line)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Data, models and runs that all workers share. Do not write there."""
    folder = tmp_path_factory.getbasetemp()
    return Lab((folder.parent if IS_WORKER else folder) / "lab", in_process)


@pytest.fixture(scope="session")
def images(lab: Lab) -> Path:
    """60 images of 8x8, of which 6 are held out, 3 of each class."""
    return lab["images"]


@pytest.fixture(scope="session")
def recipe(lab: Lab) -> Path:
    """A TOML file with a network that trains in a second."""
    return lab["tiny"]


@pytest.fixture(scope="session")
def transformer(lab: Lab) -> Path:
    """The same with a transformer."""
    return lab["transformer"]


@pytest.fixture(scope="session")
def model(lab: Lab) -> Path:
    """A model of 60 steps with its run directory."""
    return lab.trained(*lab.tiny, "--no-keep-weak", "--steps", 60)


@pytest.fixture(scope="session")
def conditional(lab: Lab) -> Path:
    """A model of the classes dark and light, with a learned variance.

    With AdamW, under which so few steps already tell the classes apart.
    """
    line = ("--classes", "--variance", "learned", "--label-dropout", 0.3, "--optimizer", "adamw")
    return lab.trained(*lab.tiny, *line, "--steps", 60, "--no-keep-weak")


@pytest.fixture(scope="session")
def weak(lab: Lab) -> Path:
    """A model of 24 steps with its average after 3."""
    return lab.trained(*lab.tiny, "--steps", 24)


@pytest.fixture(scope="session")
def whole(lab: Lab) -> bytes:
    """The model file of a run of 40 steps that nothing stopped."""
    return lab.trained(*lab.tiny, "--steps", 40).read_bytes()


@pytest.fixture
def diffuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Run a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any, plots: bool = False) -> Ran:
        capfd.readouterr()
        code = in_process(arguments, plots=plots)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the time of a step by a single step."""
    from diffuse_cli.training import cost_estimate

    monkeypatch.setattr(cost_estimate, "WARM_UP", 0)
    monkeypatch.setattr(cost_estimate, "ENOUGH", 1)


@pytest.fixture
def step_takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Predict and measure so many seconds as the time of a step, without a step."""
    from file_operations import giving

    from diffuse_cli.training import cost_estimate, step_cost

    def take(seconds: float) -> None:
        monkeypatch.setattr(cost_estimate, "measure_step_seconds", giving(seconds))
        monkeypatch.setattr(step_cost, "predict_seconds", lambda *_: seconds)

    return take


@pytest.fixture
def instead_of_networks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From here on, do something else where a network would compute, such as fail the test; fake
    tensors, by which memory is counted, do not compute."""

    def replace(act: Callable[[], Any] = lambda: pytest.fail("a network computed")) -> None:
        from torch._subclasses import FakeTensor
        from torch.nn import Module

        real = Module.__call__

        def call(module: Any, *arguments: Any, **options: Any) -> Any:
            weights = next(module.parameters(), None)
            if weights is None or isinstance(weights, FakeTensor):
                return real(module, *arguments, **options)
            return act()

        monkeypatch.setattr(Module, "__call__", call)

    return replace


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Evaluations with the parts that they were made of, when they are done."""
    from diffuse_cli.evaluation import evaluation_run

    kept: list[Any] = []
    real = evaluation_run.compute_metrics
    monkeypatch.setattr(
        evaluation_run, "compute_metrics", lambda own: kept.append(own) or real(own)
    )
    return kept


@pytest.fixture
def train(diffuse: Callable[..., Ran], images: Path, recipe: Path) -> Callable[..., Ran]:
    """Run `diffuse train` on the images with the tiny network."""
    return lambda *arguments: diffuse("train", images, "--config", recipe, *arguments)


@pytest.fixture
def quick(diffuse: Callable[..., Ran], images: Path) -> Callable[..., Ran]:
    """The same with the quickest network, where nothing depends on which."""
    return lambda *line, **how: diffuse("train", images, "--config", QUICK, *line, **how)


def log_rows(run: Path | str = RUN) -> list[dict[str, Any]]:
    """The lines of the log of a run."""
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def logged(name: str, run: Path | str = RUN) -> list[Any]:
    """The values of this name in the log of a run, in order."""
    return [row[name] for row in log_rows(run) if name in row]


def manifest(folder: Path | str = "samples") -> dict[str, Any]:
    """The record that a folder of samples has of them."""
    return json.loads(Path(folder, "manifest.json").read_text())


def pixels(folder: Path | str, k: int = 0) -> Any:
    """The levels of the k-th image of a folder of samples: integers (H, W) or (H, W, 3)."""
    return np.asarray(Image.open(Path(folder, f"{k:05d}.png")), int)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What the loss is given while training: x0 and the conditions of a microbatch."""
    from diffuse_cli.core import LOSSES
    from diffuse_cli.core.losses import simple

    seen = []

    def loss(denoiser: Any, x0: Any, t: Any, noise: Any, weight: Any = None, **cond: Any) -> Any:
        value = simple(denoiser, x0, t, noise, weight, **cond)
        if value.requires_grad:
            seen.append((x0, cond))
        return value

    monkeypatch.setitem(LOSSES, "simple", loss)
    return seen


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The process that those of `spawn` are forked from."""
    with Server(environment()) as server:
        yield server


def begin(
    server: Server, arguments: Sequence[Any], *where: Any, before: str = "", **options: Any
) -> Forked:
    """Start `diffuse` as a process of its own, that does less; more arguments as of `Forked`."""
    line = [*map(str, arguments)]
    setting = [
        f"import {place.rpartition('.')[0]}; {place} = {number}\n"
        for place, number in less(line).items()
    ]
    return Forked(server, line, *where, before="".join([*setting, before]), **options)


@pytest.fixture
def spawn(server: Server, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Start `diffuse` as a process of its own, that has everything imported already."""
    started: list[Forked] = []

    def start(
        *arguments: Any, env: Mapping[str, str] = {}, before: str = "", **options: Any
    ) -> Forked:
        started.append(
            begin(server, arguments, tmp_path, environment(**env), before=before, **options)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def process(spawn: Callable[..., Forked]) -> Callable[..., Ran]:
    """Run such a process to its end."""

    def run(*arguments: Any, **options: Any) -> Ran:
        child = spawn(*arguments, **options)
        out, err = child.communicate(timeout=120)
        return Ran(child.wait(), out, err)

    return run


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def pair(spawn: Callable[..., Forked]) -> Callable[..., Ran]:
    """Run two such processes with the variables of a launcher; what both say together."""

    def run(*arguments: Any, env: Mapping[str, str] = {}) -> Ran:
        job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", **env}
        job["MASTER_PORT"] = str(free_port())
        ranks = [
            spawn(*arguments, env={**job, "RANK": str(k), "LOCAL_RANK": str(k)}) for k in range(2)
        ]
        said = [rank.communicate(timeout=120) for rank in ranks]
        assert len({rank.wait() for rank in ranks}) == 1, said
        return Ran(ranks[0].wait(), *map("".join, zip(*said, strict=True)))

    return run


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[..., Ran]:
    """Run `python -m diffuse_cli`, or another module, from its first import to its end."""

    def run(
        *arguments: Any,
        module: str = "diffuse_cli",
        env: Mapping[str, str] = {},
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> Ran:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        ran = subprocess.run(
            command, cwd=tmp_path, env=environment(**env), text=True, timeout=120,
            stdout=stdout, stderr=stderr,
        )  # fmt: skip
        return Ran(ran.returncode, ran.stdout or "", ran.stderr or "")

    return run
