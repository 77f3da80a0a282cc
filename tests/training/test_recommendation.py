"""The sampling settings that a run recommends: which trials decide, and what the file keeps."""

from __future__ import annotations

from types import SimpleNamespace

import conftest
import numpy as np
import pytest
from conftest import MODEL, manifest
from lab import QUICK

from diffuse_cli.config.sample_options import GAUSSIAN, SamplerChoice
from diffuse_cli.models import model_file
from diffuse_cli.sampling.setting_search import (
    MIDDLE,
    WEAK_CANDIDATES,
    SettingSearch,
    Trial,
    choose_best,
)
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.training import chores, previews, validation

RUN = ("--steps", 17)
GUIDED = SamplerChoice("unipc", 10, weak_guidance=2.0, start=GAUSSIAN)


def trial(kid, error=0.01, contrast=0.0, detail=0.0, choice=GUIDED):
    values = {"kid": kid, "kid_standard_error": error, "contrast": contrast, "detail": detail}
    return Trial(choice, values, seconds=1.0, evaluations=20)


@pytest.mark.parametrize(
    ("others", "best"),
    [
        ([], 0),
        ([trial(0.45), trial(0.40)], 2),
        ([trial(0.499, error=0.2)], 1),
        ([trial(0.501)], 0),
        ([trial(0.30, contrast=0.2), trial(0.40)], 2),  # exaggerated contrast
        ([trial(0.30, contrast=-0.2)], 0),
        ([trial(0.30, contrast=0.09)], 1),
        ([trial(0.30, detail=0.3), trial(0.40, detail=-0.2)], 2),  # exaggerated edges
    ],
)
def test_the_lowest_kid_that_looks_like_the_data_wins(others, best):
    trials = [trial(0.5), *others]
    assert choose_best(trials) is trials[best]
    default = trial(0.5, contrast=-0.3, detail=0.4)  # far from the data itself
    other = trial(0.3, contrast=0.25, detail=-0.35)
    assert choose_best([default, other]) is other
    assert choose_best([default, trial(0.3, contrast=0.35)]) is default


def test_contrast_is_within_samples_and_detail_is_curvature():
    flat = np.stack([np.full((1, 4, 4), level, np.uint8) for level in (0, 255)])
    rows = np.arange(4) ** 2
    bowl = np.tile((10 * (rows[:, None] + rows)).reshape(1, 4, 4).astype(np.uint8), (3, 1, 1, 1))
    assert max(validation.measure_contrast_and_detail(flat)) < -20
    contrast, detail = validation.measure_contrast_and_detail(bowl)
    assert contrast == pytest.approx(np.log(bowl[0].std()))
    assert detail == pytest.approx(np.log(20))
    sound = np.sin(np.arange(64)).reshape(1, 1, 64)
    contrast, _ = validation.measure_contrast_and_detail(sound)
    assert contrast == pytest.approx(np.log(sound.std()))


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """Let short runs try settings, with the default number of steps."""
    monkeypatch.setattr(chores, "FEWEST_TRIED", 2)
    monkeypatch.setattr(chores, "TRIALS_SHARE", 1e-3)
    monkeypatch.setattr(conftest, "PREVIEW_STEPS", 20)


@pytest.fixture
def trying(short, monkeypatch):
    """Let trials find KIDs by scale and by interval or start, or else 0.5."""

    def patch(kids):
        tried = []

        def find(search, choice):
            yield from ()
            tried.append(choice)
            setting = choice.weak_guidance, choice.guidance_interval or choice.start
            return trial(kids.get(setting, 0.5), choice=choice)

        monkeypatch.setattr(SettingSearch, "try_setting", find)
        return tried

    return patch


