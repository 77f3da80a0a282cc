"""What a model can be told: labels and arrays, dropped for guidance, and read by the network."""

import dataclasses
import itertools

import pytest
import torch
from networks import plan, randomized

from diffuse_cli.core import Conditions, Denoiser, Process
from diffuse_cli.core.conditions import (
    FARTHEST,
    MOST_VALUES,
    UNTOLD,
    ConditioningArray,
    LabelColumn,
    MetadataTable,
    NumberColumn,
    VectorColumn,
)
from diffuse_cli.core.guidance import guide, make_unconditional
from diffuse_cli.core.networks.layers import RowEmbedding
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.schedules import SCHEDULES

BOTH = Conditions(
    classes=("a", "b"), given=ConditioningArray(channels=3, what="low-res:4", dropout=0.25)
)


AGE = NumberColumn(name="age", mean=40.0, deviation=10.0, low=18.0, high=90.0)
SITE = LabelColumn(name="site", values=("oslo", "paris", "rome"), missing=0.25)
TOLD = Conditions(table=MetadataTable(columns=(AGE, SITE)))
STYLE = VectorColumn(name="style", mean=(1.0, -2.0, 5.0), deviation=(2.0, 0.5, 0.0), missing=0.5)
STYLED = Conditions(table=MetadataTable(columns=(AGE, STYLE, SITE)))


@pytest.mark.parametrize(
    "conditions", [Conditions(), Conditions(classes=("a",)), BOTH, TOLD, STYLED]
)
def test_conditions_have_plain_values_and_come_back_from_them(conditions):
    plain = conditions.to_dict()
    assert Conditions.from_dict(plain) == conditions
    assert ("given" in plain) == (conditions.given is not None)
    assert ("table" in plain) == (conditions.table is not None)
    assert bool(conditions) == (plain != {"classes": []})


def test_only_what_a_model_knows_is_told():
    labels, given = torch.tensor([1, -1]), torch.zeros(2, 4, 8, 8)
    assert Conditions().make_keywords(labels, given) == {}
    assert Conditions(classes=("a", "b")).make_keywords(labels, given)["label"].tolist() == [1, 2]
    assert set(BOTH.make_keywords(labels, given)) == {"label", "given"}
    assert set(BOTH.make_keywords(labels)) == {"label"}


def test_one_draw_drops_label_and_given_each_at_its_rate():
    u = torch.tensor([0.0, 0.1, 0.24, 0.25, 0.9])
    cond = BOTH.make_keywords(torch.zeros(5, dtype=torch.long), torch.ones(5, 4, 2, 2))
    told = BOTH.drop_conditions(cond, u, label_dropout=0.1)
    assert told["label"].tolist() == [2, 0, 0, 0, 0]
    assert told["given"].flatten(1).mean(1).tolist() == [0, 0, 0, 1, 1]
    always = dataclasses.replace(BOTH, given=ConditioningArray(channels=3))
    assert always.drop_conditions(cond, u, 0.0)["given"] is cond["given"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"given": given} for given in [
            {"channels": 0}, {"channels": 3, "dropout": 1.5}, {"channels": 3, "what": 4},
            {"channels": 3, "noise": None, "more": 1}, {}, "low-res:4", 3,
        ]),
        *({"table": {"columns": columns}} for columns in [
            (), ({"name": "a"},), ("a",), ({"name": "", "values": ["x"]},),
            *(({"name": "a", "values": values},) for values in [
                [], ["x", "x"], ["x", ""], [1], [f"{k}" for k in range(MOST_VALUES + 1)],
            ]),
            ({"name": "a", "values": ["x"]},) * 2,
            ({"name": "a", "mean": 0, "deviation": 0, "low": 0, "high": 1},),
            ({"name": "a", "mean": float("nan"), "deviation": 1, "low": 0, "high": 1},),
            tuple({"name": f"{k}", "values": ["x"]} for k in range(65)),
            *(({"name": "a", "mean": mean, "deviation": deviation},) for mean, deviation in [
                ([], []), ([0], [1, 1]), ([0], [-1]), ([float("nan")], [1]), ([0] * 9000,) * 2,
            ]),
            tuple({"name": name, "mean": [0], "deviation": [1]} for name in "ab"),
        ]),
    ],
    ids=lambda wrong: str(wrong)[:60],
)  # fmt: skip
def test_conditions_that_are_none_are_refused(wrong):
    with pytest.raises(InvalidArgument):
        Conditions(**wrong)


