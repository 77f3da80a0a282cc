"""Noise schedules, and the timesteps of samplers.

Schedules are functions `num_timesteps -> betas`, t = 0 ... T-1, in float64. The scale k = 1000/T
keeps the total noise the same for every T. No beta exceeds 0.999, except the last beta of `flow`,
which is 1. Schedules that are defined by alpha_bar(u), u = 0 ... 1, compute beta from ratios of
alpha_bar.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from operator import mul

from diffuse_cli.core.registry import InvalidArgument, Registry, entries_by_name

MAX_BETA = 0.999

Schedule = Callable[[int], list[float]]


def linear(num_timesteps: int) -> list[float]:
    """beta from k * 1e-4 to k * 0.02 in equal steps (Ho et al. 2020, section 4)."""
    k = 1000 / num_timesteps
    return _cap(_linspace(k * 1e-4, k * 0.02, num_timesteps))


def quadratic(num_timesteps: int) -> list[float]:
    """sqrt(beta) from sqrt(k * 1e-4) to sqrt(k * 0.02) in equal steps.

    `quad` in the code of Ho et al. 2020; "scaled linear" in latent diffusion (Rombach et al. 2022),
    between other ends.
    """
    k = 1000 / num_timesteps
    roots = _linspace(math.sqrt(k * 1e-4), math.sqrt(k * 0.02), num_timesteps)
    return _cap([root**2 for root in roots])


def constant(num_timesteps: int) -> list[float]:
    """Every beta k * 0.02 (`const` in the code of Ho et al. 2020)."""
    return _cap([1000 / num_timesteps * 0.02] * num_timesteps)


def cosine(num_timesteps: int) -> list[float]:
    """alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2) (Nichol & Dhariwal 2021, eq. 17)."""
    return _make_betas(lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, num_timesteps)


def sigmoid(num_timesteps: int) -> list[float]:
    """alpha_bar(u) = (s(3) - s(6u - 3)) / (s(3) - s(-3)), s the logistic function.

    Jabri et al. 2022, and Chen 2023, algorithm 1, with start -3, end 3 and tau 1.
    """
    top, bottom = _logistic(3), _logistic(-3)
    return _make_betas(lambda u: (top - _logistic(6 * u - 3)) / (top - bottom), num_timesteps)


def sqrt(num_timesteps: int) -> list[float]:
    """alpha_bar(u) = 1 - sqrt(u + 1e-4) (Li et al. 2022, Diffusion-LM, appendix A).

    It starts at 0.99, and is negative from u = 0.9999. The betas keep only its ratios, so that of
    the process starts at 1.
    """
    return _make_betas(lambda u: 1 - math.sqrt(u + 1e-4), num_timesteps)


def laplace(num_timesteps: int) -> list[float]:
    """log-SNR(u) = -0.5 sign(0.5 - u) log(1 - 2|u - 0.5|) (Hang & Gu 2024, mu = 0, b = 0.5).

    alpha_bar is the logistic function of log-SNR. It is computed from the root of 1 - 2|u - 0.5|,
    because log-SNR is infinite at both ends.
    """

    def alpha_bar(u: float) -> float:
        root = math.sqrt(2 * min(u, 1 - u))
        return (1 if u < 0.5 else root) / (1 + root)

    return _make_betas(alpha_bar, num_timesteps)


def flow(num_timesteps: int) -> list[float]:
    """log-SNR(u) = 2 log((1 - u) / u): the straight path of flow matching, variance-preserving.

    x_u = (1 - u) x_0 + u eps (Lipman et al. 2023, eq. 22; Liu et al. 2023) over
    sqrt((1 - u)^2 + u^2). The last timestep has no signal.
    """
    return _make_betas(lambda u: (1 - u) ** 2 / ((1 - u) ** 2 + u**2), num_timesteps, max_beta=1.0)


def zero_terminal_snr(betas: Sequence[float]) -> list[float]:
    """Rescale betas so that the last timestep has no signal (Lin et al. 2024, algorithm 1).

    sqrt(alpha_bar) is shifted to end at 0 and scaled to start at its old value. The first beta
    stays, the scale cancels in the others, and the last beta is exactly 1.

    Raises:
        InvalidArgument: fewer than two betas, or an alpha_bar that does not fall.
    """
    alphas = [math.sqrt(level) for level in accumulate((1 - beta for beta in betas), mul)]
    if len(alphas) < 2 or any(after >= before for before, after in pairwise([1.0, *alphas])):
        raise InvalidArgument("zero terminal SNR needs two betas or more, and a signal that falls")
    levels = [(alpha - alphas[-1]) ** 2 for alpha in alphas]
    return [betas[0], *(1 - after / before for before, after in pairwise(levels))]


def shift_log_snr(betas: Sequence[float], shift: float) -> list[float]:
    """Return betas whose log-SNR is higher by `shift` at every timestep.

    Neighboring pixels of a large image are redundant, so the same noise hides less of it. At d
    times the side, a shift of -2 log d compensates for this (Hoogeboom et al. 2023). Timesteps
    without signal stay without.
    """
    levels = [1.0, *accumulate((1 - beta for beta in betas), mul)]
    scale = math.exp(shift)
    moved = [scale * level / (1 - level + scale * level) for level in levels]
    ratios = [after / before if before > 0 else 0.0 for before, after in pairwise(moved)]
    return [1 - ratio for ratio in ratios]


def _make_betas(
    alpha_bar: Callable[[float], float], num_timesteps: int, max_beta: float = MAX_BETA
) -> list[float]:
    """Return beta_t = 1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), at most `max_beta`."""
    levels = [alpha_bar(i / num_timesteps) for i in range(num_timesteps + 1)]
    ratios = [after / before if before > 0 else 0.0 for before, after in pairwise(levels)]
    return _cap([1 - ratio for ratio in ratios], max_beta)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _linspace(first: float, last: float, n: int) -> list[float]:
    return [first + (last - first) * i / max(n - 1, 1) for i in range(n)]


def _cap(betas: list[float], max_beta: float = MAX_BETA) -> list[float]:
    return [min(beta, max_beta) for beta in betas]


SCHEDULES: Registry[Schedule] = Registry(
    "schedules", entries_by_name(linear, quadratic, constant, cosine, sigmoid, sqrt, laplace, flow)
)


# -- spacings -------------------------------------------------------------------------------------

# Timesteps of a sampler: `(n, log_snrs) -> times`, descending.
#
# `log_snrs` holds log(alpha^2 / sigma^2) for t = 0 ... T-1, so its length is T.

Spacing = Callable[[int, Sequence[float]], list[int] | list[float]]


def trailing(n: int, log_snrs: Sequence[float]) -> list[int]:
    """From T-1, pure noise, in steps of T/n, rounded (Lin et al. 2024, table 2)."""
    size = len(log_snrs)
    return [round(size - i * size / n) - 1 for i in range(n)]


def leading(n: int, log_snrs: Sequence[float]) -> list[int]:
    """Multiples of T // n down to 0 (Song et al. 2021a): does not start at T-1."""
    stride = len(log_snrs) // n
    return [i * stride for i in reversed(range(n))]


