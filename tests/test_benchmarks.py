"""The benchmarks find what they import, and their comparison with other libraries is fair."""

from __future__ import annotations

import ast
import json
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
FINALS = sorted(path.name for path in RESULTS.glob("quality-*.json"))
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


@pytest.mark.parametrize("channels", [None, (16, 32, 64, 64)])
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("name", ["diffusers", "ddpm-pytorch"])
def test_a_peer_has_what_ours_has_or_says_what_differs(
    name: str, size: int, channels: tuple[int, ...] | None
):
    peers, bench = benchmark("peers"), benchmark("time_to_quality")
    pytest.importorskip(peers.PEERS[name].package)
    recipe, like = replace(bench.START[name], channels=channels), peers.blueprint("tiny", 1, size)
    peer = peers.PEERS[name](recipe, peers.baseline_blueprint(recipe, 1, size))
    with torch.no_grad(), peers.autocast(), peers.counting(peer.net) as seen:
        peer.draw(peer.net, 1)
    assert len({*seen}) == 1
    own = peers.facts(like.build(), SAMPLING_STEPS, peers.precision())
    assert own["groups"] == [2]
    found = peers.facts(peer.net, len(seen), seen[0])
    assert {fact for fact in own if found[fact] != own[fact]} == {*peer.differs}


@pytest.mark.parametrize("name", FINALS)
def test_a_published_final_has_what_ours_has_or_says_what_differs(name: str):
    rows = json.loads((RESULTS / name).read_text())
    ours = next(row for row in rows if row["contender"] == "diffuse")
    page = (FOLDER.parent / "docs" / "performance.md").read_text()
    for row in rows:
        differing = {fact for fact in EQUAL if row[fact] != ours[fact]}
        assert differing <= row["differs"].keys(), row["contender"]
        for words in row["differs"].values():
            assert words in page or not benchmark("sections").complete_times(rows)
        if "peer" in row:
            own = [each for each in rows if each["contender"] == "diffuse"]
            used = [o["training_cpu_seconds"] for o in own if o["minutes"] == row["minutes"]]
            assert row["training_cpu_seconds"] >= max(60 * row["minutes"], *used) - 1


@pytest.mark.parametrize(
    ("size", "channels", "widths"),
    [
        (32, None, [32, 32, 32]),
        (64, None, [32, 32, 32, 32]),
        (64, (16,), [16, 16, 16, 16]),
        (64, (16, 32, 64, 64), [16, 32, 64, 64]),
        (128, (16, 32, 64, 64), [16, 32, 64, 64, 64]),
    ],
)
def test_a_peer_has_levels_instead_of_patches(
    size: int, channels: tuple[int, ...] | None, widths: list[int]
):
    peers = benchmark("peers")
    recipe = peers.Recipe("diffusers", channels=channels)
    like = peers.baseline_blueprint(recipe, 3, size)
    assert (like.config.patch, like.config.widths, like.config.groups) == (1, widths, 2)
    count = sum(p.numel() for p in peers.diffusers_unet(like).parameters())
    assert count == sum(p.numel() for p in like.build().parameters())


def test_a_peer_with_patches_is_as_large_as_ours_and_draws_whole_images():
    peers = benchmark("peers")
    pytest.importorskip("diffusers")
    recipe = peers.Recipe("diffusers", channels=(32,), patch=2)
    like = peers.baseline_blueprint(recipe, 3, 64)
    assert like.space.shape == (12, 32, 32)
    assert like.config == replace(peers.blueprint("tiny", 3, 64).config, patch=1)
    peer = peers.Diffusers(recipe, like)
    assert peer.differs == {"parameters": "no Wiener filter"}
    with torch.no_grad():
        assert peer.draw(peer.net, 2).shape == (2, 3, 64, 64)
        assert float(peer.loss(torch.zeros(2, 3, 64, 64))) > 0


