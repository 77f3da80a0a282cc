"""`tune`: settings measured, the recommended one named, drawn, and written into the model."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import plan
from PIL import Image

from diffuse_cli.config.eval_options import TuneConfig
from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core.samplers import OF_DISTILLED, SAMPLERS
from diffuse_cli.evaluation import tradeoff_figure
from diffuse_cli.evaluation import tune as tuning
from diffuse_cli.evaluation.results import TuningResult
from diffuse_cli.evaluation.tune import (
    add_gaussian_start,
    add_weak_scales,
    first_settings,
    list_other_scales,
    list_weak_scales,
)
from diffuse_cli.media import figures
from diffuse_cli.metrics import Words
from diffuse_cli.models import model_file
from diffuse_cli.sampling import setting_search
from diffuse_cli.sampling.conditioning import Condition
from diffuse_cli.sampling.generation import generate_batches
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.sampling.setting_search import MIDDLE, Trial, recommend, warn_of_low_variety
from diffuse_cli.system.errors import UsageError

NAN = math.nan

# -- the rule -------------------------------------------------------------------------------------


def row(sampler, evaluations, kid, error=0.01, seconds=1.0, guidance=None):
    values = {"kid": kid, "frechet_distance": 1000 - kid}
    if error is not None:
        values["kid_standard_error"] = error
    return Trial(SamplerChoice(sampler, evaluations, guidance), values, seconds, evaluations)


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([row("a", 5, 0.30), row("b", 10, 0.10), row("c", 50, 0.09)], "c"),
        ([row("a", 5, 0.30), row("b", 10, 0.1000001), row("c", 50, 0.09)], "c"),
        ([row("a", 5, 0.30), row("b", 10, 0.099), row("c", 50, 0.09)], "b"),
        ([row("a", 50, 0.09), row("b", 50, 0.095)], "a"),
        ([row("a", 10, 0.099), row("b", 10, 0.095), row("c", 50, 0.09)], "b"),
        ([row("a", 10, 0.095), row("b", 10, 0.095), row("c", 50, 0.09)], "a"),
        ([row("a", 10, 0.095, seconds=9), row("b", 10, 0.096, seconds=1)], "a"),
        ([row("a", 11, 0.095, seconds=1), row("b", 10, 0.096, seconds=9)], "b"),
        ([row("a", 10, 0.2, error=1), row("b", 20, 0.09, error=0.01)], "b"),
        ([row("a", 10, -0.003), row("b", 20, -0.004)], "a"),
        ([row("a", 1, 0.2, error=None), row("b", 10, 0.19, error=None)], "b"),
        ([row("a", 1, 0.2, error=None), row("b", 10, 0.2, error=None)], "a"),
        ([row("a", 1, 0.2), row("b", 10, 0.1, error=NAN)], "b"),
        ([row("a", 1, 0.75, error=0.1), row("b", 2, 0.5, error=0.25)], "a"),
    ],
)
def test_the_cheapest_that_is_within_the_error_of_the_best_is_recommended(rows, chosen):
    assert recommend(rows).sampler == chosen
    if len({(r.evaluations, r.values["kid"]) for r in rows}) == len(rows):
        assert recommend(rows[::-1]).sampler == chosen


@pytest.mark.parametrize(
    ("recalls", "more"),
    [((0.3, 0.13), 0), ((0.3, 0.16), None), ((0.3, 0.138), None),  # within three errors of the half
     ((0.02, 0.3), None), ((0.3, None), None)],
)  # fmt: skip
def test_what_is_recommended_may_draw_more_alike_than_others(recalls, more):
    rows = [row("a", 10, 0.3), row("b", 10, 0.1)]
    for each, recall in zip(rows, recalls, strict=True):
        if recall is not None:
            each.values.update(recall=recall, recall_standard_error=0.0041)
    assert recommend(rows) == rows[1].setting
    warnings = [*warn_of_low_variety(rows, rows[1].setting, "images")]
    assert len(warnings) == (more is not None)
    if warnings:
        assert f"with {rows[more].setting}. Look" in warnings[0].text


# -- what is tried --------------------------------------------------------------------------------


PLAIN = [name for name in SAMPLERS if name not in OF_DISTILLED]


def config(**given):
    return TuneConfig(subject="m", data="d", **given)


def stored(timesteps=100, num_classes=0, **given):
    own = plan(size=8, num_classes=num_classes)
    blueprint = own.blueprint(DiffusionConfig(num_timesteps=timesteps))
    return model_file.StoredModel(blueprint=blueprint, ema={}, **given)


def test_all_samplers_with_all_steps_that_the_model_can_take():
    guided, plain = SamplerChoice("unipc", 20, 2.0), SamplerChoice("unipc", 20)
    distilled = stored(distilled={"teacher_sha256": ""})
    found = first_settings(config(), stored(20), guided)
    assert found == [SamplerChoice(s, n, 2.0) for s in PLAIN for n in (5, 10, 20)]
    found = first_settings(config(samplers="ddim,heun,ddim", steps="9,3,9"), stored(9), plain)
    assert found == [SamplerChoice(s, n) for s in ("ddim", "heun") for n in (9, 3)]
    found = first_settings(config(), distilled, plain)
    assert found == [SamplerChoice("consistency", n) for n in (1, 2, 4, 8)]
    found = first_settings(config(steps="5,10,20,50"), distilled, plain)
    assert [setting.steps for setting in found] == [5, 10, 20, 50]
    with pytest.raises(UsageError, match="all --steps are more than the model's 4"):
        first_settings(config(), stored(4), plain)
    with pytest.raises(UsageError, match="all --steps are more than the model's 9"):
        first_settings(config(steps=[10**30]), stored(9), plain)


def test_guidance_is_tried_beside_the_scale_of_the_samplers():
    model, always = (stored(num_classes=2, training=t) for t in ({}, {"label_dropout": 0.0}))
    assert list_other_scales(config(), model, 2.0) == (1.0, 1.5, 3.0, 4.0)
    assert list_other_scales(config(), model, 2.5) == (1.0, 1.5, 2.0, 3.0, 4.0)
    assert list_other_scales(config(guidance="2,0,7.5,0"), model, 2.0) == (0.0, 7.5)
    assert list_other_scales(config(), always, 1.0) == ()
    assert list_other_scales(config(guidance=[1, 2]), always, 1.0) == (2.0,)
    assert list_other_scales(config(), model, None) == ()


@pytest.mark.parametrize(
    ("guidance", "steps", "fewer"),
    [(None, 20, 10), (None, 5, 2), (None, 1, 1), (1.0, 10, 5), (2.0, 10, 6), (0.0, 20, 13)],
)
def test_a_weaker_model_is_tried_in_no_more_evaluations(guidance, steps, fewer):
    setting = SamplerChoice("unipc", steps, guidance, 1.0)
    [tried] = add_weak_scales(setting, [(1.5, None)], stored().blueprint)
    assert tried == SamplerChoice("unipc", fewer, guidance, 1.5)
    plain = 1 if guidance in (None, 1) else 2
    assert fewer * (plain + 1) <= max(steps * plain, plain + 1)


def test_scale_one_of_a_weaker_model_is_not_tried_again():
    blueprint, told = (stored(num_classes=n).blueprint for n in (0, 2))
    scales = [(scale, None) for scale in (1.25, 1.5, 2.0, 3.0, 4.0)]
    middle = [(2.0, MIDDLE), (3.0, MIDDLE)]
    assert list_weak_scales(config(), blueprint) == scales + middle
    assert list_weak_scales(config(), told) == scales
    assert list_weak_scales(config(guidance_interval="1,2"), blueprint) == scales
    named = config(weak_guidance="2,1,0,2")
    assert list_weak_scales(named, blueprint) == [(2.0, None), (0.0, None)]


# -- on the command line --------------------------------------------------------------------------

FP32 = ("--precision", "fp32")
MEASURES = ("--metrics", "kid,frechet,precision-recall")


@pytest.fixture
def tune(diffuse, images, model):
    """`tune` with options, without starts unless they are among these."""

    def run(*options, model=model):
        starts = [] if "--try-starts" in options else ["--no-try-starts"]
        return diffuse("tune", model, images, "-n", 6, *FP32, *starts, *options)

    return run


def test_a_table_of_settings_with_one_recommended_drawn_and_written(tune, diffuse, images, model):
    steps = ("--samplers", "ddim,unipc", "--steps", "2,4,101")
    ran = tune(*steps, "-o", "new.safetensors", "--plot", "new.png", "--json").ok()
    assert "skipping 101 steps: the model has only 100 timesteps\n" in ran.err
    assert "tune: 4 settings of 6 images, 24 in all: 2 samplers at 2, 4 steps\n" in ran.err
    found = ran.json
    tried = [(r["setting"]["sampler"], r["setting"]["steps"]) for r in found["rows"]]
    assert tried == [("ddim", 2), ("ddim", 4), ("unipc", 2), ("unipc", 4)]
    assert [r["evaluations"] for r in found["rows"]] == [2, 4, 2, 4]
    assert all(r["seconds"] > 0 and r["setting"]["guidance"] is None for r in found["rows"])
    assert (found["n"], found["real"], found["part"]) == (6, 6, "held-out")
    assert (found["metric"], found["out"], found["plot"]) == ("kid", "new.safetensors", "new.png")
    rows = [
        Trial(SamplerChoice(**r["setting"]), r["values"], r["seconds"], r["evaluations"])
        for r in found["rows"]
    ]
    assert SamplerChoice(**found["recommended"]) == recommend(rows)
    made, before = model_file.load("new.safetensors"), model_file.load(model)
    assert made.sampling == recommend(rows)
    assert all(torch.equal(made.ema[name], before.ema[name]) for name in before.ema)
    assert made.raw.keys() == before.raw.keys()
    with Image.open("new.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture).std() > 5
    same = diffuse("eval", "new.safetensors", images, "-n", 6, *FP32, *MEASURES, "--json")
    chosen = next(r for r in rows if r.setting == made.sampling)
    for name in ("kid", "kid_standard_error", "frechet_distance", "recall"):
        assert same.json[name] == pytest.approx(chosen.values[name], rel=1e-6)
    other = next(r for r in rows if r.setting != made.sampling)
    typed = ("--sampler", other.setting.sampler, "--steps", other.setting.steps)
    same = diffuse("eval", model, images, "-n", 6, *FP32, *MEASURES, "--json", *typed)
    assert same.json["kid"] == pytest.approx(other.values["kid"], rel=1e-6)
    assert not [name for name in found["settings"] if name in ("sampler", "steps", "guidance")]


def test_the_table_in_text(tune, conditional):
    ran = tune("--samplers", "ddim", "--steps", 3, "--guidance", "2,1,4", model=conditional)
    lines = ran.out.splitlines()
    heads = "sampler steps guidance evaluations seconds KID Fréchet distance recall"
    assert lines[0].split() == heads.split()
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["ddim", "3", "2", "6"], ["ddim", "3", "1", "3"], ["ddim", "3", "4", "6"],
    ]  # fmt: skip
    assert lines[4].startswith("n = 6 generated against 6 real (held-out images) for each; ")
    assert lines[5].startswith("recommended: ddim, 3 steps, guidance ")
    assert len(lines) == 6
    assert "at guidance 2, and 2 more guidance scales\n" in ran.err
    assert "guidance" not in tune("--samplers", "ddim", "--steps", 3).out


def test_few_images_are_called_so(tune, monkeypatch):
    few = "6 images of each setting and 6 real ones may not tell settings apart: {} are needed\n"
    line = ("--samplers", "ddim", "--steps", 3)
    assert f"warning: {few.format(30)}" in tune(*line).err
    monkeypatch.setattr(tuning, "FEWEST", 7)
    assert few.format(7) in tune(*line).err
    monkeypatch.setattr(tuning, "FEWEST", 6)
    assert "are needed" not in tune(*line).err


@pytest.mark.parametrize(
    ("scale", "samplers"),
    [(None, PLAIN), (0.0, PLAIN[1::2]), (1.0, ["ddim", "heun"]), (2.5, PLAIN[::2])],
    ids=["plain", "0", "1", "2.5"],
)
def test_evaluations_are_what_the_network_is_shown(tune, model, conditional, scale, samplers):
    """Counted once more around the network itself, and by what is known of all but heun."""
    path = model if scale is None else conditional
    guided = () if scale is None else ("--guidance", scale)
    named = () if samplers is PLAIN else ("--samplers", ",".join(samplers))  # all are the default
    few = ("-n", 3, "--batch-size", 2, "--steps", "1,3")
    rows = tune(*few, *guided, *named, "--json", model=path).json["rows"]
    assert [r["setting"]["sampler"] for r in rows] == [s for s in samplers for _ in (1, 3)]
    loaded = model_file.load(path)
    network = loaded.network()
    for r in rows:
        shown = []

        def net(x, t, shown=shown, **cond):
            shown.append(len(x))
            with torch.no_grad():
                return network(x, t, **cond)

        sampler, steps = r["setting"]["sampler"], r["setting"]["steps"]
        denoiser = loaded.blueprint.denoiser(net)
        wanted = None if scale is None else Condition((0, 1), scale)
        settings = SamplingSettings(sampler, steps, condition=wanted, batch_size=2)
        space, device = loaded.blueprint.space, torch.device("cpu")
        *_, _ = generate_batches(denoiser, settings, range(3), space=space, device=device)
        assert r["evaluations"] == sum(shown) / 3
        once = 2 if scale in (0.0, 2.5) else 1
        if sampler != "heun":
            assert r["evaluations"] == once * steps
        else:
            assert r["evaluations"] in ([once] if steps == 1 else range(once * 3, once * 5 + 1))


def test_the_own_weak_average_is_tried_counted_and_recorded(tune, diffuse, images, weak):
    how = ("--samplers", "ddim", "--steps", "4")
    ran = tune(*how, "-o", "new.safetensors", "--plot", "new.png", "--json", model=weak).ok()
    levels = "2 at noise levels 0.3 to 3"
    assert f"4 steps, and 5 autoguidance scales, and {levels}\n" in ran.err
    found = ran.json
    scales = [1, 1.25, 1.5, 2, 3, 4, 2, 3]
    assert [r["setting"]["weak_guidance"] for r in found["rows"]] == scales
    intervals = [r["setting"]["guidance_interval"] for r in found["rows"]]
    assert intervals == [None] * 6 + [[*MIDDLE]] * 2
    assert [r["setting"]["steps"] for r in found["rows"]] == [4] + [2] * 7
    assert [r["evaluations"] for r in found["rows"]] == [4] * 6 + [3] * 2
    assert len({r["values"]["kid"] for r in found["rows"]}) == 8
    made = model_file.load("new.safetensors")
    assert made.sampling == SamplerChoice(**found["recommended"])
    assert made.weak_step == 3
    same = diffuse("eval", "new.safetensors", images, "-n", 6, *FP32, *MEASURES, "--json")
    [chosen] = [r for r in found["rows"] if r["setting"] == found["recommended"]]
    assert same.json["kid"] == pytest.approx(chosen["values"]["kid"], rel=1e-6)
    typed = ("--sampler", "ddim", "--steps", 2, "--weak-guidance", 1.25)
    again = diffuse("eval", weak, images, "-n", 6, *FP32, *MEASURES, "--json", *typed)
    assert again.json["kid"] == pytest.approx(found["rows"][1]["values"]["kid"], rel=1e-6)
    text = tune(*how, "--weak-guidance", 2, model="new.safetensors").out.splitlines()
    assert text[0].split()[:6] == ["sampler", "steps", "weak", "guidance", "evaluations", "seconds"]
    assert [line.split()[:4] for line in text[1:3]] == [
        ["ddim", "4", "1", "4"], ["ddim", "2", "2", "4"],
    ]  # fmt: skip


def test_noise_levels_of_guidance_are_recorded_shown_and_evaluated(tune, lab, weak, monkeypatch):
    """Also those of another weaker model."""
    monkeypatch.setattr(setting_search, "recommend", lambda rows: rows[-1].setting)
    how = ("--samplers", "ddim", "--steps", 4, "--report", "r.html", "--json")
    found = tune(*how, "-o", "new.safetensors", model=weak).json
    assert model_file.load("new.safetensors").sampling == SamplerChoice(
        "ddim", 2, weak_guidance=3.0, guidance_interval=MIDDLE
    )
    assert found["settings"]["guidance_interval"] == [*MIDDLE]
    last = found["sweep"]["rows"][-1]
    assert found["kid"] == pytest.approx(last["values"]["kid"], rel=1e-6)
    lines = tune(*how[:4], model=weak).out.splitlines()
    assert "weak guidance  noise levels  evaluations" in lines[0]
    assert lines[8].split()[:7] == ["ddim", "2", "3", "0.3", "to", "3", "3"]
    early = lab.trained(*lab.tiny, "--steps", 24, "--stop-at", 3)
    named = ("--guide-with", early, "--weak-guidance", "0,2", "--guidance-interval", "0.3,3")
    values = tune(*how, *named, "--overwrite").json
    rows = values["sweep"]["rows"]
    assert [r["setting"]["weak_guidance"] for r in rows] == [1, 0, 2]
    assert [r["setting"]["steps"] for r in rows] == [4, 2, 2]
    for settings in (values["sweep"]["settings"], values["settings"]):
        assert settings["guidance_interval"] == [0.3, 3]


def test_what_an_earlier_version_wrote_is_not_tried(tune, conditional, model):
    """Learned times, nor in the evaluation of what is recommended. And there is no start without
    the frequencies of the data, nor with classes."""
    sampling, stored = SamplerChoice("unipc", 3, times=(99.0, 71.25, 13.0)), model_file.load(model)
    old = dataclasses.replace(stored.blueprint, gaussian=None)
    model_file.save(
        Path("old.safetensors"), dataclasses.replace(stored, sampling=sampling, blueprint=old)
    )
    how = ("--samplers", "unipc", "--steps", 3, "--try-starts", "--report", "r.html", "--json")
    found = tune(*how, model="old.safetensors").json
    [tried] = found["sweep"]["rows"]
    assert (tried["setting"]["times"], tried["setting"]["start"]) == (None, None)
    assert found["settings"]["spacing"] == "wide"
    assert found["kid"] == pytest.approx(tried["values"]["kid"], rel=1e-6)
    told = tune("--samplers", "ddim", "--steps", 2, "--try-starts", "--json", model=conditional)
    assert {r["setting"]["start"] for r in told.json["rows"]} == {None}


def test_a_gaussian_start_is_tried_with_the_best_sampler_recorded_and_drawn_with(
    tune, diffuse, images, monkeypatch
):
    how = ("--samplers", "ddim,unipc", "--steps", "2,4,90", "--try-starts")
    monkeypatch.setattr(setting_search, "recommend", lambda rows: rows[-1].setting)
    out = ("-o", "new.safetensors", "--plot", "new.png", "--report", "r.html")
    ran = tune(*how, *out, "--json").ok()
    assert "2 samplers at 2, 4, 90 steps, and a Gaussian start\n" in ran.err
    settings = [SamplerChoice(**r["setting"]) for r in ran.json["sweep"]["rows"]]
    assert [s.start for s in settings] == [None] * 6 + ["gaussian"] * 2  # 90 steps: too late for it
    assert [(s.sampler, s.steps) for s in settings[6:]] == [("unipc", 2), ("unipc", 4)]
    kids = [r["values"]["kid"] for r in ran.json["sweep"]["rows"]]
    assert len(set(kids)) == 8
    assert model_file.load("new.safetensors").sampling == settings[-1]
    assert (ran.json["settings"]["start"], ran.json["kid"]) == ("gaussian", pytest.approx(kids[-1]))
    assert "unipc, 4 steps from a Gaussian start" in Path("r.html").read_text(encoding="utf-8")
    same = diffuse("eval", "new.safetensors", images, "-n", 6, *FP32, *MEASURES, "--json")
    assert same.json["kid"] == pytest.approx(kids[-1], rel=1e-6)
    monkeypatch.setattr(setting_search, "recommend", lambda rows: rows[0].setting)
    again = tune("--samplers", "unipc", "--steps", 4, "--report", "s.html", "--json",
                 model="new.safetensors").json  # fmt: skip
    assert again["kid"] == pytest.approx(kids[4], rel=1e-6), "not from the start of before"
    typed = ("--steps", 4, "--start", "noise")
    other = diffuse("eval", "new.safetensors", images, "-n", 6, *FP32, *MEASURES, "--json", *typed)
    assert other.json["kid"] == pytest.approx(kids[4], rel=1e-6)
    text = tune("--samplers", "ddim", "--steps", 2, "--try-starts", model="new.safetensors").out
    assert [line.split()[:3] for line in text.splitlines()[:3]] == [
        ["sampler", "steps", "start"], ["ddim", "2", "2"], ["ddim", "2", "gaussian"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "weak", "tried", "found"),
    [
        (2, 3.0, [4, 5, 8], [2, 4]), (4, None, [4, 5], [4, 5]), (7, 1.0, [4, 9], [4, 9]),
        (7, 2.0, [4, 9], [2, 4]),
    ],
)  # fmt: skip
def test_a_gaussian_start_takes_as_many_evaluations_as_noise(steps, weak, tried, found):
    settings = add_gaussian_start(SamplerChoice("unipc", steps, None, weak), tried, None)
    assert [(s.steps, s.weak_guidance, s.start) for s in settings] == [
        (each, weak, "gaussian") for each in found
    ]


def test_all_settings_start_from_the_same_noise(tune):
    """One step of DDIM, which the first step of every solver is."""
    rows = tune("--samplers", "ddim,unipc,ipndm,dpmpp-2m,heun", "--steps", 1, "--json")
    kids = {r["values"]["kid"] for r in rows.json["rows"]}
    assert max(kids) == pytest.approx(min(kids), abs=1e-6)
    other = tune("--samplers", "ddim", "--steps", 1, "--seed", 1, "--json").json
    assert other["rows"][0]["values"]["kid"] != pytest.approx(min(kids), abs=1e-4)


def test_the_model_itself_is_replaced_where_it_is_asked_and_a_finished_run_keeps_that(
    quick, diffuse, images
):
    line = ("tune", "model.safetensors", images, "-n", 4, "--samplers", "ddim", "--steps", 3,
            "--no-try-starts", "-o", "model.safetensors", "-q")  # fmt: skip
    assert quick("--steps", 4, "--no-keep-weak", "-q").code == 0
    path = Path("model.safetensors")
    plain = path.read_bytes()
    diffuse(*line).fails(5, "--overwrite")
    assert path.read_bytes() == plain
    assert diffuse(*line, "--overwrite").code == 0
    recommending = path.read_bytes()
    assert model_file.load(path).sampling == SamplerChoice("ddim", 3)
    assert quick("--resume", "--steps", 4, "-q").code == 0
    assert path.read_bytes() == recommending
    assert quick("--init", path, "--steps", 2, "-o", "next.safetensors", "-q").code == 0
    assert model_file.load("next.safetensors").sampling is None
    assert quick("--resume", "--steps", 5, "-q").code == 0
    assert model_file.load(path).sampling is None  # other weights


# -- the picture ----------------------------------------------------------------------------------


@pytest.fixture
def plot(monkeypatch):
    """Plot settings with their measures twice, which is the same, and return the axes."""
    drawn, real = [], figures.Sheet.axes
    monkeypatch.setattr(
        figures.Sheet, "axes", lambda self, *place: drawn.append(real(self, *place)) or drawn[-1]
    )

    def draw(*rows):
        drawn.clear()
        found = TuningResult(
            rows=rows, recommended=recommend(rows), metric="kid", n=8, real=6, part="all",
            features={"name": "some"}, settings={}, device="cpu", out=None, plot=None,
            words=Words("images", one="image"),
        )  # fmt: skip
        one, two = (tradeoff_figure.plot_tradeoff(found, "m") for _ in range(2))
        assert one == two
        return drawn[0]

    return draw


@pytest.mark.parametrize("least", [0.01, -0.002])
def test_the_picture_has_a_line_for_each_sampler_and_a_ring(plot, least):
    """What is on the axes, and that they are logarithmic where no KID is below 0."""
    rows = [
        row(s, n, least + 0.1 * i + 1 / n, seconds=n / 100, guidance=2.0)
        for i, s in enumerate(PLAIN) for n in (20, 5, 50)
    ]  # fmt: skip
    rows.append(row("unipc", 51, least, seconds=0.5, guidance=1.0))
    axes = plot(*rows)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log" if least > 0 else "linear")
    lines = [container[0] for container in axes.containers]
    xs = [line.get_xdata().tolist() for line in lines]
    assert xs == [*[[0.05, 0.2, 0.5]] * 6, [0.5], [0.05, 0.2, 0.5]]
    assert len({line.get_color() for line in lines}) == len(PLAIN)
    assert len({line.get_marker() for line in lines}) == len(PLAIN)
    [ring] = [line for line in axes.lines if line.get_markersize() == 13]
    chosen = next(r for r in rows if r.setting == recommend(rows))
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (chosen.seconds, chosen.values["kid"])
    assert sorted(text.get_text() for text in axes.texts) == sorted([*["5", "20", "50"] * 7, "×1"])
    # Scales of a weaker model have a sign of their own.
    rows = [
        dataclasses.replace(row("unipc", n, kid), setting=SamplerChoice("unipc", n, None, scale))
        for n, kid, scale in ((8, 0.3, 1.0), (9, 0.2, 1.0), (4, 0.4, 1.5), (4, 0.1, 3.0))
    ]
    assert sorted(text.get_text() for text in plot(*rows).texts) == ["8", "9", "w1.5", "w3"]


@pytest.mark.parametrize("values", [(0.72, 0.9), (0.9, 1.2), (0.13, 0.29), (0.003, 1.5)])
def test_an_axis_has_three_numbers_or_more(plot, values):
    """However its range lies to the powers of ten."""
    axes = plot(*(row("ddim", 5 + i, v, seconds=v) for i, v in enumerate(values)))
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        assert sum(low <= tick <= high for tick in axis.get_majorticklocs()) >= 3
