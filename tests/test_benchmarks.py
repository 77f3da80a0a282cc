"""The benchmarks find what they import, and their comparison with other libraries is fair."""

from __future__ import annotations

import ast
import json
import re
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import process_of

from diffuse_cli.config.sample_options import SAMPLING_STEPS
from diffuse_cli.core import Denoiser, losses
from diffuse_cli.core.optimizers import hidden_matrices

FOLDER = Path(__file__).parent.parent / "benchmarks"
RESULTS = FOLDER / "results"
PUBLISHED = sorted(path.name for path in RESULTS.glob("quality-*.json"))
EQUAL = ("groups", "arithmetic", "evaluations")


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.py")))
def test_a_benchmark_finds_what_it_imports(script: str):
    for node in ast.walk(ast.parse((FOLDER / script).read_text())):
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("diffuse_cli"):
            continue
        module = import_module(str(node.module))
        inner = getattr(module, "__path__", None)
        for name in (alias.name for alias in node.names):
            found = hasattr(module, name) or (inner and find_spec(f"{node.module}.{name}"))
            assert found, f"line {node.lineno}: {node.module} has no {name}"


def benchmark(name: str) -> Any:
    """Import a benchmark, which finds others beside it; they run on POSIX only."""
    pytest.importorskip("fcntl")
    sys.path.insert(0, str(FOLDER))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


@pytest.mark.parametrize(
    ("name", "size"), [("diffusers", 32), ("diffusers", 64), ("ddpm-pytorch", 32)]
)
def test_a_peer_has_what_ours_has_or_says_what_differs(name: str, size: int):
    peers = benchmark("peers")
    pytest.importorskip(peers.PEERS[name].package)
    own = peers.blueprint("tiny", 1, size)
    peer = peers.PEERS[name](peers.recipe_of_ours(1, size), own)
    with torch.no_grad(), peers.autocast(), peers.counting(peer.net) as seen:
        peer.draw(peer.net, 1)
    assert len({*seen}) == 1
    own = replace(own, wiener=size == 64)  # the default
    ours = peers.facts(own.build(), SAMPLING_STEPS, peers.precision())
    assert ours["groups"] == [2]
    found = peers.facts(peer.net, len(seen), seen[0])
    assert {fact for fact in ours if found[fact] != ours[fact]} == {*peer.differs}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_run_has_what_ours_has_or_says_what_differs(name: str):
    rows = json.loads((RESULTS / name).read_text())
    own = [row for row in rows if row["contender"] == "diffuse"]
    page = (FOLDER.parent / "docs" / "performance.md").read_text()
    for row in rows:
        ours = next(o for o in own if o["minutes"] == row["minutes"])
        differing = {fact for fact in EQUAL if row[fact] != ours[fact]}
        assert differing <= row["differs"].keys(), row["contender"]
        assert all(words in page for words in row["differs"].values())
        if row["contender"] in benchmark("time_to_quality").VARIANTS:
            used = [o["training_cpu_seconds"] for o in own if o["minutes"] == row["minutes"]]
            assert row["training_cpu_seconds"] >= 60 * row["minutes"]
            assert row["training_cpu_seconds"] >= max(used) - 4  # starts take 20 to 28 seconds
            same = [o for o in own if (o["seed"], o["minutes"]) == (row["seed"], row["minutes"])]
            alike = {"batch", "patch", "width", "lr"} & row.keys()
            alike -= {"lr"} if "rate" in row["contender"] else set()
            assert all(o[name] == pytest.approx(row[name]) for o in same for name in alike)


def test_a_peer_with_patches_is_as_large_as_ours_and_draws_whole_images():
    peers = benchmark("peers")
    pytest.importorskip("diffusers")
    own = peers.blueprint("tiny", 3, 64)
    like = peers.without_patches(own)
    assert like.space.shape == (12, 32, 32)
    assert like.config == replace(own.config, patch=1)
    peer = peers.Diffusers(peers.recipe_of_ours(3, 64), own)
    assert peer.differs == {"parameters": "no Wiener filter"}
    with torch.no_grad():
        assert peer.draw(peer.net, 2).shape == (2, 3, 64, 64)
        assert float(peer.loss(torch.zeros(2, 3, 64, 64))) > 0


def run(contender: str, seed: int) -> dict[str, Any]:
    """A run on a data set named flowers-64."""
    return {
        "contender": contender, "seed": seed, "size": 64, "minutes": 5.0, "recall": 0.25,
        "brightness": -1.0, "kid_x1000": 96.0 + seed, "kid_x1000_standard_error": 8.0,
    }  # fmt: skip


def test_the_table_of_the_page_is_that_of_the_results():
    """After a change of the results: `python benchmarks/report.py`."""
    report = benchmark("report")
    assert f"\n\n{report.table(RESULTS)}\n\n" in report.PAGE.read_text()


def test_a_new_data_set_is_a_row_with_means_over_seeds(tmp_path: Path):
    runs = [*(run("diffuse", seed) for seed in range(3)), run("diffusers", 0)]
    (tmp_path / "quality-flowers-64.json").write_text(json.dumps(runs))
    row = "| flowers | 64×64 | 5 | 97 ± 1 | 96 ± 8 | 0.25 vs 0.25 | -1.0 vs -1.0 | 3 vs 1 |"
    assert row in benchmark("report").table(tmp_path)


def test_the_readme_names_every_script_and_every_result():
    page = (FOLDER / "README.md").read_text()
    for path in (*FOLDER.glob("*.py"), *RESULTS.glob("*.json")):
        named = re.search(rf"(?<![\w-]){re.escape(path.name)}", page)
        assert named or path.match("quality-*.json"), path.name


