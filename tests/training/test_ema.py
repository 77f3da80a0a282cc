"""The average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffuse_cli.training.ema_weights import EmaAverage, decay_at, is_update_due

LARGEST = 0.9999


def test_decay_warms_up_and_never_exceeds_the_largest():
    for update, decay in [(0, 0.0), (1, 0.4053964425), (1000, 0.9943808006), (10**9, LARGEST)]:
        assert decay_at(update, LARGEST) == pytest.approx(decay, abs=1e-10)
    decays = [decay_at(n, 0.99) for n in range(2000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.99
    assert decay_at(5, 0.0) == 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("table", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def set_to(net, value):
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(value)


def test_the_average_follows_its_recursion():
    net = Net()
    set_to(net, 0.0)
    model = EmaAverage(net, 0.6)
    expected = 0.0
    for update, value in enumerate([1.0, 5.0, -2.0, 3.0, 3.0]):
        set_to(net, value)
        model.update(net)
        decay = min(0.6, 1 - (update + 1) ** -0.75)
        expected = decay * expected + (1 - decay) * value
        assert float(model.net.layer.bias) == pytest.approx(expected, rel=1e-6)
        assert model.net.layer.weight.tolist() == [pytest.approx([expected] * 2, rel=1e-6)]


def test_buffers_are_not_averaged():
    net = Net()
    net.table.fill_(5.0)
    model = EmaAverage(net, LARGEST)
    for value in (1.0, 9.0, 2.0):
        net.table.fill_(value)
        net.count.fill_(int(value))
        model.update(net)
        assert float(model.net.table[0]) in (5.0, value)
        assert int(model.net.count) in (0, int(value))


def test_the_average_is_a_copy_without_gradients_in_eval_mode():
    """Its first update forgets the random start."""
    net = Net()
    model = EmaAverage(net, LARGEST)
    set_to(net, 7.0)
    assert float(model.net.layer.bias.detach()) != 7
    assert not model.net.training
    assert not any(p.requires_grad for p in model.net.parameters())
    assert all(p.requires_grad for p in net.parameters())
    model.update(net)
    assert float(model.net.layer.bias) == 7


def test_several_updates_at_once_decay_like_each_in_turn_and_none_changes_nothing():
    net, start = Net(), Net()
    set_to(start, 4.0)
    set_to(net, 1.0)
    model = EmaAverage(start, 0.6)
    model.updates = 3
    model.update(net, 4)
    kept = 1.0
    for update in range(3, 7):
        kept *= decay_at(update, 0.6)
    expected = pytest.approx(kept * 4 + (1 - kept) * 1, rel=1e-6)
    assert float(model.net.layer.bias) == expected
    set_to(net, 3.0)
    model.update(net, 0)
    assert float(model.net.layer.bias) == expected
    assert model.updates == 7


def test_the_average_is_due_early_often_and_at_the_end():
    assert all(is_update_due(done, 1000) for done in range(1, 65))
    assert [done for done in range(65, 80) if is_update_due(done, 79)] == [68, 72, 76, 79]