def linspace(n: int, log_snrs: Sequence[float]) -> list[int]:
    """n evenly spaced timesteps from T-1 to 0, both included."""
    last = len(log_snrs) - 1
    return [round(last * (1 - i / max(n - 1, 1))) for i in range(n)]


def karras(n: int, log_snrs: Sequence[float], rho: float = 7.0) -> list[float]:
    """sigma^(1/rho) evenly spaced, sigma = exp(-log_snr / 2) (Karras et al. 2022, eq. 5).

    Times are real numbers, with interpolated log-SNR. If sigma is infinite at T-1, that time comes
    first, and the others are spaced over the rest.
    """
    if log_snrs[-1] == -math.inf:
        noise = [len(log_snrs) - 1.0]
        return noise + karras(n - 1, log_snrs[:-1], rho) if n > 1 else noise
    first, last = (math.exp(-value / 2 / rho) for value in (log_snrs[-1], log_snrs[0]))
    ramp = [first + (last - first) * i / max(n - 1, 1) for i in range(n)]
    return [find_time(-2 * rho * math.log(root), log_snrs) for root in ramp]


def early(n: int, log_snrs: Sequence[float], rho: float = 0.6) -> list[int]:
    """Most steps at high noise: the angle atan(sigma / alpha) falls as (1 - i/n)^rho from T-1 on.

    Times are the nearest timesteps, each at most once. Under `cosine` the angle is proportional to
    t, and rho = 1 is trailing. Details narrower than a pixel become too weak
    (benchmarks/README.md, "Spacings").
    """
    return _falling(n, [math.atan(math.exp(-value / 2)) for value in log_snrs], rho)


def wide(n: int, log_snrs: Sequence[float]) -> list[int]:
    """Return trailing times of a `cosine` whose log-SNR is 1 + 5/n times as wide, around -1.

    Compared with `trailing`, more steps are at high noise, where structures wider than a pixel take
    shape, and at low noise, where details do. Times are the nearest timesteps, each at most once.
    """
    width = 1 + 5 / n
    return _falling(n, [math.atan(math.exp(-(value + 1) / 2 / width)) for value in log_snrs])


def _falling(n: int, angles: Sequence[float], rho: float = 1.0) -> list[int]:
    """Return timesteps from the last one down whose angles fall as (1 - i/n)^rho."""
    times: list[int] = []
    for i in range(n):
        angle = angles[-1] * (1 - i / n) ** rho
        above = bisect_left(angles, angle)
        nearest = min((above - 1, above), key=lambda t: abs(angles[max(t, 0)] - angle))
        highest = times[-1] - 1 if times else len(angles) - 1
        times.append(min(max(nearest, n - 1 - i), highest))
    return times


def find_time(log_snr: float, log_snrs: Sequence[float]) -> float:
    """Return the real time at which the descending `log_snrs` pass `log_snr`."""
    rising = [-value for value in log_snrs]
    if len(rising) == 1:
        return 0.0
    i = min(max(bisect_left(rising, -log_snr), 1), len(rising) - 1)
    if math.isinf(rising[i]):  # at SNR 0, to which nothing can be interpolated
        return float(i) if log_snr == -math.inf else i - 1.0
    time = i - (rising[i] + log_snr) / (rising[i] - rising[i - 1])
    return min(max(time, 0.0), len(rising) - 1.0)


SPACINGS: Registry[Spacing] = Registry(
    "spacings", entries_by_name(trailing, leading, linspace, karras, early, wide)
)
