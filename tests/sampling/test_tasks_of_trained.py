"""Tasks with models that were trained with --given: for what is asked, for something else."""

import shutil
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import manifest, pixels
from edited_models import altered
from lab import write_images
from PIL import Image

from diffuse_cli.core import RESTORATIONS, SAMPLERS
from diffuse_cli.core.degradations import parse
from diffuse_cli.core.guidance import clamp_denoised
from diffuse_cli.core.restoration import enforce_consistency
from diffuse_cli.models import model_file
from diffuse_cli.models.image_conditioning import Conditioner
from diffuse_cli.system.rng import image_noise

QUICK = ("--steps", 4, "--sampler", "ddim", "--precision", "fp32")
ADAMW = ("--optimizer", "adamw")

TRAINED = {
    "up": ("--given", "low-res:2"),
    "paint": ("--given", "mask:random", "--given-dropout", 0),
    "pairs": ("--given", "IMAGES", "--given-dropout", 0),
    "classes": ("--given", "low-res:2", "--classes"),
}
"""How some are trained; those of 8x8 grey images, IMAGES beside themselves."""

ALTERED = {
    "noisy": ("up", {"what": "low-res:2+noise:0.1"}, {}),
    "only-up": ("up", {"dropout": 0.0}, {}),
    "painted": ("paint", {"what": "mask:box", "dropout": 0.3}, {}),
    "free-pairs": ("pairs", {"dropout": 0.1}, {}),
    "label-drops": ("classes", {}, {"label_dropout": 0.5}),
    "given-drops": ("classes", {"dropout": 0.5}, {}),
}
"""Others, with the weights of one of those: what their files say otherwise of what is given, and of
the training."""

MODELS = (*TRAINED, *ALTERED)


