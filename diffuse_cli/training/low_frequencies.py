"""The low frequencies of what a model is trained on, for a Gaussian start of sampling."""

from __future__ import annotations

import numpy as np
import torch

from diffuse_cli.core.low_frequencies import LowFrequencies, measure
from diffuse_cli.training.feed import readable
from diffuse_cli.training.plan import Plan

MOST, NUMBERS = 512, 2**24
"""The most samples that are measured, and the most numbers in them: the deviation of the mean
brightness is then known to 3 %."""


def low_frequencies(plan: Plan) -> LowFrequencies | None:
    """Those of samples evenly spaced among the ones trained on; None for a model that is told
    something or distilled, which is not sampled from them."""
    if plan.blueprint.conditions or plan.teacher:
        return None
    space = plan.blueprint.space
    most = min(MOST, max(2, NUMBERS // int(np.prod(space.shape))), len(plan.train))
    places = np.linspace(0, len(plan.train) - 1, most).round().astype(np.int64)
    stored = plan.images.stored[readable(plan, plan.train[places])]
    samples = space.to_model(torch.from_numpy(np.ascontiguousarray(stored))).cpu()
    if plan.config.flip:
        samples = torch.cat([samples, samples.flip(-1)])
    return measure(samples)
