"""compare: what differs between two runs or models, and how far their evaluations are apart."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ran, log_rows
from edited_models import altered
from lab import Lab, write_images

from diffuse_cli import metrics
from diffuse_cli.evaluation import paired_comparison
from diffuse_cli.metrics import METRICS, Measurement, Metric, MetricNumber
from diffuse_cli.models import model_file

QUICK = ("-n", 6, "--steps", 2, "--timesteps", 5, "--precision", "fp32")


@pytest.fixture(scope="module")
def runs(lab: Lab) -> Callable[[str], Path]:
    """Two runs that differ, and one on images of another size. Do not write here."""
    line = (*lab.tiny, "--preview-every", 2, "--log-every", 2)
    options = {
        "a": ("--steps", 4),
        "b": ("--steps", 6, "--lr", 0.004, "--width", 16, "--ema-lengths", 4),
        "large": ("--steps", 2, "--size", 16),
    }

    def find(name: str) -> Path:
        stem, _, suffix = name.partition(".")
        return lab.trained(*line, *options[stem]).with_suffix(f".{suffix}")

    return find


def rows(ran: Ran) -> dict[str, list[str]]:
    """The cells of a table by the label of their row."""
    cells = (line.strip().split("  ") for line in ran.out.splitlines())
    split = [[cell.strip() for cell in row if cell] for row in cells]
    return {row[0]: row[1:] for row in split if row}


def logged(run: Path, name: str) -> list[tuple[float, int]]:
    return [(row[name], row["step"]) for row in log_rows(run) if name in row]


# -- settings and losses --------------------------------------------------------------------------


def test_the_settings_that_differ_and_the_losses(runs, diffuse):
    ran = diffuse("compare", runs("a.run"), runs("b.safetensors")).ok()
    assert ran.err == f"the model of step 4: {runs('a.safetensors')}\n"
    found = rows(ran)
    assert [k for k in found if k not in ("A", "B")] == [
        "steps", "width", "lr", "unet.width", "ema_lengths",
        "parameters", "training images", "step", "loss", "held-out loss", "lowest",
    ]  # fmt: skip
    assert found["lr"] == ["0.002", "0.004"]
    assert found["ema_lengths"] == ["–", "4"]
    assert found["step"] == ["4 of 4", "6 of 6"]
    assert found["training images"] == ["60, 6 held out"] * 2
    for k, name in enumerate("ab"):
        run = runs(f"{name}.run")
        assert found["loss"][k] == str(Measurement(logged(run, "loss")[-1][0]))
        assert found["held-out loss"][k] == str(Measurement(logged(run, "held_out_loss")[-1][0]))
        lowest, step = min(logged(run, "held_out_loss"))
        assert found["lowest"][k] == f"{Measurement(lowest)} at step {step}"
    assert "cannot be compared" not in ran.out
    told = diffuse("compare", runs("a.safetensors"), runs("b.run"), "--json").json
    assert told["settings"]["lr"] == {"a": 0.002, "b": 0.004}
    assert told["settings"]["ema_lengths"] == {"a": None, "b": 4}
    assert (told["evaluation"], told["remarks"], told["b"]["lowest_kid"]) == (None, [], None)
    model = model_file.load(runs("b.safetensors"))
    assert told["b"]["parameters"] == sum(t.numel() for t in model.ema.values())
    assert told["b"]["data"]["fingerprint"] == model.data["fingerprint"]
    assert told["b"]["lowest_held_out_loss"] == {"value": lowest, "step": step}


def test_a_setting_has_the_digits_that_tell_it_apart(runs, diffuse):
    first = runs("a.safetensors")
    for lr, shown in ((0.0020001, "0.0020001"), (2 / 300, "0.006667")):
        altered(first, Path("c.safetensors"), training={"lr": lr})
        assert rows(diffuse("compare", first, "c.safetensors"))["lr"] == ["0.002", shown]


def test_losses_of_different_things_are_not_compared(runs, train, diffuse, tmp_path):
    write_images(tmp_path / "other", seed=1)
    line = ("--steps", 2, "--target", "eps", "--weighting", "none", "-o", "a.safetensors")
    assert train(*line).code == 0
    line = "the losses cannot be compared, as these differ: target, weighting"
    assert line in diffuse("compare", "a.run", runs("a.run")).out
    config = Path("recipe.toml")
    config.write_text(diffuse("info", runs("a.safetensors"), "--toml").out)
    assert diffuse("train", "other", "--config", config, "-o", "d.safetensors").code == 0
    found = diffuse("compare", runs("a.run"), "d.run")
    assert "the losses cannot be compared, as these differ: training images\n" in found.out
    assert rows(found)["data"][1] == "other"


def test_losses_under_other_conditions_are_not_compared(runs, diffuse):
    for name, given in (("c", "low-res:2"), ("d", "some"), ("e", "others")):
        run = Path(f"{name}.run")
        shutil.copytree(runs("a.run"), run, ignore=shutil.ignore_patterns("step-*"))
        text = (run / "config.toml").read_text()
        fit = text.replace('fit = "crop"', 'fit = "pad"') if name == "c" else text
        (run / "config.toml").write_text(f'given = "{given}"\n{fit}')
    said = "the losses cannot be compared, as these differ: "
    assert f"{said}fit, given\n" in diffuse("compare", runs("a.run"), "c.run").out
    assert f"{said}given\n" in diffuse("compare", runs("a.run"), "d.run").out
    assert "cannot be compared" not in diffuse("compare", "d.run", "e.run").out


def test_models_without_runs_have_settings_alone(runs, diffuse):
    """Also a converted one, which has no number of steps."""
    model = model_file.load(runs("a.safetensors"))
    training = {k: v for k, v in model.training.items() if k != "steps"}
    model_file.save(Path("m.safetensors"), replace(model, training=training))
    found = rows(diffuse("compare", "m.safetensors", runs("b.run")))
    assert found["loss"][0] == "–"
    assert found["lr"] == ["0.002", "0.004"]
    assert found["step"] == ["4", "6 of 6"]
    assert not {"ema_lengths", "data"} & {*found}  # only a run has them


def test_a_run_without_a_model_or_a_checkpoint(runs, diffuse, images):
    shutil.copytree(runs("a.run"), "a.run")
    line = ("compare", "a.run", runs("b.run"))
    parameters = rows(diffuse("compare", *[runs("a.run")] * 2))["parameters"][0]
    for count in (parameters, "–"):
        found = rows(diffuse(*line))
        assert found["parameters"][0] == count
        assert found["step"] == ["4 of 4", "6 of 6"]
        assert found["lr"] == ["0.002", "0.004"]
        assert not {"preview_every", "log_every"} & {*found}  # which change no weights
        shutil.rmtree("a.run/checkpoints", ignore_errors=True)
    diffuse(*line, images, "-q").fails(4, "a.run has no model yet")


def test_an_older_model_has_the_losses_up_to_its_step(train, diffuse):
    line = ("--steps", 6, "--eval-every", 2, "--eval-images", 4, "--log-every", 1)
    assert train(*line, "--stop-at", 3).code == 0
    shutil.copy("model.safetensors", "older.safetensors")
    assert train(*line, "--resume").code == 0
    shutil.copy("older.safetensors", "model.safetensors")
    found = diffuse("compare", "model.safetensors", "model.best.safetensors", "--json").json
    best = model_file.load("model.best.safetensors").step
    losses, kids = (logged(Path("model.run"), name) for name in ("loss", "kid"))
    assert len(losses) == 6
    for side, step in (("a", 3), ("b", best)):
        assert found[side]["step"] == step
        assert found[side]["loss"] == losses[step - 1][0]
        kid, at = min(row for row in kids if row[1] <= step)
        assert (found[side]["lowest_kid"]["value"], found[side]["lowest_kid"]["step"]) == (kid, at)
        assert found[side]["lowest_kid"]["standard_error"] > 0


@pytest.mark.parametrize("transforms", [("none", "none"), ("none", "asinh")])
def test_floats_of_two_scales_and_transforms_are_compared(diffuse, recipe, tmp_path, transforms):
    """Samples are stored in the numbers of their files."""
    for k, transform in enumerate(transforms):
        np.save(f"{k}.npy", np.random.default_rng(k).normal(size=(20, 1, 8, 8)))
        line = ("train", f"{k}.npy", "--config", recipe, "--steps", 1, "-q")
        assert diffuse(*line, "--transform", transform, "-o", f"{k}.safetensors").code == 0
    line = ("compare", "0.safetensors", "1.safetensors", "0.npy", "-n", 4, "--steps", 2)
    ran = diffuse(*line, "--timesteps", 3, "--json").ok()
    assert "bits_per_dim" in ran.json["evaluation"]["differences"]


def test_settings_of_a_hostile_model_are_escaped_and_cut(conditional, model, diffuse):
    altered(model, Path("m.safetensors"), training={"loss": "\x9b31m" + "x" * 5000})
    ran = diffuse("compare", "m.safetensors", conditional).ok()
    assert "\x9b" not in ran.out
    assert len(ran.out) < 4000


# -- evaluations ----------------------------------------------------------------------------------


def test_both_are_evaluated_as_eval_does(runs, conditional, images, diffuse):
    """Also one with classes, whose labels are its own."""
    ours, theirs = runs("a.safetensors"), conditional
    found = diffuse("compare", ours, theirs, images, *QUICK, "--json").json["evaluation"]
    assert found["n"] == {"real": 6, "generated": 6}
    assert found["part"] == "held-out"
    for side, path in (("a", ours), ("b", theirs)):
        alone = diffuse("eval", path, images, *QUICK, "--json").json
        values = found["values"][side]
        assert {"kid", "bits_per_dim", "memorized_pixels", "precision"} <= {*values}
        assert values == {name: alone[name] for name in values}
        assert found["settings"][side]["model_sha256"] == alone["settings"]["model_sha256"]
        assert found["fingerprint"] == alone["fingerprints"]["data"]
    for key, own in found["differences"].items():
        assert own["difference"] == pytest.approx(
            found["values"]["b"][key] - found["values"]["a"][key]
        )
        assert own["paired"]


def test_errors_are_of_pairs_of_images(runs, images, diffuse, evaluations):
    ran = diffuse("compare", runs("a.run"), runs("b.run"), images, *QUICK, "--json")
    own = ran.json["evaluation"]["differences"]["bits_per_dim"]
    a, b = evaluations
    apart = (b.bits - a.bits).sum(1)
    assert own["difference"] == pytest.approx(apart.mean())
    assert own["standard_error"] == pytest.approx(apart.std(ddof=1) / 6**0.5)
    values = ran.json["evaluation"]["values"]
    alone = [values[side]["bits_per_dim_standard_error"] for side in "ab"]
    assert own["standard_error"] < np.hypot(*alone) / 2
    np.testing.assert_array_equal(a.real.samples, b.real.samples)


def test_the_table_says_which_is_better_and_what_the_error_is_of(
    runs, images, diffuse, monkeypatch
):
    def compute(evaluation: Any) -> dict[str, float]:
        mean = float(evaluation.fakes.samples.mean())
        return {"light": mean, "light_standard_error": 1e-6, "real": 1.0, "unknown": mean}

    values = (
        MetricNumber("light", "light", direction="higher"),
        MetricNumber("real", "of real ones", question="likeness"),
    )
    monkeypatch.setitem(METRICS, "size", Metric(("features",), compute, values))
    line = ("compare", runs("a.run"), runs("b.run"), images, *QUICK)
    ran = diffuse(*line)
    found = rows(ran)
    assert found["bits per dimension"][3] == "paired"
    light = [float(cell.split()[0]) for cell in found["light"][:2]]
    assert found["light"][3:] == ["independent", "A" if light[0] > light[1] else "B"]
    assert found["light"][2].endswith("± 0.0000014")
    assert "of real ones" not in found
    assert found["unknown"][3:] == ["independent"]
    assert "n = 6 generated against 6 real (held-out images)" in ran.out
    assert "compares two models, not their recipes" in ran.out


def test_which_is_better_follows_the_direction():
    def better(direction: str, apart: float, error: float = 0.1) -> str:
        values = [{"x": 1.0, "x_standard_error": 0.1}, {"x": 1 + apart, "x_standard_error": 0.1}]
        shape = MetricNumber("x", "x", direction=direction)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "select_numbers", lambda values: [shape])
            (found,) = paired_comparison.differences(values, {"x": error})
        return found.better

    assert [better("lower", a) for a in (-1, -0.2, 0.2, 1)] == ["B", "", "", "A"]
    assert [better("higher", a) for a in (-1, -0.2, 0.2, 1)] == ["A", "", "", "B"]
    assert better("reference", 1) == ""
    assert [better("lower", 1, error) for error in (0.0, math.nan)] == ["", ""], "it is not known"


def test_the_held_out_part_is_used_where_one_was_trained_on_data(
    runs, images, train, diffuse, tmp_path
):
    other = write_images(tmp_path / "other", seed=1)
    config = Path("c.toml")
    config.write_text(diffuse("info", runs("a.run").with_suffix(".safetensors"), "--toml").out)
    assert diffuse("train", other, "--config", config, "-o", "o.safetensors", "-q").code == 0
    found = []
    for pair in ((runs("a.run"), "o.run"), ("o.run", runs("a.run"))):
        ran = diffuse("compare", *pair, images, *QUICK, "--json")
        assert ran.json["evaluation"]["part"] == "held-out"
        assert "memorized_pixels" not in ran.json["evaluation"]["differences"]
        found.append(ran.json["evaluation"]["differences"])
    for key, own in found[0].items():
        assert own["difference"] == pytest.approx(-found[1][key]["difference"])
        assert own["standard_error"] == pytest.approx(found[1][key]["standard_error"])


def test_both_generate_the_same_classes_if_one_was_trained_on_data(
    conditional, images, diffuse, evaluations
):
    found = model_file.load(conditional)
    other = replace(found, data={**found.data, "fingerprint": "0" * 64})
    model_file.save(Path("other.safetensors"), other)
    ran = diffuse("compare", conditional, "other.safetensors", images, *QUICK, "--json")
    assert ran.json["evaluation"]["part"] == "held-out"
    a, b = evaluations
    assert (a.training is None, b.training is None) == (False, True)
    np.testing.assert_array_equal(a.fakes.labels, b.fakes.labels)
    np.testing.assert_array_equal(a.fakes.samples, b.fakes.samples)
    assert ran.json["evaluation"]["differences"]["kid"]["difference"] == 0


def test_models_of_other_samples_are_not_evaluated(runs, images, diffuse, instead_of_networks):
    line = ("compare", runs("a.run"), runs("large.run"), images)
    instead_of_networks()
    ran = diffuse(*line, *QUICK).ok()
    reason = "samples of A are 8x8, grey, and of B 16x16, grey"
    assert f"the metrics cannot be compared: {reason}" in ran.out
    assert rows(ran)["size"] == ["[8, 8]", "[16, 16]"]
    assert diffuse(*line, "--json").json["evaluation"] is None


def test_two_backgrounds_are_refused_unless_one_is_named(runs, images, diffuse):
    found = model_file.load(runs("a.safetensors"))
    data = {**found.data, "background": "black"}
    model_file.save(Path("m.safetensors"), replace(found, data=data))
    line = ("compare", runs("a.safetensors"), "m.safetensors", images, *QUICK)
    diffuse(*line, "-q").fails(2, "white and black. Set --background")
    assert diffuse(*line, "--background", "white").code == 0


def test_with_and_without_pairs_are_compared_on_the_images_that_have_one(
    diffuse, lab, images, tmp_path, evaluations
):
    beside = tmp_path / "beside"
    shutil.copytree(images, beside)
    next(iter(sorted(beside.rglob("*.png")))).unlink()
    plain = lab.trained(*lab.tiny, "--steps", 1)
    assert diffuse(*lab.tiny, "--steps", 1, "--given", beside, "-o", "pairs.safetensors").code == 0
    line = ("compare", "pairs.safetensors", plain, images, "--given", beside, *QUICK)
    diffuse(*line, "-n", 5).ok()
    a, b = evaluations
    np.testing.assert_array_equal(a.real.samples, b.real.samples)
    assert len(a.training.pool.labels) == len(b.training.pool.labels)


def test_a_page_has_both_curves_and_what_differs(runs, diffuse):
    line = ("compare", runs("a.run"), runs("b.run"), "--report", "both.html")
    ran = diffuse(*line, "--json", plots=True).ok()
    assert ran.json["report"] == "both.html"
    page = Path("both.html").read_text()
    sides = (f"{side} is <code>model.run</code>" for side in "AB")
    for words in (*sides, "Training loss", "width"):
        assert words in page
    assert page.count("<svg viewBox=") >= 3
    assert "<script" not in page
    assert diffuse(*line).code == 5
