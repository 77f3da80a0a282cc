"""Bits per dimension by the probability-flow equation: of Gaussian samples, and of the command."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from test_bound_of_floats import BARS, PROCESS, entropy

from diffuse_cli.core import Conditions, Denoiser, Space
from diffuse_cli.evaluation import likelihood
from diffuse_cli.evaluation.image_sets import LabeledSamples
from diffuse_cli.evaluation.likelihood import iterate_batches, measure_ode_bits
from diffuse_cli.metrics import METRICS, Facts, remarks
from diffuse_cli.system.events import finish

NORMAL = np.random.default_rng(5).standard_normal((12, 2, 8, 8)).astype(np.float32)
MIXING = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))[0]
SPREADS = torch.linspace(1.8, 0.1, 128)
"""Directions and standard deviations of correlated samples, in the model's numbers."""


def denoise(spreads, mixing=None):
    """Return the network of E[x_0 | x_t] for Gaussian samples with these standard deviations."""

    def net(x, t, **cond):
        time = float(t[0]) * len(BARS) / 1000
        alpha, sigma = PROCESS.alpha_sigma(min(time, len(BARS) - 1.0), like=x)
        gain = alpha * spreads**2 / (alpha**2 * spreads**2 + sigma**2)
        flat = x.flatten(1)
        found = flat * gain if mixing is None else flat @ mixing.T * gain @ mixing
        return found.reshape(x.shape)

    return net


def measure(stored, space, net, steps=64, seed=0, batch_size=100, indices=None):
    """Return the bits of each sample, and the errors of the solver."""
    indices = indices or range(len(stored))
    denoiser = Denoiser(net, PROCESS, "x0", levels=space.levels)
    samples = LabeledSamples(stored, np.full(len(stored), -1))
    batches = iterate_batches(samples, Conditions(), indices, None, batch_size, torch.device("cpu"))
    return finish(measure_ode_bits(denoiser, batches, indices, space, steps=steps, seed=seed))


def agrees(found, exact):
    """Whether the mean is the entropy, within 3 standard errors and the error of the solver."""
    bits, off = found.T
    error = bits.std(ddof=1) / len(bits) ** 0.5
    return bool(abs(bits.mean() - exact) < 3 * error + abs(off.mean()) and error < 0.1)


FLOATS = Space(channels=2, size=(8, 8), levels=None, mean=(100, -1), std=(3, 0.01))


def test_floats_have_the_entropy_in_their_own_units():
    stds = np.array([3.0, 0.01])[:, None, None]
    stored = (0.5 * NORMAL * stds + [[[100.0]], [[-1.0]]]).astype(np.float32)
    found = measure(stored, FLOATS, denoise(torch.tensor(0.5)))
    assert agrees(found, entropy(0.5 * stds))


CORRELATED = (
    (torch.from_numpy(NORMAL).flatten(1) * SPREADS @ MIXING).reshape(NORMAL.shape).numpy(),
    Space(channels=2, size=(8, 8), levels=None, mean=(0, 0), std=(1, 1)),
    denoise(SPREADS, MIXING),
)


def test_correlated_floats_have_their_entropy():
    """Here Hutchinson's estimate differs from the divergence."""
    found = measure(*CORRELATED)
    assert agrees(found, entropy(SPREADS.numpy()))
    assert np.abs(found - measure(*CORRELATED, seed=1))[:, 0].max() > 1e-3


@pytest.mark.parametrize("transform", ["log", "asinh"])
def test_the_jacobian_of_a_transform_is_in_the_density(transform):
    units = {"mean": (1, 1), "std": (0.5, 0.5), "transform": transform}
    space = Space(channels=2, size=(8, 8), levels=None, **units)
    y = 0.5 * NORMAL.astype(np.float64) + 1
    stored, slope = (np.exp(y), y) if transform == "log" else (np.sinh(y), np.log(np.cosh(y)))
    found = measure(stored.astype(np.float32), space, denoise(torch.tensor(1.0)))
    exact = entropy(0.5) + slope.mean((1, 2, 3)) / math.log(2)
    own = (NORMAL.astype(np.float64) ** 2 - 1).mean((1, 2, 3)) / 2 / math.log(2)
    assert found[:, 0] == pytest.approx(exact + own, abs=1e-4)


@pytest.mark.parametrize(("levels", "limits"), [(256, None), (65_536, None), (256, (0, 127))])
def test_levels_have_their_entropy(levels, limits):
    """A level's Gaussian of std s, with uniform noise, has the variance s^2 + 1/12."""
    space = Space(channels=2, size=(8, 8), levels=levels, limits=limits)
    middle = (space.bins - 1) / 2
    stored = np.rint(middle + middle / 4 * NORMAL).clip(0, levels - 1)
    stored = stored.astype(np.uint8 if levels == 256 else np.uint16)
    found = measure(stored, space, denoise(torch.tensor(0.25)))
    assert agrees(found, entropy(middle / 4))


