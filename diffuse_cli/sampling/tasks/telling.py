"""Whether a model that was trained with --given is told what a task sees, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffuse_cli.core.conditions import PAIRS
from diffuse_cli.core.degradations import Degradation
from diffuse_cli.models.image_conditioning import Giver
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Work

if TYPE_CHECKING:
    from diffuse_cli.sampling.generation import Loaded


def tells(loaded: Loaded, degradation: Degradation | None, flag: str) -> bool:
    """Whether the model was trained for a degradation, and so is told what it left.

    Any other is told nothing, as in a part of its training.

    Args:
        degradation: None where there is none.
        flag: what asks for it, for the message.

    Raises:
        UsageError: the model was always told what it is given, and that is something else.
    """
    giver = Giver.of(loaded.model.blueprint)
    if giver is None:
        return False
    if degradation is not None and _fits(giver, degradation):
        return True
    if giver.given.dropout == 0:
        line = f"{flag}: the model was trained {_purpose(giver)}, and cannot do without"
        raise UsageError(line, f"Use diffuse {_command(giver)}")
    return False


def _fits(giver: Giver, asked: Degradation) -> bool:
    """The same kind with the same noise, and the same value: but any mask is a mask."""
    own = giver.degradation
    if own is None or (own.NAME, own.sigma) != (asked.NAME, asked.sigma):
        return False
    return own.HIDES or own.text == asked.text


def _purpose(giver: Giver) -> str:
    what = giver.given.what
    return "on pairs" if what == PAIRS else f"for {what}"


def _command(giver: Giver) -> str:
    """The command line that the model was trained for."""
    own = giver.degradation
    if own is None:
        return "sample MODEL --given FILE"
    if own.HIDES and not own.sigma:
        return "inpaint MODEL IMAGE --mask FILE"
    return f"restore MODEL IMAGE --degradation {giver.given.what}"


def remark(loaded: Loaded, told: bool) -> Work[None]:
    """Say what a model of --given is told."""
    giver = Giver.of(loaded.model.blueprint)
    if giver is not None:
        said = "is told what is seen" if told else "is told nothing here"
        yield Notice(f"the model was trained {_purpose(giver)}, and {said}")


def check_class(loaded: Loaded, *, labelled: bool, told: bool) -> None:
    """Refuse to tell a model a class, or none, where its training never did.

    One draw drops class and array (`Conditions.dropped`), so that only the one that is dropped more
    often is ever missing beside the other.

    Args:
        labelled: whether it is told a class.
        told: whether it is told what it is given.

    Raises:
        UsageError
    """
    conditions = loaded.model.blueprint.conditions
    dropout, given = loaded.model.training.get("label_dropout"), conditions.given
    if not conditions.classes or dropout is None:
        return
    if labelled:
        if given and not told and given.dropout <= dropout:
            line = "--class: the model was told no class without what it is given"
            raise UsageError(line, "Leave it out")
        return
    why = ""
    if dropout == 0:
        why = "was trained with --label-dropout 0, and knows no pictures without a class"
    elif given and told and dropout <= given.dropout:
        why = "was told a class with all that it was given"
    if why:
        known = ", ".join(map(files.brief, conditions.classes[:10]))
        raise UsageError(f"--class is missing: the model {why}", f"It knows {known}")
