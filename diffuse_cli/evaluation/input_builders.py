"""Build the inputs of metrics: generated images, features, nearest neighbors and others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffuse_cli.evaluation import likelihood
from diffuse_cli.evaluation.image_sets import FEWEST, LabeledSamples, TrainingSamples
from diffuse_cli.evaluation.metric_inputs import EvaluationRun
from diffuse_cli.media import Array
from diffuse_cli.metrics import (
    baselines,
    channel_distributions,
    ensembles,
    nearest_neighbors,
    paired,
    spectrum,
)
from diffuse_cli.metrics.features.feature_cache import cache_features, compute_features
from diffuse_cli.metrics.nearest_neighbors import NearestDistances
from diffuse_cli.models.image_conditioning import Conditioner, ConditioningInputs
from diffuse_cli.sampling.generation import generate_all
from diffuse_cli.system import Work, show

MOST_PAIRED, PAIRED_AT_ONCE, PAIRED_SHOWN = 1000, 16, 10
"""The most real images to compare with generated images of the same condition, the number of images
at a time, and the number to show."""

CLIMATE, ENSEMBLES_SHOWN, MOST_VALUES = 16, 4, 2**25
"""Real samples of the climatology, ensembles to show, and the most values of members in memory."""


def make_paired_values(evaluation: EvaluationRun) -> Work[None]:
    """Compare each real image with two images generated from its conditioning input.

    The second image is generated for `MOST_PAIRED` real images, unless it exists already.
    """
    yield from make_part(evaluation, "features")
    encoder = evaluation.model_and_settings[0].encoder
    assert encoder is not None
    real, fakes = evaluation.real, evaluation.generated.samples
    count = min(len(real), len(fakes), MOST_PAIRED)
    second = fakes[len(real) : len(real) + count]
    if len(second) < count:
        second = yield from _generate(evaluation, range(len(real), len(real) + count))
    baseline_images, features = yield from _make_baselines(evaluation, encoder, count)
    if not evaluation.accelerator.is_main_process:
        return
    starts = range(0, count, PAIRED_AT_ONCE)
    slices = (slice(start, min(start + PAIRED_AT_ONCE, count)) for start in starts)
    parts = [_compare_samples(evaluation, encoder, second, baseline_images, s) for s in slices]
    values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    real_features = evaluation.real_features[:count]
    fake_features = evaluation.fake_features[:count]
    values |= paired.feature_distances(real_features, fake_features, features)
    sides = {
        "condition": baseline_images.get("given"),
        "generated": fakes,
        "generated again": second,
        "real": real.samples,
        "nearest in training": baseline_images.get("nearest"),
    }
    num_shown = min(count, PAIRED_SHOWN)
    first = {k: evaluation.look(side[:num_shown]) for k, side in sides.items() if side is not None}
    if encoder.given.labels:
        inputs = encoder.stored_inputs(real.pairs[:num_shown])
        first = {"condition": encoder.look(inputs.encode(range(num_shown))), **first}
    evaluation.paired_values = paired.PairedValues(values, np.arange(count), first)


def _make_baselines(
    evaluation: EvaluationRun, encoder: Conditioner, count: int
) -> Work[tuple[dict[str, Array], dict[str, Array]]]:
    """Return baselines that need no model, and their features, by name.

    The baselines are the conditioning image itself, and the training image of `train_n` whose
    conditioning input is nearest.
    """
    real, seed = evaluation.real, evaluation.config.seed
    images: dict[str, Array] = {}
    features: dict[str, Array] = {}
    inputs = encoder.choose_inputs(real.samples, real.pairs, seed)
    channels = 0 if encoder.given.labels else encoder.given.channels
    if channels in (1, encoder.space.channels):  # it can be looked at as samples are
        given = encoder.render_input(inputs.encode(range(count)))
        images["given"] = np.broadcast_to(given, (count, *encoder.space.shape))
        look = evaluation.look(images["given"])
        features["given"] = yield from compute_features(evaluation.network, look, evaluation.team)
    if evaluation.training is not None and len(evaluation.train_features):
        training = evaluation.training.first(len(evaluation.train_features))
        places = find_nearest_inputs(encoder, inputs, count, training, seed)
        images["nearest"] = training.samples[places]
        features["nearest"] = evaluation.train_features[places]
    return images, features


def _compare_samples(
    evaluation: EvaluationRun,
    encoder: Conditioner,
    second: Array,
    baseline_images: Mapping[str, Array],
    rows: slice,
) -> dict[str, Array]:
    """Return the values of `metrics.paired` for some real images, by key.

    Args:
        second: the second generated image of each conditioning input.
        baseline_images: the baselines by name.
    """
    real, sides = evaluation.real, (evaluation.generated.samples, second)
    truth, fakes = real.samples[rows], [side[rows] for side in sides]
    baseline_part = {name: images[rows] for name, images in baseline_images.items()}
    span = encoder.space.bins - 1.0 if encoder.space.bins else 2.0
    values = paired.compute_pixel_metrics(truth, fakes[0], fakes[1], baseline_part, span)
    if encoder.degradation:
        degraded_as = truth, evaluation.config.seed, range(rows.start, rows.stop)
        first, again, of_real = (
            encoder.measure_residuals(x, *degraded_as) for x in (*fakes, truth)
        )
        values |= {"inconsistency": (first + again) / 2, "inconsistency_of_real": of_real}
    if encoder.given.labels:
        names = map(show, encoder.given.names or (f"label_{k}" for k in encoder.given.labels))
        regions = dict(zip(encoder.given.labels, names, strict=True))
        colors = slice(3 if len(truth[0]) > 2 else 1)  # without transparency
        samples = (x[:, colors] for x in (truth, *fakes))
        values |= paired.compare_regions(real.pairs[rows], regions, next(samples), [*samples])
    return values


def find_nearest_inputs(
    encoder: Conditioner,
    inputs: ConditioningInputs,
    count: int,
    training: LabeledSamples,
    seed: int,
) -> Array:
    """Return the index of the training image nearest to each conditioning input, (count,).

    Only known places of the input count.
    """
    width = encoder.given.channels * math.prod(encoder.space.size)
    places: list[Array] = []
    for rows in nearest_neighbors.blocks(count, width):
        conditioning = inputs.encode(range(rows.start, rows.stop)).double()
        values, mask = conditioning[:, :-1], conditioning[:, -1:]
        mask = mask.expand_as(values).flatten(1)
        nearest = None
        for part in nearest_neighbors.blocks(len(training), width):
            train_inputs = _unmasked_inputs(encoder, training[part], seed).double().flatten(1)
            # |k (x - y)|^2 less |k y|^2, which is the same for all x.
            distances = mask @ train_inputs.square().T - 2 * values.flatten(1) @ train_inputs.T
            nearest = nearest_neighbors.merge(nearest, distances, part.start, 1)
        assert nearest is not None
        places.append(nearest[1][:, 0].numpy())
    return np.concatenate(places)


def _unmasked_inputs(encoder: Conditioner, images: LabeledSamples, seed: int) -> Tensor:
    """Return the conditioning inputs of images without a mask, (B, C', *size)."""
    if encoder.masks:
        return encoder.space.to_model(torch.from_numpy(images.samples))
    if images.pairs is not None:
        inputs = encoder.stored_inputs(images.pairs)
    else:
        inputs = encoder.degraded_inputs(images.samples, seed, "looked up")
    return inputs.encode(range(len(images)))[:, :-1]


def _make_generated(evaluation: EvaluationRun) -> Work[None]:
    """Generate the model's images."""
    if evaluation.fakes is not None:
        return
    n, (_, settings) = evaluation.config.n, evaluation.model_and_settings
    samples = yield from _generate(evaluation, range(n))
    condition = settings.condition
    labels = [condition.label(i) if condition else -1 for i in range(n)]
    evaluation.fakes = LabeledSamples(samples, np.array(labels, np.int64))


def _generate(evaluation: EvaluationRun, indices: Sequence[int]) -> Work[Array]:
    """Generate the model's samples with these indices, stored (N, C, *size)."""
    (loaded, settings), team = evaluation.model_and_settings, evaluation.team
    model, space, device = loaded.denoiser, loaded.space, evaluation.accelerator.device
    work = generate_all(model, settings, indices, space=space, device=device, team=team)
    return (yield from work)


def _make_features(evaluation: EvaluationRun) -> Work[None]:
    """Compute features of both sides, of further real images and, for pictures, training images."""
    yield from make_part(evaluation, "generated")
    network, team, num_computed = evaluation.network, evaluation.team, 0
    see = partial(network.prepare_input, evaluation.space)
    real, fakes, more = evaluation.sides
    evaluation.real_features = yield from cache_features(network, see(real), team, tell=True)
    evaluation.fake_features = yield from compute_features(network, see(fakes), team)
    if network.pictures and (training := evaluation.training):
        first = training.first(evaluation.config.train_n)
        evaluation.train_features = yield from cache_features(network, see(first.samples), team)
        if evaluation.loaded and len(training.held_out) >= FEWEST:
            num_computed = len(first)  # `more` are the first training images
    if len(more) <= num_computed:
        evaluation.more_features = evaluation.train_features[: len(more)]
    elif len(more):
        evaluation.more_features = yield from cache_features(network, see(more), team)


def _make_baseline_features(evaluation: EvaluationRun) -> Work[None]:
    """Compute features of the baselines, which are known to be bad."""
    images = baselines.make_baseline_images(evaluation.look(evaluation.real.samples))
    pixels = np.concatenate([*images.values()])
    features = yield from cache_features(evaluation.network, pixels, evaluation.team)
    ends = np.cumsum([len(part) for part in images.values()])
    evaluation.baseline_features = dict(zip(images, np.split(features, ends[:-1]), strict=True))


def _make_nearest(evaluation: EvaluationRun) -> Work[None]:
    """Find the nearest training image in pixels and, for pictures, in features."""
    training = evaluation.training
    assert training is not None
    yield from make_part(evaluation, "generated")
    # The expected rate depends on the number of references, so both spaces use the same number.
    alone = min(training.reference_count, evaluation.config.train_n)
    pixels = yield from nearest_neighbors.find_nearest(
        evaluation.generated.samples,
        training.held_out.samples,
        training.pool.samples,
        training.order,
        alone,
        partial(nearest_neighbors.to_comparable, evaluation.space),
    )
    # Processes compute features of the same images, even if their rounding differs.
    pixels = evaluation.team.from_first(pixels)
    if evaluation.network.pictures:
        near = yield from _nearest_in_features(evaluation, training, pixels, alone)
        evaluation.nearest["features"] = near
    evaluation.nearest["pixels"] = pixels


def _nearest_in_features(
    evaluation: EvaluationRun, training: TrainingSamples, pixels: NearestDistances, alone: int
) -> Work[NearestDistances]:
    """Find the nearest in features among `train_n` training images and the nearest in pixels.

    The nearest image in pixels is a candidate only for its sample or reference. So distances of
    new samples have the distribution of those of held-out images, and references do not depend on
    the samples.
    """
    yield from make_part(evaluation, "features")
    network, team, held_out = evaluation.network, evaluation.team, training.held_out
    samples, real, features = (
        evaluation.fake_features,
        evaluation.real_features,
        evaluation.train_features,
    )
    # A model's real images are the held-out ones, unless those are too few for a side.
    if evaluation.loaded is None or len(held_out) < FEWEST:
        real = yield from cache_features(network, evaluation.look(held_out.samples), team)
    order = np.arange(len(features))
    near = yield from nearest_neighbors.find_nearest(samples, real, features, order, alone)
    near = replace(near, places=training.order[near.places])
    rows = np.flatnonzero(~np.isin(pixels.places, training.order[: len(features)]))
    if not len(rows):
        return near
    places, n = pixels.places[rows], int((rows < len(samples)).sum())
    pictures = evaluation.look(training.pool.samples[places])
    sources = [
        (yield from compute_features(network, pictures[:n], team)),
        (yield from cache_features(network, pictures[n:], team)),
    ]
    queries = np.concatenate([samples, real, features[:alone]])
    candidates = np.concatenate(sources)
    return nearest_neighbors.add_candidates(near, queries, rows, candidates, places, alone)


def _make_ensembles(evaluation: EvaluationRun) -> Work[None]:
    """Score the ensemble of each real sample, a few at a time, on the first process."""
    config, real, more = evaluation.config, evaluation.real, evaluation.more.samples[:CLIMATE]
    count = config.members or ensembles.MEMBERS
    scores = ensembles.EnsembleScores.from_real(count, real.samples)
    at_once = max(1, MOST_VALUES // (count * real.samples[0].size))
    for start in range(0, len(real), at_once):
        rows = range(start, min(start + at_once, len(real)))
        members = yield from _make_members(evaluation, rows, count)
        given, pictures = _render_inputs(evaluation, rows)
        for k in rows if evaluation.accelerator.is_main_process else ():
            other_rows = [i for i in range(len(real)) if i != k][: CLIMATE - len(more)]
            climate = np.concatenate([more, real.samples[other_rows]])
            scores.add(members[k - start], real.samples[k], climate, given[k - start])
            if k < ENSEMBLES_SHOWN:
                evaluation.first_ensembles.append((members[k - start], pictures[k - start]))
    evaluation.ensembles = scores


def _make_members(evaluation: EvaluationRun, rows: range, count: int) -> Work[Array]:
    """Generate or read the members of some real samples, (N, M, C, *size).

    Member j of sample k of N has index k + j N. So member 0 is one of the generated samples, and
    two models start from the same noise.
    """
    if evaluation.members is not None:
        members = evaluation.members[evaluation.real.pairs[rows].T.ravel()]
    else:
        total = len(evaluation.real)
        indices = [k + j * total for j in range(count) for k in rows]  # ascending, as the result is
        members = yield from _generate(evaluation, indices)
    return np.asarray(members.reshape(count, len(rows), *members.shape[1:]).swapaxes(0, 1))


def _render_inputs(
    evaluation: EvaluationRun, rows: range
) -> tuple[Sequence[Array | None], Sequence[Array | None]]:
    """Return the conditioning images of some real samples, stored and as pictures.

    Stored ones are None unless they have the values and the channels of samples.
    """
    none = [None] * len(rows)
    encoder = evaluation.loaded.encoder if evaluation.loaded else None
    if encoder is None:
        return none, none
    real, seed = evaluation.real, evaluation.config.seed
    inputs = encoder.choose_inputs(real.samples, real.pairs, seed)
    conditioning = inputs.encode(rows)
    comparable = encoder.given.channels == evaluation.space.channels and not encoder.given.labels
    stored = [*encoder.render_input(conditioning)] if comparable else none
    return stored, [*encoder.look(conditioning)] if rows.start < ENSEMBLES_SHOWN else none


def _make_marginals(evaluation: EvaluationRun) -> Work[None]:
    """Measure the value distributions of both sides, on the first process."""
    yield from make_part(evaluation, "generated")
    if evaluation.accelerator.is_main_process:
        evaluation.marginals = channel_distributions.measure_marginals(*evaluation.sides)


def _make_spectra(evaluation: EvaluationRun) -> Work[None]:
    """Measure the power spectra of both sides, on the first process."""
    yield from make_part(evaluation, "generated")
    if evaluation.accelerator.is_main_process:
        evaluation.spectra = spectrum.measure_spectra(*evaluation.sides)


PARTS: Mapping[str, Callable[[EvaluationRun], Work[None]]] = {
    "bits": likelihood.make_bits,
    "train_bits": likelihood.make_train_bits,
    "ode_bits": likelihood.make_ode_bits,
    "generated": _make_generated,
    "features": _make_features,
    "random_features": _make_features,
    "baseline_features": _make_baseline_features,
    "nearest": _make_nearest,
    "paired_values": make_paired_values,
    "ensembles": _make_ensembles,
    "marginals": _make_marginals,
    "spectra": _make_spectra,
}
"""Functions that make a part of an evaluation, by its name."""


def make_part(evaluation: EvaluationRun, part: str) -> Work[None]:
    """Make a part of `PARTS`, once."""
    if part not in evaluation.made_parts:
        evaluation.made_parts.add(part)
        yield from PARTS[part](evaluation)
