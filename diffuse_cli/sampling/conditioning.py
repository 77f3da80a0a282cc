"""Conditions of the images to generate, and their guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from diffuse_cli.config.sample_options import GUIDANCE, DrawConfig
from diffuse_cli.core import Conditions, Denoise, LabelColumn
from diffuse_cli.core.conditions import partial_dropout
from diffuse_cli.data import metadata_columns
from diffuse_cli.models.image_conditioning import ConditioningInputs
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.system import Notice, UsageError, Work, lookup, shorten


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
    vectors: Sequence[tuple[float, ...]] = (),
    every: bool = True,
    has_input: bool | None = None,
    given: ConditioningInputs | None = None,
    turn: int = 1,
    guided: bool = False,
) -> Condition | None:
    """Return the conditions of the images to generate, None for an unconditional model.

    Each named class is combined with each row of metadata. The guidance scale is `--guidance`, else
    the model file's recommendation, else the default.

    Args:
        names: classes to generate.
        on: metadata to condition on, each NAME=VALUE.
        vectors: values of the column of vectors.
        every: whether no names mean every class, rather than no class.
        has_input: whether the model is conditioned on an input. None if the caller sets labels,
            rows and inputs later, which are then not checked here.
        given, turn: see `Condition`.
        guided: whether a guidance model guides, too.

    Raises:
        UsageError: an unknown class, column or label, a condition or guidance scale that the model
            does not support, or guidance of a model that is unconditional here.
    """
    conditions = model.blueprint.conditions
    labels = find_labels(conditions, names)
    if (on or vectors) and not conditions.table:
        text = f"{'--on' if on else '--on-vector'}: the model was trained without columns"
        raise UsageError(text, "Train a model with --condition-on", code="option_unsuited")
    if not conditions:
        if config.guidance is not None:
            text = "--guidance: the model was trained without classes"
            hint = "Train a model with --classes or --condition-on"
            raise UsageError(text, hint, code="option_unsuited")
        return None
    scale = guidance_scale(config, model)
    if every:
        labels = labels or tuple(range(conditions.num_classes))
    rows: tuple[tuple[float, ...], ...] = ()
    if conditions.table and (on or vectors):
        rows = metadata_columns.parse_rows(conditions.table, on, vectors)
    if has_input is not None:
        check_request(model, labels, rows, has_input, scale)
        if not (labels or rows or has_input):
            if not every:
                _check_unguided(config, conditions, guided)
                return None
            scale = scale if config.guidance is not None else 1.0  # every scale gives the same
    if labels and rows:  # every combination
        labels, rows = labels * len(rows), tuple(row for row in rows for _ in labels)
    return Condition(labels, scale, given, turn, rows)


def find_labels(conditions: Conditions, names: Sequence[str]) -> tuple[int, ...]:
    """Return the labels of classes.

    Raises:
        UsageError: an unknown class, or a model without classes.
    """
    if names and not conditions.classes:
        text = "--class: the model was trained without classes"
        raise UsageError(text, "Train a model with --classes", code="option_unsuited")
    labels = {name: k for k, name in enumerate(conditions.classes)}
    return tuple(lookup(labels, name, "--class") for name in names)


def _check_unguided(config: DrawConfig, conditions: Conditions, guided: bool) -> None:
    """Refuse guidance of a conditional model that is used without its conditions."""
    if config.guidance is None and (guided or not config.guidance_interval):
        return
    flag = "--guidance-interval" if config.guidance is None else "--guidance"
    if conditions.classes or conditions.table:
        text = f"{flag} needs --class or --on"
        raise UsageError(text, "Pass the class or metadata of the picture", code="option_needs")
    text = f"{flag}: the model is unconditional here"
    raise UsageError(text, "Leave it out", code="option_unsuited")


def guidance_scale(config: DrawConfig, model: StoredModel) -> float:
    """Return the guidance scale of a model with conditions.

    Raises:
        UsageError: a scale other than 1 for a model that needs its input, or for a distilled one.
    """
    conditions, scale = model.blueprint.conditions, config.guidance
    if scale is None and model.sampling is not None:
        scale = model.sampling.guidance
    if scale is None:
        return default_guidance(conditions, model.training.get("label_dropout"))
    if config.guidance not in (None, 1) and model.distilled is not None:
        text = f"--guidance {scale:g}: a distilled model has its guidance in its weights"
        hint = "Leave it out, or distil the model again with --guidance"
        raise UsageError(text, hint, code="option_unsuited")
    if scale != 1 and conditions.given and not model.has_unconditional:
        kind, option = ("classes" if conditions.classes else "columns"), "label"
        if conditions.given.dropout == 0:
            kind, option = "input", "given"
        raise UsageError(
            f"--guidance {scale:g}: the model was never trained without its {kind}, so it has no "
            "unconditional prediction",
            f"Leave it out, or train a model with --{option}-dropout 0.1",
            code="option_unsuited",
        )
    return scale


def default_guidance(conditions: Conditions, label_dropout: Any) -> float:
    """Return the default guidance scale of a conditional model.

    It is 1 without an unconditional prediction. It is also 1 for models conditioned on an input or
    on numbers or vectors, because a larger scale would overshoot them.
    """
    numbers = conditions.table and not all(
        isinstance(c, LabelColumn) for c in conditions.table.columns
    )
    if conditions.given or numbers or not conditions.has_unconditional(label_dropout):
        return 1.0
    return GUIDANCE


def check_request(
    model: StoredModel,
    labels: Sequence[int],
    rows: Sequence[tuple[float, ...]] | None,
    has_input: bool,
    scale: float = 1.0,
) -> None:
    """Refuse a combination of class, columns and input that training never had.

    Training drops all by one random number (`Conditions.drop_conditions`). Class and columns are
    dropped together. Only they or the input, with the larger dropout, are ever missing alone.

    Args:
        labels: class labels.
        rows: codes of metadata columns, None if the command has no option for columns.
        has_input: whether the model is conditioned on an input.
        scale: the guidance scale.

    Raises:
        UsageError: a class or columns are missing, or cannot be used without an input.
    """
    conditions, dropout = model.blueprint.conditions, model.training.get("label_dropout")
    table, given = conditions.table, conditions.given
    if not isinstance(dropout, int | float):
        return
    # Columns are missing for random numbers below `end`, and the input for those below its dropout.
    why, end = "", dropout + partial_dropout(dropout)
    missing = metadata_columns.find_missing_columns(table, rows or ()) if table else []
    if dropout == 0:
        why = "was trained with --label-dropout 0 and needs every column"
    elif given and has_input and scale and given.dropout >= end:
        why = "was not trained to use its input without every column"
    if why and missing and rows is None:
        hint = "Use diffuse sample --on COLUMN=VALUE"
        raise UsageError(f"the model {why}", hint, code="model_mismatch")
    if why and missing:
        line = f"--on is missing for {', '.join(map(shorten, missing[:10]))}: the model {why}"
        hint = f"Pass --on {shorten(missing[0])}=VALUE"
        if table and table.vector and missing[0] == table.vector.name:
            hint = "Pass --on-vector FILE.npy"
        raise UsageError(line, hint, code="missing_argument")
    if (labels or rows) and given and not has_input and given.dropout <= dropout:
        option, what = ("--class", "a class") if labels else ("--on", "columns")
        line = f"{option}: the model was not trained to use {what} without its input"
        raise UsageError(line, "Leave it out", code="option_unsuited")
    if labels or not conditions.classes:
        return
    why = ""
    if dropout == 0:
        why = "was trained with --label-dropout 0 and needs one"
    elif given and has_input and dropout <= given.dropout:
        why = "was not trained to use its input without a class"
    elif rows:
        why = "was not trained to use its columns without a class"
    if why:
        choices = ", ".join(map(shorten, conditions.classes[:10]))
        line = f"--class is missing: the model {why}"
        raise UsageError(line, f"Choose from {choices}", code="missing_argument")


def report_out_of_range(model: StoredModel, on: Sequence[str]) -> Work[None]:
    """Warn of each number of --on outside the range of the training data."""
    if table := model.blueprint.conditions.table:
        for line in metadata_columns.describe_out_of_range(table, on):
            yield Notice(line, warning=True)
