"""`--guide-with`: which weaker model, how strongly, what it must fit, and what is recorded."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import manifest
from networks import plan
from PIL import Image

from diffuse_cli.config.sample_options import OWN, WEAK_GUIDANCE, SampleConfig, SamplerChoice
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import SAMPLERS, Conditions, Denoiser
from diffuse_cli.core.guidance import clip, guide_away, interval, make_unconditional
from diffuse_cli.core.samplers import default_spacing
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import make_process
from diffuse_cli.sampling.conditioning import Condition
from diffuse_cli.sampling.generation import generate_batches
from diffuse_cli.sampling.model_loading import check_fits, choose_guide
from diffuse_cli.sampling.sampling_settings import Guide, SamplingSettings, resolve_settings
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.files import sha256
from diffuse_cli.system.rng import image_noise

CPU = torch.device("cpu")
QUICK = ("-n", 2, "--steps", 3, "--sampler", "ddim", "--precision", "fp32", "--no-grid")


def pixels(folder):
    return np.stack([np.asarray(Image.open(Path(folder) / name)) for name in
                     manifest(folder)["images"]])  # fmt: skip


def described(recommended=None, weak=None, classes=()):
    blueprint = SimpleNamespace(
        conditions=Conditions(classes=classes), wiener=False,
        diffusion=SimpleNamespace(num_timesteps=1000),
    )  # fmt: skip
    sampling = None if recommended is None else SamplerChoice("unipc", 5, None, recommended)
    return SimpleNamespace(
        blueprint=blueprint, classes=classes, training={}, sampling=sampling, weak=weak,
        distilled=None, errors=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "recommended", "wanted", "taken"),
    [
        ({}, None, None, False),
        ({}, 2.5, (OWN, 2.5), True),
        ({}, 0.0, (OWN, 0.0), True),
        ({"guide_with": OWN}, None, (OWN, WEAK_GUIDANCE), False),
        ({"guide_with": OWN}, 2.5, (OWN, 2.5), True),
        ({"guide_with": "w"}, None, ("w", WEAK_GUIDANCE), False),
        ({"guide_with": "w"}, 2.5, ("w", WEAK_GUIDANCE), False),
        ({"guide_with": "w", "weak_guidance": 0}, 2.5, ("w", 0.0), False),
        ({"weak_guidance": 1}, 2.5, (OWN, 1.0), False),
        ({"weak_guidance": 3}, None, (OWN, 3.0), False),
    ],
    ids=str,
)
def test_what_is_given_comes_first_and_a_recommendation_is_for_the_own_average(
    given, recommended, wanted, taken
):
    config, model = SampleConfig(model="m", **given), described(recommended, weak={})
    chosen = choose_guide(config, model)
    assert chosen == wanted
    found = resolve_settings(config, model, guide=Guide(*chosen, None, "") if chosen else None)
    assert (f"weak guidance {recommended}" in found.recommendations.replace(" 0", " 0.0")) == taken


def test_an_interval_needs_guidance_of_either_kind():
    config = SampleConfig(model="m", guidance_interval=(0.2, 5))
    with pytest.raises(UsageError, match="--guidance-interval: the model was trained without"):
        resolve_settings(config, described())
    guide = Guide("w", 2, None, "")
    assert resolve_settings(config, described(), guide=guide).noise_levels == (0.2, 5)
    assert resolve_settings(config, described(classes=("a", "b"))).noise_levels == (0.2, 5)


PROCESS = make_process(DiffusionConfig(num_timesteps=50))
SPACE = plan(4, 1).space


def strong(x, t, label=None):
    return 0.6 * x + (0 if label is None else 0.2)


def feeble(x, t, label=None):
    return 0.3 * x - 0.1


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("levels", [None, (0.1, 2)])
def test_every_sampler_draws_with_a_weaker_model_in_an_interval_and_with_classes(
    sampler, classes, levels
):
    main, weak = Denoiser(strong, PROCESS, "x0"), Denoiser(feeble, PROCESS, "x0")
    condition, guide = Condition((0,), 3.0) if classes else None, Guide("w", 1.5, weak, "")
    settings = SamplingSettings(sampler, 6, condition=condition, guide=guide, noise_levels=levels)
    *_, last = generate_batches(main, settings, range(2), space=SPACE, device=CPU)
    others = ((make_unconditional(main), 3.0), (weak, 1.5)) if classes else ((weak, 1.5),)
    denoise = guide_away(main, *others)
    if levels:
        denoise = interval(denoise, main, *levels)
    label = {"label": torch.zeros(2, dtype=torch.int64)} if classes else {}
    kept, times = clip(denoise, PROCESS), PROCESS.times(6, default_spacing(sampler, 6))
    *_, wanted = SAMPLERS[sampler](
        lambda x, t: kept(x, t, **label), PROCESS, noise_of(-1), times, noise=noise_of
    )
    assert torch.equal(last.state.x, wanted.x)


def noise_of(k):
    return image_noise(0, [0, 1], k, SPACE.shape, CPU)


def loaded(sha256="b", **made):
    diffusion = {k: made.pop(k) for k in [*made] if k in DiffusionConfig.__dataclass_fields__}
    blueprint = plan(**{"size": 8, "channels": 1, **made}).blueprint(DiffusionConfig(**diffusion))
    return SimpleNamespace(model=SimpleNamespace(blueprint=blueprint), sha256=sha256)


OTHERS = [
    ("its samples are 8x8 in 3 channels of 256 levels, the model's 8x8 in 1 ", {"channels": 3}),
    ("its samples are 8 high x 16 wide in 1 channel of 256 levels, ", {"size": (8, 16)}),
    ("its process is linear of 1,000 timesteps, the model's cosine of ", {"schedule": "linear"}),
    ("its process is cosine of 500 timesteps, the model's cosine of ", {"num_timesteps": 500}),
    ("its process is cosine at zero terminal SNR of", {"zero_terminal_snr": True}),
    ("its process is cosine with log-SNR shifted by -1 of", {"log_snr_shift": -1.0}),
    ("its classes are class 0, class 1, the model's none", {"num_classes": 2}),
    ("is the model itself", {"sha256": "a"}),
]


@pytest.mark.parametrize(("text", "changes"), OTHERS, ids=[text for text, _ in OTHERS])
def test_what_does_not_fit_is_named(text, changes):
    with pytest.raises(UsageError) as caught:
        check_fits(loaded("a"), loaded(**changes), "w.safetensors")
    assert str(caught.value).startswith("--guide-with w.safetensors ")
    assert text in str(caught.value)
    may_differ = {"target": "x0", "rescale_timesteps": True, "width": 8, "groups": 4}
    check_fits(loaded("a"), loaded(**may_differ), "w")


def test_the_own_average_guides_as_the_file_of_a_run_stopped_there_does(diffuse, lab, weak):
    early = lab.trained(*lab.tiny, "--steps", 24, "--stop-at", 3)
    assert diffuse("sample", weak, *QUICK, "--guide-with", "self", "-o", "a").code == 0
    diffuse("sample", weak, *QUICK, "--guide-with", early, "-o", "b").ok()
    raw, none = ("--weights", "raw"), ("--weak-guidance", 0)
    for name, model, *options in (
        ("plain", weak), ("one", weak, "--weak-guidance", 1), ("zero", weak, *none),
        ("early", early), ("raw", weak, *raw), ("none", weak, *raw, *none),
        ("guided", weak, *raw, "--guide-with", "self"),
    ):  # fmt: skip
        diffuse("sample", model, *QUICK, *options, "-o", name)
    assert (pixels("a") == pixels("b")).all()
    assert (pixels("plain") == pixels("one")).all()
    assert (pixels("zero") == pixels("early")).all()
    assert (pixels("a") != pixels("plain")).any()
    for name, guide, weights in (("a", weak, "weak"), ("b", early, "ema")):
        assert manifest(name)["guide"] == {"sha256": sha256(guide), "weights": weights}
    assert "guide" not in manifest("plain")
    assert manifest("a")["weak_guidance"] == WEAK_GUIDANCE
    assert manifest("one")["weak_guidance"] == 1
    assert "weak_guidance" not in manifest("plain")
    assert (pixels("raw") != pixels("guided")).any()
    assert (pixels("none") == pixels("zero")).all()


def test_eval_and_compare_say_what_guided(diffuse, weak, images):
    how = ("--steps", 2, "--sampler", "ddim", "--timesteps", 2, "--precision", "fp32", "--json")
    ran = diffuse("eval", weak, images, "-n", 4, *how, "--weak-guidance", 2)
    settings = ran.json["settings"]
    assert settings["weak_guidance"] == 2
    assert settings["guide"] == {"sha256": sha256(weak), "weights": "weak"}
    plain = diffuse("eval", weak, images, "-n", 4, *how).json
    assert "guide" not in plain["settings"]
    assert plain["kid"] != ran.json["kid"]
    assert plain["bits_per_dim"] == ran.json["bits_per_dim"]


def test_a_recommendation_is_used_and_info_says_what_is_there(diffuse, weak, model):
    sampling = SamplerChoice("ddim", 3, None, 2.0)
    recommending = dataclasses.replace(model_file.load(weak), sampling=sampling)
    model_file.save(Path("r.safetensors"), recommending)
    ran = diffuse("sample", "r.safetensors", "-n", 2, "--precision", "fp32", "-o", "a")
    assert "the model file recommends: ddim, 3 steps, weak guidance 2\n" in ran.err
    diffuse("sample", weak, *QUICK, "--weak-guidance", 2, "-o", "b")
    diffuse("sample", "r.safetensors", *QUICK, "--weak-guidance", 1, "-o", "c")
    assert (pixels("a") == pixels("b")).all()
    assert (pixels("a") != pixels("c")).any()
    out = diffuse("info", "r.safetensors").out
    assert "recommended  ddim, 3 steps, weak guidance 2" in out
    assert "averaged and raw; the average of step 3, for --guide-with self" in out
    for path, step in ((weak, 3), (model, None)):
        assert diffuse("info", path, "--json").json["weak"] == step
