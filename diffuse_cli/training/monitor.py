"""Measurements of a run's EMA weights: held-out loss, previews, KID and the best model.

Measuring does not affect the training. Checkpoints contain the results, so a resumed run compares
with the same best model and repeats a measurement that a signal cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.core import Denoiser, denoising_errors
from diffuse_cli.data.samples import select_evenly
from diffuse_cli.media import MEDIA, figures
from diffuse_cli.metrics import Measurement, label, memorization
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.models import model_file
from diffuse_cli.sampling.setting_search import FeatureMeasure
from diffuse_cli.system import (
    DivergedError,
    ModelFileError,
    Notice,
    Progress,
    StopRequest,
    Work,
    files,
    is_out_of_memory,
)
from diffuse_cli.system.accelerator import log_image
from diffuse_cli.training import chores, overfitting, previews, run_events, start_report, validation
from diffuse_cli.training.run_directory import Checkpoint, RunDirectory
from diffuse_cli.training.trainer import HELD_OUT_BATCH, Trainer

T = TypeVar("T")


class Monitor:
    """Previews and evaluations of a run.

    Attributes:
        held_out_loss: the held-out loss at the last preview.
        best: the weights with the lowest KID so far or, in a run of few images without
            --eval-every, the last ones. Weights whose samples show signs of copies do not count.
        copying: the signs of copies at each look for them, by step.
        errors: the errors of x_0 after the last step, or None.
        recommended: the sampling setting to recommend after the last step, or None.
        flaw: the flaw of the samples after the last step, `NOISE`, `INFINITE` or empty.
        finished: the last step after which each chore was finished, by name.
    """

    def __init__(self, trainer: Trainer, run: RunDirectory, stop: StopRequest) -> None:
        self.trainer, self.run, self.stop = trainer, run, stop
        self.config = trainer.config
        self.images = self.config.eval_images or chores.EVAL_IMAGES
        self.held_out_loss: float | None = None
        self.overfitting = overfitting.Overfitting()
        self.best: validation.BestWeights | None = None
        self.copying: dict[int, memorization.Signs] = {}
        self.finished: dict[str, int] = {}
        self.errors: denoising_errors.DenoisingErrors | None = None
        self.recommended: SamplerChoice | None = None
        self.flaw = ""
        self._loss, self._readings = 0.0, 0
        self._many = MEDIA[trainer.plan.data.images.medium].many
        self._kid: FeatureMeasure | None = None
        self._copies: validation.CopyMeasure | None = None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as plain values, without the best weights."""
        return {
            "overfitting": asdict(self.overfitting),
            "best": self.best.values if self.best else None,
            "finished": self.finished,
            "copying": {str(step): asdict(signs) for step, signs in self.copying.items()},
            "errors": self.errors.plain if self.errors else None,
            "recommended": self.recommended.to_dict() if self.recommended else None,
            "loss": self._loss,
            "readings": self._readings,
        }

    def restore(self, saved: Checkpoint) -> Work[None]:
        """Restore the state from a checkpoint."""
        state = saved.state["watch"]
        self.overfitting = overfitting.Overfitting.from_state(state["overfitting"])
        self._loss, self._readings = state["loss"], state["readings"]
        self.finished, copying = state["finished"], state["copying"]
        self.copying = {int(step): memorization.Signs(**signs) for step, signs in copying.items()}
        errors, recommended = state["errors"], state["recommended"]
        self.errors = denoising_errors.read(errors) if errors else None
        self.recommended = SamplerChoice.from_dict(recommended) if recommended else None
        best = state["best"]
        if best and self.config.eval_every and "images" not in best:
            best = None  # the last weights without signs of copies have no KID
        self.best = validation.BestWeights(best, saved.best) if best else None
        before = self.best.values.get("images", self.images) if self.best else self.images
        goes_on = saved.step < self.trainer.progress.steps
        if self.config.eval_every and before != self.images and goes_on:
            yield Notice(
                f"the best model so far was found with {before} {self._many} per evaluation, not "
                f"{self.images}: the search starts again and replaces {files.show(self.run.best)}"
            )
            self.best = None

    def load_judges(self) -> Work[None]:
        """Load the real images and the feature network, before anything is replaced.

        Raises:
            UsageError, ModelFileError: as `choose_real` and `choose_network`.
        """
        plan, device = self.trainer.plan, self.trainer.device
        if self.config.eval_every:
            real = validation.read_samples(plan, (yield from validation.choose_real(plan)))
            network = validation.choose_network(plan.blueprint.space, real, device)
            self._kid = FeatureMeasure(network, plan.blueprint.space, real)
        may_grow = self.config.minutes is not None and chores.can_look(plan)
        if self._looks or may_grow:
            samples = plan.data.read(plan.data.train[: validation.REAL_IMAGES])
            try:
                network = validation.choose_network(plan.blueprint.space, samples, device)
            except ModelFileError as error:  # which must not end a run without --eval-every
                yield Notice(f"copies are not looked for: {error.message}", warning=True)
                return
            self._copies = validation.CopyMeasure(plan, network)

    def write_best(self) -> None:
        """Make the best model's file agree with the state, also after a killed run."""
        if not self.config.eval_every:
            return
        if self.best is not None:
            self.run.write(self.run.best, self._make_model(self.best))
        else:
            files.remove(self.run.best)

    def _make_model(self, best: validation.BestWeights) -> model_file.StoredModel:
        average, raw, _ = model_file.split_weights(best.tensors)
        weak = self.trainer.weak
        step, steps = best.values["step"], self.trainer.progress.steps
        weak = weak if weak and weak.step <= step else None
        return self.trainer.plan.model(step, steps, average, raw or None, weak)

    def choose_earlier(self, last: int) -> model_file.StoredModel | None:
        """Return the model to keep instead of the one after the last step, if any.

        Without --keep, that is the best one, if samples of the last one are copies. With --keep
        best and --eval-every, it is the one with the lowest KID.
        """
        if self.config.keep == "last" or self.best is None or self.best.values["step"] == last:
            return None
        keeps_best = self.config.keep == "best" and self.config.eval_every is not None
        return self._make_model(self.best) if keeps_best or self._copies_at(last) else None

    def _copies_at(self, step: int) -> bool:
        """Whether samples of the weights after `step` steps are copies."""
        return step in self.copying and self.copying[step].level == "serious"

    def first_copies(self) -> int | None:
        """Return the first step from which on samples were copies, up to the last look, if any."""
        first: int | None = None
        for step in sorted(self.copying):
            first = (first or step) if self._copies_at(step) else None
        return first

    def describe_best(self) -> dict[str, Any] | None:
        """Return the path and metrics of the model with the lowest KID, as plain values."""
        if not (self.best and self.config.eval_every):
            return None
        return {"model": str(self.run.best), **self.best.values}

    def add_loss(self, loss: float | None) -> None:
        """Add a mean training loss to the average between two previews."""
        if loss is not None and math.isfinite(loss):
            self._loss, self._readings = self._loss + loss, self._readings + 1

    def is_due(self, step: int, end: int) -> bool:
        """Whether a measurement is due after `step` steps, including one that was cut off."""
        return step > 0 and any(self._find_due(step, end))

    def _find_due(self, step: int, end: int) -> Iterator[str]:
        """Yield the names of the measurements that are due."""
        steps = self.trainer.progress.steps
        for chore in chores.list_chores(self.trainer.plan, steps):
            name, due = chore.name, chore.is_due(step, steps, end)
            possible = name in WORK and (name != chores.COPIES or self._copies is not None)
            if due and possible and not self.has_finished(name, step):
                yield name

    @property
    def _looks(self) -> chores.Looks | None:
        return chores.plan_looks(self.trainer.plan, self.trainer.progress.steps)

    def has_finished(self, chore: str, step: int) -> bool:
        """Whether a chore was last finished after `step` steps."""
        return self.finished.get(chore) == step

    def work(self, step: int, end: int) -> Iterator[tuple[str, Work[None]]]:
        """Yield the name and the work of each chore that is due. A signal ends the work at once."""
        self.flaw = ""
        for name in self._find_due(step, end):
            if name == chores.PREVIEW or self.stop() is None:
                yield name, WORK[name](self, step)

    def _attempt(self, work: Work[T], doing: str) -> Work[T | None]:
        """Pass on the events and result of `work`.

        If memory runs out or samples are not finite, warn and return None.
        """
        try:
            return (yield from work)
        except DivergedError as error:
            reason, self.flaw = error.message, start_report.INFINITE
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = "out of memory"
        yield Notice(f"{reason} while {doing}: skipped", warning=True)
        return None

    def log(self, step: int, values: Mapping[str, float], **extra: float) -> None:
        """Add a line to metrics.jsonl, and all values except `extra` to the trackers of --log."""
        self.run.log(step=step, **values, **extra)
        if self.config.log:
            self.trainer.accelerator.log(dict(values), step=step)

    def _preview(self, step: int) -> Work[None]:
        """Measure the held-out loss, generate a preview, and warn of overfitting."""
        previewed, losses = yield from self.stop.run(self._make_preview(step))
        self.finished[chores.PREVIEW], self.held_out_loss = step, previewed.held_out_loss
        training = self._loss / self._readings if self._readings else None
        self._loss, self._readings = 0.0, 0
        measured = overfitting.HeldOutLosses(step, losses, training) if losses else None
        if measured and (text := self.overfitting.add_measurement(measured)):
            if (best := self.best) and self.config.eval_every:
                text += f". {files.show(self.run.best)} is the best by {label(best.key)}"
            yield Notice(text, warning=True)

    def _make_preview(self, step: int) -> Work[tuple[run_events.Previewed, tuple[float, ...]]]:
        """Generate the preview, and measure the loss of each held-out image.

        A distilled model returns no losses, because it learns from noise and cannot memorize
        images.
        """
        mean = None
        losses = yield from self._attempt(self._measure_losses(), "measuring the held-out loss")
        if losses is not None:
            mean = sum(float(part.sum()) for part in losses.split(HELD_OUT_BATCH)) / len(losses)
            self.log(step, {"held_out_loss": mean})
        drawing, path = previews.draw_preview(self.trainer), None
        picture = yield from self._attempt(drawing, "generating the preview")
        if picture is not None:
            path = self.run.previews / f"step-{step:08d}.png"
            files.write_bytes(path, figures.encode_png(picture))
            log_image(self.trainer.accelerator, "preview", picture, step)
        previewed = run_events.Previewed(step, mean, path)
        yield previewed
        if losses is None or self.trainer.matching:
            return previewed, ()
        return previewed, tuple(losses.tolist())

    def _measure_losses(self) -> Work[Tensor | None]:
        yield from ()
        return self.trainer.held_out_losses()

    def _compare(self, step: int) -> Work[None]:
        """Look for signs of copies, and keep the EMA weights if there are none."""
        work = self._attempt(self.find_copies(), "looking for copies")
        compared = yield from self.stop.run(work)
        self.finished[chores.COPIES] = step
        if compared is None:
            return
        values, signs = compared
        self.copying[step] = signs
        self.log(step, values)
        if not self._copies_at(step) and not self.config.eval_every and self.config.keep != "last":
            self.best = validation.BestWeights({"step": step}, self._copy_weights())
        yield run_events.Compared(step, signs, values.get("memorized_noticed"))

    def find_copies(self) -> Work[tuple[dict[str, float], memorization.Signs]]:
        """Compare samples of the EMA weights with training images."""
        looks = self._looks
        assert self._copies is not None
        assert looks is not None
        samples = yield from validation.generate(self.trainer, looks.count)
        values = yield from self._copies.compare(samples)
        return values, memorization.find_signs(values, looks.count)

    def _validate(self, step: int) -> Work[None]:
        """Measure the KID of the EMA weights, and keep them if they are the best so far.

        Weights count as best only without signs of copies at the last look for them.

        Raises:
            Interrupted, Terminated: a signal arrived. The state stays unchanged.
        """
        metrics = yield from self.stop.run(self._attempt(self.measure_kid(), "evaluating"))
        self.finished[chores.EVALUATION] = step
        if metrics is None:
            return
        [key] = [key for key in KIDS if key in metrics]
        kid, error = metrics[key], metrics.get(f"{key}_standard_error")
        self.log(step, metrics)
        if self._kid and step == self.trainer.progress.steps:
            noise = yield from self._kid.is_noise(Measurement(kid, error or 0.0))
            self.flaw = start_report.NOISE if noise else ""
        better = kid < (self.best.values[self.best.key] if self.best else math.inf)
        better &= not self._copies_at(self.finished.get(chores.COPIES, 0))
        if better:
            values = {"step": step, key: kid, f"{key}_standard_error": error, "images": self.images}
            self.best = validation.BestWeights(values, self._copy_weights())
            self.write_best()
        yield run_events.Validated(step, key, kid, error, self.run.best if better else None)

    def measure_kid(self) -> Work[dict[str, float]]:
        """Return the KID of the EMA weights."""
        assert self._kid is not None
        samples = yield from validation.generate(self.trainer, self.images)
        return (yield from self._kid.compare(samples))

    def _measure_errors(self, step: int) -> Work[None]:
        """Measure the errors of x_0, for the variance `optimal`."""
        work = self._attempt(self._average_errors(), "measuring errors")
        self.errors = yield from self.stop.run(work)
        self.finished[chores.ERRORS] = step

    def _average_errors(self) -> Work[denoising_errors.DenoisingErrors | None]:
        """Measure the errors of x_0 of the EMA weights on evenly spaced held-out images.

        If no images are held out, they are training images. Returns None if an error is infinite.
        """
        trainer, data = self.trainer, self.trainer.plan.data
        count = chores.count_measured_images(trainer.plan, trainer.progress.steps)
        images = data.held_out if len(data.held_out) else data.train
        measure = trainer.losses_on(select_evenly(images, count))
        timesteps = denoising_errors.choose_timesteps(trainer.denoiser.process)
        errors: dict[int, Tensor] = {}
        for t in timesteps:
            yield Progress("measuring errors", len(errors), len(timesteps))
            errors[t] = torch.cat(list(measure(Denoiser.squared_error, at=t))).cpu()
        return denoising_errors.average(timesteps, errors)

    def errors_at(self, step: int) -> denoising_errors.DenoisingErrors | None:
        """Return the errors of x_0 with the weights after `step` steps, if they were measured."""
        return self.errors if self.has_finished(chores.ERRORS, step) else None

    def _choose_settings(self, step: int) -> Work[None]:
        """Choose the sampling setting to recommend."""
        trials = validation.choose_settings(self.trainer)
        work = self._attempt(trials, "choosing sampling settings")
        self.recommended, noise = (yield from self.stop.run(work)) or (None, None)
        if noise is not None:
            self.flaw = start_report.NOISE if noise else ""
        self.finished[chores.SETTINGS] = step
        if self.recommended:
            yield Notice(f"recommended for sampling, by the lowest KID: {self.recommended}")

    def recommendation_at(self, step: int) -> SamplerChoice | None:
        """Return the setting chosen with the weights after `step` steps, if any."""
        return self.recommended if self.has_finished(chores.SETTINGS, step) else None

    def _copy_weights(self) -> dict[str, Tensor]:
        """Copy the weights of this step's model file, without the early EMA weights."""
        average, raw = self.trainer.ema.net.state_dict(), self.trainer.raw_weights()
        tensors = model_file.merge_weights(average, raw)
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


WORK: Mapping[str, Callable[[Monitor, int], Work[None]]] = {
    chores.PREVIEW: Monitor._preview,
    chores.COPIES: Monitor._compare,
    chores.EVALUATION: Monitor._validate,
    chores.ERRORS: Monitor._measure_errors,
    chores.SETTINGS: Monitor._choose_settings,
}
"""The work of each chore of the monitor, after a number of steps."""
