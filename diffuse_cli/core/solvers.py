"""Samplers that solve the probability-flow equation, and one for its stochastic form.

In z = x / alpha and the noise-to-signal ratio r = sigma / alpha the equation is dz = eps dr; in
lambda = -log r = log_snr / 2 its linear part is solved exactly and only x_0 is approximated.
Signatures are those of `samplers`. A step from alpha = 0 is DDIM's and leaves no history. The last
step, whose end is infinite in lambda, is of first order in lambda.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Prediction
    from diffuse_cli.core.process import Process

    Noise = Callable[[int], Tensor]
    Known = tuple[float, Tensor]
    """A lambda, and the x_0 that was predicted there."""

Times = Sequence[int] | Sequence[float]

NOISIEST, STEEPEST = -5.1, math.log(20)
"""A step in z and r that starts at a lower lambda, or in which log r falls further, is DDIM's: eps
differs too much between its ends for a straight line."""


@dataclass(frozen=True)
class State:
    """A sampler between two steps: `x` is at time `t` (-1 is clean), `x0` the last estimate."""

    x: Tensor
    x0: Tensor
    t: int | float


@dataclass(frozen=True)
class SolverStep:
    """The numbers of a step from t to s: alpha and sigma at both, lambda at t, and its growth h."""

    t: int | float
    s: int | float
    alpha: float
    sigma: float
    alpha_s: float
    sigma_s: float
    start: float
    h: float

    @property
    def rough(self) -> bool:
        """Whether a solver in z and r takes this step by DDIM; the last one is not steep."""
        return self.start < NOISIEST or STEEPEST < self.h < math.inf

    def ddim(self, prediction: Prediction) -> Tensor:
        """alpha_s x_0 + sigma_s eps: exact where eps is constant (Song et al. 2021a, eq. 12)."""
        return self.alpha_s * prediction.x0 + self.sigma_s * prediction.eps

    def toward(self, x: Tensor, x0: Tensor) -> Tensor:
        """x_s where x_0 does not change: the same point, from x and x_0."""
        return self.sigma_s / self.sigma * x - self.alpha_s * math.expm1(-self.h) * x0


def steps(process: Process, times: Times, end: float = -1) -> Iterator[SolverStep]:
    """The steps from each time to the next, and from the last to the end, clean data."""
    for t, s in pairwise([*times, end]):
        bar, bar_s = process.alpha_bar(t), process.alpha_bar(s)
        start = process.log_snr(t) / 2
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        alpha_s, sigma_s = math.sqrt(bar_s), math.sqrt(1 - bar_s)
        h = process.log_snr(s) / 2 - start
        yield SolverStep(t, s, alpha, sigma, alpha_s, sigma_s, start, h)


# -- in z and r -----------------------------------------------------------------------------------


def heun(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """Heun's method, of second order (Karras et al. 2022, alg. 1): two evaluations a step.

    The slope is the mean of eps at both ends. With z_s = x_0 + r_s eps at the far end, correcting
    the DDIM step needs only the two x_0, which at low SNR are known better than eps.
    """
    for step in steps(process, times, end):
        prediction = denoise(x, step.t)
        x0, x = prediction.x0, step.ddim(prediction)
        if step.s >= 0 and not step.rough:
            x0 = denoise(x, step.s).x0
            x = x - step.alpha_s * math.expm1(step.h) / 2 * (prediction.x0 - x0)
        yield State(x, x0, step.s)


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of 1 to 4 derivatives, the newest first."""

EXTRAPOLATED = 10
"""In longer runs the last step of `ipndm` is DDIM's. Extrapolating it is better on smooth data and
with few steps; on sharp data images leave the range that x_0 was clipped to."""