@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 8, 4)])
@pytest.mark.parametrize("patch", [1, 2])
def test_a_unet_reads_what_is_given_beside_its_input(size, patch):
    settings = {"width": 8, "multipliers": (1,), "groups": 4, "blocks": 1, "patch": patch}
    plain = plan(size, channels=2, num_classes=2, **settings)
    both = dataclasses.replace(plain.conditions, given=ConditioningArray(channels=3))
    net, told = randomized(plain), randomized(dataclasses.replace(plain, conditions=both))
    weights = dict(net.state_dict())
    own = told.state_dict()["conv_in.weight"].clone()
    cut = weights["conv_in.weight"].shape[1]
    assert own.shape[1] == (2 + 4) * patch ** len(size)
    own[:, :cut] = weights["conv_in.weight"]
    told.load_state_dict({**weights, "conv_in.weight": own})
    g = torch.Generator().manual_seed(0)
    x, given = torch.randn(3, 2, *size, generator=g), torch.randn(3, 4, *size, generator=g)
    t, label = torch.tensor([3.0, 500.0, 900.0]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        nothing = told(x, t, label=label)
        assert torch.equal(nothing, told(x, t, label=label, given=torch.zeros_like(given)))
        assert torch.allclose(nothing, net(x, t, label=label), rtol=1e-5, atol=1e-5)
        something = told(x, t, label=label, given=given)
        assert (something - nothing).abs().mean() > 0.01
        places = told(x, t, label=label, given=given.flip(0)).flip(0)
        assert not torch.allclose(something, places)


def test_guidance_leads_away_from_nothing_told():
    seen = []

    def net(x, t, **cond):
        seen.append(cond)
        return x * 0.5 if cond["given"] is None else cond["given"][:, :1]

    model = Denoiser(net, Process(SCHEDULES["cosine"](100)), "x0")
    x, told = torch.ones(2, 1, 4, 4), {"given": torch.zeros(2, 2, 4, 4)}
    told |= {"label": torch.tensor([0, 1]), "row": torch.ones(2, 2)}
    found = guide(model, 3.0)(x, 50, **told)
    assert torch.allclose(found.x0, 0.5 * x + 3 * (0 - 0.5 * x))
    assert all(seen[0][name] is value for name, value in told.items())
    assert seen[1] == dict.fromkeys(told)
    assert torch.allclose(make_unconditional(model)(x, 50, given=told["given"]).x0, 0.5 * x)


# -- a table --------------------------------------------------------------------------------------


def test_codes_go_there_and_back():
    table = TOLD.table
    row = table.row({"age": 55, "site": "rome"})
    assert row == (1.5, 2)
    assert table.values(row) == {"age": 55, "site": "rome"}
    assert table.values(table.row({"site": "oslo"})) == {"site": "oslo"}
    assert table.values(table.row({"site": "nowhere"})) == {}


def test_a_vector_has_a_code_for_each_entry_and_nothing_is_told_by_one_that_never_varies():
    table = STYLED.table
    row = table.row({"age": 55, "style": (3, -2, 7), "site": "rome"})
    assert row == (1.5, 1, 0, 0, 2)
    assert table.places == (0, 1, 1, 1, 2)
    assert table.row({"style": (1e9, -2, 7)})[1] == FARTHEST
    far, near = (table.values(table.row({"style": (x, 0, 0)})) for x in (3, 3.001))
    assert far.keys() == {"style"}
    assert far != near
    assert table.values(table.row({"age": 50})) == {"age": 50}


def test_the_entries_of_a_vector_are_dropped_together_and_columns_apart():
    u = (torch.arange(2**14) + 0.5) / 2**14
    row = torch.tensor(STYLED.table.row({"age": 55, "style": (3, -2, 7), "site": "rome"}))
    told = STYLED.drop_conditions({"row": row.expand(len(u), 5)}, u, 0.25)["row"]
    age, *style, site = told.isnan().T
    assert torch.equal(style[0], style[1])
    assert torch.equal(style[0], style[2])
    found = {tuple(lacks) for lacks in torch.stack([age, style[0], site], 1).tolist()}
    assert len(found) == 8
    assert float(style[0].double().mean()) == 0.25 + 0.25 / 2


def test_a_vector_is_embedded_by_one_linear_map_of_its_standardized_entries():
    table = MetadataTable(columns=(STYLE,))
    embed = randomized_embedding(table, 16)
    vectors = torch.tensor([[3.0, -2.5, 5.0], [1.0, -2.0, 5.0], [-4.0, 7.0, 5.0]])
    rows = torch.tensor([table.row({"style": tuple(v)}) for v in vectors.tolist()])
    weight, untold = embed[0].weight.double(), embed[0].untold
    mean, deviation = torch.tensor(STYLE.mean), torch.tensor([2.0, 0.5, 1.0])
    expected = ((vectors - mean) / deviation).double() @ weight.T
    assert torch.allclose(embed(rows).double(), expected, atol=1e-5)
    assert torch.equal(embed(torch.full((1, 3), UNTOLD))[0], untold)
    wide = VectorColumn(name="v", mean=(0.0,) * 64, deviation=(1.0,) * 64)
    many = RowEmbedding(MetadataTable(columns=(wide,)), 256)
    assert {name: p.numel() for name, p in many.named_parameters()} == {
        "0.weight": 64 * 256, "0.untold": 256
    }  # fmt: skip
    # As far from zero as the row of a label.
    assert float(many(torch.randn(2000, 64)).var()) == pytest.approx(1, rel=0.1)


def randomized_embedding(table, width):
    embed = RowEmbedding(table, width)
    for parameter in embed.parameters():
        torch.nn.init.normal_(parameter)
    return embed.requires_grad_(False)


@pytest.mark.parametrize(
    ("dropout", "part"), [(0, 0), (0.25, 0.25), (0.5, 0.25), (0.75, 0.125), (1, 0)]
)
def test_rows_are_dropped_with_the_label_and_at_most_half_of_the_others_in_part(dropout, part):
    both = dataclasses.replace(TOLD, classes=("a", "b"))
    u = (torch.arange(2**16) + 0.5) / 2**16
    label = torch.zeros(len(u), dtype=torch.long)
    told = both.drop_conditions({"label": label, "row": torch.zeros(len(u), 2)}, u, dropout)
    hidden = told["row"].isnan()
    assert bool(hidden[told["label"] == 2].all())
    assert torch.equal(told["label"] == 2, u < dropout)
    found = [
        float((hidden == torch.tensor(lacks)).all(1).double().mean())
        for lacks in itertools.product((False, True), repeat=2)
    ]
    assert found == [1 - dropout - part * 3 / 4, part / 4, part / 4, dropout + part / 4]

    one = Conditions(table=MetadataTable(columns=(AGE,)))
    hidden = one.drop_conditions({"row": torch.zeros(len(u), 1)}, u, dropout)["row"].isnan()
    assert torch.equal(hidden[:, 0], u < dropout), "a single column is all or nothing"


def of_table():
    made = plan((8, 8), channels=1, width=8, multipliers=(1,), groups=4, blocks=1)
    return dataclasses.replace(made, conditions=TOLD)


def test_a_unet_reads_a_row_and_nothing_told_is_not_a_number():
    net = randomized(of_table())
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([1.0, 10.0, 100.0, 900.0])
    row = torch.tensor([[0.5, 1.0], [UNTOLD, 1.0], [0.5, UNTOLD], [UNTOLD, UNTOLD]])
    with torch.no_grad():
        none, told = net(x, t), net(x, t, row=row)
        assert torch.equal(none, net(x, t, row=torch.full_like(row, UNTOLD)))
        assert torch.equal(told[3], none[3])
        assert all((told[k] - none[k]).abs().mean() > 1e-3 for k in range(3))
        assert not told.isnan().any()
        other = net(x, t, row=torch.tensor([[0.6, 1.0]] * 4))
        assert (other[0] - told[0]).abs().mean() > 1e-4
        alone = [net(x[k : k + 1], t[k : k + 1], row=row[k : k + 1]) for k in range(4)]
        assert torch.allclose(torch.cat(alone), told, atol=1e-5)


def test_every_part_of_a_row_is_learned():
    net = randomized(of_table()).train()
    row = torch.tensor([[0.5, 1.0], [UNTOLD, UNTOLD]])
    net(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 10.0]), row=row).square().sum().backward()
    own = {n: p.grad for n, p in net.named_parameters() if n.startswith("row_embedding")}
    assert len(own) == 6
    assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in own.values())
    assert own["row_embedding.1.weight"].any(1).tolist() == [False, True, False, True]


def test_what_a_network_is_told_runs_on_the_meta_device():
    given = ConditioningArray(channels=1)
    with torch.device("meta"):
        x, t, told = torch.zeros(2, 1, 8, 8), torch.zeros(2), {"given": torch.zeros(2, 2, 8, 8)}
        told |= TOLD.drop_conditions({"row": torch.zeros(2, 2)}, torch.zeros(2), 0.1)
        both = dataclasses.replace(TOLD, given=given)
        net = dataclasses.replace(of_table(), conditions=both).build()
        for cond in ({}, told):
            assert net(x, t, **cond).shape == x.shape
