"""A whole step on the meta device: what mixes devices or reads a number back fails."""

from __future__ import annotations

import contextlib
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab import QUICK
from torch.utils._python_dispatch import TorchDispatchMode

from diffuse_cli.core import LOSSES, WEIGHTINGS, Conditions
from diffuse_cli.data import Dataset
from diffuse_cli.data.summary import Summary
from diffuse_cli.system.rng import training_draws
from diffuse_cli.training import trainer as module
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.decisions import complete_config
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.trainer import Trainer
from diffuse_cli.training.training_data import TrainingData

VIT = tomllib.loads(QUICK.read_text())["vit"]
"""On the meta device a step takes as long as it has operations. Those of the U-Net are asked in
tests/core/test_meta.py."""


class Bare:
    """What a trainer asks of an Accelerator, on one process."""

    device = torch.device("meta")
    num_processes, process_index, scaler, sync_gradients = 1, 0, None, True
    accumulate = autocast = staticmethod(lambda *_: contextlib.nullcontext())
    backward = staticmethod(torch.Tensor.backward)
    reduce = staticmethod(lambda value, how: value)

    def prepare(self, body, optimizer):
        own = {name: getattr(optimizer, name) for name in ("param_groups", "step", "zero_grad")}
        return body, SimpleNamespace(optimizer=optimizer, **own)


@pytest.fixture
def on_meta(monkeypatch):
    """Draws as a generator of the device would make them, and an AdamW that meta has."""

    def drawn(*arguments, device, **options):
        found = training_draws(*arguments, device=torch.device("cpu"), **options)
        moved = (getattr(found, name).to(device) for name in ("u", "noise", "flip", "drop"))
        return type(found)(*moved)

    class Plain(torch.optim.AdamW):
        """Not fused: the fused one takes divisor and verdict from the device."""

        _step_supports_amp_scaling = True

        def __init__(self, *arguments, fused, **options):
            super().__init__(*arguments, **options)

        def step(self, closure=None):
            assert self.found_inf.is_meta
            assert self.grad_scale.is_meta
            del self.found_inf, self.grad_scale
            return super().step(closure)

    monkeypatch.setattr(module.rng, "training_draws", drawn)
    monkeypatch.setattr(torch.optim, "AdamW", Plain)


def trainer_of(accelerator=None, **options):
    images = Dataset(
        stored=np.zeros((32, 3, 8, 8), np.uint8),
        labels=np.arange(32) % 2,
        class_names=("a", "b"),
        names=tuple(map(str, range(32))),
        digests=np.zeros((32, 16), np.uint8),
        summary=Summary("none", 32, 32, 3),
    )
    typed = {"data": "", "network": "vit", "batch_size": 8, "precision": "fp32"}
    typed |= {"target": "v", "schedule": "cosine", "optimizer": "adamw", **options}
    conditions = Conditions(classes=images.class_names)
    config, blueprint = complete_config(configure(typed, {"vit": VIT}), images.space, conditions)
    plan = Plan(config, blueprint, TrainingData(images, np.arange(32), np.arange(0)))
    return Trainer(plan, accelerator or Bare())


PAIRS = [(loss, name) for loss in sorted(LOSSES) for name in WEIGHTINGS if loss != "vlb"]


@pytest.mark.parametrize(("loss", "weighting"), [*PAIRS, ("vlb", "none")])
def test_a_step_reads_nothing_back(on_meta, loss, weighting):
    """Step 65: from there on the average moves, and its count is read, after each fourth."""
    variance = "small" if loss == "simple" else "learned"
    trainer = trainer_of(
        loss=loss, weighting=weighting, variance=variance, classes=True, flip=True, accumulation=2
    )
    outcome = trainer.step(64)
    assert all(x.is_meta for x in (outcome.loss, outcome.grad_norm, *trainer.net.parameters()))


class Copies(TorchDispatchMode):
    """The shapes of the tensors that are copied from the processor to the device."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_meta:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            if tensors and not any(x.is_meta for x in tensors):
                self.shapes.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("timestep_draw", ["uniform", "weight"])
def test_a_step_copies_only_its_batch_to_the_device(on_meta, timestep_draw):
    """A copy from ordinary memory waits for the device. Those of the batch do not."""
    trainer = trainer_of(timestep_draw=timestep_draw, classes=True)
    trainer.step(64)
    with Copies() as copies:
        trainer.step(65)
    assert copies.shapes
    assert {shape[0] for shape in copies.shapes if shape} == {8}, copies.shapes
    assert () not in copies.shapes


def test_a_step_of_muon_reads_nothing_back(on_meta):
    trainer = trainer_of(optimizer="muon", timestep_draw="weight")
    assert trainer.step(64).grad_norm.is_meta
    assert any("momentum" in own for own in trainer.optimizer.optimizer.state.values())


def test_what_reads_back_is_seen(on_meta):
    """The average reads once for all steps since it last moved; the losses of `importance` are kept
    on the processor, which costs a wait each step."""
    fails = pytest.raises((NotImplementedError, RuntimeError), match=r"[Mm]eta")
    trainer = trainer_of()
    for step in (64, 65, 66):
        trainer.step(step)
    with fails:
        trainer.step(67)
    trainer = trainer_of(timestep_draw="importance")
    with fails:
        trainer.step(64)
