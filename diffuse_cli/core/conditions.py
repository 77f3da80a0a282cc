"""What a model can be told about the sample it is to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.settings import Settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Conditions(Settings):
    """The conditions of a model.

    Attributes:
        classes: names of the classes; a label is a place in them, and K = len(classes) means
            "none".
    """

    classes: tuple[str, ...] = setting(())

    @property
    def num_classes(self) -> int:
        """K, 0 for a model without classes."""
        return len(self.classes)

    def told(self, labels: Tensor) -> dict[str, Tensor]:
        """The keywords for a network: labels (B,) where -1, an unlabelled sample, becomes K.

        Empty for a model without classes.
        """
        if not self.classes:
            return {}
        return {"label": labels.where(labels >= 0, self.num_classes)}
