"""`diffuse eval`: what it measures, on which images, and that it says so."""

import functools
import hashlib
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab import write_images
from oracles import exact_net, process_of
from PIL import Image

from diffuse_cli.core import Conditions, Denoiser, bits_per_dim
from diffuse_cli.core import likelihood as core_likelihood
from diffuse_cli.data import read_images
from diffuse_cli.evaluation import examples, image_sets, input_builders, likelihood
from diffuse_cli.evaluation.image_sets import LabeledSamples, TrainingSamples
from diffuse_cli.metrics import baselines, kid, memorization, nearest_neighbors
from diffuse_cli.metrics.nearest_neighbors import NearestDistances, add_candidates, find_nearest
from diffuse_cli.metrics.presentation import BASELINES
from diffuse_cli.models import model_file
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import draw_noise, permutation

QUICK = ("--steps", 4, "--precision", "fp32")
BITS = ("--metrics", "likelihood")
"""Draws no images."""


@pytest.fixture
def measure(diffuse, model):
    return lambda data, *options: diffuse("eval", model, data, *QUICK, *options)


@pytest.fixture
def measure_classes(diffuse, conditional):
    return lambda data, *options: diffuse("eval", conditional, data, *QUICK, *options)


@pytest.fixture(scope="module")
def known():
    """What commands that tests share said, by their words."""
    return {}


@pytest.fixture
def once(diffuse, known, evaluations):
    """Run a command, or read what it said when an earlier test ran it; and its evaluation."""

    def run(*line):
        if line not in known:
            ran = diffuse(*line).ok()
            known[line] = ran, evaluations.pop()
        return known[line]

    return run


OF_IMAGES = ("-n", 6, "--timesteps", 10, "--json")
OF_OTHER = ("-n", 14, "--timesteps", 20, "--json")


@pytest.fixture
def of_images(once, model, images):
    """The model measured on its training data, and the evaluation. Change nothing."""
    return once("eval", model, images, *QUICK, *OF_IMAGES)