def test_noise_of_levels_and_probes_depend_on_seed_and_index_only():
    stored = np.rint(128 + 30 * NORMAL).clip(0, 255).astype(np.uint8)
    space, net = Space(channels=2, size=(8, 8)), denoise(SPREADS, MIXING)
    whole = measure(stored, space, net, 4)
    assert measure(stored, space, net, 4, batch_size=5) == pytest.approx(whole, rel=1e-5)
    part = measure(stored, space, net, 4, indices=range(7, 9))
    assert part == pytest.approx(whole[7:9], rel=1e-5)
    assert np.abs(measure(stored, space, net, 4, seed=1) - whole)[:, 0].min() > 1e-5


@pytest.mark.parametrize("steps", mostly_slow([17, 32], always=1))
def test_the_error_of_the_solver_is_found_from_half_the_steps(steps):
    coarse, fine = (measure(*CORRELATED, n).mean(0) for n in (steps, 512))
    assert coarse[1] == pytest.approx(coarse[0] - fine[0], rel=0.25)
    assert abs(fine[1]) < 1e-4


def test_the_mean_and_its_error():
    bits = np.array([[3.0, -0.01], [4.0, 0.03], [5.0, -0.08]])
    compute = METRICS["likelihood-ode"].compute
    found, levels = (compute(SimpleNamespace(ode_bits=bits, floats=f)) for f in (True, False))
    wanted = {"": 4, "_standard_error": 3**-0.5, "_solver": 0.02}
    assert levels == pytest.approx({f"bits_per_dim_ode{k}": v for k, v in wanted.items()})
    assert found["nats_per_dim_ode"] == pytest.approx(4 * math.log(2))
    assert {*found} - {*levels} == {"nats_per_dim_ode", "nats_per_dim_ode_standard_error"}


@pytest.mark.parametrize(("off", "warned"), [(0.02, False), (0.2, True)])
def test_too_few_steps_are_remarked_on(off, warned):
    values = {"bits_per_dim_ode": 4.0, "bits_per_dim_ode_standard_error": 0.1}
    facts = Facts({**values, "bits_per_dim_ode_solver": off}, 4, 4, 0, True, 256)
    said = [str(remark) for remark in remarks(facts) if remark.warns]
    assert any("Use more --ode-steps" in text for text in said) == warned


ASKED = ("-n", 6, "--metrics", "likelihood-ode", "--precision", "fp32")


def test_the_command_measures_it_when_asked(diffuse, model, images):
    line = ("eval", model, images, *ASKED, "--ode-steps", 8)
    found = diffuse(*line, "--json").json
    assert found["n"] == {"real": 6, "generated": 0}
    assert found["settings"]["ode_steps"] == 8
    assert 0 < found["bits_per_dim_ode"] < 12
    assert found["bits_per_dim_ode_standard_error"] > 0
    assert found["bits_per_dim_ode_solver"] > 0
    assert "bits_per_dim" not in found
    again = diffuse(*line, "--json", "--batch-size", 4)
    assert again.json["bits_per_dim_ode"] == pytest.approx(found["bits_per_dim_ode"], rel=1e-5)
    half = diffuse(*line, "--json", "--precision", "bf16").json["bits_per_dim_ode"]
    assert half == pytest.approx(found["bits_per_dim_ode"], abs=0.05)
    shown = diffuse(*line).out
    assert "bits per dimension, ODE" in shown
    assert "error of the solver" in shown
    others = ("--metrics", "likelihood", "--timesteps", 2)
    assert "ode_steps" not in diffuse("eval", model, images, *others, "--json").json["settings"]
    alone = diffuse("eval", model, images, "-n", 2, *ASKED[2:4], "--json")
    assert alone.json["settings"]["ode_steps"] == 64


def test_classes_are_conditions_and_have_their_own_numbers(
    diffuse, conditional, images, monkeypatch
):
    solve, labels = likelihood.log_densities, []

    def record(*given, label, **options):
        labels.append(sorted(label.tolist()))
        return solve(*given, label=label, **options)

    monkeypatch.setattr(likelihood, "log_densities", record)
    line = ("-n", 6, "--steps", 2, "--timesteps", 2, "--ode-steps", 4, "--json")
    found = diffuse("eval", conditional, images, *line).json
    own = [found["classes"][name]["bits_per_dim_ode"] for name in ("dark", "light")]
    assert labels == [[0, 0, 0, 1, 1, 1]] * 2
    assert np.mean(own) == pytest.approx(found["bits_per_dim_ode"], rel=1e-6)
    assert own[0] != own[1]
    alone = diffuse("eval", conditional, images, *line, "--metrics", "likelihood-ode").json
    assert [alone["classes"][name]["bits_per_dim_ode"] for name in ("dark", "light")] == own
    assert (alone["classes"]["dark"]["generated"], alone["n"]["generated"]) == (0, 0)


def test_two_metrics_of_a_distilled_model_leave_it_out(diffuse, lab):
    names = "likelihood,likelihood-ode"
    line = ("-n", 4, "--timesteps", 2, "--metrics", names, "--json")
    ran = diffuse("eval", lab["distilled"], lab["grey"], *line).ok()
    assert "--metrics likelihood-ode needs a model that is not distilled: skipped" in ran.err
    assert "bits_per_dim" in ran.json
