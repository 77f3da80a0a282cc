"""The names that scripts outside of the repository rely on, with their arguments."""

import inspect

import pytest

from diffuse_cli import core
from diffuse_cli.core import guidance, losses

CALLS = {
    "Process": (core.Process, "betas"),
    "diffuse": (core.Process.diffuse, "self x0 t noise"),
    "posterior": (core.Process.posterior, "self x0 x_t t s"),
    "prior": (core.Process.prior, "self x0"),
    "log_snr": (core.Process.log_snr, "self t"),
    "times": (core.Process.times, "self n spacing"),
    "Process.respaced": (core.Process.respaced, "self times"),
    "Denoiser": (core.Denoiser, "net process target variance"),
    "Denoiser.respaced": (core.Denoiser.respaced, "self times"),
    "Prediction": (core.Prediction, "x0 eps raw log_var"),
    "State": (core.State, "x x0 t"),
    "Bits": (core.Bits, "total prior terms"),
    "Gaussian": (core.Gaussian, "mean log_var"),
    "bits_per_dim": (core.bits_per_dim, "denoiser x0 *noise *clip **cond"),
    "clip": (guidance.clip, "denoise process"),
    "guide": (guidance.guide, "denoise scale"),
    "weights": (losses.weights, "name denoiser"),
    **{f"loss {n}": (f, "denoiser x0 t noise weight **cond") for n, f in core.LOSSES.items()},
    **{f"sampler {n}": (f, "denoise process x times *noise") for n, f in core.SAMPLERS.items()},
    **{f"schedule {n}": (f, "num_timesteps") for n, f in core.SCHEDULES.items()},
    **{f"weighting {n}": (f, "snr") for n, f in core.WEIGHTINGS.items()},
    **{f"degradation {n}": (d.apply, "self x0") for n, d in core.DEGRADATIONS.items()},
    **{f"inverse {n}": (d.pinv, "self y") for n, d in core.DEGRADATIONS.items()},
    **{
        f"restoration {n}": (r.__call__, "denoise process degradation y")
        for n, r in core.RESTORATIONS.items()
    },
    **{f"network {n}": (m.build, "config space conditions") for n, m in core.NETWORKS.items()},
}
STARS = {inspect.Parameter.KEYWORD_ONLY: "*", inspect.Parameter.VAR_KEYWORD: "**"}


@pytest.mark.parametrize("name", list(CALLS))
def test_the_arguments_of_the_contract_come_first_and_no_other_is_required(name):
    call, wanted = CALLS[name]
    found = list(inspect.signature(call).parameters.values())
    names = [STARS.get(p.kind, "") + p.name for p in found]
    expected = wanted.split()
    positional = [n for n in expected if n[0] != "*"]
    # A schedule and a weighting may call their one argument as they like.
    if len(positional) > 1 or expected != positional:
        assert names[: len(positional)] == positional
    assert set(expected[len(positional) :]) <= set(names)
    more = [p for p, n in zip(found, names, strict=True) if n.lstrip("_") not in expected]
    assert all(p.default is not p.empty for p in more if STARS.get(p.kind) != "**")
