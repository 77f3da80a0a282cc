"""What features of photographs say nothing of is compared by random features, everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import log_rows

from diffuse_cli.commands.ema import ema_lengths
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.core.space import Space
from diffuse_cli.metrics import Measurement, features, label
from diffuse_cli.metrics.features import KIDS, FeatureNetwork, feature_choice
from diffuse_cli.models import model_file
from diffuse_cli.system.events import finish

LABEL = "KID, random features"

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """60 signals of 16 numbers in two class folders, of which 7 are held out: 2 and 5."""
    folder, draw = tmp_path_factory.mktemp("signals"), np.random.default_rng(15)
    for k in range(60):
        path = folder / ("down", "up")[k % 2] / f"{k:03d}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.linspace(0, 4 * (k % 2) - 2, 16) + draw.normal(size=16))
    return folder


@pytest.fixture(scope="module")
def model(lab, signals):
    """A model of 6 steps. Do not write here."""
    line = ("train", signals, "--config", lab["tiny"], "--classes", "--steps", 6, "--warmup", 0)
    measures = ("--eval-every", 2, "--eval-images", 6, "--ema-lengths", 6, "--no-keep-weak")
    return lab.trained(*line, *measures)


def test_training_keeps_the_best_by_them(model, diffuse):
    rows = log_rows(model.with_suffix(".run"))
    kids = {row["step"]: row["kid_random"] for row in rows if "kid_random" in row}
    assert set(kids) == {2, 4, 6}
    assert not any("kid" in row for row in rows)
    ran = diffuse("train", "--resume", "-o", model, "--json")
    best = ran.json["best"]
    assert best["kid_random"] == min(kids.values()) == kids[best["step"]]
    assert best["kid_random_standard_error"] > 0
    kid = Measurement(best["kid_random"], best["kid_random_standard_error"])
    assert f"best by {LABEL} at step {best['step']}: {kid}" in ran.err
    assert model_file.load(best["model"]).step == best["step"]
    ran = diffuse("compare", model, best["model"])
    assert f"lowest {LABEL}" in ran.out
    assert "lowest KID " not in ran.out


def test_tune_and_ema_decide_by_them_and_eval_finds_the_same_numbers(
    model, signals, diffuse, monkeypatch
):
    line = ("-n", 7, "--precision", "fp32")
    how = ("--samplers", "ddim", "--steps", "2,4", "--guidance", "1")
    out = ("--plot", "t.png", "--report", "t.html", "--json")
    ran = diffuse("tune", model, signals, *line, *how, *out).ok()
    assert "KID uses random features" in ran.err
    found = ran.json["sweep"]
    assert (found["metric"], found["features"]["name"]) == ("kid_random", "random")
    assert all(set(row["values"]) == {"kid_random", "kid_random_standard_error"}
               for row in found["rows"])  # fmt: skip
    [chosen] = [row for row in found["rows"] if row["setting"] == found["recommended"]]
    assert ran.json["kid_random"] == pytest.approx(chosen["values"]["kid_random"], rel=1e-6)
    page = Path("t.html").read_text(encoding="utf-8")
    assert f"measured by {LABEL} (lower is better)" in " ".join(page.split())
    assert f"{LABEL} while training" in page
    classes = ran.json["classes"]
    assert {name: (one["real"], one["generated"]) for name, one in classes.items()} == {
        "down": (2, 4), "up": (5, 3),
    }  # fmt: skip
    for one in classes.values():
        names = ("kid_random", "wasserstein", "bits_per_dim")
        assert np.isfinite([one[key] for key in names]).all()
    monkeypatch.setattr(ema_lengths, "LENGTHS", (0.08,))
    for command, heads, *options in (
        ("tune", "sampler steps guidance evaluations seconds", *how[:2], "--guidance", 1),
        ("ema", "length"),
    ):
        ran = diffuse(command, model, signals, *line, "--steps", 2, *options).ok()
        assert ran.out.splitlines()[0].split() == [*heads.split(), *LABEL.split()]
        assert "KID uses random features" in ran.err


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ({"medium": "image"}, "kid"),
        ({"medium": "image", "layout": "pages"}, "kid_random"),
        ({"medium": "array"}, "kid_random"),
        ({"medium": "audio", "size": (64,), "levels": None, "mean": (0.0,), "std": (1.0,),
          "rate": 8000}, "kid_random"),
    ],
)  # fmt: skip
def test_the_network_of_images_is_looked_for_where_it_is_needed(kind, key, monkeypatch):
    space = Space(**{"channels": 1, "size": (8, 8), **kind})
    found = []

    def load(*_):
        found.append("trained")
        return FeatureNetwork("some", 3, "", CPU, lambda x: x)

    monkeypatch.setattr(features, "load_network", load)
    real = np.random.default_rng(0).integers(0, 9, (4, *space.shape)).astype(np.uint8)
    real = real.astype(np.float32) if space.levels is None else real
    config, process = EvalConfig(subject="m", data="d"), Accelerator(cpu=True)

    def choose(known):
        trained = finish(feature_choice.load_trained_network(config, known, process))
        return finish(feature_choice.choose_network(config, trained, space, real, CPU))

    network = choose(space)
    assert network.kid == key in KIDS
    assert found == (["trained"] if key == "kid" else [])
    assert network.name == ("some" if key == "kid" else "random")
    late = choose(None)
    assert (late.name, late.kid) == (network.name, key)
    assert label(key) != key.replace("_", " ")  # it has a name