@pytest.fixture
def of_other(once, model, other):
    """The same on other images."""
    return once("eval", model, other, *QUICK, *OF_OTHER)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Images of the same kind that the model was not trained on."""
    return write_images(tmp_path_factory.mktemp("other") / "images", 14, seed=9)


def test_the_json_says_everything_one_needs_to_compare(of_images, of_other, model):
    ran = of_images[0]
    found = ran.json
    assert found["n"] == {"real": 6, "generated": 6}
    assert found["features"]["name"].startswith("efficientnet-lite0")
    assert len(found["features"]["weights_sha256"]) == 64
    assert found["bits_per_dim_standard_error"] > 0
    assert found["kid_standard_error"] > 0
    assert found["frechet_distance"] > 0
    assert math.isfinite(found["kid"])
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    wanted = {"steps": 4, "timesteps": 10, "precision": "fp32", "model_sha256": digest}
    assert found["settings"].items() >= wanted.items()
    parts = [found[f"bits_{name}"] for name in ("prior", "middle", "decoder")]
    assert found["bits_per_dim"] == pytest.approx(sum(parts), rel=1e-6)
    assert min(parts) >= 0
    assert 1 < found["bits_per_dim"] < 20
    first, *terms = found["terms"]
    assert first["bits_per_timestep"] == pytest.approx(found["bits_decoder"], rel=1e-9)
    middle = sum((t["last"] - t["first"] + 1) * t["bits_per_timestep"] for t in terms)
    assert middle == pytest.approx(found["bits_middle"], rel=1e-9)
    assert found["part"] == "held-out"
    assert "the held-out part, 6 of 60" in ran.err
    assert of_other[0].json["part"] == "all"
    assert of_other[0].json["classes"] == {}
    assert "all, 14 of 14" in of_other[0].err


class Metal(torch.Tensor):
    """A tensor of a device without float64."""

    def double(self):
        raise TypeError("no float64")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_the_bound_needs_no_float64_of_the_device(measure, images, monkeypatch, of_images):
    terms, prior = core_likelihood.bound_terms, core_likelihood.prior_bits

    def on_metal(*arguments, **options):
        return (tensor.as_subclass(Metal) for tensor in terms(*arguments, **options))

    monkeypatch.setattr(core_likelihood, "bound_terms", on_metal)
    monkeypatch.setattr(core_likelihood, "prior_bits", lambda *a: prior(*a).as_subclass(Metal))
    found = measure(images, *OF_IMAGES, *BITS).json
    assert found["bits_per_dim"] == of_images[0].json["bits_per_dim"]


@pytest.fixture(scope="module")
def one_held_out(images, tmp_path_factory):
    """The images without all but one of the held-out ones."""
    data, found = tmp_path_factory.mktemp("one") / "data", finish(read_images(images))
    held = dict(zip(found.names, found.held_out, strict=True))
    left_out = sorted(name for name in held if held[name])[1:]
    for name in held.keys() - {*left_out}:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / name, data / name)
    return data


def test_training_images_stand_in_where_one_image_is_held_out(
    diffuse, lab, one_held_out, recipe, evaluations
):
    """As may happen with 100 photos."""
    model = lab.trained("train", one_held_out, "--config", recipe, "--steps", 1)
    ran = diffuse("eval", model, one_held_out, "-n", 8, "--steps", 2, "--timesteps", 3, "--json")
    assert ran.code == 0, ran.err
    assert "only 1 image held out: training images stand in as real images" in ran.err
    assert ran.json["memorized_references"] > 2
    assert "bits_per_dim_gap" not in ran.json  # the real images are training images
    assert {*as_bytes(evaluations[0].real)}.isdisjoint(as_bytes(evaluations[0].more))
    assert (ran.json["floor_images"], ran.json["floor_further"]) == (8, 8)


def test_training_images_stand_in_where_none_is_held_out(diffuse, lab, images, tmp_path, recipe):
    """As with fewer than 40 photos."""
    for name in sorted(finish(read_images(images)).names)[:8]:
        shutil.copy(images / name, tmp_path / Path(name).name)
    model = lab.trained("train", tmp_path, "--config", recipe, "--steps", 1)
    ran = diffuse("eval", model, tmp_path, "-n", 8, "--steps", 2, "--metrics", "kid").ok()
    assert "no images are held out: training images stand in as real images" in ran.err
    assert "real images: all, 8 of 8" in ran.err


def test_another_background_hides_training_images_and_says_so(diffuse, lab, tmp_path, recipe):
    """Digests are of images on their background."""
    rng = np.random.default_rng(0)
    for k in range(8):
        pixels = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    model = lab.trained("train", tmp_path, "--config", recipe, "--steps", 1)
    said = "trained with --background white: training images in DATA are not recognized"
    line = ("eval", model, tmp_path, "-n", 8, "--steps", 2, "--metrics", "kid")
    for background, warned in (("white", False), ("black", True)):
        assert (said in diffuse(*line, "--background", background).ok().err) is warned


@pytest.mark.parametrize("classes", [(), ("--classes",)], ids=["plain", "classes"])
def test_copies_are_found_where_one_image_is_held_out(
    diffuse, lab, one_held_out, recipe, monkeypatch, evaluations, classes
):
    """The references of both spaces are that image and all training images, without copies."""
    model = lab.trained("train", one_held_out, "--config", recipe, "--steps", 1, *classes)
    known = finish(read_images(one_held_out))
    copies = known.stored[np.flatnonzero(~known.held_out)]

    def generate(denoiser, settings, indices, **_):
        yield from ()
        return copies[np.array(indices) % len(copies)]

    monkeypatch.setattr(input_builders, "generate_all", generate)
    line = ("-n", 60, "--steps", 2, "--metrics", "memorization", "--json")
    ran = diffuse("eval", model, one_held_out, *line).ok()
    nearest = evaluations[0].nearest
    assert {space: len(found.references) for space, found in nearest.items()} == {
        "features": 1 + len(copies), "pixels": 1 + len(copies),
    }  # fmt: skip
    assert min(found.references.min() for found in nearest.values()) > 0
    assert (ran.json["memorized_features"], ran.json["memorized_pixels"]) == (1, 1)
    assert any(line.startswith("memorization: 100%") for line in ran.json["remarks"])
    if classes:
        rates = {name: found["memorized_features"] for name, found in ran.json["classes"].items()}
        assert rates == {"dark": 1, "light": 1}


def test_the_text_has_both_counts_and_a_row_for_each_class(measure, measure_classes, images, other):
    """Fewer real images than n are all used."""
    ran = measure(images, "-n", 9, "--timesteps", 2)
    assert "n = 9 generated against 6 real (held-out images)" in ran.out
    assert "efficientnet-lite0" in ran.out
    assert "±" in ran.out
    assert "FID" not in ran.out
    assert "class" not in ran.out
    out = measure_classes(other, "-n", 6, "--timesteps", 2).out
    heads, *rows = out.split("\n\n")[-1].splitlines()
    assert heads.split()[:3] == ["class", "generated", "real"]
    assert "bits per dimension" in heads
    assert "KID" in heads
    assert "Fréchet" not in heads
    assert [row.split()[:2] for row in rows] == [["dark", "3"], ["light", "3"]]


BOTH = ("--metrics", "likelihood,kid")


def test_another_seed_gives_other_numbers_and_another_batch_size_the_same(
    measure, images, of_images
):
    one = of_images[0].json
    two = measure(images, *OF_IMAGES, *BOTH, "--seed", 1).json
    assert one["bits_per_dim"] != two["bits_per_dim"]
    assert one["kid"] != two["kid"]
    two = measure(images, *OF_IMAGES, *BOTH, "--batch-size", 4).json
    assert one["bits_per_dim"] == pytest.approx(two["bits_per_dim"], rel=1e-4)
    assert one["kid"] == pytest.approx(two["kid"], rel=0.05, abs=0.01)


def test_a_trained_model_is_measured_better_than_one_that_is_not(lab, diffuse, other, of_other):
    untrained = lab.trained(*lab.tiny, "--steps", 1, "--lr", 0)
    start = diffuse("eval", untrained, other, *QUICK, *OF_OTHER, *BOTH).json
    found = of_other[0].json
    assert found["bits_per_dim"] < start["bits_per_dim"] - 0.5
    assert found["kid"] < start["kid"]


def test_raw_weights_are_measured_as_a_model_of_them_is(measure, diffuse, model, other, of_other):
    raw = measure(other, *OF_OTHER, *BITS, "--weights", "raw").json
    stored = model_file.load(model)
    model_file.save(Path("raw.safetensors"), replace(stored, ema=stored.raw, raw=None))
    alone = diffuse("eval", "raw.safetensors", other, *QUICK, *OF_OTHER, *BITS).json
    assert raw["bits_per_dim"] == alone["bits_per_dim"]
    assert raw["bits_per_dim"] != of_other[0].json["bits_per_dim"]


# -- two folders ----------------------------------------------------------------------------------


def test_a_folder_against_itself_has_no_distance(diffuse, other):
    """And no likelihood, which is said."""
    names = "kid,frechet,likelihood"
    ran = diffuse("eval", other, other, "-n", 14, "--metrics", names, "--json")
    assert "--metrics likelihood needs a model: skipped" in ran.err
    found = ran.json
    assert "bits_per_dim" not in found
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert found["kid"] < 0.05


def test_samples_in_a_folder_measure_as_the_model_does(diffuse, model, other, of_other):
    """Without the grid and the animation beside them."""
    diffuse("sample", model, "-n", 14, *QUICK, "--gif")
    assert len(list(Path("samples").glob("*.png"))) == 15
    only = ("--metrics", "kid,frechet")
    theirs = diffuse("eval", "samples", other, "-n", 14, *only, "--json").json
    ours = of_other[0].json
    assert theirs["n"] == {"real": 14, "generated": 14}
    assert theirs["kid"] == pytest.approx(ours["kid"], abs=1e-3)
    assert theirs["frechet_distance"] == pytest.approx(ours["frechet_distance"], rel=1e-2)


def test_folders_of_8_and_of_16_bits_are_compared_in_8(diffuse, images, other, tmp_path):
    """Baselines are made of images of 8 bits, too."""
    deep = tmp_path / "deep"
    for path in images.rglob("*.png"):
        levels = np.asarray(Image.open(path)).astype(np.uint16) * 257
        there = deep / path.relative_to(images)
        there.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(there)
    line = ("-n", 14, "--json")
    for sides in (((other, images), (other, deep)), ((images, images), (deep, deep))):
        expected, found = (diffuse("eval", *side, *line).json for side in sides)
        assert found["n"] == {"real": 14, "generated": 14}
        for name in ("kid", "wasserstein", *(f"kid_of_{name}" for name in BASELINES)):
            assert found[name] == pytest.approx(expected[name]), name


def test_arrays_that_never_vary_or_of_other_types_are_compared_but_not_of_other_shapes(diffuse):
    """The levels that one folder uses are no limits of the other's."""
    draw = np.random.default_rng(0)
    np.save("real.npy", draw.normal(size=(12, 16)).astype(np.float32))
    np.save("flat.npy", np.zeros((12, 16), np.float32))
    np.save("two.npy", draw.normal(size=(12, 2, 16)).astype(np.float32))
    np.save("words.npy", draw.integers(0, 4096, (8, 8, 8)).astype(np.uint16))
    np.save("bytes.npy", draw.integers(0, 256, (8, 8, 8)).astype(np.uint8))
    for one, other in (("flat", "real"), ("bytes", "words")):
        diffuse("eval", f"{one}.npy", f"{other}.npy", "--json").ok()
    assert diffuse("eval", "two.npy", "real.npy").code == 3


