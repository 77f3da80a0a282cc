"""What images that are drawn from a conditional model are told, and their guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from diffuse_cli.config.sample_options import GUIDANCE, DrawConfig
from diffuse_cli.core.conditions import Numbers
from diffuse_cli.data.metadata_columns import typed_rows, untaught
from diffuse_cli.system.errors import UsageError, lookup
from diffuse_cli.system.files import brief

if TYPE_CHECKING:
    from diffuse_cli.core.conditions import Conditions
    from diffuse_cli.core.denoiser import Denoise
    from diffuse_cli.models.image_conditioning import Inputs
    from diffuse_cli.models.model_file import StoredModel


@dataclass(frozen=True)
class Condition:
    """What images are told, and guidance.

    Attributes:
        labels: of the images, in turn; none for a model without classes.
        rows: codes of columns, in turn; none where no column is told.
        turn: how many images have a label and a row before the next have their turn: image k has
            label k // turn, modulo their number.
        scale: 1 is the conditional model, 0 the unconditional.
        given: what they are given, for a model that is given anything.
    """

    labels: tuple[int, ...] = ()
    scale: float = GUIDANCE
    given: Inputs | None = None
    turn: int = 1
    rows: tuple[tuple[float, ...], ...] = ()

    def label(self, index: int) -> int:
        """The label of an image; -1 for a model without classes."""
        return self.labels[index // self.turn % len(self.labels)] if self.labels else -1

    def row(self, index: int) -> tuple[float, ...]:
        """The codes of an image; empty where no column is told."""
        return self.rows[index // self.turn % len(self.rows)] if self.rows else ()

    def bind(
        self,
        guided: Denoise,
        indices: Sequence[int],
        device: torch.device,
        given: Inputs | None = None,
    ) -> Denoise:
        """Bind `guided` to the conditions of a batch of images.

        Args:
            given: inputs of this batch, in the place of `self.given`.
        """
        cond: dict[str, torch.Tensor] = {}
        if self.labels:
            cond["label"] = torch.tensor([self.label(i) for i in indices], device=device)
        if self.rows:
            rows = [self.row(i) for i in indices]
            cond["row"] = torch.tensor(rows, dtype=torch.float32, device=device)
        if given := given or self.given:
            cond["given"] = given.at(indices, device)
        return partial(guided, **cond)


def condition(
    config: DrawConfig,
    model: StoredModel,
    names: Sequence[str] = (),
    on: Sequence[str] = (),
    *,
    every: bool = True,
    told: bool | None = None,
    given: Inputs | None = None,
    turn: int = 1,
) -> Condition | None:
    """Return the named classes, each with each of the rows that NAME=VALUE of columns say, and the
    guidance scale; None for a model that is conditioned on nothing.

    The scale is the given one, else the model file's recommendation, else the default.

    Args:
        every: no names mean every class, and not none.
        told: whether the model is conditioned on an input; None if labels, rows and inputs follow,
            which are not checked here.
        given, turn: see `Condition`.

    Raises:
        UsageError: no such class, column or label, or one or guidance for a model without them.
    """
    conditions = model.blueprint.conditions
    classes = conditions.classes
    if names and not classes:
        raise UsageError(
            "--class: the model was trained without classes", "Train one with --classes"
        )
    if on and not conditions.table:
        raise UsageError(
            "--on: the model was trained without columns", "Train one with --condition-on"
        )
    if not conditions:
        if config.guidance is not None:
            raise UsageError(
                "--guidance: the model was trained without classes",
                "Train one with --classes or --condition-on",
            )
        return None
    known = {name: i for i, name in enumerate(classes)}
    labels = tuple(lookup(known, name, "--class") for name in names)
    scale = guidance_scale(config, model)
    if every:
        labels = labels or tuple(known.values())
    rows = typed_rows(conditions.table, on) if conditions.table and on else ()
    if told is not None:
        check_columns(model, rows)
        if not (labels or rows or told):
            if not every:
                return None
            scale = scale if config.guidance is not None else 1.0  # all scales are one
    if labels and rows:  # each with each
        labels, rows = labels * len(rows), tuple(row for row in rows for _ in labels)
    return Condition(labels, scale, given, turn, rows)


def guidance_scale(config: DrawConfig, model: StoredModel) -> float:
    """Return the guidance scale of a model with conditions.

    Raises:
        UsageError: guidance for a model that was always given its input.
    """
    conditions, scale = model.blueprint.conditions, config.guidance
    if scale is None and model.sampling is not None:
        scale = model.sampling.guidance
    dropout = model.training.get("label_dropout")
    if scale is None:
        return default_guidance(conditions, dropout)
    if scale != 1 and conditions.given and not has_unconditional(conditions, dropout):
        raise UsageError(
            f"--guidance {scale:g}: the model was always told what it is given, and cannot do "
            "without",
            "Leave it out, or train one with --given-dropout 0.1",
        )
    return scale


def default_guidance(conditions: Conditions, label_dropout: Any) -> float:
    """The default guidance scale of a model that is told anything: 1 without an unconditional
    prediction, and 1 for a model that is given an array or told numbers, which are to be followed,
    not exaggerated.
    """
    numbers = conditions.table and any(isinstance(c, Numbers) for c in conditions.table.columns)
    if conditions.given or numbers or not has_unconditional(conditions, label_dropout):
        return 1.0
    return GUIDANCE


def has_unconditional(conditions: Conditions, label_dropout: Any) -> bool:
    """Whether training dropped all that a model is told, so that it can be guided."""
    shares = [label_dropout] * bool(conditions.classes or conditions.table)
    shares += [conditions.given.dropout] if conditions.given else []
    return 0 not in shares


def check_columns(model: StoredModel, rows: Sequence[tuple[float, ...]]) -> None:
    """Refuse to leave out a column that the model was always told.

    Raises:
        UsageError
    """
    table = model.blueprint.conditions.table
    if table is None or model.training.get("label_dropout") != 0:
        return
    if names := untaught(table, rows):
        listed = ", ".join(map(brief, names[:10]))
        raise UsageError(
            f"--on is missing for {listed}: the model was trained with --label-dropout 0, and was "
            "always told",
            f"Give --on {brief(names[0])}=VALUE",
        )
