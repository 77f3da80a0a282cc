"""Samplers that solve the probability-flow equation, and one for its stochastic form.

In z = x / alpha and the noise-to-signal ratio r = sigma / alpha the equation is dz = eps dr. In
lambda = -log r = log_snr / 2 its linear part is solved exactly, and only x_0 is approximated. For
signatures see `samplers`. A step from alpha = 0 is a DDIM step and leaves no history. The last
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

    PastEstimate = tuple[float, Tensor]
    """A lambda, and the x_0 predicted there."""

Noise = Callable[[int], "Tensor"]
Times = Sequence[int] | Sequence[float]

NOISIEST, STEEPEST = -5.1, math.log(20)
"""Limits of steps in z and r: a step that starts at a lower lambda than `NOISIEST`, or over which
log r falls by more than `STEEPEST`, is a DDIM step, because eps is not linear between its ends."""


@dataclass(frozen=True)
class State:
    """State of a sampler between two steps: `x` at time `t` (-1 is clean), `x0` the estimate."""

    x: Tensor
    x0: Tensor
    t: int | float


@dataclass(frozen=True)
class SolverStep:
    """Coefficients of a step from t to s.

    Attributes:
        alpha, sigma, alpha_s, sigma_s: alpha and sigma at t and s.
        start: lambda at t.
        h: the increase of lambda from t to s.
    """

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
        """Whether a solver in z and r uses a DDIM step here. The last step is never steep."""
        return self.start < NOISIEST or STEEPEST < self.h < math.inf

    def ddim(self, prediction: Prediction) -> Tensor:
        """Return alpha_s x_0 + sigma_s eps, exact for constant eps (Song et al. 2021a, eq. 12)."""
        return self.alpha_s * prediction.x0 + self.sigma_s * prediction.eps

    def advance(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return x_s for constant x_0: the same point as `ddim`, from x and x_0."""
        return self.sigma_s / self.sigma * x - self.alpha_s * math.expm1(-self.h) * x0


def solver_steps(process: Process, times: Times, end: float = -1) -> Iterator[SolverStep]:
    """Yield the steps from each time to the next, and from the last time to the end."""
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
    """Heun's method of second order (Karras et al. 2022, alg. 1), with two evaluations per step.

    The slope is the mean of eps at both ends. With z_s = x_0 + r_s eps at the far end, the
    correction of the DDIM step needs only the two x_0, which at low SNR are more accurate than eps.
    """
    for step in solver_steps(process, times, end):
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
"""Adams-Bashforth weights of 1 to 4 derivatives, the newest first."""

EXTRAPOLATED = 10
"""Most steps with which `ipndm` extrapolates its last step. With more, that is a DDIM step.
With jumps, each leg counts its own steps. Extrapolating is better on smooth data and with few
steps, but on sharp data images leave the range to which x_0 was clipped."""


def ipndm(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """Four-step Adams-Bashforth in eps with the weights of equal steps (Liu et al. 2022a, sec. 3).

    Its lower orders start it, instead of Runge-Kutta (Zhang & Chen 2022). With more than
    `EXTRAPOLATED` steps the last one is a DDIM step. `State.x0` is the x_0 that the step used.
    """
    past: list[Tensor] = []
    for step in solver_steps(process, times, end):
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
    """DPM-Solver++(2M) of second order, with one evaluation per step (Lu et al. 2022b, alg. 2)."""
    before = None
    for step in solver_steps(process, times, end):
        x0 = denoise(x, step.t).x0
        x = step.advance(x, _midpoint_x0(step, x0, before))
        before = (step.start, x0) if step.h > 0 else before
        yield State(x, x0, step.s)


def dpmpp_2m_sde(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """SDE-DPM-Solver++(2M), the stochastic form of `dpmpp_2m` (Lu et al. 2022b, sec. 5).

    With constant x_0 a step samples from the posterior, as in `ddpm`.
    """
    before = None
    for k, step in enumerate(solver_steps(process, times, end)):
        x0 = denoise(x, step.t).x0
        decay = step.sigma_s / step.sigma * math.exp(-step.h)
        fresh = -math.expm1(-2 * step.h)
        x = decay * x + step.alpha_s * fresh * _midpoint_x0(step, x0, before)
        if step.s >= 0:
            x = x + step.sigma_s * math.sqrt(fresh) * noise(k)
        before = (step.start, x0) if step.h > 0 else before
        yield State(x, x0, step.s)


def _midpoint_x0(step: SolverStep, x0: Tensor, before: PastEstimate | None) -> Tensor:
    """Return x_0 in the middle of a step, on the line through the last two estimates."""
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

    The evaluation at the end of a step corrects that step and starts the next one, which raises the
    order by one at no cost. `State.x` is not yet corrected.

    Args:
        order: the order of the predictor, which is also its number of x_0.
        corrector: whether to correct each step.
    """
    past: list[PastEstimate] = []
    previous: tuple[SolverStep, Tensor, Tensor, list[PastEstimate]] | None = None
    for step in solver_steps(process, times, end):
        estimate = (step.start, denoise(x, step.t).x0)
        if corrector and previous is not None:
            corrected_step, old_x, old_x0, old_estimates = previous
            x = _multistep(corrected_step, old_x, old_x0, [*old_estimates, estimate])
        used = past[: order - 1] if 0 < step.h < math.inf else []
        if step.start == -math.inf:
            previous, past = None, []
        elif step.h > 0:
            previous, past = (step, x, estimate[1], used), [estimate, *past][: order - 1]
        x = _multistep(step, x, estimate[1], used)
        yield State(x, estimate[1], step.s)


def _multistep(step: SolverStep, x: Tensor, x0: Tensor, past: list[PastEstimate]) -> Tensor:
    """Return x_s, from x_0 at the start of a step and at other lambdas, also the step's end."""
    ratios = [(start - step.start) / step.h for start, _ in past]
    estimate = x0
    for weight, ratio, (_, old_x0) in zip(_weights(ratios, step.h), ratios, past, strict=True):
        estimate = estimate + weight / ratio * (old_x0 - x0)
    return step.advance(x, estimate)


def _weights(ratios: list[float], h: float) -> list[float]:
    """Solve sum a_k r_k^(i-1) = i! phi_(i+1)(-h) / phi_1(-h) for a. A single weight is 1/2.

    Zhao et al. 2023 use that 1/2 at every h. It follows from B(h), which cancels with more weights.
    """
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    from numpy.linalg import solve

    powers = range(len(ratios))
    rhs = [math.factorial(i + 1) * phi(i + 2, -h) / phi(1, -h) for i in powers]
    weights: list[float] = solve([[r**i for r in ratios] for i in powers], rhs).tolist()
    return weights


def phi(k: int, z: float) -> float:
    """Return phi_k, with phi_0 = e^z and phi_(k+1) = (phi_k - 1/k!) / z.

    For small z the series avoids cancellation.
    """
    if abs(z) < 1:
        return sum(z**i / math.factorial(i + k) for i in range(20))
    return math.exp(z) if k == 0 else (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z