@pytest.mark.parametrize(
    ("width", "last", "resized"), [(128, 128, 0), (128, 136, 1), (5000, 5000, 1)]
)
def test_a_folder_says_only_what_is_true_of_its_size(diffuse, tmp_path, width, last, resized):
    folder = tmp_path / "large"
    folder.mkdir()
    for k in range(4):
        Image.effect_noise((last if k == 3 else width, 128), 60 + k).save(folder / f"{k}.png")
    ran = diffuse("eval", folder, folder, "--metrics", "spectrum").ok()
    assert ran.err.count("resized to 64x64") == resized
    assert "--size" not in ran.err


def test_settings_of_sampling_and_of_the_bound_decide_the_numbers(measure, images):
    line = ("-n", 4, "--metrics", "kid", "--sampler", "unipc", "--json")
    plain, given = (
        measure(images, *line, *more).json for more in ((), ("--order", 3, "--threshold", 1))
    )
    assert plain["settings"]["threshold"] is None
    assert given["settings"]["order"] == 3
    assert given["settings"]["threshold"] == 1
    assert given["kid"] != plain["kid"]
    line = ("-n", 4, "--metrics", "overfitting", "--timesteps", 3, "--json", "--variance")
    small, large = (measure(images, *line, name) for name in ("small", "large"))
    assert small.code == large.code == 0, small.err
    assert small.json["bits_per_dim_train"] != large.json["bits_per_dim_train"]


# -- classes --------------------------------------------------------------------------------------


def renamed(data, to, **names):
    """A copy of DATA whose class folders have other names; those not named are left out."""
    for old, new in names.items():
        shutil.copytree(data / old, to / new)
    return to


def shown_as(part, images, names):
    """Each image's class by the folder it lies in, for images of an evaluation."""
    known = {}
    for path in sorted(images.rglob("*.png")):
        known[np.asarray(Image.open(path)).tobytes()] = path.parent.name
    found = [known[np.ascontiguousarray(p).tobytes()] for p in part.samples]
    return [names.index(name) if name in names else -1 for name in found]