@pytest.mark.parametrize("weak", [True, False])
def test_an_unguided_contender_samples_the_model_of_ours_without_its_recommendation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
):
    bench = benchmark("time_to_quality")
    weights = {"weak": {"step": 5}} if weak else {}
    config = {"precision": "bf16", "batch_size": 32, "width": 32, "lr": 4e-3, "wiener": False}
    header = {"training": config, **weights}
    pixels, typed = np.zeros((2, 1, 16, 16), np.uint8), []
    data = bench.Data("", "", 16, tmp_path, pixels, pixels)
    (tmp_path / "diffuse-1-0.run").mkdir()
    (tmp_path / "diffuse-1-0.run" / "metrics.jsonl").write_text('{"step": 7}\n')
    (tmp_path / "diffuse-1-0.json").write_text('{"cpu_seconds": 61.0, "seconds": 62.0}')

    def diffuse(*arguments: str) -> tuple[dict[str, Any], dict[str, float]]:
        typed.append(arguments)
        manifest = tmp_path / "manifest.json"
        manifest.write_text('{"steps": 20, "sampler": "unipc", "weak_guidance": 1}')
        return {"manifest": str(manifest), "images": []}, {}

    monkeypatch.setattr(bench, "diffuse", diffuse)
    monkeypatch.setattr(bench, "header", lambda _model: header)
    monkeypatch.setattr(bench.common, "pictures", lambda _paths: pixels)
    row, _ = bench.samples_of_ours(data, 0, 1.0, bench.UNGUIDED)
    (command,) = typed  # nothing is trained
    assert command[:2] == ("sample", str(tmp_path / "diffuse-1-0.safetensors"))
    assert ("--weak-guidance" in command) == weak
    assert command[-2:] == ("--steps", "20")
    assert (row["evaluations"], row["steps"], row["batch"]) == (20, 7, 32)


def test_every_solver_of_diffusers_samples():
    peers = benchmark("peers")
    peer = peers.Diffusers(peers.recipe_of_ours(1, 32), peers.blueprint("tiny", 1, 32))
    for solver in peer.solvers:
        peer.recipe = replace(peer.recipe, solver=solver)
        samples = peer.draw(lambda x, t: SimpleNamespace(sample=torch.zeros_like(x)), 2)
        assert samples.shape == (2, 1, 32, 32)
        assert samples.isfinite().all(), solver


def test_diffusers_begins_and_is_optimized_as_ours_is():
    """The same weights are 0 at first, and as many are moved by Muon."""
    peers = benchmark("peers")
    like = peers.blueprint("tiny", 3, 32)
    ours, theirs = like.build(), peers.diffusers_unet(like)
    zeros = [sum(not p.any() for p in net.parameters() if p.ndim > 1) for net in (ours, theirs)]
    assert zeros[0] == zeros[1] > 0
    moved = [weight.numel() for _, weight in hidden_matrices(ours)]
    groups = peers.muon(theirs, lr=0.1).param_groups
    assert sorted(moved) == sorted(weight.numel() for weight in groups[0]["params"])
    assert len(groups[1]["params"]) == len([*theirs.parameters()]) - len(moved)


def test_weights_of_a_baseline_are_those_of_ours():
    peers = benchmark("peers")
    denoiser = Denoiser(lambda x, t: x, process_of("cosine", 1000), "v")
    bars = denoiser.process.alpha_bars
    known = losses.weights("sigmoid", denoiser)
    found = peers.weigh(bars / (1 - bars))
    assert torch.allclose(found, known.to(found.dtype), rtol=1e-4)
    hidden = peers.weigh(torch.tensor([3.0, 1.0, 0.0]))
    assert hidden[2] == hidden[:2].mean()


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_recipe_of_a_baseline_is_what_train_chooses(size: int, width: int):
    peers = benchmark("peers")
    own = peers.blueprint("tiny", 3, size, width=width)
    recipe = peers.recipe_of_ours(3, size, width=width)
    assert recipe.lr == pytest.approx(4e-3 * (recipe.batch / 64) ** 0.5 * 32 / width)
    typed = {"data": "", "preset": "tiny", "width": width}
    done, like = peers.complete_config(peers.configure(typed), own.space, peers.Conditions())
    assert (recipe.width, recipe.patch) == (like.config.width, like.config.patch)
    assert own.config == like.config
    known = (done.optimizer, done.weighting, done.target, done.schedule)
    assert known == ("muon", "sigmoid", "v", "cosine")


SAME, OTHER = ({"numbers kid": "aa", "images 0.png": digest} for digest in ("bb", "cc"))


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        (SAME, SAME, 0, "1 of 1 cases have the same bits"),
        (SAME, {**SAME, "numbers new": "dd"}, 0, "1 of 1 cases have the same bits"),
        (SAME, OTHER, 1, "case: 1 of 2 results differ: images 0.png"),
        (SAME, {"numbers kid": "aa"}, 1, "case: 1 of 2 results differ: images 0.png"),
        (SAME, "train\nno such file", 1, "case: fails in the working tree: no such file"),
        (
            "train\nno option --new",
            SAME,
            1,
            "case: not compared, because v1 fails: no option --new",
        ),
    ],
    ids=["equal", "more numbers", "another", "one less", "fails now", "failed then"],
)
def test_other_bits_end_with_1(old, new, code, line, capsys):
    """So does a comparison of nothing."""
    assert benchmark("same_bits").report({"case": old}, {"case": new}, "v1") == code
    assert line in capsys.readouterr().out


def test_a_case_that_one_commit_cannot_run_leaves_the_others(capsys):
    old = {"case": "no option --new", "other": SAME}
    assert benchmark("same_bits").report(old, {"case": SAME, "other": SAME}, "v1") == 0
    assert "1 of 2 cases have the same bits, 0 do not" in capsys.readouterr().out
