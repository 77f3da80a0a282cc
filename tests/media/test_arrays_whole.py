"""Arrays from files to a model and back, as a user runs it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import manifest

from diffuse_cli.core import Space
from diffuse_cli.data import match_pairs, read_images
from diffuse_cli.media.file_errors import LARGE
from diffuse_cli.models import model_file
from diffuse_cli.models.image_conditioning import Conditioner
from diffuse_cli.sampling.generation import to_stored
from diffuse_cli.system.errors import DivergedError, UsageError
from diffuse_cli.system.events import finish

DRAW = np.random.default_rng(3)


def save(folder, count, shape, change):
    draw = np.random.default_rng(3)  # the same in whatever order tests run
    return write_folder(folder, [change(draw.normal(size=shape)) for _ in range(count)])


def write_folder(path, arrays):
    path.mkdir()
    for k, values in enumerate(arrays):
        np.save(path / f"{k:03d}.npy", values)
    return path


def write_archive(path, arrays):
    return Path(shutil.make_archive(str(path), "tar", write_folder(path, arrays)))


def write_file(path, arrays):
    np.save(path, arrays)
    return path.with_suffix(".npy")


def write_npz(path, arrays):
    np.savez_compressed(path, x=arrays)
    return path.with_suffix(".npz")


def write_members(path, arrays):
    np.savez(path, **{f"{k:03d}": values for k, values in enumerate(arrays)})
    return path.with_suffix(".npz")


KINDS = {
    "signals": ((16,), lambda x: 5 + 2 * x, [], np.float32),
    "fields": ((3, 8, 8), lambda x: np.sinh(x), ["--transform", "asinh"], np.float32),
    "last": ((8, 8, 2), lambda x: np.exp(x), ["--layout", "HWC", "--transform", "log"], np.float32),
    "volumes": ((4, 4, 8), lambda x: x > 0, ["--layout", "DHW"], np.bool_),
    "words": ((8, 8), lambda x: np.uint16(30_000 + 5000 * x), ["--flip"], np.uint16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_draws_what_it_was_trained_on(kind, diffuse, recipe):
    shape, change, options, dtype = KINDS[kind]
    save(Path("data"), 120, shape, change)
    ran = diffuse("train", "data", "--config", recipe, "--steps", 3, *options)
    assert (ran.code, "120 arrays" in ran.err) == (0, True), ran.err
    again = {"signals": ["--size", 16, "--transform", "none"], "volumes": [], "words": []}
    if kind in again:
        ran = diffuse("train", "--resume", "--steps", 4, *again[kind], "-o", "model.safetensors")
        assert (ran.code, "step 4" in ran.err) == (0, True), ran.err
    assert ("along their last axis" in ran.err) == (kind == "words")
    diffuse("sample", "model.safetensors", "-n", 2, "--steps", 3, "-o", "out", "-q").ok()
    for k in range(2):
        drawn = np.load(f"out/{k:05d}.npy", allow_pickle=False)
        assert (drawn.shape, drawn.dtype) == (shape, dtype)
        assert np.isfinite(drawn).all()
    space = diffuse("info", "model.safetensors", "--json").json["space"]
    assert len(space.get("mean", ())) == (space["channels"] if dtype == np.float32 else 0)
    found = diffuse("eval", "model.safetensors", "data", "-n", 3, "--steps", 2,
                    "--timesteps", 4, "--json")  # fmt: skip
    assert (found.code, "KID uses random features" in found.err) == (0, True), found.err
    values = found.json
    assert ("nats_per_dim" in values) == (dtype == np.float32)
    assert ("kid" in values, values["features"]["name"]) == (False, "random")
    assert len(values["details"]["marginals"]) == space["channels"]
    numbers = ("bits_per_dim", "kid_random", "wasserstein", "spectral_distance")
    assert np.isfinite([values[key] for key in numbers]).all()


def test_fields_with_pairs_of_channels_are_resumed(diffuse, recipe):
    fields = save(Path("fields"), 20, (8, 8), lambda x: x)
    pairs = save(Path("pairs"), 20, (2, 8, 8), lambda x: x)
    line = ("train", fields, "--given", pairs, "--config", recipe, "--steps", 2, "-q")
    assert diffuse(*line, "--stop-at", 1).code == 0
    diffuse(*line, "--resume").ok()


@pytest.mark.parametrize("cache", ["64MiB", "1KiB"])
def test_a_resumed_run_has_the_same_arrays_of_several_sizes(diffuse, recipe, cache):
    data = save(Path("data"), 12, (8, 8), lambda x: x)
    np.save(data / "larger.npy", DRAW.normal(size=(9, 12)))
    np.save(data / "smaller.npy", DRAW.normal(size=(8, 7)))
    line = ("train", data, "--config", recipe, "--steps", 2, "--cache", cache)
    assert "13 arrays" in diffuse(*line, "--stop-at", 1).ok().err
    ran = diffuse(*line, "--resume")
    assert (ran.code, "13 arrays" in ran.err, "changed" in ran.err) == (0, True, False), ran.err


@pytest.mark.parametrize(
    "write", [write_folder, write_archive, write_file, write_npz, write_members]
)
def test_the_axes_of_arrays_are_read_by_one_rule(write, tmp_path):
    last = DRAW.normal(size=(24, 8, 12, 2)).astype(np.float32)
    for k, (arrays, layout) in enumerate(((last, "HWC"), (np.moveaxis(last, 3, 1), "CHW"))):
        found = finish(read_images(write(tmp_path / f"{k}", arrays)))
        assert (found.layout, found.medium) == (layout, "array")
        assert np.array_equal(found.stored, np.moveaxis(last, 3, 1))
        assert not found.summary.remarks
    unclear = write(tmp_path / "unclear", DRAW.normal(size=(5, 3, 8, 4)))
    with pytest.raises(UsageError, match=r"3 x 8 x 4.* may be its first axis or its last"):
        finish(read_images(unclear))
    assert finish(read_images(unclear, layout="HWC")).stored.shape == (5, 4, 3, 8)


def test_large_arrays_show_their_axes_too(tmp_path):
    large = np.zeros((1, 1200, 1200, 3), np.float32)
    assert large.nbytes > LARGE
    assert finish(read_images(write_folder(tmp_path / "data", large))).layout == "HWC"


def test_samples_with_their_channels_last_are_read_by_every_command(diffuse, recipe, tmp_path):
    data = write_folder(tmp_path / "data", DRAW.normal((-9, 9), 1, (60, 8, 16, 2)))
    line = ("--config", recipe, "--steps", 2)
    assert diffuse("train", data, *line, "-q").code == 0
    assert diffuse("sample", "model.safetensors", "-n", 3, "--steps", 2, "-q").code == 0
    assert np.load("samples/00000.npy").shape == (8, 16, 2)
    for demo in ((), ("--model", "model.safetensors"), ("--layout", "HWC")):
        ran = diffuse("noise-demo", "samples/00000.npy", *demo, "--overwrite")
        assert (ran.code, "warning: samples" in ran.err, "--layout" in ran.err) == (0, False, False)
    ran = diffuse("train", "samples", *line, "-o", "again.safetensors")
    assert "3 arrays in samples, 2 channels of float32, 8 high x 16 wide" in ran.err
    assert model_file.load("again.safetensors").blueprint.space.shape == (2, 8, 16)
    for subject in (("model.safetensors", "--steps", 2), ("samples",)):
        diffuse("eval", *subject, data, "-n", 3, "--metrics", "marginals", "-q").ok()


def test_an_earlier_model_keeps_its_scale(diffuse, recipe):
    """Its weights have learned it, and other data must not move it."""
    data = save(Path("data"), 20, (8, 8), lambda x: 2 * x)
    other = save(Path("other"), 20, (8, 8), lambda x: 20 + 30 * x)
    line = ("train", data, "--config", recipe, "--steps", 2, "-q")
    assert diffuse(*line, "--stop-at", 1).code == 0
    space = model_file.load("model.safetensors").blueprint.space
    again = ("train", other, "--init", "model.safetensors", "--steps", 1)
    ran = diffuse(*again, "-o", "n.safetensors").ok()
    assert "times the standard deviation of the model's data, whose scale is kept" in ran.err
    assert diffuse(*again, "--auto-resume", "-o", "o.safetensors", "-q").code == 0
    assert model_file.load("n.safetensors").blueprint.space == space
    np.save(data / "more.npy", DRAW.normal(size=(8, 8)) + 5)
    assert diffuse(*line, "--resume").code == 0
    assert model_file.load("model.safetensors").blueprint.space == space


def test_a_small_field_is_enlarged(diffuse, lab):
    np.save("small.npy", DRAW.normal(size=(2, 4, 4)))
    diffuse("upscale", lab["array"], "small.npy", "--factor", 2, "--steps", 2, "-o", "out").ok()
    assert np.load("out/00000.npy").shape == (2, 8, 8)


def test_what_cannot_be_used_is_named(diffuse, tmp_path):
    data = save(tmp_path / "data", 6, (4, 8, 8), lambda x: x)
    np.save(data / "a-nan.npy", np.full((4, 8, 8), np.nan))
    np.save(data / "b-complex.npy", np.zeros((4, 8, 8), complex))
    np.save(data / "c-shape.npy", DRAW.normal(size=(4, 8, 7)))
    np.save(data / "d-objects.npy", np.array([{}], object), allow_pickle=True)
    (data / "e-cut.npy").write_bytes((data / "000.npy").read_bytes()[:-9])
    ran = diffuse("info", data).ok()
    names = [f"{name}.npy" for name in ("a-nan", "b-complex", "c-shape", "d-objects", "e-cut")]
    for words in (*names, "6 usable of 11", "not searched: the arrays are no pictures"):
        assert words in ran.out
    assert "image" not in ran.out
    ran = diffuse("train", data, "--strict", "--steps", 1, "-q")
    assert (ran.code, "a-nan.npy: NaN or infinite numbers" in ran.err) == (3, True)


def test_a_folder_is_measured_by_its_layout(diffuse):
    """Arrays with their channels last are those with their channels first, to the last digit."""
    found = {}
    for layout in ("CHW", "HWC"):
        for name in ("generated", "real"):
            Path(layout, name).mkdir(parents=True)
            for k in range(12):
                values = np.random.default_rng([k, len(name)]).normal(size=(5, 8, 8)).cumsum(1)
                moved = values if layout == "CHW" else np.moveaxis(values, 0, -1)
                np.save(Path(layout, name, f"{k}.npy"), moved)
        line = ("eval", f"{layout}/generated", f"{layout}/real", "-n", 12, "--json")
        ran = diffuse(*line, *["--layout", "HWC"] * (layout == "HWC")).ok()
        found[layout] = {k: ran.json[k] for k in ("wasserstein", "kid_random", "spectral_distance")}
        assert "5 channels" in ran.err
    assert found["CHW"] == found["HWC"]


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        ([], lambda x: x * 1e-35, "hardly varies: its standard deviation is"),
        (["--transform", "log"], lambda x: x, "--transform log is for numbers above 0, but 000"),
        ([], lambda x: x * [[[0.0]], [[1.0]]] + 7, "channel 1 of 2 is 7 everywhere"),
    ],
)
def test_numbers_that_nothing_can_be_learned_of_are_named(options, change, says, diffuse):
    save(Path("data"), 4, (2, 8, 8), change)
    diffuse("train", "data", "--steps", 4, *options, "-q").fails(3, says)


def test_the_statistics_are_those_of_the_training_part(tmp_path):
    unit, offset = np.array([[[[1e-3]], [[50]]], [[[300]], [[-1]]]])
    data = save(tmp_path / "data", 80, (2, 8, 8), lambda x: x * unit + offset)
    samples = finish(read_images(data, transform="asinh"))
    assert samples.held_out.any()
    trained = np.arcsinh(samples.stored[~samples.held_out].astype(np.float64))
    assert np.allclose(samples.space.mean, trained.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(samples.space.std, trained.std((0, 2, 3)), rtol=1e-9)


def test_what_is_given_has_a_scale_of_its_own(diffuse, recipe):
    data = save(Path("data"), 60, (8, 8), lambda x: 1000 + 50 * x)
    given = save(Path("given"), 61, (2, 8, 8), lambda x: x * [[[1e-3]], [[0.0]]] + 3)
    diffuse("train", data, "--given", given, "--config", recipe, "--steps", 3).ok()
    found = model_file.load("model.safetensors").blueprint
    samples, beside = (finish(read_images(folder)) for folder in (data, given))
    rows = match_pairs(samples, beside).rows[~samples.held_out]
    own = beside.stored[rows].astype(np.float64)
    assert samples.held_out.any()
    assert np.allclose(found.conditions.given.mean, own.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(found.conditions.given.std, [own[:, 0].std(), 1], rtol=1e-9)
    space = Conditioner.from_blueprint(found).input_space
    told = space.to_model(torch.from_numpy(beside.stored[rows])).double()
    assert float(told[:, 0].std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert np.allclose(found.space.mean, samples.space.mean)
    diffuse("sample", "model.safetensors", "--given", given / "000.npy", "-n", 1,
                  "--steps", 2, "-o", "out", "-q").ok()  # fmt: skip
    assert abs(np.load("out/00000.npy").mean() - 1000) < 500
    ran = diffuse("eval", "model.safetensors", data, "--given", given, "-n", 3, "--steps", 2,
                  "--timesteps", 4, "--json", "--plot", "bound.png").ok()  # fmt: skip
    assert np.isfinite(ran.json["bits_per_dim"])


def test_floats_are_restored_by_a_method_that_needs_no_range(diffuse, lab):
    line = ("restore", lab["array"], lab.sample("fields"), "--degradation", "mask:half")
    assert diffuse(*line, "--degrade", "-n", 1, "--steps", 3, "-q", "-o", "out").code == 0
    assert manifest("out")["method"] == "mmps"


def test_a_gap_of_a_field_is_generated_where_the_mask_is_one(diffuse, lab):
    field = np.load(lab.sample("fields"))
    gap = np.zeros((8, 8), bool)
    gap[2:5, 3:6] = True
    np.save("gap.npy", gap)
    np.save("field.npy", np.where(gap, 0, field))
    np.save("holed.npy", np.where(gap, np.nan, field))
    line = ("inpaint", lab["array"], "field.npy", "-n", 1, "--steps", 3, "-q")
    assert diffuse(*line, "--mask", "gap.npy", "-o", "out").code == 0
    made = np.load("out/00000.npy")
    assert np.allclose(made[:, ~gap], field[:, ~gap], atol=1e-5)
    assert not np.allclose(made[:, gap], 0)
    assert "a file like field.npy with 1 where to generate" in diffuse(*line).line
    ran = diffuse("inpaint", lab["array"], "holed.npy", "--mask", "gap.npy", "-q")
    assert (ran.code, "Replace them by other numbers" in ran.line) == (3, True)


def test_a_gap_of_zeros_is_generated_by_a_model_of_logarithms(diffuse, recipe):
    data = save(Path("data"), 20, (8, 8), lambda x: np.float32(np.exp(x)))
    line = ("train", data, "--config", recipe, "--transform", "log", "--steps", 1, "-q")
    assert diffuse(*line).code == 0
    field, gap = np.load(data / "000.npy"), np.zeros((8, 8), bool)
    gap[2:5, 3:6] = True
    np.save("gap.npy", gap)
    np.save("field.npy", np.where(gap, 0, field))
    quick = ("model.safetensors", "field.npy", "-n", 2, "--steps", 2, "-q")
    diffuse("inpaint", *quick, "--mask", "gap.npy", "-o", "out").ok()
    made = np.load("out/00000.npy")
    assert np.isfinite(made).all()
    assert (made > 0).all()
    assert np.allclose(made[~gap], field[~gap], rtol=1e-4)
    blur = ("restore", "--degradation", "blur:1")
    ran = diffuse("noise-demo", "field.npy", "--model", "model.safetensors", "-q")
    ran.fails(3, "is for numbers above 0, but field.npy has others")
    others = (("vary",), ("interpolate", data / "000.npy"), ("upscale",), blur)
    for task, *more in (*others, (*blur, "--degrade")):
        ran = diffuse(task, *quick[:2], *more, *quick[2:])
        ran.fails(3, "log, is for numbers above 0, but field.npy has others")


def test_levels_of_samples_that_are_not_finite_are_not_made():
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 1], x[2, 0, 1] = torch.nan, torch.inf
    with pytest.raises(DivergedError, match="NaN or infinite values in 2 of 3 images"):
        to_stored(Space(channels=1, size=(2, 2)), x)
    assert to_stored(Space(channels=1, size=(2, 2)), x[:1]).shape == (1, 1, 2, 2)


def test_samples_that_are_not_finite_are_not_written(diffuse, lab, monkeypatch):
    monkeypatch.setattr(Space, "to_stored", lambda self, x: x * float("nan"))
    ran = diffuse("sample", lab["array"], "-n", 1, "--steps", 2, "-o", "out", "-q")
    assert (ran.code, "NaN or infinite values in 1 of 1 array. Use more" in ran.line) == (6, True)
    assert not list(Path().glob("out/*.npy"))