def test_each_class_is_measured_as_it_would_be_alone(diffuse, images, other, tmp_path):
    """Two folders of two classes, against the same command on the folders of each class. In
    swapped folders, together they are as near; dark images that are called light are far."""
    found = diffuse("eval", other, images, "--json").json
    swapped = renamed(other, tmp_path / "swapped", dark="light", light="dark")
    wrong = diffuse("eval", swapped, images, "--json").json
    assert wrong["kid"] == pytest.approx(found["kid"], rel=1e-3)
    assert found["part"] == "all"
    assert found["settings"] == {}
    assert "bits_per_dim" not in found
    assert {*found["classes"]} == {"dark", "light"}
    for name, values in found["classes"].items():
        alone = diffuse("eval", other / name, images / name, "--json").json
        assert (values["generated"], values["real"]) == (7, 30)
        assert alone["n"] == {"generated": 7, "real": 30}
        assert alone["classes"] == {}
        assert values["kid"] == pytest.approx(alone["kid"], rel=1e-3)
        assert values["frechet_distance"] == pytest.approx(alone["frechet_distance"], rel=1e-3)
        assert values["kid"] != pytest.approx(found["kid"], rel=0.01)
        assert wrong["classes"][name]["kid"] > values["kid"] + 0.01


def test_a_models_classes_are_measured_on_their_own_images(measure_classes, other, evaluations):
    found = measure_classes(other, "-n", 11, "--timesteps", 5, "--json").json
    (evaluation,) = evaluations
    assert evaluation.real.labels.tolist() == shown_as(evaluation.real, other, ["dark", "light"])
    drawn = [*evaluation.more.labels, *evaluation.real.labels][:11]
    assert evaluation.fakes.labels.tolist() == drawn
    assert (len(evaluation.more), sorted(evaluation.real.labels)) == (3, [0] * 6 + [1] * 5)
    for label, name in enumerate(("dark", "light")):
        values = found["classes"][name]
        assert {*values} >= {"bits_per_dim", "kid", "frechet_distance", "wasserstein"}
        real, fakes = (side.labels == label for side in (evaluation.real, evaluation.fakes))
        assert values["real"] == real.sum()
        assert values["generated"] == fakes.sum() == drawn.count(label)
        assert values["bits_per_dim"] == pytest.approx(evaluation.bits[real].sum(1).mean())
        features = (evaluation.real_features[real], evaluation.fake_features[fakes])
        expected = kid.estimate_kid(*(np.asarray(x, float) for x in features))
        assert values["kid"] == pytest.approx(expected["kid"])


def test_a_classs_generated_images_are_those_that_sample_draws(
    measure_classes, diffuse, conditional, other, evaluations
):
    line = ("-n", 6, "--guidance", 4, "--guidance-interval", "0.1,9")
    found = measure_classes(other, *line, "--metrics", "kid", "--json").json
    assert found["settings"]["guidance"] == 4
    assert found["settings"]["guidance_interval"] == [0.1, 9]
    fakes = evaluations[0].fakes
    named = [o for label in fakes.labels for o in ("--class", ("dark", "light")[label])]
    assert len({*named}) == 3
    diffuse("sample", conditional, *QUICK, *line, *named)
    for k, pixels in enumerate(fakes.samples):
        drawn = np.asarray(Image.open(f"samples/{k:05d}.png"), int)
        assert np.abs(pixels[0].astype(int) - drawn).max() <= 2


def test_classes_have_the_shares_that_they_have_in_data(
    measure_classes, diffuse, images, other, tmp_path
):
    """A class of one image is left out between folders."""
    data = renamed(other, tmp_path / "data", dark="dark", light="light")
    for path in sorted((data / "dark").iterdir())[2:]:
        path.unlink()
    ran = measure_classes(data, "-n", 27, "--metrics", "kid", "--json")
    assert ran.json["classes"]["dark"]["generated"] == 3 * 2
    assert ran.json["classes"]["light"]["generated"] == 3 * 7
    assert "generating classes in the proportions of DATA" in ran.err
    sorted((data / "dark").iterdir())[0].unlink()
    ran = diffuse("eval", data, images, "--metrics", "kid", "--json")
    assert {*ran.json["classes"]} == {"light"}


