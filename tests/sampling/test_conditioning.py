"""Which class an image is of, and where guidance acts, with a network whose answer is known."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from diffuse_cli.config.sample_options import GUIDANCE, SampleConfig
from diffuse_cli.core import SCHEDULES, Conditions, Denoiser, Process, Space
from diffuse_cli.core.conditions import ConditioningArray, LabelColumn, MetadataTable, NumberColumn
from diffuse_cli.core.guidance import clip
from diffuse_cli.core.samplers import SAMPLERS
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.sampling.conditioning import Condition, check_request, resolve_condition
from diffuse_cli.sampling.generation import generate_batches
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.rng import image_noise

CPU = torch.device("cpu")
SHAPE = (1, 2, 2)
PROCESS = Process(SCHEDULES["cosine"](100))
TIMES = PROCESS.times(20)


def network(calls=None):
    """x_0 is a small multiple of x_t, and of the class where there is one."""

    def net(x, t, *, label=None):
        if calls is not None:
            calls.append((float(t[0]), None if label is None else label.tolist()))
        known = torch.full((len(x),), -0.2) if label is None else 0.1 * label
        return 0.3 * x + known.reshape(-1, 1, 1, 1)

    return net


def drawn(n, wanted, levels=None, *, net=None, sampler="ddim", start=0, batch_size=64):
    """The images of a condition, guided at some noise levels, (n, 1, 2, 2)."""
    found = {}
    for drawing in generate_batches(
        Denoiser(net or network(), PROCESS, "x0"),
        SamplingSettings(
            sampler, steps=20, condition=wanted, noise_levels=levels, seed=4, batch_size=batch_size
        ),
        range(start, n),
        space=Space(channels=SHAPE[0], size=SHAPE[1:]),
        device=CPU,
    ):
        if drawing.done:
            found |= dict(zip(drawing.indices, drawing.state.x, strict=True))
    return torch.stack([found[k] for k in range(start, n)])


def alone(k, label, sampler="ddim"):
    """Image k by the sampler itself, with no guidance; of no class where `label` is None."""
    denoiser = Denoiser(network(), PROCESS, "x0")
    given = None if label is None else torch.tensor([label])
    denoise = clip(lambda x, t: denoiser(x, t, label=given), PROCESS)

    def noise(i):
        return image_noise(4, [k], i, SHAPE, CPU)

    *_, state = SAMPLERS[sampler](denoise, PROCESS, noise(-1), TIMES, noise=noise)
    return state.x[0]


# -- classes --------------------------------------------------------------------------------------


def test_every_batch_is_asked_for_the_classes_of_its_images():
    calls = []
    drawn(10, Condition((3, 0, 1), scale=1), net=network(calls), start=2, batch_size=3)
    labels = [[1, 3, 0], [1, 3, 0], [1, 3]]
    assert [label for _, label in calls] == [each for each in labels for _ in TIMES]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun"])
def test_scale_1_is_the_conditional_model_and_0_the_unconditional_one(sampler: str):
    for scale, labels in ((1, (3, 0)), (0, (None, None))):
        found = drawn(5, Condition((3, 0), scale), sampler=sampler, batch_size=1)
        for k in range(5):
            assert torch.equal(found[k], alone(k, labels[k % 2], sampler))
    assert not torch.equal(found[0], alone(0, 3, sampler))


def test_scale_1_asks_the_network_once():
    for scale, asked in ((1, 1), (0, 2), (2, 2)):
        calls = []
        drawn(1, Condition((0,), scale), net=network(calls))
        assert len(calls) == asked * len(TIMES)


# -- the interval ---------------------------------------------------------------------------------


def noise_level(t):
    bar = float(PROCESS.alpha_bars[t])
    return math.sqrt((1 - bar) / bar)


@pytest.mark.parametrize("interval", [(0.3, 3.0), (0, 1.0), (1.0, 1e9), (0, 1e9), (5e8, 1e9)])
def test_guidance_acts_in_its_interval_alone(interval):
    calls = []
    drawn(1, Condition((2,), 3.0), interval, net=network(calls))
    guided = {round(t / 10) for t, label in calls if label is None}
    given = [round(t / 10) for t, label in calls if label == [2]]
    assert given == TIMES
    assert guided == {t for t in TIMES if interval[0] < noise_level(t) <= interval[1]}
    assert (0 < len(guided) < len(TIMES)) == (interval in [(0.3, 3.0), (0, 1.0), (1.0, 1e9)])


def test_both_ends_of_the_interval_are_as_the_paper_has_them():
    """Kynkäänniemi et al. 2024, eq. 6: (sigma_lo, sigma_hi]."""
    t = TIMES[9]
    edge = math.exp(-PROCESS.log_snr(t) / 2)
    for interval, acts in (((edge, 1e9), False), ((0, edge), True)):
        calls = []
        drawn(1, Condition((2,), 3.0), interval, net=network(calls))
        assert ((t * 10.0, None) in calls) == acts


def test_an_interval_of_all_levels_is_plain_guidance_and_of_none_is_scale_1():
    plain, one = (drawn(4, Condition((3, 0), scale)) for scale in (4.0, 1.0))
    assert torch.equal(drawn(4, Condition((3, 0), 4.0), (0, 1e9)), plain)
    assert torch.equal(drawn(4, Condition((3, 0), 4.0), (1e9, 2e9)), one)
    within = drawn(4, Condition((3, 0), 4.0), (0.3, 3.0))
    assert not torch.allclose(within, plain, atol=1e-3)
    assert not torch.allclose(within, one, atol=1e-3)


# -- from a configuration -------------------------------------------------------------------------


def model(*classes: str, conditional: bool = True, **training):
    blueprint = SimpleNamespace(conditions=Conditions(classes=classes if conditional else ()))
    return SimpleNamespace(
        blueprint=blueprint, classes=classes, training=training, sampling=None, distilled=None
    )


def asked(**options):
    return SampleConfig(model="m", **options)


@pytest.mark.parametrize(("dropout", "scale"), [(0, 1), (0.0, 1), (0.1, GUIDANCE), ("0", GUIDANCE)])
def test_a_model_that_was_always_shown_a_class_is_not_guided_unless_asked(dropout, scale):
    trained = model("a", "b", label_dropout=dropout)
    assert resolve_condition(asked(), trained) == Condition((0, 1), scale)
    assert resolve_condition(asked(guidance=3), trained) == Condition((0, 1), 3)


def test_classes_are_taken_as_they_are_named_or_all_in_turn():
    found = resolve_condition(asked(guidance=0), model("a", "b", "c"), ["c", "a", "c"])
    assert found == Condition((2, 0, 2), 0)
    assert [found.label(k) for k in range(7)] == [2, 0, 2, 2, 0, 2, 2]
    assert resolve_condition(asked(), model("a", "b", "c")) == Condition((0, 1, 2), GUIDANCE)


@pytest.mark.parametrize("names", [(), ("dark", "light")])
def test_a_model_without_classes_has_no_condition(names):
    without = model(*names, conditional=False)
    assert resolve_condition(asked(), without) is None
    for options, classes in (({}, ["dark"]), ({"guidance": 0}, []), ({"guidance": 2.0}, [])):
        with pytest.raises(UsageError, match="the model was trained without classes"):
            resolve_condition(asked(**options), without, classes)


# -- combinations ---------------------------------------------------------------------------------

TABLE = MetadataTable(
    columns=(
        NumberColumn(name="age", mean=40.0, deviation=10.0, low=18.0, high=90.0),
        LabelColumn(name="site", values=("oslo", "rome")),
    )
)
ROWS = ((), (TABLE.row({"age": 50}),), (TABLE.row({"age": 50, "site": "oslo"}),))
"""Rows of none, one and both of the columns."""


def trained(kinds: str, label_dropout: float, given_dropout: float) -> StoredModel:
    given = ConditioningArray(channels=1, dropout=given_dropout)
    every = {"classes": ("a", "b"), "given": given, "table": TABLE}
    conditions = Conditions(**{kind: every[kind] for kind in kinds.split()})
    blueprint = SimpleNamespace(conditions=conditions)
    return StoredModel(blueprint=blueprint, ema={}, training={"label_dropout": label_dropout})


def combinations_of_training(conditions: Conditions, label_dropout: float):
    """Every combination of a class, a number of columns and an input that training had."""
    u = (torch.arange(2**14) + 0.5) / 2**14
    none = torch.zeros(len(u), dtype=torch.long)
    cond = conditions.make_keywords(none, torch.ones(len(u), 2, 1), torch.zeros(len(u), 2))
    kept = conditions.drop_conditions(cond, u, label_dropout)
    label = kept["label"] < 2 if "label" in kept else none.bool()
    columns = (~kept["row"].isnan()).sum(1) if "row" in kept else none
    given = kept["given"].bool().any(2).any(1) if "given" in kept else none.bool()
    return {*zip(label.tolist(), columns.tolist(), given.tolist(), strict=True)}


def is_taken(model: StoredModel, labeled: bool, columns: int, told: bool) -> bool:
    """Whether a task takes this combination."""
    try:
        check_request(model, (0,) * labeled, ROWS[columns], told)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize(
    ("label_dropout", "given_dropout"),
    [(0.1, 0.1), (0.1, 0.15), (0.1, 0.2), (0.1, 0.0), (0.3, 0.1), (0.5, 0.6), (0.5, 0.75),
     (0.0, 0.3)],
)  # fmt: skip
@pytest.mark.parametrize(
    "kinds", ["classes table", "classes given", "table given", "classes table given"]
)
def test_a_task_takes_the_combinations_that_training_had(kinds, label_dropout, given_dropout):
    model = trained(kinds, label_dropout, given_dropout)
    conditions = model.blueprint.conditions
    there = combinations_of_training(conditions, label_dropout)
    for labeled, columns, told in itertools.product(
        (False, True) if conditions.classes else (False,),
        range(3) if conditions.table else (0,),
        (given_dropout == 0, True) if conditions.given else (False,),
    ):
        wanted = (labeled, columns, told)
        assert is_taken(model, *wanted) == (wanted in there), wanted


def test_columns_that_were_never_left_out_beside_the_input_are_needed_for_it():
    model = trained("table given", 0.1, 0.2)
    assert resolve_condition(asked(guidance=0), model, has_input=True).scale == 0
    with pytest.raises(UsageError, match="--on is missing for age, site: the model was not train"):
        resolve_condition(asked(), model, has_input=True)
    with pytest.raises(UsageError, match="--on is missing for site"):
        resolve_condition(asked(), model, on=["age=40"], has_input=True)
    assert resolve_condition(asked(), model, on=["age=40", "site=oslo"], has_input=True).rows
