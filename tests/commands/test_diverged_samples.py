"""Samples with NaN or infinite values are never measured as numbers."""

from __future__ import annotations

from pathlib import Path

import conftest
import numpy as np
import pytest
from conftest import MODEL, log_rows
from edited_models import altered

from diffuse_cli.models import model_file
from diffuse_cli.training import chores


@pytest.fixture(scope="module")
def broken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are finite, and whose samples are not. Do not write here."""
    return altered(model, tmp_path_factory.mktemp("broken") / "model.safetensors", scale=1e30)


@pytest.mark.parametrize(
    "text",
    [
        "sample BROKEN -n 6 --steps 2",
        "eval BROKEN {images} -n 6 --steps 2 --precision fp32",
        "eval BROKEN {images} -n 6 --steps 2 --precision fp32 --metrics marginals",
        "tune BROKEN {images} -n 6 --steps 2 --samplers ddim -o tuned.safetensors",
        "compare MODEL BROKEN {images} -n 6 --steps 2 --precision fp32",
        "noise-demo {images}/dark/000.png --model BROKEN -o demo.png",
    ],
)
def test_samples_that_are_not_finite_end_a_command(diffuse, lab, model, broken, text):
    places = {"BROKEN": broken, "MODEL": model}
    line = [places.get(word, word) for word in lab.line(text)]
    setting = "ddim, 2 steps: " if line[0] == "tune" else ""
    count = "" if line[0] == "noise-demo" else "6 of 6 "
    said = (f"diffuse: {setting}NaN or infinite values in ", f"{count}images. Use more steps or")
    assert diffuse(*line, "-q").fails(6, *said).out == ""
    assert not [*Path().glob("*.safetensors"), *Path().glob("*.png"), *Path().glob("samples/*.png")]


def test_no_best_model_and_no_recommendation_rest_on_them(
    diffuse, broken, images, recipe, monkeypatch
):
    """A run from these weights, in which no step changes them."""
    monkeypatch.setattr(chores, "FEWEST_TRIED", 2)
    monkeypatch.setattr(chores, "TRIALS_SHARE", 1e-3)
    monkeypatch.setattr(conftest, "PREVIEW_STEPS", 4)
    line = ("--init", broken, "--steps", 8, "--eval-every", 4, "--eval-images", 6)
    ran = diffuse("train", images, "--config", recipe, *line, "--preview-every", 4, "--json").ok()
    for count, doing in (
        (16, "generating the preview"),
        (6, "evaluating"),
        (64, "choosing sampling settings"),
    ):
        words = f"NaN or infinite values in {count} of {count} images while {doing}: skipped"
        assert words in ran.err
    assert "best so far" not in ran.err
    assert "recommended" not in ran.err
    assert "Generate images with" not in ran.err
    advice = "The images have NaN or infinite values. Train again with a lower learning rate, "
    assert f"{advice}for example --lr 0.00" in ran.err
    assert ran.json["best"] is None
    assert not any("kid" in row for row in log_rows())
    assert not Path("model.best.safetensors").exists()
    assert model_file.load(MODEL).sampling is None
    assert not [*Path().rglob("previews/*.png")]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_folder_is_not_judged_by_the_samples_that_are_finite(diffuse, tmp_path, value):
    draw = np.random.default_rng(3)
    for name in ("real", "generated"):
        (tmp_path / name).mkdir()
        for k in range(6):
            np.save(tmp_path / name / f"{k}.npy", draw.normal(size=(1, 6, 6)).astype(np.float32))
    np.save("generated/3.npy", np.full((1, 6, 6), value, np.float32))
    said = "NaN or infinite values in 1 of 6 arrays in generated: 3.npy. Generate"
    assert diffuse("eval", "generated", "real", "-q").fails(3, said).out == ""
    Path("generated/3.npy").unlink()
    assert diffuse("eval", "generated", "real", "--metrics", "marginals").code == 0