def test_tune_and_compare_draw_the_same_classes(
    measure_classes, diffuse, conditional, other, model
):
    line = ("-n", 6, "--seed", 3)
    own = measure_classes(other, *line, "--guidance", 2, "--metrics", "kid", "--json").json["kid"]
    how = ("--samplers", "unipc", *QUICK, "--guidance", 2, "--json")
    ran = diffuse("tune", conditional, other, *line, *how).ok()
    tried = ran.json["rows"]
    assert [r["values"]["kid"] for r in tried] == [pytest.approx(own, rel=1e-6)]
    ran = diffuse("compare", conditional, model, other, *line, *QUICK, "--timesteps", 2, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["evaluation"]["values"]["a"]["kid"] == pytest.approx(own, rel=1e-6)


def test_classes_are_matched_by_name(
    measure_classes, diffuse, images, conditional, other, tmp_path, evaluations
):
    """'light' is the second class of the model and the first of DATA; 'zebra' it does not know,
    and is shown as of none. Where it knows none, classes are drawn evenly."""
    data = renamed(other, tmp_path / "data", light="light", dark="zebra")
    line = ("-n", 14, "--timesteps", "all", "--respaced", 10, "--metrics", "kid,likelihood")
    found = measure_classes(data, *line, "--json").json
    assert {*found["classes"]} == {"light"}
    assert found["classes"]["light"]["real"] == 7
    assert found["classes"]["light"]["generated"] == 14
    real = evaluations[0].real
    assert real.labels.tolist() == shown_as(real, data, ["dark", "light"])
    assert sorted(real.labels.tolist()) == [-1] * 7 + [1] * 7
    right, none, wrong = (
        float(bound_of(conditional, data, known=known, respaced=10)["total"].mean())
        for known in (KNOWN, {}, {"light": 0})
    )
    assert found["bits_per_dim"] == pytest.approx(right, rel=1e-5)
    assert min(abs(right - none), abs(right - wrong)) > 3e-4
    folders = diffuse("eval", data, images, "--metrics", "kid", "--json").json["classes"]
    assert {*folders} == {"light"}
    assert (folders["light"]["generated"], folders["light"]["real"]) == (7, 30)
    data = renamed(other, tmp_path / "others", dark="aardvark", light="zebra")
    ran = measure_classes(data, "-n", 5, "--metrics", "kid")
    assert evaluations[-1].fakes.labels.tolist() == [0, 1, 0, 1, 0]
    assert "none of the model's classes" in ran.err


# -- the bound ------------------------------------------------------------------------------------


def bound_of(path, data, *, known, respaced=None, seed=0):
    """Bits by core alone: every image of DATA with its own label, in the order that eval draws."""
    loaded = model_file.load(path)
    net = loaded.network()
    denoiser = loaded.blueprint.denoiser(lambda x, t, **cond: net(x, t, **cond))
    if respaced:
        denoiser = denoiser.respaced(denoiser.process.times(respaced))
    files = sorted(data.rglob("*.png"))
    files = [files[k] for k in permutation(seed, 0, len(files)).tolist()]
    x0 = torch.from_numpy(np.stack([Image.open(path) for path in files])).float()[:, None]
    cond = {}
    if loaded.blueprint.conditions.num_classes:
        cond["label"] = torch.tensor([known.get(path.parent.name, 2) for path in files])

    def noise(t):
        own = [draw_noise(seed, "bits", place, t, shape=(1, 8, 8)) for place in range(len(files))]
        return torch.stack(own)

    bits = bits_per_dim(denoiser, x0 / 127.5 - 1, noise=noise, **cond)
    return {name: getattr(bits, name).double() for name in ("total", "prior", "terms")}


KNOWN = {"dark": 0, "light": 1}


@pytest.mark.parametrize(
    ("which", "respaced"), [("model", None), ("conditional", 9), ("conditional", 2)]
)
def test_all_timesteps_are_the_bound_of_core(diffuse, other, tmp_path, request, which, respaced):
    some = tmp_path / "some"
    for path in sorted(other.rglob("*.png"))[::3]:
        (some / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, some / path.parent.name)
    path = request.getfixturevalue(which)
    options = () if respaced is None else ("--respaced", respaced)
    line = ("-n", 5, "--timesteps", "all", *BITS, "--json")
    found = diffuse("eval", path, some, *QUICK, *line, *options).json
    expected = bound_of(path, some, known=KNOWN, respaced=respaced)
    assert found["bits_per_dim"] == pytest.approx(float(expected["total"].mean()), rel=1e-5)
    error = float(expected["total"].std()) / math.sqrt(5)
    assert found["bits_per_dim_standard_error"] == pytest.approx(error, rel=1e-4)
    assert found["bits_prior"] == pytest.approx(float(expected["prior"].mean()), rel=1e-5)
    assert found["settings"]["respaced"] == respaced
    assert [term["first"] for term in found["terms"]] == [*range(respaced or 100)]
    assert all(term["first"] == term["last"] for term in found["terms"])
    terms = [term["bits_per_timestep"] for term in found["terms"]]
    assert terms == pytest.approx(expected["terms"].mean(0).tolist(), rel=1e-4, abs=1e-7)


PLAIN = SimpleNamespace(to_model=lambda x: x, levels=256)
"""A space of samples that are the model's numbers already."""


def estimated(x0, timesteps, seed=0, indices=None, batch_size=64, spread=0.5):
    """The bound under the exact denoiser of Gaussian data."""
    process = process_of("cosine", 300)
    exact = Denoiser(exact_net(process, "x0", spread=spread), process, "x0")
    samples, indices = LabeledSamples(x0, np.full(len(x0), -1)), indices or range(len(x0))
    images = samples, Conditions(), indices, None, batch_size, torch.device("cpu")
    given = likelihood.iterate_batches(*images), indices, PLAIN
    return finish(likelihood.measure_bound(exact, *given, timesteps=timesteps, seed=seed))


def gaussian_images(n):
    """Images of which some are much harder than others."""
    draws = np.random.default_rng(3)
    hard = np.linspace(0.2, 1.2, n)[:, None, None, None]
    return (hard * 0.5 * draws.standard_normal((n, 1, 4, 4))).clip(-1, 1)


@functools.cache
def whole_bound():
    return np.mean([estimated(gaussian_images(32), "all", s).parts().sum(1) for s in range(2)])


@pytest.mark.parametrize("timesteps", [4, 12])
def test_the_estimate_is_unbiased_and_its_error_honest(timesteps):
    """Over seeds its mean is the whole bound, and the images differ as much as is reported."""
    x0 = gaussian_images(32)
    totals = np.stack([estimated(x0, timesteps, s).parts().sum(1) for s in range(40)])
    means = totals.mean(1)
    spread = means.std(ddof=1)
    assert abs(means.mean() - whole_bound()) < 4 * spread / math.sqrt(40) + 0.002
    # At the same images the mean varies by less than independent visits would make it.
    within = math.sqrt(totals.var(0, ddof=1).mean() / 32)
    assert spread < 1.05 * within


def test_visits_depend_on_the_seed_and_the_image_alone():
    x0 = gaussian_images(40)
    whole = estimated(x0, 12)
    part = estimated(x0, 12, indices=range(7, 29), batch_size=5)
    assert np.array_equal(part.times, whole.times[7:29])
    assert part.terms == pytest.approx(whole.terms[7:29], rel=1e-6)
    assert not np.array_equal(estimated(x0, 12, seed=1).times, whole.times)
    # Another model with the same process, as `compare` has it.
    assert np.array_equal(estimated(x0, 12, spread=0.4).times, whole.times)


def test_visits_to_a_block_of_images_fall_into_different_parts_of_their_stratum():
    found = likelihood.draw_positions(3, range(32), 5)
    cells = np.floor(found * 16).astype(int).reshape(2, 16, 5)
    assert (np.sort(cells, 1) == np.arange(16)[:, None]).all()
    flat = cells.transpose(0, 2, 1).reshape(10, 16)
    assert len({tuple(row) for row in flat}) == 10


@pytest.mark.parametrize(("n", "timesteps"), [(2, 2), (3, 12), (40, 6), (300, 12)])
def test_every_group_of_the_curve_was_visited(n, timesteps):
    bound = estimated(gaussian_images(n), timesteps)
    groups = bound.group_by_time()
    assert (groups[0]["first"], groups[0]["last"]) == (0, 0)
    assert all(a["last"] + 1 == b["first"] for a, b in pairwise(groups))
    assert groups[-1]["last"] == 299
    assert all(group["bits_per_timestep"] > 0 for group in groups)
    total = sum((g["last"] - g["first"] + 1) * g["bits_per_timestep"] for g in groups)
    assert total == pytest.approx(bound.parts()[:, 1:].sum(1).mean(), rel=1e-9)
    if n == 300:
        assert len(groups) > 30


# -- the plot -------------------------------------------------------------------------------------


def test_a_plot_is_written_and_named(measure, other):
    line = ("-n", 4, "--timesteps", 2, "--steps", 2, "--plot", "deep/bound.png")
    assert measure(other, *line).ok().out.splitlines()[-1] == "deep/bound.png"
    with Image.open("deep/bound.png") as picture:
        assert picture.format == "PNG"
        colors = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colors, axis=0)) > 50
    Path("deep/bound.png").write_bytes(b"earlier")
    assert measure(other, *line, "--json", "--overwrite").json["plot"] == "deep/bound.png"
    assert Path("deep/bound.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("line", ["eval --plot", "eval --pairs", "eval --report", "tune --report"])
def test_a_file_that_cannot_be_written_is_refused_first(
    diffuse, model, images, instead_of_networks, line
):
    command, option = line.split()
    name = "there.html" if option == "--report" else "there.png"
    for path in (name, "file"):
        Path(path).write_text("earlier")
    instead_of_networks()
    for path, said in ((name, "--overwrite"), (f"file/{name}", "is not a folder")):
        diffuse(command, model, images, "-n", 4, option, path, "-q").fails(5, said)
    assert Path(name).read_text() == "earlier"


# -- training images ------------------------------------------------------------------------------

OF_TRAINING = {"bits_per_dim_train", "bits_per_dim_gap", "memorized_features", "memorized_pixels"}


def divided(data):
    """The pixels of training and of held-out images, as bytes."""
    read = finish(read_images(str(data)))
    rows = [np.ascontiguousarray(p).tobytes() for p in read.stored]
    held_out = {row for row, held in zip(rows, read.held_out, strict=True) if held}
    return {*rows} - held_out, held_out


def as_bytes(part):
    return [np.ascontiguousarray(p).tobytes() for p in part.samples]


def test_training_images_are_measured_beside_held_out_ones(images, of_images):
    ran, evaluation = of_images
    found = ran.json
    assert {*found} >= OF_TRAINING
    assert found["bits_per_dim_gap"] == pytest.approx(
        found["bits_per_dim"] - found["bits_per_dim_train"]
    )
    # Six are held out: all 54 training images, each without itself, are references, too.
    assert found["memorized_references"] == 60
    assert found["memorized_expected"] == pytest.approx(3 / 61)
    train, held_out = ({*rows} for rows in divided(images))
    assert {*as_bytes(evaluation.real)} == {*as_bytes(evaluation.training.held_out)} == held_out
    assert {*as_bytes(evaluation.train)} < train
    assert len(evaluation.train) == len(evaluation.real)
    assert len(evaluation.train_features) == len(train) == 54
    assert {*as_bytes(evaluation.more)} < train


def test_images_that_memory_does_not_hold_give_the_same_numbers(
    measure, images, monkeypatch, of_images
):
    kept = of_images[0].json
    monkeypatch.setattr(image_sets, "kept_bytes", lambda: 5 * 64)
    assert {**measure(images, *OF_IMAGES).json, "seconds": kept["seconds"]} == kept


@pytest.mark.parametrize(("timesteps", "of_training"), [(7, 4), (2, 2), ("all", "all")])
def test_bits_of_training_images_are_those_of_any_images(
    measure, images, evaluations, tmp_path, timesteps, of_training
):
    """The same images in a folder of their own cost as much, at half the timesteps each. A copy of
    the training data is known as that."""
    copy, own = tmp_path / "copy", tmp_path / "own"
    copy.mkdir()
    own.mkdir()
    for k, path in enumerate(sorted(images.rglob("*.png"), reverse=True)):
        Image.open(path).save(copy / f"{k:03d}.bmp")
    line = ("-n", 6, "--respaced", 10, "--json", "--timesteps")
    found = measure(copy, *line, timesteps, "--metrics", "likelihood,overfitting").json
    assert found["part"] == "held-out"
    places = permutation(0, 0, 6).tolist()  # eval reads them in the same order again
    for place, pixels in zip(places, evaluations[0].train.samples, strict=True):
        Image.fromarray(pixels[0]).save(own / f"{place}.png")
    alone = measure(own, *line, of_training, *BITS).json
    assert found["bits_per_dim_train"] == pytest.approx(alone["bits_per_dim"], rel=1e-6)
    error = alone["bits_per_dim_standard_error"]
    assert found["bits_per_dim_train_standard_error"] == pytest.approx(error, rel=1e-5)
    assert found["bits_per_dim_train"] != pytest.approx(found["bits_per_dim"], rel=1e-4)


def test_the_floor_is_of_further_real_images(measure, images, other, of_images, of_other):
    """Of DATA where it is not the training data; training images where it is; else halves."""
    line = ("-n", 5, "--timesteps", 2, "--json")
    assert measure(other, *line).json["floor_images"] == 5
    assert of_images[0].json["floor_images"] == 6
    nine = measure(images, "-n", 9, "--timesteps", 2, "--train-n", 0, "--json").json
    assert nine["floor_further"] == 9
    found = of_other[0].json
    assert found["floor_images"] == 7
    assert {"kid_floor", "frechet_floor"} <= {*found}
    assert not {*nine, *found} & OF_TRAINING


def test_copies_at_the_stated_rate_are_noticed_among_more_images_than_train_n(
    diffuse, tmp_path, evaluations
):
    """Pixels and features see the source of each copy, and those of no reference less."""
    data, new = write_images(Path("data"), 400, seed=5), write_images(Path("new"), 100, seed=6)
    line = (data, "--metrics", "memorization", "--train-n", 40, "-n", 100, "--json")
    honest = diffuse("eval", new, *line).json
    assert not any("memorization" in text for text in honest["remarks"])
    for space in memorization.SPACES:
        assert abs(honest[f"memorized_z_{space}"]) < 3
        assert abs(honest[f"memorized_{space}"] - honest["memorized_expected"]) < 0.08
    count = round(100 * honest["memorized_noticed"])
    assert count <= 30
    copies = tmp_path / "copies"
    copies.mkdir()
    sources = [np.frombuffer(row, np.uint8).reshape(8, 8) for row in sorted(divided(data)[0])]
    for k, path in enumerate(sorted(new.rglob("*.png"))):
        pixels = sources[k] if k < count else np.asarray(Image.open(path))
        Image.fromarray(pixels).save(copies / f"{k:03d}.png")
    copied = diffuse("eval", copies, *line).json
    assert copied["memorized_copies"] >= count / 100
    for space in memorization.SPACES:
        assert copied[f"memorized_{space}"] > honest[f"memorized_{space}"] + 0.9 * count / 100
    assert copied["memorized_noticed"] == honest["memorized_noticed"]
    assert any(text.startswith("memorization: ") for text in copied["remarks"])
    one, other = (evaluation.nearest for evaluation in evaluations)
    for space in memorization.SPACES:
        np.testing.assert_array_equal(one[space].references, other[space].references)


@pytest.mark.parametrize(("block", "numbers"), [(7, 2**26), (1000, 2**26), (1000, 300)])
def test_the_nearest_is_the_nearest_of_all(block, numbers, monkeypatch):
    monkeypatch.setattr(nearest_neighbors, "BLOCK", block)
    monkeypatch.setattr(nearest_neighbors, "NUMBERS", numbers)
    draw = np.random.default_rng(0)
    training = draw.integers(0, 256, (40, 1, 4, 4), np.uint8)
    samples = draw.integers(0, 256, (23, 3, 4, 4), np.uint8)
    samples[5] = training[17]
    held_out = draw.integers(0, 256, (9, 1, 4, 4), np.uint8)
    order = draw.permutation(40)[:30]
    order[0] = 17
    order[3:5] = order[2], order[2]  # three times there: no reference for itself
    found = finish(find_nearest(samples, held_out, training, order, 8))
    assert len(found.references) == 9 + 8
    alone = training[order[:8]]
    sides = (
        (samples, found.samples, found.places[:23]),
        (held_out, found.references[:9], found.places[23:32]),
        (alone, found.references[9:], found.places[32:]),
    )
    for side, distances, places in sides:
        table = side[:, None].astype(float) - training[order][None]
        table = np.sqrt(np.broadcast_to(table, (*table.shape[:2], 3, 4, 4)) ** 2)
        expected = np.sqrt(np.square(table).mean((2, 3, 4)))
        if side is alone:
            expected[expected == 0] = np.inf
        np.testing.assert_allclose(distances, expected.min(1), rtol=1e-12)
        finite = np.isfinite(distances)
        assert places[finite].tolist() == order[expected.argmin(1)][finite].tolist()
    assert found.samples[5] == 0
    assert found.places[5] == 17
    alike = np.zeros((5, 1, 2, 2), np.uint8)  # references with nothing but copies are left out
    found = finish(find_nearest(alike[:2], alike[:0], alike, np.arange(5), 5))
    assert not memorization.select_finite(found.references).size


def test_training_images_make_up_for_few_held_out_ones():
    for held_out, training, alone in ((6, 54, 54), (150, 500, 50), (200, 500, 0), (300, 500, 0)):
        part = LabeledSamples(np.zeros((held_out, 1, 2, 2), np.uint8), np.zeros(held_out, np.int64))
        assert TrainingSamples(part, np.arange(training), part).reference_count == alone


def test_a_candidate_counts_only_for_its_query_and_never_as_itself():
    """Of two samples, a held-out image, and three training images as references."""
    draw = np.random.default_rng(0)
    queries = draw.normal(size=(6, 4)).astype(np.float32)
    training = np.concatenate([queries[3:], draw.normal(size=(9, 4))]).astype(np.float32)
    near = finish(find_nearest(queries[:2], queries[2:3], training, np.arange(12), 3))
    rows, places = np.array([1, 2, 3, 4]), np.array([70, 80, 90, 60])
    candidates = queries[rows] + np.float32([[0.0], [0.002], [1e-6], [0.002]])
    more = add_candidates(near, queries, rows, candidates, places, 3)
    expected = np.concatenate([near.samples, near.references])
    expected[[1, 2, 4]] = 0, 0.002, 0.002
    distances = np.concatenate([more.samples, more.references])
    np.testing.assert_allclose(distances, expected, rtol=1e-3)
    assert more.places.tolist() == [near.places[0], 70, 80, near.places[3], 60, near.places[5]]
    far = add_candidates(near, queries, rows, candidates + 100, places, 3)
    np.testing.assert_array_equal(far.places, near.places)


def test_the_worst_pairs_come_first():
    near = {
        space: NearestDistances(*map(np.array, arrays))
        for space, *arrays in (
            ("features", [4.0, 1.0, 9.0], [2.0, 4.0], [5, 6, 7]),
            ("pixels", [1.0, 8.0, 9.0], [10.0, 10.0], [1, 2, 3]),
        )
    }
    found = examples.find_closest_pairs(near, 2)
    assert [(p.sample, p.place, p.space) for p in found] == [(0, 1, "pixels"), (1, 6, "features")]
    assert [p.ratio for p in found] == pytest.approx([0.1, 1 / 3])


# -- baselines ------------------------------------------------------------------------------------


def test_landmarks_are_what_they_are_called():
    draw = np.random.default_rng(0)
    real = draw.integers(0, 256, (150, 3, 8, 16)).astype(np.uint8)
    made = baselines.make_baseline_images(real)
    assert {name: len(images) for name, images in made.items()} == {
        "blurred": 100, "mean": 4, "noise": 100,
    }  # fmt: skip
    assert all(x.shape[1:] == (3, 8, 16) and x.dtype == np.uint8 for x in made.values())
    assert np.abs(made["mean"] - real.mean(0)).max() <= 0.5
    assert np.abs(made["noise"].mean() - 127.5) < 2
    flat = np.full((1, 1, 1, 5), 200.0)
    np.testing.assert_allclose(baselines.blur_images(flat), flat)
    dot = np.zeros((1, 1, 33, 33))
    dot[..., 16, 16] = 1
    rows, columns = np.indices((33, 33)) - 16
    expected = np.exp(-(rows**2 + columns**2) / (2 * (33 / 16) ** 2))
    np.testing.assert_allclose(
        baselines.blur_images(dot)[0, 0], expected / expected.sum(), atol=1e-8
    )


def test_landmarks_are_measured_as_generated_images_are(of_other):
    ran, evaluation = of_other
    found = ran.json
    assert {*evaluation.baseline_features} == {*BASELINES} == {"blurred", "mean", "noise"}
    for name, features in evaluation.baseline_features.items():
        expected = kid.estimate_kid(
            *(np.asarray(x, float) for x in (evaluation.real_features, features))
        )
        assert found[f"kid_of_{name}"] == pytest.approx(expected["kid"])
        error = found[f"kid_of_{name}_standard_error"]
        assert error == pytest.approx(expected["kid_standard_error"])
    assert found["kid_of_noise"] > found["kid_floor"]