def test_guidance_that_wins_is_recommended_and_its_weights_are_kept(
    quick, diffuse, trying, images, folder
):
    tried = trying({(2.0, GAUSSIAN): 0.3})
    ran = quick(*RUN)
    words = "recommended for sampling, by the lowest KID: unipc, 10 steps from a Gaussian start"
    assert words in ran.err
    assert [(c.weak_guidance, c.guidance_interval, c.start, c.steps) for c in tried] == [
        (None, None, None, 20),
        (2.0, None, GAUSSIAN, 10),
        (2.0, MIDDLE, GAUSSIAN, 12),
        (1.5, None, GAUSSIAN, 10),
        (3.0, MIDDLE, GAUSSIAN, 12),
    ]
    found = model_file.load(MODEL)
    assert found.sampling == GUIDED
    assert found.weak_step == 3
    line = ("-n", 6, "--metrics", "marginals", "--steps", 2)
    ran = diffuse("eval", MODEL, images, *line)
    assert "recommended settings: if tune chose the recommended settings (" in ran.out
    assert "weak guidance 2) with the same held-out images" in ran.out
    options = ("--sampler", "ddim", "--start", "noise", "--weak-guidance", 1)
    assert "if tune chose" not in diffuse("eval", MODEL, images, *line, *options).out
    next(folder.rglob("*.png")).unlink()  # so these are other images, of which all are real
    assert "if tune chose" not in diffuse("eval", MODEL, folder, *line).out
    ran = diffuse("sample", MODEL, "-n", 1)
    assert "recommends: unipc, 10 steps from a Gaussian start, weak guidance 2" in ran.err
    before = MODEL.read_bytes()
    quick(*RUN, "--overwrite", "--stop-at", 9)
    quick("--resume")
    assert MODEL.read_bytes() == before
    quick("--resume")
    assert MODEL.read_bytes() == before


def test_noise_levels_are_recommended_and_used_with_their_scale(quick, diffuse, trying):
    trying({(3.0, MIDDLE): 0.3})
    quick(*RUN, "-q")
    model = model_file.load(MODEL)
    assert model.sampling == SamplerChoice(
        "unipc", 12, weak_guidance=3.0, start=GAUSSIAN, guidance_interval=MIDDLE
    )
    for line, interval, scale in (
        ((), [*MIDDLE], 3),
        (("--weak-guidance", 2), None, 2),
        (("--guidance-interval", "1,2"), [1, 2], 3),
    ):
        ran = diffuse("sample", MODEL, "-n", 1, *line, "--overwrite")
        found = manifest()
        assert (found["guidance_interval"], found["weak_guidance"]) == (interval, scale)
        assert ("weak guidance 3 at noise levels 0.3 to 3" in ran.err) is (not line)


def test_a_run_whose_best_trial_is_noise_says_so(quick, trying):
    scales = ((None, None), (2.0, GAUSSIAN), (2.0, MIDDLE), (1.5, GAUSSIAN), (3.0, MIDDLE))
    trying(dict.fromkeys(scales, 99.0))
    assert "The images are not better than noise by KID. Train longer: " in quick(*RUN).err
    trying(dict.fromkeys(scales[1:2], -99.0))
    assert "\nGenerate images with: diffuse sample" in quick(*RUN, "--overwrite").err


@pytest.mark.parametrize(
    ("trials", "scales"), [(0, []), (1, [None]), (2, [None, 2.0]), (3, [None, 2.0, 2.0])]
)
def test_a_short_run_has_the_first_trials(quick, trying, monkeypatch, trials, scales):
    tried = trying({(2.0, GAUSSIAN): 0.3})
    monkeypatch.setattr(chores, "plan_trials", lambda plan, steps: (trials, 4))
    quick(*RUN, "-q")
    assert [c.weak_guidance for c in tried] == scales
    assert model_file.load(MODEL).sampling == (GUIDED if trials > 1 else None)


