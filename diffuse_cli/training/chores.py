"""Chores of a run besides its steps: when each is due, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator

from diffuse_cli.core import denoising_errors
from diffuse_cli.training import copies, previews, recommendation, validation
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.time_budget import Chore, Chores

PREVIEW, COPIES, EVALUATION, ERRORS, SETTINGS, SAVE = (
    "preview", "copies", "evaluation", "errors", "settings", "save",
)  # fmt: skip
"""The names of chores."""

PREVIEWS, SHARE, MIDDLE_SHARE = 8, 150, 10
"""Without --preview-every a run has PREVIEWS previews, or fewer if they would take more than
1/SHARE of the time of its steps. One in the middle may take 1/MIDDLE_SHARE, for short runs."""

FEWEST_MEASURED, MOST_MEASURED, MEASURED_SHARE = 4, 256, 200
"""Images on which the errors of x_0 are measured after the last step: as many as keep their passes
below 1/MEASURED_SHARE of the passes of the steps, within these limits."""


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


def plan_looks(plan: Plan, steps: int) -> copies.Looks | None:
    """Plan the looks for copies in a run of `steps` steps."""
    return copies.plan_looks(plan, steps, preview_spacing(plan, steps))


def list_chores(plan: Plan, steps: int, a_pass: float = 0.0) -> Iterator[Chore]:
    """Yield the chores of a run of `steps` steps, in the order in which they are done.

    A distilled model does not predict the mean of x_0, so its errors are not measured.

    Args:
        a_pass: the cost of an image's pass, in steps. The cost of saving is not guessed.
    """
    config, every = plan.config, preview_spacing(plan, steps)
    yield Chore(PREVIEW, every, previews.passes_of_preview(plan) * a_pass, at_stop=True)
    if looks := plan_looks(plan, steps):
        yield Chore(COPIES, looks.every, copies.count_passes(plan, looks.count) * a_pass)
    if config.eval_every:
        passes = previews.passes_of_drawing(plan, config.eval_images or validation.IMAGES)
        yield Chore(EVALUATION, config.eval_every, passes * a_pass)
    if plan.teacher is None:
        passes = denoising_errors.POINTS * count_measured_images(plan, steps)
        yield Chore(ERRORS, steps, passes * a_pass, at_stop=True)
    if passes := recommendation.count_passes(plan, steps):
        yield Chore(SETTINGS, steps, passes * a_pass, at_stop=True)
    yield Chore(SAVE, config.save_every or every, 0.0)


def plan_chores(plan: Plan, a_pass: float | None = None) -> Chores:
    """Return the function that lists the chores of a run by its number of steps.

    Args:
        a_pass: the cost of an image's pass, in steps, if it was measured. If not, it is that of a
            pass of a step: without gradients it took 0.7 (64x64) to 1.1 (128x128) of it on a CPU.
    """
    cost = a_pass or 1 / previews.passes_of_step(plan)
    return lambda steps: list_chores(plan, steps, cost)