def test_the_recipes_of_peers_are_the_best_of_their_logs():
    bench = benchmark("time_to_quality")
    path = RESULTS / "peer-recipes.json"
    for data, recipes in (json.loads(path.read_text()) if path.exists() else {}).items():
        rows = json.loads((RESULTS / f"search-{data}.json").read_text())
        for peer, recipe in recipes.items():
            if peer == bench.COPIED:
                continue
            assert bench.as_json(bench.chosen(rows, peer)) == recipe
            spent = sum(row["cpu_seconds"] for row in bench.trials(rows, peer))
            least = min(row.get("least_minutes", bench.LEAST) for row in bench.trials(rows, peer))
            assert spent >= 60 * least


def final(contender: str, minutes: float, seed: int, size: int = 64) -> dict[str, Any]:
    """A final of a data set named cats-64."""
    sections = benchmark("sections")
    return {
        **dict.fromkeys(sections.SEEN, 100.0 - minutes + seed),
        "dataset": "cats-64",
        "size": size,
        "contender": contender,
        "minutes": minutes,
        "seed": seed,
        "differs": {},
        "n": 1000,
        "channels": [16, 32],
        "patch": 1,
    }


def test_the_report_shows_every_contender_at_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sections = benchmark("sections")
    monkeypatch.setattr(sections, "IMAGES", tmp_path)
    monkeypatch.setattr(sections, "RESULTS", tmp_path)
    rows = [final(name, m, s) for name in sections.CONTENDERS for m in (5.0, 1.0) for s in range(3)]
    page = "\n".join(sections.quality([*rows, final("diffuse", 10.0, 0)]))
    assert "Being measured at 10 minutes: 1 run is done." in page
    assert "1 and 5 minutes of CPU time" in page
    assert "|  | minutes | seeds | KID × 1000 |" in page
    for name in sections.CONTENDERS:
        assert f"| {name} | 1 | 3 | 100.0 ± 0.6 |" in page
        assert f"| {name} | 5 | 3 | 96.0 ± 0.6 |" in page
    assert "|  | minutes | patch | channels |" in page
    assert "16, 32" in page
    assert not [*tmp_path.iterdir()]
    rows += [final(name, 60.0, 0) for name in sections.CONTENDERS]
    assert sections.complete_times(rows) == [1, 5, 60]
    page = "\n".join(sections.quality(rows))
    assert "![KID over minutes of training](images/quality-cats-64.png)" in page
    assert (tmp_path / "quality-cats-64.png").exists()


def test_the_report_of_one_time_has_no_minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    sections = benchmark("sections")
    monkeypatch.setattr(sections, "RESULTS", tmp_path)
    rows = [final(name, 1.0, seed) for name in sections.CONTENDERS for seed in range(3)]
    page = "\n".join(sections.quality(rows))
    assert "1 minute of CPU time" in page
    assert "|  | seeds | KID × 1000 |" in page
    assert "Being measured" not in page


def test_sections_of_finals_are_sorted_by_size_and_name(tmp_path: Path):
    sections = benchmark("sections")
    for name, size in (("flowers-64", 64), ("cats-128", 128), ("cats-64", 64), ("zoo", 32)):
        (tmp_path / f"quality-{name}.json").write_text(json.dumps([{"size": size}]))
    found = sections.quality_sections(tmp_path)
    assert [*found] == [f"quality-{n}" for n in ("zoo", "cats-64", "flowers-64", "cats-128")]
    assert found["quality-zoo"][0] == "Quality for time: zoo"
    assert found["quality-cats-128"][0] == "Quality for time: cats at 128 pixels"


def trial(kid: float, **changes: Any) -> dict[str, Any]:
    """A long trial of four minutes in a log."""
    bench = benchmark("time_to_quality")
    recipe = bench.as_json(replace(bench.START["diffusers"], **changes))
    return {"recipe": recipe, "minutes": bench.LONG, "kid_x1000": kid, "cpu_seconds": 240}


def test_a_search_goes_on_until_the_rate_is_between_two_worse_ones(tmp_path: Path):
    bench = benchmark("time_to_quality")
    best, log = bench.START["diffusers"], bench.Log(tmp_path / "search.json")
    search = bench.Search(SimpleNamespace(size=32), "diffusers", log)
    assert search.next(best) == [best]
    log.add(trial(10.0))
    assert search.next(best)[:2] == [replace(best, lr=best.lr * 2), replace(best, lr=best.lr / 2)]
    log.add(trial(9.0, lr=best.lr * 2))
    assert search.next(best)[0] == replace(best, lr=best.lr * 4)
    log.add(trial(11.0, lr=best.lr * 4))
    assert search.next(best)[0] == replace(best, lr=best.lr * 2, batch=32)
    log.add(trial(12.0, target="eps") | {"cpu_seconds": 60 * bench.LEAST})
    assert search.next(best) == []


