"""The Python interface takes what Python programs have, in whatever state they left PyTorch, and
says what is wrong in their words."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import do_less, mostly_slow
from lab import QUICK
from PIL import Image
from torch.utils.data import TensorDataset

import diffuse_cli as diffuse
from diffuse_cli.api import keywords
from diffuse_cli.api.calls import replace_flags
from diffuse_cli.commands import COMMANDS
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.networks import NETWORKS


@pytest.fixture(autouse=True)
def beside(tmp_path, monkeypatch):
    """In an empty folder, with images judged as commands that run in process do."""
    monkeypatch.chdir(tmp_path)
    do_less(monkeypatch)


def train(data, name, **options):
    """The model file of a quick training."""
    options = {"steps": 2, "config": QUICK, **options}
    *_, trained = diffuse.train(data, out=f"{name}.safetensors", **options)
    assert isinstance(trained, diffuse.Trained)
    return trained.model.read_bytes()


LEVELS = np.random.default_rng(5).integers(0, 255, (44, 3, 8, 8), np.uint8)


def pictures():
    for levels in LEVELS:
        yield Image.fromarray(np.moveaxis(levels, 0, -1))


def test_tensors_and_their_labels_are_images_and_their_classes():
    labels = torch.arange(44) % 3
    whole = train([(p, str(k % 3)) for k, p in enumerate(pictures())], "whole", classes=True)
    tensors = torch.from_numpy(LEVELS)
    assert train(TensorDataset(tensors, labels), "set", classes=True) == whole
    pairs = [(t, np.int64(k % 3)) for k, t in enumerate(tensors)]
    assert train(pairs, "pairs", classes=True) == whole
    model = diffuse.load("set.safetensors")
    for first, *others in ((["2", "0"], torch.tensor([2, 0]), range(2, -1, -2)), ("1", 1)):
        drawn = model.sample(3, label=first, steps=2)
        for label in others:
            assert np.array_equal(model.sample(3, label=label, steps=2).arrays, drawn.arrays)


def test_a_dataset_of_tensors_alone_trains_also_with_gradients():
    whole = train(pictures(), "whole")
    assert train(TensorDataset(torch.from_numpy(LEVELS)), "set") == whole
    floats = torch.from_numpy(LEVELS / np.float32(255))
    assert train(floats.requires_grad_(), "floats") == train(floats.detach().numpy(), "arrays")


def test_columns_may_be_values_of_numpy_and_torch():
    ages = [20 + k / 4 for k in range(44)]
    told = [float, np.float32, torch.tensor]
    made = [
        train([(p, {"age": kind(age), "site": kind(age) > 25})
               for p, age in zip(pictures(), ages, strict=True)],
              kind.__name__, condition_on=["age", "site:label"])
        for kind in told
    ]  # fmt: skip
    assert made[0] == made[1] == made[2]
    model = diffuse.load("float.safetensors")
    ways = [[21.5, 30.25], np.array([21.5, 30.25]), torch.tensor([21.5, 30.25])]
    drawn = [model.sample(2, on={"age": ages}, steps=2).arrays for ages in ways]
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2])


def test_a_sample_that_is_none_is_named():
    for item, said in (
        (None, "None is not a Pillow image, an array or a path"),
        ((None, 3), "None is not a Pillow image"),
        ((LEVELS[0], np.eye(3)[0]), "the class has 3 values, not one name or number"),
    ):
        with pytest.raises(diffuse.DataError, match=f"sample 1 of 3: {said}"):
            list(diffuse.train([LEVELS[0], item, LEVELS[1]], classes=True))


def test_options_may_be_values_of_numpy_and_torch(images):
    whole = train(images, "whole", size=(4, 8), lr=0.5, seed=3, flip=True)
    options = {"steps": np.int64(2), "size": torch.tensor([4, 8])}
    options |= {"lr": np.float32(0.5), "seed": torch.tensor(3), "flip": np.True_}
    assert train(images, "other", **options) == whole
    assert train(images, "mapped", config={"batch_size": np.int64(8)}, preset="tiny", width=16) \
        == train(images, "typed", config=None, batch_size=8, preset="tiny", width=16)  # fmt: skip
    model = diffuse.load("whole.safetensors")
    drawn = model.sample(np.int64(3), seed=torch.tensor(1), steps=np.int32(2), range=None)
    assert np.array_equal(drawn.arrays, model.sample(3, seed=1, steps=2).arrays)
    part = model.sample(range=np.array([1, 3]), seed=1, steps=2)
    assert np.array_equal(part.arrays, drawn.arrays[1:])
    n, timesteps = np.int64(4), np.int64(2)
    found = diffuse.evaluate(model, images, n=n, metrics=["likelihood"], timesteps=timesteps)
    same = diffuse.evaluate(model, images, n=4, metrics="likelihood", timesteps=2)
    assert found.numbers == same.numbers


def test_the_model_is_that_of_the_file_unless_out_names_one(images):
    filed = {"out": "model.bin"}
    with pytest.raises(diffuse.UsageError, match=r"out must end in \.safetensors"):
        diffuse.train(images, config=filed)
    for out in ("model.safetensors", Path("model.safetensors")):  # also where it is the default
        diffuse.train(images, out=out, config=filed)


TYPES = [
    (diffuse.train, keywords.TrainOptions, TrainConfig,
     {"dry_run", "architecture", "teacher_guidance"}, set()),
    (diffuse.Model.sample, keywords.SampleOptions, SampleConfig,
     {"model", "classes", "out", "gif", "grid", "members", "moments", "overwrite"},
     {"label", "progress"}),
    (diffuse.evaluate, keywords.EvalOptions, EvalConfig,
     {"subject", "report", "overwrite"}, {"model", "progress"}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "kind", "config", "refused", "own"), TYPES)
def test_every_option_is_a_parameter_or_a_typed_keyword(function, kind, config, refused, own):
    parameters = {*inspect.signature(function).parameters} - {"self", "options", "config"}
    typed = {*kind.__annotations__} - {*NETWORKS.entries}
    assert not parameters & typed
    assert (parameters | typed) - own == {f.name for f in dataclasses.fields(config)} - refused


def test_errors_name_keywords(images, model, conditional):
    found, classes = diffuse.load(model), diffuse.load(conditional)
    for call, said in (
        (lambda: found.sample(1, label="dark"), "label: the model was trained without classes. "
                                                "Train a model with classes"),
        (lambda: classes.sample(1, label="lihgt"), "label: there is no 'lihgt'"),
        (lambda: classes.sample(1, classes=("dark",)), "there is no option 'classes'. Pass label"),
        (lambda: found.sample(1, model="other"), "there is no option 'model'. Load it"),
        (lambda: found.sample(0), "n must be at least 1, not 0"),
        (lambda: found.sample(1, on={"age": 3}), "on: the model was trained without columns. "
                                                 "Train a model with condition_on"),
        (lambda: found.sample(1, batch_size=0), "batch_size must be at least 1"),
        (lambda: found.sample(1, guidance=2), "guidance: the model was trained without classes"),
        (lambda: found.sample(1, sampler="consistency"), "Distill it: diffuse distill MODEL DATA"),
        (lambda: diffuse.train(images, resume=True, overwrite=True), "resume and overwrite"),
        (lambda: diffuse.train(images, out="model.bin"), "out"),
        (lambda: diffuse.evaluate(model, images, n=1), "n must be at least 2, not 1"),
        (lambda: diffuse.train(None), "data: None is not a path, and not samples"),
        (lambda: diffuse.train(images, out=None), "out: None is not a path"),
        (lambda: diffuse.load(None), "path: None is not a path"),
        (lambda: diffuse.evaluate(None, images), "model: None is not a path, and not samples"),
        (lambda: diffuse.evaluate(model, None), "data: None is not a path, and not samples"),
        (lambda: diffuse.evaluate(model, images, metrics=[]), "metrics is an empty list"),
        (lambda: found.sample(1, label=[]), "label is an empty list. Leave it out"),
        (lambda: found.sample(1, on={"age": []}), "on: age is an empty list"),
        (lambda: found.sample(1, given=3), "given: 3 is not a path, and not samples"),
        (lambda: found.sample(1, on={"age": None}), "on: age is None. Leave out"),
    ):  # fmt: skip
        with pytest.raises(diffuse.DiffuseError) as caught:
            call()
        assert said in str(caught.value)
        assert "--" not in str(caught.value)


def test_notices_name_keywords_and_a_loop_keeps_its_own_state(images):
    texts = []
    with torch.no_grad():
        for event in diffuse.train(images, steps=2, out="m.safetensors", config=QUICK):
            assert not torch.is_grad_enabled()
            texts += [event.text] if isinstance(event, diffuse.Notice) else []
    assert any("Try steps" in text for text in texts)
    assert not any("--" in text for text in texts)


def test_flags_outside_commands_are_keywords():
    for command in COMMANDS:
        line = f"Type diffuse {command} x -o y --lr 3"
        assert replace_flags(f"Without --lr. {line}") == f"Without lr. {line}"
    for text, said in (
        ("Leave out --no-keep-weak", "Leave out keep_weak=False"),
        ("Give --lr, or type diffuse distill MODEL --lr 3",
         "Give lr, or type diffuse distill MODEL --lr 3"),
        ("-o and --class of an older diffuse: see --num-timesteps",
         "out and label of an older diffuse: see num_timesteps"),
    ):  # fmt: skip
        assert replace_flags(text) == said


@pytest.fixture(params=mostly_slow(["inference_mode", "defaults", "no_grad"]))
def other_state(request):
    """PyTorch as a program may have left it; still so at the end."""
    if request.param != "defaults":
        with getattr(torch, request.param)():
            yield
            assert not torch.is_grad_enabled()
            assert torch.is_inference_mode_enabled() == (request.param == "inference_mode")
        return
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    assert (dtype, device.type) == (torch.float64, "meta")


@pytest.fixture(scope="module")
def usual(images, tmp_path_factory):
    """A model file, samples of it and its numbers, in the usual state."""
    with pytest.MonkeyPatch.context() as patch:
        do_less(patch)
        patch.chdir(tmp_path_factory.mktemp("usual"))
        return everything(images)


def everything(images):
    """The bytes of a model file, samples of it, its numbers and a prediction."""
    made = train(images, "model")
    model = diffuse.load("model.safetensors")
    drawn = model.sample(2, steps=2, sampler="heun").arrays
    numbers = diffuse.evaluate(model, images, n=4, steps=2, timesteps=2).numbers
    x, t = torch.ones(1, *model.space.shape, device="cpu"), torch.tensor([50], device="cpu")
    predicted = model.denoiser()(x, t).x0.float()
    assert {p.dtype for p in model.network().parameters()} == {torch.float32}
    assert not any(p.is_inference() for p in model.network().parameters())
    return made, drawn, numbers, predicted.clone()


def test_a_network_can_be_trained_and_its_model_stays(model):
    loaded = diffuse.load(model)
    before = loaded.sample(2, steps=2).arrays
    net = loaded.network()
    net(torch.zeros(1, *loaded.space.shape), torch.tensor([5])).sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert np.array_equal(loaded.sample(2, steps=2).arrays, before)


def test_whatever_the_state_of_pytorch_all_is_the_same(images, usual, other_state):
    made, drawn, numbers, predicted = everything(images)
    assert made == usual[0]
    assert np.array_equal(drawn, usual[1])
    assert numbers == usual[2]
    assert torch.equal(predicted, usual[3])
