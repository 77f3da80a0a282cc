"""What a model can be told about a sample."""

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
        classes: names; a label is an index into them, and K = len(classes) means "no class".
    """

    classes: tuple[str, ...] = setting(())

    @property
    def num_classes(self) -> int:
        """K, 0 for a model without classes."""
        return len(self.classes)

    def told(self, labels: Tensor) -> dict[str, Tensor]:
        """Keywords for the network: labels (B,), with K for -1; none for a model without
        classes."""
        if not self.classes:
            return {}
        return {"label": labels.where(labels >= 0, self.num_classes)}
