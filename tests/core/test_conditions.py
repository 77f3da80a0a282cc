"""What a model can be told: labels and arrays, dropped for guidance, and read by the network."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from nets import plan, randomised

from diffuse_cli.core import Conditions, Denoiser, Process
from diffuse_cli.core.conditions import Given, untold
from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.guidance import guide, unconditional
from diffuse_cli.core.schedules import SCHEDULES
from diffuse_cli.core.settings import from_dict, to_dict

BOTH = Conditions(classes=("a", "b"), given=Given(channels=3, what="low-res:4", dropout=0.25))


@pytest.mark.parametrize("conditions", [Conditions(), Conditions(classes=("a",)), BOTH])
def test_conditions_have_plain_values_and_come_back_from_them(conditions):
    plain = to_dict(conditions)
    assert from_dict(Conditions, plain) == conditions
    assert ("given" in plain) == (conditions.given is not None)
    assert bool(conditions) == (plain != {"classes": []})


@pytest.mark.parametrize(
    "given",
    [
        {"channels": 0},
        {"channels": 3, "dropout": 1.5},
        {"channels": 3, "what": 4},
        {"channels": 3, "noise": None, "more": 1},
        {},
        "low-res:4",
        3,
    ],
)
def test_a_given_that_is_none_is_refused(given):
    with pytest.raises(InvalidArgument):
        Conditions(given=given)


def test_only_what_a_model_knows_is_told():
    labels, given = torch.tensor([1, -1]), torch.zeros(2, 4, 8, 8)
    assert Conditions().told(labels, given) == {}
    assert Conditions(classes=("a", "b")).told(labels, given)["label"].tolist() == [1, 2]
    assert set(BOTH.told(labels, given)) == {"label", "given"}
    assert set(BOTH.told(labels)) == {"label"}
    assert untold(BOTH.told(labels, given)) == {"label": None, "given": None}


def test_one_draw_drops_label_and_given_each_at_its_rate():
    u = torch.tensor([0.0, 0.1, 0.24, 0.25, 0.9])
    cond = BOTH.told(torch.zeros(5, dtype=torch.long), torch.ones(5, 4, 2, 2))
    told = BOTH.dropped(cond, u, label_dropout=0.1)
    assert told["label"].tolist() == [2, 0, 0, 0, 0]
    assert told["given"].flatten(1).mean(1).tolist() == [0, 0, 0, 1, 1]
    always = dataclasses.replace(BOTH, given=Given(channels=3))
    assert always.dropped(cond, u, 0.0)["given"] is cond["given"]


def widened(made, given):
    """The same U-Net, that is given an array, and its input's weights for that."""
    conditions = dataclasses.replace(made.conditions, given=given)
    return dataclasses.replace(made, conditions=conditions)


@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 8, 4)])
@pytest.mark.parametrize("patch", [1, 2])
def test_a_unet_reads_what_is_given_beside_its_input(size, patch):
    settings = {"width": 8, "multipliers": (1,), "groups": 4, "blocks": 1, "patch": patch}
    plain = plan(size, channels=2, num_classes=2, **settings)
    net, told = randomised(plain), randomised(widened(plain, Given(channels=3)))
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
    x, given = torch.ones(2, 1, 4, 4), torch.zeros(2, 2, 4, 4)
    label = torch.tensor([0, 1])
    found = guide(model, 3.0)(x, 50, label=label, given=given)
    assert torch.allclose(found.x0, 0.5 * x + 3 * (0 - 0.5 * x))
    assert seen[0]["given"] is given
    assert seen[1] == {"label": None, "given": None}
    assert torch.allclose(unconditional(model)(x, 50, given=given).x0, 0.5 * x)


def test_a_network_that_is_given_an_array_runs_on_the_meta_device():
    made = widened(plan(8, width=8, multipliers=(1,), groups=4), Given(channels=1))
    with torch.device("meta"):
        net = made.build()
        x, given = torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 8, 8)
        for told in (None, given):
            assert net(x, torch.zeros(2), given=told).shape == x.shape
