"""Memory and time of windows, before a task starts."""

import numpy as np
import pytest
import torch
from conftest import pixels
from PIL import Image

from diffuse_cli.core import Denoiser
from diffuse_cli.core.tiling import WINDOWS
from diffuse_cli.models import model_file
from diffuse_cli.models.activation_memory import SLACK, count_kept_bytes
from diffuse_cli.sampling import model_loading, tasks
from diffuse_cli.sampling.model_loading import fit_windows
from diffuse_cli.sampling.tasks import measure_seconds


@pytest.fixture
def blueprint(model):
    return model_file.load(model).blueprint


@pytest.mark.parametrize(
    ("windows_free", "fitting"),
    [(10**6, WINDOWS), (2 * WINDOWS, WINDOWS), (2 * WINDOWS - 1, WINDOWS // 2), (5, 2), (0, 1)],
)
def test_parts_are_halved_until_half_of_the_free_memory_holds_them(
    monkeypatch, blueprint, windows_free, fitting
):
    size = int(count_kept_bytes(blueprint, False, False).image * SLACK["cpu"])
    monkeypatch.setattr(model_loading, "free_memory_of_process", lambda device: windows_free * size)
    assert fit_windows(blueprint, "fp32", "cpu") == (fitting, fitting * size)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_bytes_are_counted_where_gradients_are_off(blueprint, mode):
    """As in `core.samplers.sample`, which calls networks of windows there."""
    count_kept_bytes.cache_clear()
    with mode():
        images = count_kept_bytes(blueprint, False, False).image
    count_kept_bytes.cache_clear()
    assert images == count_kept_bytes(blueprint, False, False).image > 0


def test_windows_take_less_in_half_precision(blueprint):
    fp32, bf16 = (fit_windows(blueprint, name, "cpu")[1] for name in ("fp32", "bf16"))
    assert bf16 < fp32


@pytest.mark.parametrize("gradients", [0, 1, 4])
def test_seconds_are_those_of_a_warm_prediction(monkeypatch, blueprint, gradients):
    """By a clock that moves by a second for each evaluation and each gradient."""
    clock, counts = [0.0], []
    gradient = torch.autograd.grad

    def net(x, t):
        clock[0] += 1
        counts.append(len(x))
        return x.sin()

    def differentiate(*arguments, **settings):
        clock[0] += 1
        return gradient(*arguments, **settings)

    monkeypatch.setattr(torch.autograd, "grad", differentiate)
    monkeypatch.setattr(tasks.time, "perf_counter", lambda: clock[0])
    x = torch.ones(4, *blueprint.space.shape, requires_grad=gradients > 0)
    denoiser = Denoiser(net, blueprint.process, "v")
    assert measure_seconds(denoiser, x, 5, gradients) == 1 + gradients
    assert counts == [4, 4]  # the first warms up


@pytest.mark.parametrize("method", ["pigdm", "ddnm"])
def test_samples_do_not_depend_on_the_free_memory(diffuse, monkeypatch, model, method):
    levels = np.random.default_rng(5).integers(0, 256, (6, 10), np.uint8)
    Image.fromarray(levels).save("small.png")
    line = ("upscale", model, "small.png", "--factor", 2, "-n", 2, "--method", method)
    rest = ("--steps", 3, "--sampler", "ddim", "--precision", "fp32", "-q", "--json", "-o")
    seen = []
    for name, free in (("large", 2**40), ("none", 0)):
        monkeypatch.setattr(model_loading, "free_memory_of_process", lambda device, free=free: free)
        diffuse(*line, *rest, name).ok()
        seen.append(pixels(name, 1).astype(int))
    assert seen[0].shape == (12, 20)
    assert np.abs(seen[0] - seen[1]).max() <= 1
