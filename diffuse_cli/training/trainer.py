"""Optimizer step: timesteps and noise, loss, backward pass, update, average."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from diffuse_cli.core import TIMESTEP_DRAWS, Denoiser
from diffuse_cli.core.augmentations import count_draws, count_parameters
from diffuse_cli.core.guidance import clamp_denoised
from diffuse_cli.core.kernels import arrange_weights
from diffuse_cli.core.losses import History, locate_timesteps
from diffuse_cli.core.networks import run_checkpointed
from diffuse_cli.media import Indices
from diffuse_cli.system import UsageError, is_out_of_memory, lookup, rng
from diffuse_cli.training import ema_weights, optimization, teacher
from diffuse_cli.training.batches import Batches, Changes
from diffuse_cli.training.plan import Plan

TimestepLosses = list[tuple[Tensor, Tensor]]
"""Timesteps and losses of each forward pass."""

HELD_OUT_BATCH = 64


@dataclass(frozen=True)
class StepResult:
    """Mean loss of a step and its gradient's norm, on the device, because reading waits for it."""

    loss: Tensor
    grad_norm: Tensor


class Chances(NamedTuple):
    """Probabilities of the timesteps: cumulative, and each times T. Both (T,) on the device."""

    edges: Tensor
    relative: Tensor


