"""Chores of a run besides its steps: when each is due, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from diffuse_cli.core import denoising_errors
from diffuse_cli.metrics import baselines
from diffuse_cli.sampling.setting_search import WEAK_CANDIDATES
from diffuse_cli.training import previews
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.time_budget import Chore, Chores

PREVIEW, COPIES, EVALUATION, ERRORS, SETTINGS, SAVE = (
    "preview", "copies", "evaluation", "errors", "settings", "save",
)  # fmt: skip
"""The names of chores."""

EVAL_IMAGES = 256
"""Default of --eval-images."""

PREVIEWS, SHARE, MIDDLE_SHARE = 8, 150, 10
"""Without --preview-every a run has PREVIEWS previews, or fewer if they would take more than
1/SHARE of the time of its steps. One in the middle may take 1/MIDDLE_SHARE, for short runs."""

FEWEST_MEASURED, MOST_MEASURED, MEASURED_SHARE = 4, 256, 200
"""Images on which the errors of x_0 are measured after the last step: as many as keep their passes
below 1/MEASURED_SHARE of the passes of the steps, within these limits."""


FEW, MANY = 8, 2000
"""Copies are looked for among FEW training images, which are references of each other, or more, and
fewer than MANY."""

LOOKS_SHARE, SEEN = 50, 100
"""Looking for copies takes at most 1/LOOKS_SHARE of the passes of the steps, in runs that see each
image SEEN times or more: fewer make no copies (benchmarks/README.md)."""

FEWEST_COMPARED, MOST_COMPARED = 64, 256
"""Samples to compare. With fewer than FEWEST_COMPARED, only high rates of copies would be noticed.
"""

FEATURES = 4
"""Cost of a sample's features, in passes of `tiny` at 64x64: about 10 ms of a core."""

TRIALS_SHARE = 20
"""Trials of sampling settings take at most 1/TRIALS_SHARE of the passes of the steps."""

FEWEST_TRIED, MOST_TRIED, REFERENCES = 16, 128, 128
"""Samples of a trial, and the most training images that they are compared with. The KID of the
choice was on average 4 % above the best candidate's with 16 samples, and 1 % with 64."""


def preview_spacing(plan: Plan, steps: int) -> int:
    """Return the steps between previews in a run of `steps` steps, also after it is resumed."""
    if plan.config.preview_every:
        return plan.config.preview_every
    passes, step = previews.passes_of_preview(plan), previews.passes_of_step(plan)
    middle = max(-(-steps // 2), -(-MIDDLE_SHARE * passes // step))
    return max(-(-steps // PREVIEWS), min(middle, -(-SHARE * passes // step)))


def count_measured_images(plan: Plan, steps: int) -> int:
    """Return the number of images on which to measure errors after a run of `steps` steps."""
    passes = steps * previews.passes_of_step(plan) // MEASURED_SHARE
    images = len(plan.data.held_out) or len(plan.data.train)
    return min(images, MOST_MEASURED, max(FEWEST_MEASURED, passes // denoising_errors.POINTS))


@dataclass(frozen=True)
class Looks:
    """Looks for copies, every `every` steps and after the last one, at `count` samples each."""

    every: int
    count: int


def can_look(plan: Plan) -> bool:
    """Whether copies are looked for: among few images, if the run is long enough.

    A model that is conditioned on images or metadata may be asked for its training images.
    """
    count = len(plan.data.train)
    return FEW <= count < MANY and plan.teacher is None and not previews.uses_images(plan)


def plan_looks(plan: Plan, steps: int) -> Looks | None:
    """Plan looks in a run of `steps` steps: at each preview, or at fewer to afford the samples.

    None without a search, or if the run is too short.
    """
    if not can_look(plan) or steps * plan.config.images_per_step < SEEN * len(plan.data.train):
        return None
    preview_every = preview_spacing(plan, steps)
    passes = steps * previews.passes_of_step(plan) // LOOKS_SHARE - FEATURES * len(plan.data.images)
    count = max(0, passes) // passes_of_comparing(plan, 1)
    looks = min(-(-steps // preview_every), count // FEWEST_COMPARED)
    if looks == 0:
        return None
    every = preview_every * -(-steps // (preview_every * looks))
    return Looks(every, min(MOST_COMPARED, count // -(-steps // every)))


def passes_of_comparing(plan: Plan, count: int) -> int:
    """Return the forward passes to generate `count` samples and to extract their features."""
    return previews.passes_of_drawing(plan, count) + FEATURES * count


def plan_trials(plan: Plan, steps: int) -> tuple[int, int]:
    """Return the number of trials after a run of `steps` steps, and the samples of each.

    A short run has fewer trials: only the default, or none.
    """
    if len(plan.data.train) < FEWEST_TRIED or plan.teacher or previews.uses_images(plan):
        return 0, 0
    passes = steps * previews.passes_of_step(plan) // TRIALS_SHARE - _count_fixed_passes(plan)
    samples = max(0, passes) // passes_of_comparing(plan, 1)
    guided = len(WEAK_CANDIDATES) if plan.config.keep_weak else 0
    trials = min(1 + guided, samples // FEWEST_TRIED)
    return (trials, min(MOST_TRIED, samples // trials)) if trials else (0, 0)


def count_trial_passes(plan: Plan, steps: int) -> int:
    """Return the cost of all trials after a run of `steps` steps, in forward passes."""
    trials, count = plan_trials(plan, steps)
    return _count_fixed_passes(plan) + trials * passes_of_comparing(plan, count) if trials else 0


def _count_fixed_passes(plan: Plan) -> int:
    """Return the cost of the features of training images and of noise, in forward passes."""
    return FEATURES * (min(REFERENCES, len(plan.data.train)) + baselines.IMAGES)


def list_chores(plan: Plan, steps: int) -> Iterator[Chore]:
    """Yield the chores of a run of `steps` steps, in the order in which they are done.

    An image's pass costs as much as in a step: without gradients it took 0.7 (64x64) to 1.1
    (128x128) of that on a CPU. The cost of saving is not guessed. A distilled model does not
    predict the mean of x_0, so its errors are not measured.
    """
    a_pass = 1 / previews.passes_of_step(plan)
    config, every = plan.config, preview_spacing(plan, steps)
    yield Chore(PREVIEW, every, previews.passes_of_preview(plan) * a_pass, at_stop=True)
    if looks := plan_looks(plan, steps):
        yield Chore(COPIES, looks.every, passes_of_comparing(plan, looks.count) * a_pass)
    if config.eval_every:
        passes = previews.passes_of_drawing(plan, config.eval_images or EVAL_IMAGES)
        yield Chore(EVALUATION, config.eval_every, passes * a_pass)
    if plan.teacher is None:
        passes = denoising_errors.POINTS * count_measured_images(plan, steps)
        yield Chore(ERRORS, steps, passes * a_pass, at_stop=True)
    if passes := count_trial_passes(plan, steps):
        yield Chore(SETTINGS, steps, passes * a_pass, at_stop=True)
    yield Chore(SAVE, config.save_every or every, 0.0)


def plan_chores(plan: Plan) -> Chores:
    """Return the function that lists the chores of a run by its number of steps."""
    return partial(list_chores, plan)
