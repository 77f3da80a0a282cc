"""Conditions of the images to generate, and their guidance scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from diffuse_cli.config.sample_options import GUIDANCE, DrawConfig
from diffuse_cli.core.conditions import NumberColumn, partial_dropout
from diffuse_cli.data.metadata_columns import (
    describe_out_of_range,
    find_missing_columns,
    parse_rows,
)
from diffuse_cli.system.errors import UsageError, lookup
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.files import shorten

if TYPE_CHECKING:
    from diffuse_cli.core.conditions import Conditions
    from diffuse_cli.core.denoiser import Denoise
    from diffuse_cli.models.image_conditioning import ConditioningInputs
    from diffuse_cli.models.model_file import StoredModel


@dataclass(frozen=True)
class Condition:
    """Conditions of the images to generate, and the guidance scale.

    Attributes:
        labels: class labels, which the images cycle through. Empty for a model without classes.
        rows: codes of metadata columns, which the images cycle through. Empty without `--on`.
        turn: the number of consecutive images with the same label and row: image k has label
            k // turn, modulo the number of labels.
        scale: the guidance scale. 1 is the conditional model, 0 the unconditional.
        given: conditioning inputs, for a model that takes any.
    """

    labels: tuple[int, ...] = ()
    scale: float = GUIDANCE
    given: ConditioningInputs | None = None
    turn: int = 1
    rows: tuple[tuple[float, ...], ...] = ()

    def label(self, index: int) -> int:
        """Return the label of an image, -1 for a model without classes."""
        return self.labels[index // self.turn % len(self.labels)] if self.labels else -1

    def row(self, index: int) -> tuple[float, ...]:
        """Return the codes of an image's metadata columns, empty without `--on`."""
        return self.rows[index // self.turn % len(self.rows)] if self.rows else ()

    def bind(
        self,
        guided: Denoise,
        indices: Sequence[int],
        device: torch.device,
        given: ConditioningInputs | None = None,
    ) -> Denoise:
        """Bind `guided` to the conditions of a batch of images.

        Args:
            given: inputs of this batch, which replace `self.given`.
        """
        cond: dict[str, torch.Tensor] = {}
        if self.labels:
            cond["label"] = torch.tensor([self.label(i) for i in indices], device=device)
        if self.rows:
            rows = [self.row(i) for i in indices]
            cond["row"] = torch.tensor(rows, dtype=torch.float32, device=device)
        if given := given or self.given:
            cond["given"] = given.encode(indices, device)
        return partial(guided, **cond)


def resolve_condition(
    config: DrawConfig,
    model: StoredModel,
    names: Sequence[str] = (),
    on: Sequence[str] = (),
    *,
    every: bool = True,
    has_input: bool | None = None,
    given: ConditioningInputs | None = None,
    turn: int = 1,
) -> Condition | None:
    """Return the conditions of the images to generate, None for an unconditional model.

    Each named class is combined with each row of metadata. The guidance scale is `--guidance`, else
    the model file's recommendation, else the default.

    Args:
        names: classes to generate.
        on: metadata to condition on, each NAME=VALUE.
        every: whether no names mean every class, rather than no class.
        has_input: whether the model is conditioned on an input. None if the caller sets labels,
            rows and inputs later, which are then not checked here.
        given, turn: see `Condition`.

    Raises:
        UsageError: an unknown class, column or label, or a condition or guidance scale that the
            model does not support.
    """
    conditions = model.blueprint.conditions
    classes = conditions.classes
    if names and not classes:
        text = "--class: the model was trained without classes"
        raise UsageError(text, "Train a model with --classes")
    if on and not conditions.table:
        text = "--on: the model was trained without columns"
        raise UsageError(text, "Train a model with --condition-on")
    if not conditions:
        if config.guidance is not None:
            text = "--guidance: the model was trained without classes"
            raise UsageError(text, "Train a model with --classes or --condition-on")
        return None
    indices = {name: i for i, name in enumerate(classes)}
    labels = tuple(lookup(indices, name, "--class") for name in names)
    scale = guidance_scale(config, model)
    if every:
        labels = labels or tuple(indices.values())
    rows = parse_rows(conditions.table, on) if conditions.table and on else ()
    if has_input is not None:
        check_columns(model, rows, has_input=has_input and scale != 0)
        if not (labels or rows or has_input):
            if not every:
                return None
            scale = scale if config.guidance is not None else 1.0  # every scale gives the same
    if labels and rows:  # every combination
        labels, rows = labels * len(rows), tuple(row for row in rows for _ in labels)
    return Condition(labels, scale, given, turn, rows)


def guidance_scale(config: DrawConfig, model: StoredModel, flag: str = "--guidance") -> float:
    """Return the guidance scale of a model with conditions.

    Args:
        flag: the option that sets the scale, for errors.

    Raises:
        UsageError: a scale other than 1 for a model that needs its input, or for a distilled one.
    """
    conditions, scale = model.blueprint.conditions, config.guidance
    if scale is None and model.sampling is not None:
        scale = model.sampling.guidance
    if scale is None:
        return default_guidance(conditions, model.training.get("label_dropout"))
    if config.guidance not in (None, 1) and model.distilled is not None:
        text = f"{flag} {scale:g}: a distilled model has its guidance in its weights"
        raise UsageError(text, "Leave it out, or distil the model again with --guidance")
    if scale != 1 and conditions.given and not model.has_unconditional:
        kind, option = ("classes" if conditions.classes else "columns"), "label"
        if conditions.given.dropout == 0:
            kind, option = "input", "given"
        raise UsageError(
            f"{flag} {scale:g}: the model was never trained without its {kind}, so it has no "
            "unconditional prediction",
            f"Leave it out, or train a model with --{option}-dropout 0.1",
        )
    return scale


def default_guidance(conditions: Conditions, label_dropout: Any) -> float:
    """Return the default guidance scale of a conditional model.

    It is 1 without an unconditional prediction. It is also 1 for models conditioned on an input or
    on numbers, because a larger scale would overshoot them.
    """
    numbers = conditions.table and any(
        isinstance(c, NumberColumn) for c in conditions.table.columns
    )
    if conditions.given or numbers or not conditions.has_unconditional(label_dropout):
        return 1.0
    return GUIDANCE


def check_columns(
    model: StoredModel, rows: Sequence[tuple[float, ...]], *, has_input: bool
) -> None:
    """Refuse to leave out a column that training never dropped, or only without the input.

    Args:
        has_input: whether the model is conditioned on an input.

    Raises:
        UsageError: names the missing columns.
    """
    conditions, dropout = model.blueprint.conditions, model.training.get("label_dropout")
    table, given, why = conditions.table, conditions.given, ""
    # Columns are missing for random numbers below `end`, and the input for those below its dropout.
    end = dropout + partial_dropout(dropout) if isinstance(dropout, float) else math.inf
    if model.always_told:
        why = "was trained with --label-dropout 0 and needs every column"
    elif has_input and given and given.dropout >= end:
        why = "was not trained to use its input without every column"
    if table and why and (names := find_missing_columns(table, rows)):
        listed = ", ".join(map(shorten, names[:10]))
        line = f"--on is missing for {listed}: the model {why}"
        raise UsageError(line, f"Pass --on {shorten(names[0])}=VALUE")


def report_out_of_range(model: StoredModel, on: Sequence[str]) -> Work[None]:
    """Warn of each number of --on outside the range of the training data."""
    if table := model.blueprint.conditions.table:
        for line in describe_out_of_range(table, on):
            yield Notice(line, warning=True)
