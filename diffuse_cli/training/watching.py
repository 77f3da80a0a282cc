"""What a run measures of its averaged weights on the way: looks, evaluations, the best model.

Nothing of it touches the training. What is remembered is state: a run that is resumed goes on
comparing with the same best, and what was abandoned for a signal is made up for.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffuse_cli import files, modelfile
from diffuse_cli.errors import Interrupted, Terminated
from diffuse_cli.events import Notice, Stop, Work, until
from diffuse_cli.runtime import out_of_memory
from diffuse_cli.training.evaluating import IMAGES, Best, Evaluator, best_of
from diffuse_cli.training.looking import look
from diffuse_cli.training.overfitting import Look, Overfitting
from diffuse_cli.training.reports import Evaluated
from diffuse_cli.training.rundir import Checkpoint, RunDirectory
from diffuse_cli.training.saving import model_of
from diffuse_cli.training.trainer import Trainer

if TYPE_CHECKING:
    from torch import Tensor


class Watch:
    """Looks and evaluations of a run.

    Attributes:
        held_out_loss: of the last look.
        best: the weights with the lowest KID so far.
        looked, evaluated: the steps of the last look and evaluation that were finished.
    """

    def __init__(self, trainer: Trainer, run: RunDirectory, stop: Stop) -> None:
        self.trainer, self.run, self.stop = trainer, run, stop
        self.config = trainer.config
        self.images = self.config.eval_images or IMAGES
        self.held_out_loss: float | None = None
        self.overfitting = Overfitting()
        self.best: Best | None = None
        self.looked: int | None = None
        self.evaluated: int | None = None
        self._loss, self._readings = 0.0, 0
        self._evaluator: Evaluator | None = None

    # -- state -------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the best weights, as plain values."""
        return {
            "overfitting": self.overfitting.state(),
            "best": self.best.values() if self.best else None,
            "looked": self.looked,
            "evaluated": self.evaluated,
            "loss": self._loss,
            "readings": self._readings,
        }

    def tensors(self) -> Mapping[str, Tensor]:
        """The best weights."""
        return self.best.tensors if self.best else {}

    def restore(self, saved: Checkpoint) -> Work[None]:
        """Go back to a checkpoint; one of an earlier version has nothing of it."""
        state = saved.state.get("watch")
        if state is None:
            return
        self.overfitting.restore(state["overfitting"])
        self._loss, self._readings = state["loss"], state["readings"]
        self.looked, self.evaluated = state.get("looked"), state["evaluated"]
        self.best = best_of(state["best"], saved.best) if state["best"] else None
        if self.best and self.config.eval_every and self.best.images != self.images:
            yield Notice(
                f"the best model so far was found with {self.best.images} images an evaluation, "
                f"not {self.images}: the search begins anew, and {files.show(self.run.best)} goes"
            )
            self.best = None

    def begin(self) -> Work[None]:
        """Have the real images and the feature network, before anything is replaced.

        Raises:
            UsageError, ModelFileError: as `Evaluator`.
        """
        if self.config.eval_every:
            self._evaluator = Evaluator(self.trainer.plan, self.images, self.trainer.device)
            if not self._evaluator.held_out:
                yield Notice("nothing is held out: --eval-every compares with training images")

    def settle(self) -> None:
        """Write the best model's file where it is missing or of another step, and remove one that
        is not the state's: whatever a killed run left."""
        if self.best is not None:
            model = self._model(self.best)
            if not modelfile.holds(self.run.best, model):
                modelfile.save(self.run.best, model)
        elif self.config.eval_every:
            files.remove(self.run.best)

    def found(self) -> dict[str, Any] | None:
        """The best model's file and how good it is, as plain values."""
        return {"model": str(self.run.best), **self.best.values()} if self.best else None

    def _model(self, best: Best) -> modelfile.Model:
        own = {n: t for n, t in best.tensors.items() if not n.startswith(modelfile.RAW)}
        start = len(modelfile.RAW)
        raw = {n[start:]: t for n, t in best.tensors.items() if n.startswith(modelfile.RAW)}
        return model_of(self.trainer.plan, best.step, own, raw or None)

    # -- when --------------------------------------------------------------------------------------

    def logged(self, loss: float | None) -> None:
        """A mean training loss was read."""
        if loss is not None and math.isfinite(loss):
            self._loss, self._readings = self._loss + loss, self._readings + 1

    def due(self, done: int, end: int) -> bool:
        """Whether something is to be done after `done` steps that is not done yet: with a run that
        goes on from there, what was abandoned."""
        return done > 0 and (self._look_due(done, end) or self._evaluation_due(done))

    def _look_due(self, done: int, end: int) -> bool:
        return self.looked != done and (done % self.config.preview_every == 0 or done == end)

    def _evaluation_due(self, done: int) -> bool:
        # Not where --stop-at ends: a run in one go would not evaluate there.
        every = self.config.eval_every
        here = every is not None and (done % every == 0 or done == self.config.steps)
        return here and self.evaluated != done

    # -- work --------------------------------------------------------------------------------------

    def work(self, done: int, end: int) -> Work[None]:
        """Look and evaluate where it is due; a signal ends that at once."""
        with contextlib.suppress(Interrupted, Terminated):
            if self._look_due(done, end):
                yield from self._look(done)
            if self._evaluation_due(done):
                yield from self._evaluate(done)

    def _look(self, done: int) -> Work[None]:
        looked, losses = yield from until(self.stop, look(self.trainer, self.run, done))
        self.looked, self.held_out_loss = done, looked.held_out_loss
        training = self._loss / self._readings if self._readings else None
        self._loss, self._readings = 0.0, 0
        text = self.overfitting.see(Look(done, losses, training)) if losses else None
        if text:
            kept = f"; {files.show(self.run.best)} is the best by KID" if self.best else ""
            yield Notice(text + kept, warning=True)

    def _evaluate(self, done: int) -> Work[None]:
        """Measure the averaged weights, and keep them where they are the best so far.

        Raises:
            Interrupted, Terminated: a signal came; nothing is changed then.
        """
        found = yield from until(self.stop, self._measure())
        self.evaluated = done
        if not found:
            return
        kid, error = found["kid"], found.get("kid_standard_error")
        self.run.log(step=done, **found)
        if self.config.log:
            self.trainer.accelerator.log(found, step=done)
        better = kid < (self.best.kid if self.best else float("inf"))
        if better:
            self.best = Best(done, kid, error, self.images, self._weights())
            self.settle()
        yield Evaluated(done, kid, error, self.run.best if better else None)

    def _measure(self) -> Work[dict[str, float]]:
        """The KID, or nothing where the memory does not hold it."""
        assert self._evaluator is not None
        try:
            return (yield from self._evaluator.kid(self.trainer.ema_net))
        except Exception as error:
            if not out_of_memory(error):
                raise
        yield Notice("out of memory while evaluating: it is left out", warning=True)
        return {}

    def _weights(self) -> dict[str, Tensor]:
        """A copy of what the model file of this step would hold."""
        tensors = dict(self.trainer.ema.net.state_dict())
        if self.config.keep_raw:
            raw = self.trainer.net.state_dict()
            tensors |= {modelfile.RAW + name: tensor for name, tensor in raw.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