class Trainer:
    """Network, optimizer and EMA weights of a run, and its training images.

    Attributes:
        progress: the progress schedule of the run.
        batches: the training images.
        net, ema, powers, optimizer, history: the state, with `matching`, `weak`, `unread`, `bad`
            and `accumulation`.
        matching: the last phase of a distillation, or None.
        weak: the early EMA weights, once they are saved.
        unread: the gradient norms of the steps since the last update of the average.
        bad: the number of consecutive last steps whose gradient is known not to be finite.
        accumulation: the forward passes per step, more than configured if memory ran out, and fewer
            if the processes have fewer images.
    """

    def __init__(
        self, plan: Plan, accelerator: Accelerator, init: Mapping[str, Tensor] | None = None
    ) -> None:
        """Make the state before the first step.

        Args:
            init: the weights to start from.
        """
        self.plan, self.config, self.accelerator = plan, plan.config, accelerator
        self.device = accelerator.device
        self.progress = optimization.ProgressSchedule.of(self.config.num_steps)
        self.batch_size = self.config.images_per_step
        # A run that was split on few processes may resume on many.
        self.accumulation = min(self.config.accumulation, self.most_parts)
        self.batches = Batches(plan, self.batch_size, self.device, self.local_positions)
        torch.manual_seed(rng.key(self.config.seed, "weights") & 0xFFFF_FFFF)
        self.net = self._build_network(init)
        self.ema = ema_weights.EmaAverage(self.net, self.config.ema_decay)
        self.powers = ema_weights.PowerAverages(self.net) if self.config.ema_lengths else None
        self.augmentations = self.config.augment or ()
        if self.augmentations:  # not in the averages, which never see changed samples
            cast("Any", self.net).add_augmentation(count_parameters(self.augmentations))
        self.weak: ema_weights.EarlyWeights | None = None
        self.unread: list[Tensor] = []
        self.bad = 0
        self.updater = optimization.Updater(self.config, self.net, accelerator)
        self.optimizer = self.updater.optimizer
        self.denoiser = plan.blueprint.denoiser(self.updater.prepared)
        guide = plan.teacher.make_denoiser(accelerator) if plan.teacher else None
        # Trajectories are clipped as in sampling. The critic is compared without clipping.
        leads = guide and clamp_denoised(guide, self.denoiser)
        self._objective = optimization.Objective(self.config, self.denoiser, self.device, leads)
        self.matching: teacher.DistributionMatching | None = None
        if plan.teacher and guide:
            critic = self._build_network(plan.teacher.model.ema)
            self.matching = teacher.DistributionMatching(
                self.config, plan.blueprint, critic, guide, accelerator
            )
        self._timestep_draw = lookup(TIMESTEP_DRAWS, self.config.timestep_draw, "--timestep-draw")
        self.history = History(self.config.num_timesteps, self._timestep_draw.keep)
        self._chances = self._timestep_chances()

    def _build_network(self, init: Mapping[str, Tensor] | None) -> nn.Module:
        """Build a network with the weights of `init`, or with random weights."""
        blueprint = self.plan.blueprint
        net = blueprint.build()
        if init is not None:
            net.load_state_dict(init)
        if self.config.gradient_checkpointing:
            if not hasattr(net, "run_block"):
                text = f"--gradient-checkpointing does not work with network '{blueprint.network}'"
                raise UsageError(text, "Remove it", code="option_unsuited")
            net.run_block = run_checkpointed  # type: ignore[assignment]
        return arrange_weights(net.to(self.device))

    def step(self, step: int) -> StepResult:
        """Take the step after `step` steps.

        If the loss or the gradient is not finite, no weight changes, and the norm is not finite.
        """
        self.updater.prepared.train()
        if not self.is_matching_phase(step):
            self.ema.forgotten = 0  # also of a run that was extended
        elif step and not self.ema.forgotten:
            self.ema.forgotten = self.ema.updates  # a reset: the next update forgets all
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(step)
        if self._timestep_draw.keep:
            self._chances = self._timestep_chances()
        total, norm, timestep_losses = self._gradient(step)
        loss = self.accelerator.reduce(total, "sum") / self.batch_size
        norm = norm + 0 * loss
        self.updater.take_step(norm)
        if self.matching:
            self.matching.follow(step, self.batch_size)
        if self._timestep_draw.keep and bool(norm.isfinite()):
            self._record_losses(timestep_losses)
        self.unread.append(norm)
        if ema_weights.is_update_due(step + 1, self.progress.steps):
            self._update_averages()
        share = ema_weights.EarlyWeights.SHARE
        missed = self.weak is None and self.progress.progress_at(step) >= share  # a shortened run
        if self.config.keep_weak and (missed or self.progress.passes(share, step + 1)):
            self.weak = ema_weights.EarlyWeights.of(self.ema, step + 1)
        return StepResult(loss, norm)

    def _gradient(self, step: int) -> tuple[Tensor, Tensor, TimestepLosses]:
        """Return the sum of this process's losses, the gradient's norm, and losses by timestep.

        If memory runs out, the parts of the batch are halved. Random numbers belong to positions of
        the batch, so the step stays the same up to rounding and dropout.

        Raises:
            UsageError: the parts cannot be halved, or the network cannot be compiled.
        """
        while True:
            try:
                with optimization.translate_compile_errors():
                    return self._accumulate(step)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of the handler, the tensors of the failed pass are freed.
            self._halve_parts()

    def _halve_parts(self) -> None:
        """Double the number of parts of the batch, and reset the step."""
        max_parts = self.most_parts
        if self.accumulation >= max_parts:
            raise UsageError(
                "out of memory: a single image does not fit",
                "Try --gradient-checkpointing, a smaller --width or a smaller --size",
                code="out_of_memory",
            ).mark_local()
        if self.accelerator.num_processes > 1:  # the others are in the middle of their step
            raise UsageError(
                f"out of memory: {-(-max_parts // self.accumulation)} images at a time do not fit",
                f"Try --accumulation {2 * self.accumulation}",
                code="out_of_memory",
            ).mark_local()
        self.accumulation = min(2 * self.accumulation, max_parts)
        self.optimizer.optimizer.zero_grad()
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()

    def _accumulate(self, step: int) -> tuple[Tensor, Tensor, TimestepLosses]:
        accelerator = self.accelerator
        accelerator.gradient_accumulation_steps, accelerator.step = self.accumulation, 0
        total = torch.zeros((), device=self.device)
        norm = torch.zeros((), device=self.device)
        timestep_losses: TimestepLosses = []
        if self.matching:
            self.matching.begin()
        for positions in self.parts(step):
            with accelerator.accumulate(self.updater.prepared):
                t, plain = self.losses(self.denoiser, step, positions)
                # Each timestep counts the same, however often it is drawn.
                losses = plain / self._chances.relative[t]
                timestep_losses.append((t, plain.detach()))
                total += losses.detach().sum()
                # Accelerate divides by the accumulation, and processes are averaged.
                scale = self.accumulation * accelerator.num_processes / self.batch_size
                accelerator.backward(losses.sum() * scale)
                if accelerator.sync_gradients:
                    norm = self.updater.clip_gradient()
        return total, norm, timestep_losses

    def parts(self, step: int) -> Iterator[range]:
        """Yield this process's positions of the global batch, a forward pass at a time.

        Each pass seeds the random numbers of the modules.
        """
        index = self.accelerator.process_index
        mine = self.local_positions
        for micro in range(self.accumulation):
            part = rng.split_range(len(mine), self.accumulation, micro)
            rng.seed_modules(self.config.seed, step, micro, index)
            yield range(mine.start + part.start, mine.start + part.stop)

    @property
    def most_parts(self) -> int:
        """Most forward passes per step, of at least one image in every process."""
        parts: int = self.batch_size // self.accelerator.num_processes
        return parts

    @property
    def local_positions(self) -> range:
        """Positions of this process in the global batch."""
        accelerator = self.accelerator
        return rng.split_range(
            self.batch_size, accelerator.num_processes, accelerator.process_index
        )

    def _timestep_chances(self) -> Chances:
        """Return the probabilities in the next step. Copying them to the device waits for it."""
        probabilities = self._timestep_draw.probabilities(self.history, self._objective.weight)
        chances = probabilities.cumsum(0), len(probabilities) * probabilities
        return Chances(*(values.float().to(self.device) for values in chances))

    def is_matching_phase(self, step: int) -> bool:
        """Whether the step after `step` steps is in the last phase of a distillation."""
        first = teacher.PATHS * self.progress.steps
        return self.matching is not None and self.progress.nominal_step(step) >= first

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the step after `step` steps."""
        return optimization.lr_at(
            self.config, self.progress, step, teacher.PARTS if self.matching else optimization.WHOLE
        )

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _record_losses(self, timestep_losses: TimestepLosses) -> None:
        """Add the losses of the whole batch to the history, in the order of its positions."""
        local_losses = [(t.tolist(), losses.tolist()) for t, losses in timestep_losses]
        for times, losses in gather_object(local_losses):
            self.history.add(times, losses)

    def _update_averages(self) -> None:
        """Read the gradient norms since the last update, and update the averages."""
        norms = torch.stack(self.unread).tolist()
        self.unread = []
        for norm in norms:
            self.bad = 0 if math.isfinite(norm) else self.bad + 1
        good = sum(map(math.isfinite, norms))
        self.ema.update(self.net, good)
        if self.powers:
            self.powers.update(self.net, good)

    def losses(self, denoiser: Denoiser, step: int, positions: range) -> tuple[Tensor, Tensor]:
        """Return the timesteps and losses of positions of the global batch, (B,) each."""
        shape = self.plan.blueprint.space.shape
        draws = rng.training_draws(
            self.config.seed, step, positions, shape=shape, device=self.device
        )
        indices = self.batches.find_indices(step, positions)
        names, u = self.augmentations, None
        if names:
            u = rng.augmentation_draws(self.config.seed, step, positions, count_draws(names))
        changes = Changes(draws.flip if self.config.flip else None, names, u)
        x0, parameters = changes.apply(self.batches.samples(indices))
        cond = self.batches.condition(indices, x0, changes, step, positions)
        conditions = self.plan.blueprint.conditions
        cond = conditions.drop_conditions(cond, draws.drop, self.config.label_dropout)
        if parameters is not None:
            cond["augment"] = parameters
        t = locate_timesteps(self._chances.edges, draws.u)
        if self.matching and self.is_matching_phase(step):
            return t, self.matching.losses(denoiser, step, positions, cond)
        return t, self._objective(denoiser, x0, t, draws.noise, cond)

    def ema_net(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Evaluate the averaged network in the precision of the run, without gradients."""
        return self.infer(self.ema.net, x, t, **cond)

    def raw_weights(self) -> dict[str, Tensor] | None:
        """Return the weights that a model file with --keep-raw has, or None without it."""
        if not self.config.keep_raw:
            return None
        weights = self.net.state_dict()
        return {name: weights[name] for name in self.ema.net.state_dict()}

    def weak_net(self) -> Callable[..., Tensor]:
        """Return the network with the early EMA weights, to call as `ema_net`."""
        assert self.weak
        net = copy.deepcopy(self.ema.net)
        net.load_state_dict(dict(self.weak.weights))
        return partial(self.infer, net)

    def infer(self, net: nn.Module, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Return the output of a network, in the precision of the training."""
        with torch.no_grad(), self.accelerator.autocast():
            return net(x, t, **cond).float()  # type: ignore[no-any-return]

    def find_nonfinite_module(self, step: int) -> str:
        """Return the first module whose output is not finite in the step after `step` steps, or "".

        It repeats the step. A bad step changes no weights, so the repetition fails in the same way.
        """
        nonfinite: list[str] = []
        names = {module: name for name, module in self.net.named_modules() if name}

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not nonfinite and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                nonfinite.append(names[module])

        hooks = [module.register_forward_hook(look) for module in names]
        try:
            with torch.no_grad():
                denoiser = self.plan.blueprint.denoiser(partial(self.infer, self.net))
                for positions in self.parts(step):
                    self.losses(denoiser, step, positions)
        finally:
            for hook in hooks:
                hook.remove()
        return nonfinite[0] if nonfinite else ""

    def held_out_losses(self) -> Tensor | None:
        """Return the loss of the EMA weights on each held-out image, (N,), or None without any.

        Timesteps and noise are the same every time.
        """
        chosen = self.plan.measured
        if len(chosen) == 0:
            return None
        return torch.cat(list(self.losses_on(chosen)(self._objective)))

    def losses_on(self, chosen: Indices) -> Callable[..., Iterator[Tensor]]:
        """Return `measure_losses` of the EMA weights on images with these indices."""
        images, chosen = self.plan.data.images, self.plan.data.find_readable(chosen)
        return partial(
            optimization.measure_losses,
            denoiser=self.plan.blueprint.denoiser(self.ema_net),
            blueprint=self.plan.blueprint,
            samples=images.stored[chosen],
            labels=images.labels[chosen],
            given=self.plan.inputs(chosen),
            rows=None if images.rows is None else images.rows[chosen],
            seed=self.config.seed,
            batch_size=min(HELD_OUT_BATCH, self.plan.room),
            device=self.device,
        )
