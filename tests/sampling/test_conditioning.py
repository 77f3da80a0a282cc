"""Which class an image is of, and where guidance acts, with a network whose answer is known."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from diffuse_cli.config.sample_options import GUIDANCE, SampleConfig
from diffuse_cli.core import SCHEDULES, Conditions, Denoiser, Process, Space
from diffuse_cli.core.conditions import ConditioningArray, LabelColumn, MetadataTable, NumberColumn
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.sampling.conditioning import Condition, check_request, resolve_condition
from diffuse_cli.sampling.generation import generate_batches
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system.errors import UsageError

PROCESS = Process(SCHEDULES["cosine"](100))
TIMES = PROCESS.times(20)


def asked_of(wanted, levels=None):
    """What the network is shown while an image of a condition is drawn: timesteps and labels."""
    calls = []

    def net(x, t, *, label=None):
        calls.append((float(t[0]), None if label is None else label.tolist()))
        return 0.3 * x

    settings = SamplingSettings("ddim", steps=20, condition=wanted, noise_levels=levels)
    space = Space(channels=1, size=(2, 2))
    *_, _ = generate_batches(
        Denoiser(net, PROCESS, "x0"), settings, range(1), space=space, device=torch.device("cpu")
    )
    return calls


def test_scale_1_asks_the_network_once():
    for scale, asked in ((1, 1), (0, 2), (2, 2)):
        assert len(asked_of(Condition((0,), scale))) == asked * len(TIMES)


def noise_level(t):
    bar = float(PROCESS.alpha_bars[t])
    return math.sqrt((1 - bar) / bar)


@pytest.mark.parametrize("interval", [(0.3, 3.0), (0, 1.0), (1.0, 1e9), (0, 1e9), (5e8, 1e9)])
def test_guidance_acts_in_its_interval_alone(interval):
    calls = asked_of(Condition((2,), 3.0), interval)
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
        assert ((t * 10.0, None) in asked_of(Condition((2,), 3.0), interval)) == acts


def model(*classes, conditional=True, **training):
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


@pytest.mark.parametrize("names", [(), ("dark", "light")])
def test_a_model_without_classes_has_no_condition(names):
    without = model(*names, conditional=False)
    assert resolve_condition(asked(), without) is None
    for options, classes in (({}, ["dark"]), ({"guidance": 0}, []), ({"guidance": 2.0}, [])):
        with pytest.raises(UsageError, match="the model was trained without classes"):
            resolve_condition(asked(**options), without, classes)


TABLE = MetadataTable(
    columns=(
        NumberColumn(name="age", mean=40.0, deviation=10.0, low=18.0, high=90.0),
        LabelColumn(name="site", values=("oslo", "rome")),
    )
)
ROWS = ((), (TABLE.row({"age": 50}),), (TABLE.row({"age": 50, "site": "oslo"}),))
"""Rows of none, one and both of the columns."""


def trained(kinds, label_dropout, given_dropout):
    given = ConditioningArray(channels=1, dropout=given_dropout)
    every = {"classes": ("a", "b"), "given": given, "table": TABLE}
    conditions = Conditions(**{kind: every[kind] for kind in kinds.split()})
    blueprint = SimpleNamespace(conditions=conditions)
    return StoredModel(blueprint=blueprint, ema={}, training={"label_dropout": label_dropout})


def combinations_of_training(conditions, label_dropout):
    """Every combination of a class, a number of columns and an input that training had."""
    u = (torch.arange(2**14) + 0.5) / 2**14
    none = torch.zeros(len(u), dtype=torch.long)
    cond = conditions.make_keywords(none, torch.ones(len(u), 2, 1), torch.zeros(len(u), 2))
    kept = conditions.drop_conditions(cond, u, label_dropout)
    label = kept["label"] < 2 if "label" in kept else none.bool()
    columns = (~kept["row"].isnan()).sum(1) if "row" in kept else none
    given = kept["given"].bool().any(2).any(1) if "given" in kept else none.bool()
    return {*zip(label.tolist(), columns.tolist(), given.tolist(), strict=True)}


def is_taken(model, labeled, columns, told):
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
