"""Log density of samples by the probability-flow equation (Song et al. 2021b, section 4.3).

The equation moves data at the first timestep to noise at the last, and the log density along a path
falls by the divergence. With w = asinh(alpha / sigma), alpha = tanh w and sigma = 1 / cosh w, it is

    dx / dw = -sigma v,  v = alpha eps - sigma x_0

v is the velocity in the angle atan(sigma / alpha) (Salimans & Ho 2022, appendix D). At high SNR, w
is half the log-SNR, up to a constant. At low SNR it is alpha / sigma, so few steps lead to noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.gaussian import Gaussian
from diffuse_cli.core.registry import InvalidArgument


def log_densities(
    denoiser: Denoiser, x0: Tensor, *, steps: int, probes: Sequence[Tensor], **cond: Any
) -> Iterator[Tensor]:
    """Yield the log density of samples after each step, (B,) in nats. Only the last is the result.

    The samples are scaled by alpha of the first timestep, where the equation starts, without
    noise. A sampler that ends there has this density. Its samples contain noise of variance
    r^2 = sigma^2 / alpha^2. For independent N(m, s^2) data the density is too low by (r / s)^4 / 4
    nats per dimension, if r is far below s. The equation ends in N(0, 1) at the last timestep with
    a signal.

    The steps are equal in w and of second order (explicit midpoint method). They have two
    evaluations, and a gradient for each probe.

    Args:
        x0: the samples (B, C, *size), floats with a density.
        probes: random tensors like x0 with E[e e^T] = 1, for example of signs. The divergence is
            the mean of e^T J e over them (Hutchinson 1990), so the result has no bias.
        cond: keywords for the network.

    Raises:
        InvalidArgument: no timestep has a signal.
    """
    process, dims = denoiser.process, x0[0].numel()
    signals = int((process.alpha_bars > 0).sum())
    if signals == 0:
        raise InvalidArgument("no timestep has a signal, so there is no path from data to noise")
    w, end = (math.asinh(math.exp(process.log_snr(t) / 2)) for t in (0, signals - 1))
    h, log_alpha = (w - end) / steps, math.log(math.tanh(w))

    def velocity(x: Tensor, w: float) -> Tensor:
        """Return -dx / dw."""
        alpha, sigma = math.tanh(w), 1 / math.cosh(w)
        prediction = denoiser(x, process.time_at(2 * math.log(math.sinh(w))), **cond)
        return sigma * (alpha * prediction.eps - sigma * prediction.x0)

    x, change = math.tanh(w) * x0, x0.new_full((len(x0),), dims * log_alpha)
    for _ in range(steps):
        with torch.no_grad():
            middle = x + h / 2 * velocity(x, w)
        with torch.enable_grad():
            slope = velocity(middle.requires_grad_(), w - h / 2)
            for probe in probes:
                (gradient,) = torch.autograd.grad(slope, middle, probe, retain_graph=True)
                change = change + h / len(probes) * (gradient * probe).flatten(1).sum(1)
        x, w = x + h * slope.detach(), w - h
        yield change - Gaussian(torch.zeros_like(x), 0.0).nll(x).flatten(1).sum(1)