@pytest.mark.parametrize(
    ("samples", "planned"),
    [(15, (0, 0)), (16, (1, 16)), (32, (2, 16)), (79, (4, 19)), (80, (5, 16)), (9000, (5, 128))],
)
def test_trials_are_as_many_as_the_time_allows(monkeypatch, samples, planned):
    """A sample costs 20 passes and its features, after those of 116 images that are compared."""
    config = SimpleNamespace(keep_weak=True)
    data = SimpleNamespace(train=range(16))
    plan = SimpleNamespace(data=data, teacher=None, config=config)
    features = chores.FEATURES
    passes = samples * (20 + features) + 116 * features
    monkeypatch.setattr(previews, "uses_images", lambda plan: False)
    monkeypatch.setattr(previews, "passes_of_step", lambda plan: chores.TRIALS_SHARE)
    monkeypatch.setattr(previews, "passes_of_drawing", lambda plan, count: 20 * count)
    assert chores.plan_trials(plan, passes) == planned
    trials, count = planned
    spent = trials * count * (20 + features) + (116 * features if trials else 0)
    assert chores.count_trial_passes(plan, passes) == spent <= passes
    config.keep_weak = False
    assert chores.plan_trials(plan, passes)[0] == min(1, trials)
    data.train = range(15)
    assert chores.plan_trials(plan, passes) == (0, 0)


@pytest.mark.parametrize("options", [(), ("--no-keep-weak",), ("--num-timesteps", 20)])
def test_the_default_is_kept_where_nothing_wins(quick, trying, options):
    """Without early weights, nothing else is tried. Of 20 timesteps, a Gaussian start leaves out
    the noisiest."""
    tried = trying({})
    assert "recommended" not in quick(*RUN, *options).ok().err
    found = [(None, 20)] if "--no-keep-weak" in options else [(None, 20), (GAUSSIAN, 10)]
    assert [(c.start, c.steps) for c in tried][:2] == found
    assert len(tried) == (1 if "--no-keep-weak" in options else 5)
    model = model_file.load(MODEL)
    assert (model.sampling, model.weak_step) == (None, None if len(tried) == 1 else 3)


def test_random_features_choose_no_guidance(diffuse, trying):
    tried = trying({(2.0, GAUSSIAN): 0.3})
    np.save("fields.npy", np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32))
    diffuse("train", "fields.npy", "--config", QUICK, *RUN, "-q").ok()
    assert [c.weak_guidance for c in tried] == [None]
    assert model_file.load(MODEL).weak_step == 3


def test_a_model_with_classes_has_no_gaussian_start(quick, trying):
    tried = trying({(1.5, None): 0.3})
    quick(*RUN, "--classes", "-q")
    assert {(c.start, c.guidance_interval) for c in tried} == {(None, None)}
    found = model_file.load(MODEL).sampling
    assert (found.weak_guidance, found.guidance, found.steps) == (1.5, 2.0, 10)


def test_a_trial_generates_and_compares_with_training_images(quick, short, monkeypatch):
    """Real trials, of very few samples. Images that are held out stay unseen."""
    seen, unseen, real, read = [], [], choose_best, validation.read_samples

    def follow(plan, images, most):
        unseen.append((set(images) & set(plan.data.held_out), most))
        return read(plan, images, most)

    monkeypatch.setattr(validation, "read_samples", follow)
    monkeypatch.setattr(chores, "MOST_TRIED", 5)
    monkeypatch.setattr(
        validation.setting_search, "choose_best", lambda t: (seen.extend(t), real(t))[1]
    )
    assert quick(*RUN, "-q").code == 0
    assert len({t.kid.value for t in seen}) == 1 + len(WEAK_CANDIDATES)
    assert all(t.kid.error > 0 for t in seen)
    assert unseen == [(set(), chores.REFERENCES)]


def test_a_run_ends_without_a_feature_network(quick, short, monkeypatch):
    """It has trained, and must write its model."""

    def missing(*_):
        raise ModelFileError("the weights are missing")

    monkeypatch.setattr(validation, "choose_network", missing)
    assert "no sampling settings were tried: the weights are missing" in quick(*RUN).ok().err
    assert model_file.load(MODEL).sampling is None