def test_a_search_of_larger_images_tries_channels_and_takes_as_long_as_told(tmp_path: Path):
    bench = benchmark("time_to_quality")
    best, log = bench.LARGE_START["diffusers"], bench.Log(tmp_path / "search.json")
    effort = bench.Effort(least=10)
    search = bench.Search(SimpleNamespace(size=64), "diffusers", log, effort)
    assert [*search.factors] == ["channels", "lr", "target", "batch"]
    assert search.start == best
    for lr in (best.lr, best.lr / 2):
        log.add(trial(10.0, **vars(replace(best, lr=lr))))
    left = search.next(best)
    assert left[0] == replace(best, lr=best.lr * 2)
    assert replace(best, channels=(16,)) in left
    assert {tried.target for tried in left} == {"v", "eps", "x0"}
    log.add(trial(11.0, **vars(left[0])))
    assert search.next(best) == []


def test_a_search_tries_the_options_and_solvers_that_it_is_told():
    bench = benchmark("time_to_quality")
    assert [*bench.choose_factors("ddpm-pytorch", 64, ["lr", "attention"])] == ["lr", "attention"]
    assert [*bench.choose_factors("diffusers", 64, ["attention"])] == []
    assert bench.choose_factors("diffusers", 32) == bench.FACTORS["diffusers"]
    start = replace(bench.LARGE_START["diffusers"], lr=1e-3, channels=(16,))
    search = bench.Search(
        SimpleNamespace(size=128), "diffusers", None, bench.Effort(factors=[], start=start)
    )
    assert search.screen() == start


@pytest.mark.parametrize("channels", [None, (16, 32)])
def test_a_recipe_survives_its_file(channels: tuple[int, ...] | None):
    bench = benchmark("time_to_quality")
    recipe = replace(bench.START["diffusers"], channels=channels)
    kept = bench.as_json(recipe)
    assert ("channels" in kept) == (channels is not None)
    assert bench.from_json(json.loads(json.dumps(kept))) == recipe


@pytest.mark.parametrize("weak", [True, False])
def test_an_unguided_final_samples_the_model_of_ours_without_its_recommendation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: bool
):
    bench = benchmark("time_to_quality")
    weights = {"weak": {"step": 5}} if weak else {}
    config = {
        "precision": "bf16",
        "batch_size": 32,
        "lr": 4e-3,
        "optimizer": "muon",
        "wiener": False,
    }
    process = {"target": "v", "schedule": "cosine"}
    header = {"training": {**config, "weighting": "min-snr"}, "diffusion": process, **weights}
    pixels, typed = np.zeros((2, 1, 16, 16), np.uint8), []
    data = bench.Data("", "", 16, tmp_path, pixels, pixels, pixels)
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
    row, _ = bench.final_of_ours(data, 0, 1.0, bench.UNGUIDED)
    (command,) = typed  # nothing is trained
    assert command[:2] == ("sample", str(tmp_path / "diffuse-1-0.safetensors"))
    assert ("--weak-guidance" in command) == weak
    assert command[-2:] == ("--steps", "20")
    assert (row["evaluations"], row["steps"], row["channels"]) == (20, 7, [32, 32])


def test_two_searches_share_their_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = benchmark("time_to_quality")
    recipe, log = bench.START["diffusers"], bench.Log(tmp_path / "search.json")
    pixels = np.zeros((8, 1, 16, 16), np.uint8)
    data = bench.Data("", "", 16, tmp_path, pixels, pixels, pixels)
    one, other = bench.Search(data, "diffusers", log), bench.Search(data, "diffusers", log)
    found = []

    def train(*_arguments: Any) -> tuple[None, None, dict[str, Any]]:
        found.append(other.attempt(recipe, bench.SHORT, wait=False))
        return None, None, {}

    monkeypatch.setattr(bench.peers, "train", train)
    monkeypatch.setattr(bench.peers, "sample", lambda *_arguments: pixels)
    monkeypatch.setattr(bench, "judge", lambda *_arguments: {"kid_x1000": 1.0})
    assert one.attempt(recipe, bench.SHORT)
    assert found == [False]
    assert not one.attempt(recipe, bench.SHORT)
    assert len(log.rows) == 1