@pytest.fixture(scope="module")
def trained(lab, tmp_path_factory):
    """A model of `MODELS`, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("altered")

    @cache
    def make(name):
        if name in ALTERED:
            like, given, training = ALTERED[name]
            return altered(make(like), folder / f"{name}.safetensors", given, training)
        options = [lab["images"] if word == "IMAGES" else word for word in TRAINED[name]]
        return lab.trained(*lab.tiny, "--steps", 8, *ADAMW, *options)

    return make


@pytest.fixture
def picture(diffuse, lab):
    """a.png of 8x8, low.png of 4x4 and hole.png, a mask; here."""
    shutil.copy(lab["images"] / "light" / "001.png", "a.png")
    shutil.copy(lab["masks"] / "hole.png", "hole.png")
    Image.open(lab["images"] / "dark" / "002.png").crop((0, 0, 4, 4)).save("low.png")


def levels(path):
    return np.asarray(Image.open(path), int)


def by_hand(path, method, a, y, *, told, seed=0, scale=1.0):
    """What the first sample should be, from the parts: levels (8, 8).

    At a scale s, it is guided from the prediction without an input, D + (s - 1) (D - D_none).
    """
    model = model_file.load(path)
    denoiser = model.blueprint.denoiser(model.network("ema").eval())
    process, space = denoiser.process, model.blueprint.space
    given = Conditioner.from_blueprint(model.blueprint).encode_observations(y, a) if told else None
    clipped = partial(clamp_denoised, denoiser=denoiser)

    def asked(x, t):
        main, free = denoiser(x, t, given=given), denoiser(x, t, given=None)
        x0, eps = main.x0 + (scale - 1) * (main.x0 - free.x0), main.eps
        return replace(main, x0=x0, eps=eps + (scale - 1) * (eps - free.eps))

    asked = asked if scale != 1 else partial(denoiser, given=given)
    if method is None:
        denoise = clipped(asked)
    elif RESTORATIONS[method].gradients:
        denoise = clipped(RESTORATIONS[method](asked, process, a, y))
    else:
        denoise = RESTORATIONS[method](clipped(asked), process, a, y)
    noise = partial(image_noise, seed, [0], shape=space.shape, device=torch.device("cpu"))
    with torch.no_grad():
        times = process.times(4, "trailing")
        *_, last = SAMPLERS["ddim"](denoise, process, noise(-1), times, noise=noise)
    x = last.x if a.sigma else enforce_consistency(last.x, a, y)
    return space.to_stored(x)[0, 0].numpy().astype(int)


def observed(path):
    return torch.from_numpy(levels(path)).float()[None, None] / 127.5 - 1


def test_a_model_for_noisy_pictures_draws_what_sample_draws(diffuse, trained, picture):
    """Nothing is put right at the end where there is noise: the same bytes."""
    line = ("low.png", "-n", 3, "--seed", 4, *QUICK)
    ran = diffuse(
        "restore", trained("noisy"), *line, "--degradation", "low-res:2+noise:0.1", "-o", "a"
    )
    assert ran.code == 0, ran.err
    assert "trained for low-res:2+noise:0.1, and is conditioned on the picture" in ran.err
    assert diffuse("sample", trained("noisy"), "--given", *line, "-o", "b").code == 0
    for k in range(3):
        name = f"{k:05d}.png"
        assert (Path("a") / name).read_bytes() == (Path("b") / name).read_bytes()
    assert manifest("a")["method"] == "given"
    assert manifest("a")["guidance"] == 1


@pytest.mark.parametrize("method", [None, *RESTORATIONS])
def test_a_model_for_small_pictures_is_told_them_by_any_method(diffuse, trained, picture, method):
    options = () if method is None else ("--method", method)
    line = ("upscale", trained("up"), "low.png", "--factor", 2, "-n", 1, *QUICK)
    assert diffuse(*line, *options).code == 0
    wanted = by_hand(trained("up"), method, parse("low-res:2"), observed("low.png"), told=True)
    assert np.abs(pixels("upscaled") - wanted).max() <= 1
    small = pixels("upscaled").reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(small - levels("low.png")).max() <= 1
    assert manifest("upscaled")["method"] == (method or "given")
    line = ("restore", trained("up"), "low.png", "--degradation", "low-res:2", "-n", 1, *QUICK)
    assert diffuse(*line, *options).code == 0
    assert (pixels("restored") == pixels("upscaled")).all()
    if method is None:  # goes on in windows
        line = ("upscale", trained("up"), "a.png", "--factor", 2, "-n", 1, *QUICK, "-o", "large")
        assert diffuse(*line).code == 0
        small = pixels("large").reshape(8, 2, 8, 2).mean((1, 3))
        assert np.abs(small - levels("a.png")).max() <= 1


@pytest.mark.parametrize("name", ["paint", "painted"])
def test_a_model_for_masks_takes_any_mask(diffuse, trained, picture, name):
    """What is kept is kept to the last level, the rest is what `sample` draws, and what is under
    the mask makes no difference."""
    line = ("a.png", "--mask", "hole.png", "-n", 2, *QUICK)
    diffuse("inpaint", trained(name), *line, "--json").ok()
    assert manifest("inpainted").items() >= {"method": "given", "degradation": "mask"}.items()
    assert diffuse("sample", trained(name), "--given", *line).code == 0
    hole, before = levels("hole.png") > 0, levels("a.png")
    for k in range(2):
        assert (pixels("inpainted", k)[~hole] == before[~hole]).all()
        assert (pixels("inpainted", k)[hole] == pixels("samples", k)[hole]).all()
    assert (pixels("inpainted", 0) != pixels("inpainted", 1)).any()
    Image.fromarray((before * ~hole).astype(np.uint8)).save("a.png")
    assert diffuse("inpaint", trained(name), *line, "-o", "again").code == 0
    assert (pixels("again") == pixels("inpainted")).all()


def test_several_pictures_are_told_one_each(diffuse, trained, tmp_path, picture):
    several = write_images(tmp_path / "several", 3)
    line = ("restore", trained("up"), "--degradation", "low-res:2", "--degrade", *QUICK)
    assert diffuse(*line, several, "-n", 2, "--batch-size", 4).code == 0
    for k, name in enumerate(manifest("restored")["inputs"]):
        assert diffuse(*line, several / name, "-n", 1, "-o", k).code == 0
        assert np.abs(pixels(str(k)) - pixels("restored", 2 * k)).max() <= 1


@pytest.mark.parametrize(
    ("options", "scale", "other"),
    [((), 1, 3), (("--guidance", 1), 1, 3), (("--guidance", 3), 3, -1)],
)
def test_guidance_leads_away_from_nothing_told(diffuse, trained, picture, options, scale, other):
    line = ("upscale", trained("up"), "low.png", "--factor", 2, "-n", 1, *QUICK)
    assert diffuse(*line, *options).code == 0
    assert manifest("upscaled")["guidance"] == scale
    a, y = parse("low-res:2"), observed("low.png")
    right, wrong = (
        by_hand(trained("up"), None, a, y, told=True, scale=each) for each in (scale, other)
    )
    assert np.abs(pixels("upscaled") - right).max() <= 1
    assert np.abs(right - wrong).max() > 1


# -- asked for something else ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), [("up", "mask:half"), ("free-pairs", "low-res:2")])
def test_what_was_sometimes_told_nothing_is_told_nothing(diffuse, trained, picture, name, form):
    image = "a.png" if form == "mask:half" else "low.png"
    ran = diffuse("restore", trained(name), image, "--degradation", form, "-n", 1, *QUICK).ok()
    assert "and runs without an input here" in ran.err
    a = parse(form).fit_shape((1, 8, 8)).draw_parts(torch.zeros(1, 0))
    y = observed(image)
    y = a.apply(y) if form == "mask:half" else y
    assert np.abs(pixels("restored") - by_hand(trained(name), "pigdm", a, y, told=False)).max() <= 1
    assert manifest("restored")["method"] == "pigdm"
    assert "guidance" not in manifest("restored")


@pytest.mark.parametrize("form", ["low-res:4", "low-res:2+noise:0.2", "blur:1"])
def test_another_value_or_noise_is_another_degradation(diffuse, trained, picture, form):
    line = ("restore", trained("up"), "a.png", "--degrade", "--degradation", form, "-n", 1, *QUICK)
    assert diffuse(*line).code == 0
    assert manifest("restored")["method"] == "pigdm"


@pytest.mark.parametrize("name", ["up", "free-pairs"])
def test_variations_and_what_lies_between_are_told_nothing(diffuse, trained, picture, name):
    for line in (
        ("vary", trained(name), "a.png", "-n", 1, *QUICK),
        ("interpolate", trained(name), "a.png", "low.png", "-n", 2, "--steps", 30),
    ):
        assert "and runs without an input here" in diffuse(*line).ok().err
    assert np.abs(pixels("interpolated") - levels("a.png")).max() <= 2


def test_classes_are_dropped_with_what_is_given(diffuse, trained, picture):
    """What training never left out alone is not left out here."""
    told = ("low.png", "--degradation", "low-res:2")
    untold = ("a.png", "--degradation", "mask:half")
    dark = ("--class", "dark")
    for name, options, said in (
        ("classes", told, "--class is missing: the model was not trained to use its input"),
        ("classes", (*told, *dark), ""),
        ("classes", untold, ""),
        ("classes", (*untold, *dark), "--class: the model was not trained to use a class"),
        ("label-drops", told, ""),
        ("label-drops", (*untold, *dark), "--class: the model was not trained to use a class"),
        ("given-drops", told, "--class is missing"),
        ("given-drops", (*untold, *dark), ""),
    ):
        line = ("restore", trained(name), *options, "-n", 1, *QUICK, "-q", "--overwrite")
        ran = diffuse(*line)
        assert (ran.code, said in ran.err) == (2 if said else 0, True), (name, options, ran.err)
    assert manifest("restored")["classes"] == ["dark"]


REFUSED = [
    ("restore only-up a.png --degradation low-res:4", "--degradation low-res:4: the model was "
     "trained for low-res:2 only, and always needs that input. Use diffuse restore MODEL IMAGE "
     "--degradation low-res:2"),
    ("restore only-up a.png --degradation low-res:2+noise:0.1", "trained for low-res:2"),
    ("upscale only-up low.png --factor 4", "--factor 4: the model was trained for low-res:2"),
    ("inpaint only-up a.png --mask hole.png", "--mask: the model was trained for low-res:2"),
    ("restore paint low.png --degradation low-res:2", "Use diffuse inpaint MODEL IMAGE --mask"),
    ("restore paint low.png --degradation mask:half+noise:0.1", "trained for mask:random"),
    ("restore pairs low.png --degradation low-res:2", "trained on pairs only, and always needs "
     "that input. Use diffuse sample MODEL --given FILE"),
    ("inpaint pairs a.png --mask hole.png", "diffuse sample MODEL --given FILE"),
    ("vary paint a.png", "vary: the model was trained for mask:random"),
    ("interpolate pairs a.png low.png", "interpolate: the model was trained on pairs"),
    ("restore only-up low.png --degradation low-res:2 --guidance 2", "no unconditional prediction"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_a_model_was_not_trained_for_is_refused(diffuse, trained, picture, line, said):
    before = sorted(Path().rglob("*"))
    ran = diffuse(*[trained(word) if word in MODELS else word for word in line.split()])
    ran.fails(2, said)
    assert ran.out == ""
    assert sorted(Path().rglob("*")) == before