def ipndm(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """Four-step Adams-Bashforth in eps with the weights of equal steps (Liu et al. 2022a, sec. 3),
    started by its lower orders instead of Runge-Kutta (Zhang & Chen 2022).

    The last step is DDIM's in runs of more than `EXTRAPOLATED` steps. `State.x0` is what the step
    used.
    """
    past: list[Tensor] = []
    for step in steps(process, times, end):
        prediction = denoise(x, step.t)
        x0, eps = prediction.x0, prediction.eps
        if step.rough or (step.s < 0 and len(times) > EXTRAPOLATED):
            past = []
        else:
            past = [eps, *past[:3]]
            weights = ADAMS_BASHFORTH[len(past) - 1]
            for weight, earlier in zip(weights[1:], past[1:], strict=True):
                eps = eps + weight * (earlier - past[0])
            x0 = x0 + step.sigma / step.alpha * (past[0] - eps)
        x = step.alpha_s * x0 + step.sigma_s * eps
        yield State(x, x0, step.s)


# -- in lambda ------------------------------------------------------------------------------------


def dpmpp_2m(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """DPM-Solver++(2M), of second order, one evaluation a step (Lu et al. 2022b, alg. 2)."""
    before = None
    for step in steps(process, times, end):
        x0 = denoise(x, step.t).x0
        x = step.toward(x, _halfway(step, x0, before))
        before = (step.start, x0) if step.h > 0 else before
        yield State(x, x0, step.s)


def dpmpp_2m_sde(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """SDE-DPM-Solver++(2M), the same for the reverse stochastic equation (Lu et al. 2022b, sec. 5).

    With constant x_0 a step is a draw from the posterior, as in `ddpm`.
    """
    before = None
    for k, step in enumerate(steps(process, times, end)):
        x0 = denoise(x, step.t).x0
        kept = step.sigma_s / step.sigma * math.exp(-step.h)
        fresh = -math.expm1(-2 * step.h)
        x = kept * x + step.alpha_s * fresh * _halfway(step, x0, before)
        if step.s >= 0:
            x = x + step.sigma_s * math.sqrt(fresh) * noise(k)
        before = (step.start, x0) if step.h > 0 else before
        yield State(x, x0, step.s)


def _halfway(step: SolverStep, x0: Tensor, before: Known | None) -> Tensor:
    """x_0 in the middle of a step, on the line through the last two."""
    if before is None or step.h == math.inf:
        return x0
    start, earlier = before
    return x0 + step.h / (2 * (step.start - start)) * (x0 - earlier)


def unipc(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    times: Times,
    *,
    noise: Noise,
    end: float = -1,
    order: int = 2,
    corrector: bool = True,
) -> Iterator[State]:
    """UniPC with B(h) = e^h - 1, in terms of x_0 (Zhao et al. 2023, algs. 1 and 2).

    The evaluation at the end of a step corrects that step and starts the next one: one order more
    at no cost. `State.x` is not yet corrected.

    Args:
        order: of the predictor; it uses this many x_0.
        corrector: correct each step.
    """
    past: list[Known] = []
    taken: tuple[SolverStep, Tensor, Tensor, list[Known]] | None = None
    for step in steps(process, times, end):
        here = (step.start, denoise(x, step.t).x0)
        if corrector and taken is not None:
            begun, old_x, old_x0, others = taken
            x = _multistep(begun, old_x, old_x0, [*others, here])
        used = past[: order - 1] if 0 < step.h < math.inf else []
        if step.start == -math.inf:
            taken, past = None, []
        elif step.h > 0:
            taken, past = (step, x, here[1], used), [here, *past][: order - 1]
        x = _multistep(step, x, here[1], used)
        yield State(x, here[1], step.s)


def _multistep(step: SolverStep, x: Tensor, x0: Tensor, others: list[Known]) -> Tensor:
    """A step with x_0 at its start and at other lambdas, which may include its end."""
    ratios = [(start - step.start) / step.h for start, _ in others]
    estimate = x0
    for weight, ratio, (_, other) in zip(_weights(ratios, step.h), ratios, others, strict=True):
        estimate = estimate + weight / ratio * (other - x0)
    return step.toward(x, estimate)


def _weights(ratios: list[float], h: float) -> list[float]:
    """a with sum a_k r_k^(i-1) = i! phi_(i+1)(-h) / phi_1(-h) for each i; a single weight is 1/2.

    That half, which Zhao et al. 2023 use at every h, follows from B(h); with more weights it
    cancels.
    """
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    from numpy.linalg import solve

    powers = range(len(ratios))
    wanted = [math.factorial(i + 1) * _phi(i + 2, -h) / _phi(1, -h) for i in powers]
    weights: list[float] = solve([[r**i for r in ratios] for i in powers], wanted).tolist()
    return weights


def _phi(k: int, z: float) -> float:
    """phi_0 = e^z, phi_(k+1) = (phi_k - 1/k!) / z; for small z by the series, to avoid
    cancellation."""
    if abs(z) < 1:
        return sum(z**i / math.factorial(i + k) for i in range(20))
    return math.exp(z) if k == 0 else (_phi(k - 1, z) - 1 / math.factorial(k - 1)) / z
