"""Which timesteps a sampler visits: `(n, log_snrs) -> times`, descending.

`log_snrs` holds log(alpha^2 / sigma^2) for t = 0 ... T-1; its length is T.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from diffuse_cli.core.registry import Registry

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

    Times are real numbers; log-SNR is interpolated. If sigma is infinite at T-1, that time comes
    first and the others are spaced over the rest.
    """
    if log_snrs[-1] == -math.inf:
        noise = [len(log_snrs) - 1.0]
        return noise + karras(n - 1, log_snrs[:-1], rho) if n > 1 else noise
    first, last = (math.exp(-value / 2 / rho) for value in (log_snrs[-1], log_snrs[0]))
    ramp = [first + (last - first) * i / max(n - 1, 1) for i in range(n)]
    return [_time_of(-2 * rho * math.log(root), log_snrs) for root in ramp]


def early(n: int, log_snrs: Sequence[float], rho: float = 0.6) -> list[int]:
    """Most steps at much noise: the angle atan(sigma / alpha) falls as (1 - i/n)^rho, from T-1 on,
    to the nearest timesteps, each at most once.

    Under `cosine` the angle is proportional to t, and rho = 1 is trailing. Components narrower than
    a pixel come out too weak (benchmarks/README.md, "Spacings").
    """
    return _falling(n, [math.atan(math.exp(-value / 2)) for value in log_snrs], rho)


def wide(n: int, log_snrs: Sequence[float]) -> list[int]:
    """Return trailing times of a `cosine` whose log-SNR is 1 + 5/n times as wide, around -1.

    More steps than trailing has at much noise, where structures wider than a pixel take shape, and
    at little noise, where details do. Nearest timesteps, each at most once.
    """
    width = 1 + 5 / n
    return _falling(n, [math.atan(math.exp(-(value + 1) / 2 / width)) for value in log_snrs])


def _falling(n: int, angles: Sequence[float], rho: float = 1.0) -> list[int]:
    """Return timesteps from the last one on, whose angles fall as (1 - i/n)^rho."""
    times: list[int] = []
    for i in range(n):
        wanted = angles[-1] * (1 - i / n) ** rho
        above = bisect_left(angles, wanted)
        nearest = min((above - 1, above), key=lambda t: abs(angles[max(t, 0)] - wanted))
        highest = times[-1] - 1 if times else len(angles) - 1
        times.append(min(max(nearest, n - 1 - i), highest))
    return times


def _time_of(log_snr: float, log_snrs: Sequence[float]) -> float:
    """The real time at which the falling `log_snrs` pass `log_snr`."""
    rising = [-value for value in log_snrs]
    if len(rising) == 1:
        return 0.0
    i = min(max(bisect_left(rising, -log_snr), 1), len(rising) - 1)
    time = i - (rising[i] + log_snr) / (rising[i] - rising[i - 1])
    return min(max(time, 0.0), len(rising) - 1.0)


SPACINGS: Registry[Spacing] = Registry(
    "spacings",
    {
        "trailing": trailing,
        "leading": leading,
        "linspace": linspace,
        "karras": karras,
        "early": early,
        "wide": wide,
    },
)
