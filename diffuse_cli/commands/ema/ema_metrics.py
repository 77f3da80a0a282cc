"""Metrics that choose an EMA length: KID of generated images, or the loss of held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from accelerate import Accelerator

from diffuse_cli.config import train_options
from diffuse_cli.config.eval_options import EmaConfig
from diffuse_cli.core import Denoiser
from diffuse_cli.evaluation.image_sets import Sides, prepare_inputs, set_conditions
from diffuse_cli.metrics import Measurement
from diffuse_cli.metrics.estimates import average
from diffuse_cli.metrics.features.feature_choice import choose_network, load_trained_network
from diffuse_cli.sampling.generation import generate_all
from diffuse_cli.sampling.model_loading import LoadedModel, load_guide
from diffuse_cli.sampling.sampling_settings import report_settings, resolve_settings
from diffuse_cli.sampling.setting_search import FeatureMeasure
from diffuse_cli.system import Progress, Work
from diffuse_cli.training import optimization

Measure = Callable[[Denoiser], Work[dict[str, float]]]


def _kid(
    config: EmaConfig, loaded: LoadedModel, sides: Sides, accelerator: Accelerator
) -> Work[tuple[str, Measure]]:
    sides.check()
    trained = yield from load_trained_network(config, loaded.space, accelerator, alone=True)
    real, device = sides.real.samples, accelerator.device
    network = yield from choose_network(config, trained, sides.space, real, device)
    guide = yield from load_guide(config, loaded, accelerator, alone=True)
    resolved = resolve_settings(config, loaded.model, guide=guide)
    settings = set_conditions(resolved, loaded, sides, config.seed)
    yield from report_settings(settings)
    against = FeatureMeasure(network, sides.space, real, cached=True)
    yield from against.read_real()

    def measure(denoiser: Denoiser) -> Work[dict[str, float]]:
        indices = range(config.n)
        samples = yield from generate_all(
            denoiser, settings, indices, space=loaded.space, device=device
        )
        return (yield from against.compare(samples))

    return network.kid, measure


def _loss(
    config: EmaConfig, loaded: LoadedModel, sides: Sides, accelerator: Accelerator
) -> Work[tuple[str, Measure]]:
    """Training loss on the real images, with the same draws for every length."""
    yield from ()
    real = sides.real
    fields = train_options.from_file(loaded.model.training)
    training = train_options.TrainConfig.from_dict({"data": "", **fields})
    objective = optimization.Objective(training, loaded.denoiser, accelerator.device)

    def measure(denoiser: Denoiser) -> Work[dict[str, float]]:
        losses: list[float] = []
        for part in optimization.measure_losses(
            objective,
            denoiser,
            loaded.model.blueprint,
            real.samples,
            real.labels,
            given=prepare_inputs(loaded, real, config.seed),
            rows=real.rows,
            seed=config.seed,
            batch_size=config.batch_size,
            device=accelerator.device,
        ):
            losses += part.tolist()
            yield Progress("held-out loss", len(losses), len(real))
        mean = math.fsum(losses) / len(losses)
        if len(losses) < 2:
            return {"held_out_loss": mean}
        return Measurement(mean, average(np.array(losses)).error).to_entries("held_out_loss")

    return "held_out_loss", measure


EMA_METRICS = {"kid": _kid, "held-out": _loss}
"""Definition of each metric of --metric: the key of its number, and the measure."""