def test_a_recipe_is_chosen_only_between_two_worse_rates():
    bench = benchmark("time_to_quality")
    best = bench.START["diffusers"]
    solvers = [
        {"recipe": bench.as_json(replace(best, solver=solver)), "solvers_of": bench.as_json(best),
         "kid_x1000": kid}
        for solver, kid in (("2M", 10.0), ("UniPC", 9.0))
    ]  # fmt: skip
    rows = [trial(10.0), trial(20.0, lr=best.lr / 2), *solvers]
    with pytest.raises(ValueError, match=r"the rate 0\.004 was not tried"):
        bench.chosen(rows, "diffusers")
    rows.append(trial(11.0, lr=best.lr * 2))
    assert bench.chosen(rows, "diffusers") == replace(best, solver="UniPC")


def test_every_solver_of_diffusers_samples_under_every_schedule():
    bench = benchmark("time_to_quality")
    kind, like = bench.peers.Diffusers, bench.peers.blueprint("tiny", 1, 16)
    for schedule in kind.schedules:
        peer = kind(replace(bench.START["diffusers"], schedule=schedule), like)
        for solver in kind.solvers:
            peer.recipe = replace(peer.recipe, solver=solver)
            samples = peer.draw(lambda x, t: SimpleNamespace(sample=torch.zeros_like(x)), 2)
            assert samples.shape == (2, 1, 16, 16)
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


@pytest.mark.parametrize("target", ["v", "eps", "x0"])
def test_weights_of_a_baseline_are_those_of_ours(target: str):
    peers = benchmark("peers")
    process = process_of("cosine", 1000)
    for name, weighting in (("min-snr", 5.0), ("sigmoid", "sigmoid"), ("none", None)):
        recipe = peers.Recipe("diffusers", target, min_snr=weighting)
        denoiser = Denoiser(lambda x, t: x, process, target)
        bars = process.alpha_bars
        found = peers.weigh(bars / (1 - bars), recipe)
        known = losses.weights(name, denoiser)
        assert known is None or torch.allclose(found, known.to(found.dtype), rtol=1e-4), name
    hidden = peers.weigh(torch.tensor([3.0, 1.0, 0.0]), peers.Recipe("diffusers", target))
    assert hidden[2] == hidden[:2].mean()


def test_the_table_of_a_gpu_has_a_row_for_each_size():
    """The best setting of the baseline, and a contender that ran out of time or memory left out."""
    row = {"side": 256, "preset": "base", "patch": 4, "peak_mib": 9}
    step = [
        {**row, "contender": "diffuse", "setting": "bf16", "images_per_s": 300.0},
        {**row, "contender": "diffuse", "setting": "bf16, compiled", "images_per_s": 500.0},
        {**row, "contender": "diffusers", "setting": "bf16", "images_per_s": 20.0},
        {**row, "contender": "diffusers", "setting": "bf16, compiled", "images_per_s": 30.0},
        {"side": 512, "preset": "base", "patch": 4, "contender": "diffusers", "error": "no memory"},
    ]
    quality = {"minutes": 15, "train": {"images": 50_000, "steps": 9000},
               "eval": {"kid": 0.02, "kid_standard_error": 0.001}}  # fmt: skip
    parity = [{"precision": "bf16", "output_error": 0.004, "finite": True}]
    found = {"dry": False, "parity": parity, "step": step, "quality": quality}
    text = "\n".join(benchmark("sections").gpu(found))
    assert "| 256×256, `base` | 4 | 300 | 9 | 500 | 9 | 30 | 9 | bf16, compiled |" in text
    assert "| 512×512 |" in text
    assert "20.0 ± 1.0" in text
