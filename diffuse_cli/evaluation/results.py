"""What an evaluation found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse_cli.config import EvalConfig
from diffuse_cli.config.options import place_name
from diffuse_cli.evaluation.showing import Shown
from diffuse_cli.metrics import Remark, Words

PLACES = ("subject", "data", "plot", "pairs", "report", "out")
"""Entries of the numbers of `eval` and `tune` that are paths of this machine."""


def published(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The object that `--json` prints as others may read it: places by their names alone."""
    named = {k: place_name(v) for k, v in numbers.items() if k in PLACES and isinstance(v, str)}
    swept = {k: published(v) for k, v in numbers.items() if k == "sweep"}
    return {**numbers, **named, **swept}


@dataclass(frozen=True)
class Evaluated:
    """The numbers of an evaluation, and what is needed to compare them with others.

    Attributes:
        values: the metrics' numbers by key.
        classes: the same for each class on both sides, with its counts.
        terms: the bound by timestep, of a model.
        details: what else the metrics found, by their names.
        real, generated: how many images on each side.
        part: which of the real images: `held-out` or `all`.
        features: the feature network, see `FeatureNetwork.described`.
        settings: how a model's images were drawn and its bound was taken.
        fingerprints: of DATA, and of a folder that is measured.
        made_with: versions and the machine.
        plot, pairs, report: paths of the plot of the terms, of the page of nearest training images
            and of the report; None if not asked for.
        words: what is said of the samples.
    """

    values: dict[str, float]
    classes: dict[str, dict[str, float]]
    terms: list[dict[str, Any]]
    details: dict[str, Any]
    real: int
    generated: int
    part: str
    features: dict[str, str]
    settings: dict[str, Any]
    seconds: float
    model: dict[str, Any]
    fingerprints: dict[str, str]
    made_with: dict[str, str]
    plot: Path | None
    pairs: Path | None
    report: Path | None
    remarks: list[Remark]
    words: Words
    shown: Shown | None

    def to_json(self, config: EvalConfig) -> dict[str, object]:
        """The numbers, and all that is needed to compare them with others."""
        values = dataclasses.asdict(dataclasses.replace(self, shown=None, remarks=[]))
        del values["shown"], values["words"]
        values["remarks"] = [str(remark) for remark in self.remarks if remark.warns]
        numbers = values.pop("values")
        counts = {"real": values.pop("real"), "generated": values.pop("generated")}
        for name in ("plot", "pairs", "report"):
            values[name] = str(values[name]) if values[name] else None
        return {"subject": config.subject, "data": config.data, "n": counts, **numbers, **values}
