"""What images are drawn with: given, else recommended by the model file, else the default."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import manifest

from diffuse_cli.config import sample_options
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.sample_options import SampleConfig, SamplerChoice
from diffuse_cli.config.task_options import VaryConfig
from diffuse_cli.core import SAMPLERS, SCHEDULES, Conditions, InvalidArgument, Process, Space
from diffuse_cli.core.data_gaussian import DataGaussian
from diffuse_cli.data import read_images
from diffuse_cli.models import model_file
from diffuse_cli.sampling.generation import generate_batches, guide_denoiser
from diffuse_cli.sampling.sampling_settings import report_settings, resolve_settings
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import image_noise

SAMPLER, STEPS = sample_options.SAMPLER, sample_options.SAMPLING_STEPS
DEFAULT = SamplerChoice(SAMPLER, STEPS, sample_options.GUIDANCE)
HEUN = SamplerChoice("heun", 7, 3.5)


def model(sampling, classes=2, timesteps=1000, distilled=None):
    names = ("a", "b")[:classes]
    blueprint = SimpleNamespace(
        conditions=Conditions(classes=names), diffusion=SimpleNamespace(num_timesteps=timesteps),
        space=Space(channels=1, size=(8, 8)), wiener=False,
    )  # fmt: skip
    return SimpleNamespace(
        blueprint=blueprint, classes=names, training={}, sampling=sampling, distilled=distilled,
        errors=None,
    )  # fmt: skip


def config(**given):
    return SampleConfig(model="m", **given)


@pytest.mark.parametrize(
    ("given", "recommended", "setting", "taken"),
    [
        ({}, HEUN, HEUN, "heun, 7 steps, guidance 3.5"),
        ({"sampler": "heun"}, HEUN, HEUN, "heun, 7 steps, guidance 3.5"),
        ({"steps": 7}, HEUN, HEUN, "heun, 7 steps, guidance 3.5"),
        ({"sampler": "heun", "steps": 7}, HEUN, HEUN, "guidance 3.5"),
        ({"sampler": "heun", "steps": 9}, HEUN, SamplerChoice("heun", 9, 3.5), "guidance 3.5"),
        ({"sampler": "ddim"}, HEUN, SamplerChoice("ddim", STEPS, 3.5), "guidance 3.5"),
        ({"steps": 9}, HEUN, SamplerChoice(SAMPLER, 9, 3.5), "guidance 3.5"),
        ({"guidance": 0}, HEUN, SamplerChoice("heun", 7, 0), "heun, 7 steps"),
        ({"guidance": 1.0, "sampler": "ddim", "steps": 9}, HEUN, SamplerChoice("ddim", 9, 1.0), ""),
        ({}, None, DEFAULT, ""),
        ({"sampler": "ddim"}, None, dataclasses.replace(DEFAULT, sampler="ddim"), ""),
        ({"steps": 3}, None, dataclasses.replace(DEFAULT, steps=3), ""),
        ({"guidance": 5}, None, dataclasses.replace(DEFAULT, guidance=5.0), ""),
    ],
    ids=str,
)
def test_what_is_given_comes_first_and_sampler_and_steps_are_recommended_together(
    given, recommended, setting, taken
):
    for one in (config(**given), EvalConfig(subject="m", data="d", **given)):
        found = resolve_settings(one, model(recommended))
        assert (found.choice, found.recommendations) == (setting, taken)


@pytest.mark.parametrize(
    ("given", "times", "taken"),
    [
        ({}, (99.0, 40.5), "unipc, 2 steps at learned times"),
        ({"steps": 2}, (99.0, 40.5), "unipc, 2 steps at learned times"),
        ({"steps": 2, "sampler": "unipc"}, (99.0, 40.5), "unipc, 2 steps at learned times"),
        ({"spacing": "trailing"}, None, "unipc, 2 steps"),
        ({"spacing": "karras"}, None, "unipc, 2 steps"),
        ({"steps": 3}, None, ""),
        ({"sampler": "ddim"}, None, ""),
        ({"sampler": "ddim", "steps": 2}, None, ""),
        ({"sampler": "unipc", "steps": 10}, None, ""),
        ({"sampler": "unipc", "steps": 11}, None, ""),
    ],
    ids=str,
)
def test_learned_times_go_with_their_sampler_and_steps_alone(given, times, taken):
    recommending = model(SamplerChoice("unipc", 2, None, None, (99, 40.5)), classes=0)
    found = resolve_settings(config(**given), recommending)
    assert (found.times, found.recommendations) == (times, taken)
    own = "wide" if found.sampler == "unipc" and found.steps <= 10 else "trailing"
    assert found.resolved_spacing == given.get("spacing", own)
    assert found.choice.times == times


LOW = DataGaussian((4,), ((1.0,),), ((0.0,) * 4,), ((9.0,) * 4,))


def starting(sampling=None, low=LOW, classes=0):
    found = model(sampling, classes=classes)
    found.blueprint.gaussian = low
    return found


def test_a_gaussian_start_replaces_learned_times_and_is_for_samples_of_newer_models():
    recommending = starting(SamplerChoice("unipc", 2, None, None, (99, 40.5)))
    found = resolve_settings(config(start="gaussian"), recommending)
    assert (found.times, found.start) == (None, LOW)
    assert resolve_settings(config(start="noise"), recommending).times == (99, 40.5)
    recommending = starting(SamplerChoice("unipc", 8, start="gaussian"))
    found = resolve_settings(VaryConfig(model="m", image="i"), recommending)
    assert (found.start, found.steps, found.recommendations) == (None, 8, "unipc, 8 steps")
    with pytest.raises(UsageError, match="needs the low frequencies"):
        resolve_settings(config(start="gaussian"), starting(low=None))


@pytest.mark.parametrize(
    ("given", "start", "taken"),
    [
        ({}, LOW, "unipc, 8 steps from a Gaussian start"),
        ({"steps": 8}, LOW, "unipc, 8 steps from a Gaussian start"),
        ({"sampler": "unipc", "steps": 8}, LOW, "unipc, 8 steps from a Gaussian start"),
        ({"start": "gaussian"}, LOW, "unipc, 8 steps"),
        ({"start": "noise"}, None, "unipc, 8 steps"),
        ({"steps": 9}, None, ""),
        ({"steps": 9, "start": "gaussian"}, LOW, ""),
        ({"sampler": "ddim"}, None, ""),
    ],
    ids=str,
)
def test_a_recommended_start_goes_with_its_sampler_and_steps_unless_another_is_given(
    given, start, taken
):
    recommending = starting(SamplerChoice("unipc", 8, start="gaussian"))
    found = resolve_settings(config(**given), recommending)
    assert (found.start, found.recommendations) == (start, taken)
    assert found.choice.start == ("gaussian" if start else None)
    assert found.describe_steps().get("start") == found.choice.start


@pytest.mark.parametrize(
    ("given", "recommended", "start"),
    [
        ({}, None, LOW),
        ({"steps": 9, "sampler": "ddim"}, None, LOW),
        ({"start": "noise"}, None, None),
        ({}, SamplerChoice("unipc", 8), None),
        ({"steps": 9}, SamplerChoice("unipc", 8), LOW),
        ({"steps": 200}, None, LOW),
        ({"steps": 1000, "sampler": "ddpm"}, None, None),
        ({}, SamplerChoice("unipc", 2, None, None, (99, 40.5)), None),
    ],
    ids=str,
)
def test_a_model_with_a_wiener_filter_starts_from_its_gaussian(given, recommended, start):
    filtering = starting(recommended)
    filtering.blueprint.wiener = True
    filtering.blueprint.process = Process(SCHEDULES["cosine"](1000))
    assert resolve_settings(config(**given), filtering).start == start
    filtering.distilled = {"teacher": "t"}
    assert resolve_settings(config(steps=2), filtering).start is None
    conditional = starting(classes=2)
    conditional.blueprint.wiener = True
    assert resolve_settings(config(), conditional).start is None


def test_the_default_steps_are_no_more_than_there_are():
    assert resolve_settings(config(), model(None, timesteps=12)).steps == 12
    distilled = model(None, 0, timesteps=1, distilled={"teacher": "x"})
    assert resolve_settings(config(), distilled).steps == 1
    few = resolve_settings(config(steps=20), model(None, timesteps=12))
    assert few.steps == 20  # refused later


def test_a_model_without_classes_has_no_guidance_and_options_are_those_of_the_sampler_taken():
    found = resolve_settings(config(), model(SamplerChoice("ddpm", 1), classes=0))
    assert (found.choice, found.recommendations) == (SamplerChoice("ddpm", 1), "ddpm, 1 step")
    assert found.condition is None
    ddim = model(SamplerChoice("ddim", 5, 1.0))
    assert resolve_settings(config(eta=0.5), ddim).options == {"eta": 0.5}
    with pytest.raises(InvalidArgument, match="order: the sampler 'ddim' has none"):
        resolve_settings(config(order=3), ddim)
    assert resolve_settings(config(order=3), model(None)).options == {"order": 3}


@pytest.fixture(scope="module")
def recommending(conditional, tmp_path_factory):
    """The conditional model with a recommendation. Do not write here."""
    path = tmp_path_factory.mktemp("recommending") / "model.safetensors"
    sampling = SamplerChoice("ipndm", 3, 1.5)
    model_file.save(path, dataclasses.replace(model_file.load(conditional), sampling=sampling))
    return path


@pytest.mark.parametrize(
    ("typed", "filed", "wanted", "said"),
    [
        ("", "", ("ipndm", 3, 1.5), "ipndm, 3 steps, guidance 1.5"),
        ("--steps 2", "", ("unipc", 2, 1.5), "guidance 1.5"),
        ("", "steps = 2", ("unipc", 2, 1.5), "guidance 1.5"),
        ("--steps 3", "steps = 2", ("ipndm", 3, 1.5), "ipndm, 3 steps, guidance 1.5"),
        ("--guidance 1", "sampler = 'ddim'\nsteps = 4\nguidance = 3", ("ddim", 4, 1.0), None),
    ],
)
def test_flag_then_file_then_model(diffuse, recommending, typed, filed, wanted, said):
    Path("c.toml").write_text(filed)
    ran = diffuse("sample", recommending, "-n", 1, "--config", "c.toml", *typed.split()).ok()
    found = manifest()
    assert (found["sampler"], found["steps"], found["guidance"]) == wanted
    assert ran.err.count("the settings that the model file recommends") == (said is not None)
    if said:
        assert f"the settings that the model file recommends: {said}\n" in ran.err


def test_the_recommendation_draws_what_typing_it_draws(diffuse, recommending, conditional, lab):
    fp32 = ("-n", 2, "--precision", "fp32")
    typed = ("--sampler", "ipndm", "--steps", 3, "--guidance", 1.5)
    assert diffuse("sample", recommending, *fp32, "-o", "a").code == 0
    assert diffuse("sample", conditional, *fp32, *typed, "-o", "b").code == 0
    images = manifest("a")["images"]
    assert [Path("a", i).read_bytes() for i in images] == [
        Path("b", i).read_bytes() for i in images
    ]
    assert diffuse("sample", conditional, *fp32, "-o", "c").code == 0
    assert Path("a", images[0]).read_bytes() != Path("c", images[0]).read_bytes()
    ran = diffuse("eval", recommending, lab["images"], *fp32, "--metrics", "marginals", "--json")
    settings = ran.json["settings"]
    assert (settings["sampler"], settings["steps"], settings["guidance"]) == ("ipndm", 3, 1.5)
    assert "the settings that the model file recommends: ipndm, 3 steps, guidance 1.5\n" in ran.err
    lines = [line.split(None, 1) for line in diffuse("info", recommending).out.splitlines()]
    assert ["recommended", "ipndm, 3 steps, guidance 1.5"] in lines
    found = diffuse("info", recommending, "--json").json["sampling"]
    assert found == {"sampler": "ipndm", "steps": 3, "guidance": 1.5}
    assert diffuse("info", conditional, "--json").json["sampling"] is None
    assert "recommended" not in diffuse("info", conditional).out


def end_of(loaded, settings, times, x):
    """The end of sampling two images from the parts, and by `generate_batches`."""
    denoiser = loaded.blueprint.denoiser(loaded.network())
    space, device = loaded.blueprint.space, torch.device("cpu")
    *_, drawing = generate_batches(denoiser, settings, range(2), space=space, device=device)
    guided, process = guide_denoiser(denoiser, settings), loaded.blueprint.process
    *_, state = SAMPLERS["unipc"](guided, process, x, times, noise=lambda k: None)
    return state.x, drawing.state.x


def test_learned_times_are_drawn_with_shown_and_left_for_a_spacing(diffuse, model):
    times = (99, 71.25, 13)
    made = dataclasses.replace(
        model_file.load(model), sampling=SamplerChoice("unipc", 3, None, None, times)
    )
    model_file.save(Path("made.safetensors"), made)
    fp32 = ("-n", 2, "--precision", "fp32")
    ran = diffuse("sample", "made.safetensors", *fp32, "-o", "a")
    said = "the settings that the model file recommends: unipc, 3 steps at learned times\n"
    assert said in ran.err
    found = manifest("a")
    assert (found["spacing"], found["times"]) == ("learned", [99, 71.25, 13])
    typed = ("--spacing", "wide")
    assert diffuse("sample", "made.safetensors", *fp32, *typed, "-o", "b").code == 0
    plain = ("--sampler", "unipc", "--steps", 3)
    assert diffuse("sample", model, *fp32, *plain, "-o", "c").code == 0
    a, b, c = (Path(folder, "00000.png").read_bytes() for folder in "abc")
    assert a != b == c
    assert manifest("b")["spacing"] == manifest("c")["spacing"] == "wide"
    assert "times" not in manifest("b")
    loaded = model_file.load("made.safetensors")
    noise = image_noise(0, range(2), -1, loaded.blueprint.space.shape, torch.device("cpu"))
    settings = resolve_settings(config(), loaded)
    assert torch.equal(*end_of(loaded, settings, times, noise))
    lines = [line.split(None, 1) for line in diffuse("info", "made.safetensors").out.splitlines()]
    assert ["recommended", "unipc, 3 steps at learned times"] in lines
    assert ["times", "99, 71.25, 13"] in lines
    found = diffuse("info", "made.safetensors", "--json").json["sampling"]
    assert found == {"sampler": "unipc", "steps": 3, "times": [99, 71.25, 13]}


def test_a_gaussian_start_is_drawn_told_and_the_same_in_any_batch(diffuse, model):
    typed = ("-n", 3, "--precision", "fp32", "--steps", 3, "--start", "gaussian")
    assert diffuse("sample", model, *typed, "-o", "a").code == 0
    assert diffuse("sample", model, *typed, "-o", "b", "--batch-size", 1).code == 0
    assert diffuse("sample", model, *typed[:-1], "noise", "-o", "c").code == 0
    a, b, c = ([Path(x, i).read_bytes() for i in manifest("a")["images"]] for x in "abc")
    assert a == b
    assert not set(a) & set(c)
    assert manifest("a")["start"] == "gaussian"
    assert "start" not in manifest("c")
    assert diffuse("sample", model, *typed, "-o", "a").code == 0  # what is there is kept
    diffuse("sample", model, *typed[:-1], "noise", "-o", "a").fails(5)


def test_a_run_measures_what_it_trains_on(model, images):
    """The mean brightness of samples and its variance, by their first cosine."""
    found = model_file.load(model)
    low, space = found.blueprint.gaussian, found.blueprint.space
    samples = finish(read_images(images, size=space.size))
    x = space.to_model(torch.from_numpy(samples.stored[~samples.held_out]))
    whole = x.mean((2, 3)).double() * space.size[0]
    firsts = whole @ torch.tensor(low.colors, dtype=torch.float64).T
    mean, variance = (torch.tensor(each)[:, 0, 0].double() for each in (low.mean, low.variance))
    assert torch.allclose(mean, firsts.mean(0), rtol=1e-4, atol=1e-4)
    assert torch.allclose(variance, firsts.var(0, correction=0), rtol=1e-4)


def test_drawing_begins_where_the_start_says(model):
    loaded = model_file.load(model)
    settings = resolve_settings(config(start="gaussian", steps=3), loaded)
    process, low = loaded.blueprint.process, loaded.blueprint.gaussian
    times = process.times(3, "wide", log_snr=low.log_snr)
    noise = image_noise(0, range(2), -1, loaded.blueprint.space.shape, torch.device("cpu"))
    x = low.make_initial_noise(noise, *process.alpha_sigma(times[0], like=noise))
    assert times[0] < process.num_timesteps - 1
    assert torch.equal(*end_of(loaded, settings, times, x))


def test_an_interval_at_guidance_1_is_said_to_have_no_effect():
    for guidance, said in ((1, ["--guidance-interval has no effect"]), (2, [])):
        drawn = config(guidance=guidance, guidance_interval=(0.3, 3))
        notices = report_settings(resolve_settings(drawn, model(None)))
        assert [notice.text.partition(",")[0] for notice in notices] == said
