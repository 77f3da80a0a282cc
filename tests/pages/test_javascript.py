"""The JavaScript of pages against core, run by Node without a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
import torch

from diffuse_cli.commands.convert.exporters import page
from diffuse_cli.core import SAMPLERS, SCHEDULES, Denoiser, Process
from diffuse_cli.core.data_gaussian import measure
from diffuse_cli.core.guidance import autoguide, clip, interval
from diffuse_cli.core.parameterization import TARGETS
from diffuse_cli.pages.templates import read_script
from diffuse_cli.system.rng import image_noise

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")

PROCESS = Process(SCHEDULES["cosine"](1000))


def evaluate(script: str, *codes: str) -> list[Any]:
    """Return the values of expressions, which may be promises, after a script of the package."""
    promised = ", ".join(f"(async () => {code})()" for code in codes)
    end = f"Promise.all([{promised}]).then((values) => console.log(JSON.stringify(values)))"
    text = f"{read_script(script)}\n{end}"
    ran = subprocess.run(["node", "-"], input=text, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_noise_is_that_of_sample_bit_for_bit():
    draws = [(0, 0, -1), (7, 12, -1), (2**63 - 1, 3, 5)]
    codes = [f"Array.from(imageNoise({seed}n, {k}, 3000, {step}))" for seed, k, step in draws]
    for (seed, k, step), values in zip(draws, evaluate("random", *codes), strict=True):
        expected = image_noise(seed, [k], step, (3000,), torch.device("cpu"))[0]
        assert np.array_equal(np.array(values, np.float32), expected.numpy())


def gaussian_target(name: str, x: Any, alpha: float, sigma: float, a: float, b: float) -> Any:
    """Return the target of the best denoiser of data with mean 0.2 and standard deviation 0.5."""
    x0 = 0.2 + alpha * 0.25 * (x - alpha * 0.2) / (alpha**2 * 0.25 + sigma**2)
    return a * x0 + b * (x - alpha * x0) / sigma


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("sampler", ["unipc", "ddim"])
@pytest.mark.parametrize("limited", [False, True])
def test_samplers_are_those_of_core(sampler, target, limited):
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = PROCESS.alpha_sigma(round(float(t[0])), like=x)
        a, b = TARGETS[target](alpha, sigma, None, None)
        return gaussian_target(target, x.double(), alpha, sigma, a, b).float()

    denoiser = Denoiser(network, PROCESS, target)
    weak = Denoiser(lambda x, t: 0.5 * network(x, t), PROCESS, target)
    guided, levels_to_guide = autoguide(denoiser, weak, 1.5), None
    if limited:  # without guidance, eps loses digits at much noise
        levels_to_guide = (0.3, 1e6 if target == "eps" else 3.0)
        guided = interval(guided, denoiser, *levels_to_guide)
    codes, expected = [], []
    for n in (1, 2, 5, 20):
        times = PROCESS.times(n)
        levels = [
            [float(t), *PROCESS.alpha_sigma(t, like=x), *denoiser.target_at(t, like=x)]
            for t in times
        ]
        *_, last = SAMPLERS[sampler](clip(guided), PROCESS, x, times, noise=lambda k: x)
        expected.append(last.x.flatten().numpy())
        codes.append(f"""{{
          const levels = {json.dumps(levels)};
          const network = async (x, time) => {{
            const [, alpha, sigma, a, b] = levels.find((level) => level[0] === time);
            return Float32Array.from(x, (x) => {{
              const v = alpha ** 2 * 0.25 + sigma ** 2;
              const x0 = 0.2 + alpha * 0.25 * (x - alpha * 0.2) / v;
              return a * x0 + b * (x - alpha * x0) / sigma;
            }});
          }};
          const weak = async (x, time) => (await network(x, time)).map((y) => 0.5 * y);
          const denoise = makeDenoiser(
            network, [[weak, 1.5]], true, {json.dumps(levels_to_guide)});
          let last;
          const x = Float32Array.from({x.flatten().tolist()});
          for await (const state of {sampler}(denoise, makeSteps(levels), x)) last = state.x;
          return Array.from(last);
        }}""")
    for values, right in zip(evaluate("sampler", *codes), expected, strict=True):
        assert np.abs(np.array(values) - right).max() < 1e-5


@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 20), (2, 4, 6, 6)])
def test_the_initial_noise_is_that_of_the_gaussian(shape):
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(9, *shape, generator=draw).cumsum(-1)
    noise = torch.randn(1, *shape, generator=draw)
    low = measure(lambda: [data], bands=False)
    expected = low.make_initial_noise(noise, 0.3, 0.9)
    told = json.dumps(page.describe_gaussian(shape, low))
    code = f"Array.from(makeInitialNoise({noise.flatten().tolist()}, [0, 0.3, 0.9], {told}))"
    (values,) = evaluate("sampler", code)
    assert np.abs(np.array(values) - expected.flatten().numpy()).max() < 1e-5
